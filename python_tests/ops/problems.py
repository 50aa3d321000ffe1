"""Random problems for the fusion ops: shapes that a user would give, and shapes that nobody would."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hmsa_ext.ops import reference

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@dataclass
class Problem:
    logits: list[Tensor]
    attention: list[Tensor]
    scales: list[float]
    size: tuple[int, int]
    align_corners: bool = False

    def args(self) -> tuple[list[Tensor], list[Tensor], list[float], tuple[int, int]]:
        return self.logits, self.attention, self.scales, self.size

    def inputs(self) -> list[Tensor]:
        return [*self.logits, *self.attention]

    def to(self, dtype: torch.dtype) -> Problem:
        """Detached copies in another dtype, of the same memory format, that require gradients."""

        def convert(tensors):
            return [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]

        return Problem(convert(self.logits), convert(self.attention), self.scales, self.size, self.align_corners)

    def fuse(self, function: Callable[..., Tensor] = torch.ops.hmsa.fuse_scales) -> Tensor:
        return function(*self.args(), align_corners=self.align_corners)

    def reference(self) -> Tensor:
        return self.fuse(reference.fuse_scales)


def make_problem(
    scales: list[float],
    size: tuple[int, int],
    *,
    classes: int = 5,
    batch: int = 2,
    class_wise: bool = False,
    stride: int = 4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = CONTIGUOUS,
    align_corners: bool = False,
    head_sizes: list[tuple[int, int]] | None = None,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    logits, attention = [], []
    for i, scale in enumerate(scales):
        grid = reference.grid_size(size, scale)
        head = head_sizes[i] if head_sizes else tuple(-(-side // stride) for side in grid)
        z = 2 * torch.randn(batch, classes, *head, dtype=torch.float64, generator=generator)
        a = torch.rand(batch, classes if class_wise else 1, *head, dtype=torch.float64, generator=generator)
        logits.append(z)
        if i > 0:
            attention.append(a)

    def place(tensors):
        return [t.to(device, dtype).contiguous(memory_format=memory_format).requires_grad_() for t in tensors]

    return Problem(place(logits), place(attention), list(scales), size, align_corners)


def make_target(
    problem: Problem, *, dtype: torch.dtype = torch.uint8, ignore_index: int = 255, ignored: float = 0.2, seed: int = 0
) -> Tensor:
    """Labels of all classes, some of them ignored, on the problem's device."""
    generator = torch.Generator().manual_seed(seed)
    batch, classes = problem.logits[0].shape[:2]
    target = torch.randint(0, classes, (batch, *problem.size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = ignore_index
    return target.to(problem.logits[0].device, dtype)


def random_problem(seed: int, **options) -> Problem:
    """1 to 5 scales up and down, odd sizes, heads at stride 1, 4 or 8 and now and then of any size at all."""
    rng = random.Random(seed)
    count = rng.randint(1, 5)
    if count == 1:
        scales = [rng.choice([0.5, 1.0, 2.0, 1.7])]
    else:
        others = rng.sample([0.25, 0.4, 0.5, 0.75, 1.3, 1.5, 2.0, 3.0], count - 1)
        scales = sorted([1.0, *others], reverse=True)
    size = (rng.randint(4, 80), rng.randint(4, 120))
    stride = rng.choice([1, 4, 8])
    heads = []
    for scale in scales:
        grid = reference.grid_size(size, scale)
        odd = rng.random() < 0.1
        heads.append(tuple(rng.randint(1, 2 * side) if odd else -(-side // stride) for side in grid))
    return make_problem(
        scales,
        size,
        classes=rng.randint(1, 5),
        batch=rng.randint(1, 2),
        class_wise=rng.random() < 0.3,
        memory_format=rng.choice([CONTIGUOUS, CHANNELS_LAST]),
        align_corners=rng.random() < 0.25,
        head_sizes=heads,
        seed=seed,
        **options,
    )
