"""The ways to fuse scales that are held against each other: plain PyTorch, torch.compile and the fused op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hmsa_ext.ops import reference

Fuse = Callable[..., Tensor]


def fused(logits, attention, scales, size) -> Tensor:
    return torch.ops.hmsa.fuse_scales(logits, attention, scales, size)


def eager(logits, attention, scales, size) -> Tensor:
    return reference.fuse_scales(logits, attention, scales, size)


def build(name: str) -> Fuse:
    """``eager``, ``compile`` (Inductor) or ``hmsa``."""
    torch._dynamo.reset()
    if name == "compile":
        return torch.compile(eager, fullgraph=True)
    return {"eager": eager, "hmsa": fused}[name]


def make_inputs(
    scales: list[float],
    size: tuple[int, int],
    classes: int,
    *,
    batch: int = 1,
    stride: int = 4,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    device: torch.device | str = "cpu",
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and attention of heads at ``stride``, with gradients wanted."""
    generator = torch.Generator().manual_seed(0)
    logits, attention = [], []
    for i, scale in enumerate(scales):
        head = [-(-side // stride) for side in reference.grid_size(size, scale)]
        logits.append(torch.randn(batch, classes, *head, generator=generator))
        if i > 0:
            attention.append(torch.rand(batch, 1, *head, generator=generator))

    def place(tensors):
        return [t.to(device, dtype).contiguous(memory_format=memory_format).requires_grad_() for t in tensors]

    return place(logits), place(attention)
