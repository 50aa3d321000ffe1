"""The ways to fuse scales that are held against each other, and the memory floor under all of them."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases import Case
from hmsa_ext.ops import reference

Fuse = Callable[..., Tensor]
# "floor" is no competitor: what moving the result costs, and nothing else.
NAMES = ("eager", "compile", "hmsa")


def fused(logits, attention, scales, size) -> Tensor:
    return torch.ops.hmsa.fuse_scales(logits, attention, scales, size)


def eager(logits, attention, scales, size) -> Tensor:
    return reference.fuse_scales(logits, attention, scales, size)


def build(name: str) -> Fuse:
    """``eager``, ``compile`` (Inductor, as it comes) or ``hmsa``."""
    if name == "compile":
        torch._dynamo.reset()  # a second shape in one process would otherwise be compiled for shapes that change
        return torch.compile(eager, fullgraph=True)
    return {"eager": eager, "hmsa": fused}[name]


def make_inputs(case: Case, device: torch.device | str = "cpu") -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Logits and attention with gradients wanted, and the gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device, case.torch_dtype).contiguous(memory_format=memory_format)

    logits, attention = [], []
    for i, scale in enumerate(case.scales):
        head = [-(-side // case.stride) for side in reference.grid_size(case.size, scale)]
        logits.append(place(torch.randn(case.batch, case.classes, *head, generator=generator)).requires_grad_())
        if i > 0:
            channels = case.classes if case.class_wise else 1
            attention.append(place(torch.rand(case.batch, channels, *head, generator=generator)).requires_grad_())
    return logits, attention, place(torch.randn(case.output_shape, generator=generator))


def runner(fuse: Fuse, case: Case, direction: str, logits, attention, grad) -> Callable[[], None]:
    """One call as a user makes it, its results freed at the end."""
    inputs, scales, size = [*logits, *attention], list(case.scales), list(case.size)

    def forward():
        with torch.no_grad():
            fuse(logits, attention, scales, size)

    def forward_backward():
        torch.autograd.grad(fuse(logits, attention, scales, size), inputs, grad)

    return forward if direction == "forward" else forward_backward


def floor(case: Case, direction: str, memory: str, device: torch.device | str = "cpu") -> Callable[[], None]:
    """Forward: one copy of the output into warm memory; cold: the first touch of a fresh output, in huge pages where
    the system has them. Backward adds one read of a gradient of that size."""
    # Moved as float32 whatever the dtype: the bytes count, not PyTorch's arithmetic in half precision.
    count = -(-case.output_bytes // 4)
    source = torch.rand(count, device=device)
    output = torch.zeros_like(source) if memory == "warm" else None

    def forward():
        if output is not None:
            output.copy_(source)
            return
        # Private: huge pages of shared memory are another setting of the system, and mostly off.
        fresh = mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            fresh.madvise(mmap.MADV_HUGEPAGE)
        torch.frombuffer(fresh, dtype=torch.float32).fill_(1.0)

    def forward_backward():
        forward()
        source.sum()

    return forward if direction == "forward" else forward_backward
