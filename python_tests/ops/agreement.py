"""Holding the fusion against plain PyTorch in float64."""

from __future__ import annotations

import torch

from .problems import Problem


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error over the largest value."""
    if expected.numel() == 0:
        return 0.0
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def check_against_reference(problem: Problem, tolerance: float) -> None:
    truth = problem.to(torch.float64)
    fused, expected = problem.fuse(), truth.reference()
    assert fused.shape == expected.shape
    assert fused.dtype == problem.logits[0].dtype
    assert relative(fused, expected) < tolerance
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=generator).to(fused)
    ours = torch.autograd.grad(fused, problem.inputs(), grad)
    theirs = torch.autograd.grad(expected, truth.inputs(), grad.double())
    for got, want, tensor in zip(ours, theirs, problem.inputs(), strict=True):
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        # a gradient that cancels to almost nothing is compared with the size of what was summed
        scale = max(want.abs().max().item(), 1e-2)
        assert (got.double() - want).abs().max().item() < tolerance * scale
