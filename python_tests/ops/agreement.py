"""Holding the ops against plain PyTorch in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from hmsa_ext.ops import reference

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
    check_gradients(problem.inputs(), ours, theirs, tolerance)


def check_cross_entropy(
    problem: Problem,
    target: Tensor,
    value_tolerance: float,
    gradient_tolerance: float,
    function=torch.ops.hmsa.fuse_scales_cross_entropy,
    **options,
) -> None:
    """Value and gradients, for the reduction in ``options``; gradients relative to the largest of their map."""
    truth = problem.to(torch.float64)
    options["align_corners"] = problem.align_corners
    loss = function(*problem.args()[:3], target, **options)
    expected = reference.fuse_scales_cross_entropy(*truth.args()[:3], target, **options)
    assert loss.shape == expected.shape
    assert loss.dtype == (torch.float64 if problem.logits[0].dtype == torch.float64 else torch.float32)
    assert relative(loss, expected) < value_tolerance
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(loss)
    ours = torch.autograd.grad(loss, problem.inputs(), grad)
    theirs = torch.autograd.grad(expected, truth.inputs(), grad.double())
    # What a pixel adds, before softmax and one-hot label cancel.
    each = grad.abs().max().item() / (target.numel() if options.get("reduction", "mean") == "mean" else 1)
    check_gradients(problem.inputs(), ours, theirs, gradient_tolerance, smallest=0.1 * each)


def check_gradients(inputs, ours, theirs, tolerance: float, smallest: float = 1e-2) -> None:
    """A gradient that cancels to almost nothing is compared with the size of what was summed, ``smallest``."""
    for got, want, tensor in zip(ours, theirs, inputs, strict=True):
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        if want.numel():
            scale = max(want.abs().max().item(), smallest)
            assert (got.double() - want).abs().max().item() <= tolerance * scale


def check_prediction(labels: Tensor, confidence: Tensor, fused: Tensor, tolerance: float) -> None:
    """``fused``: the logits in float64. Any class that is as good as the best one may have won."""
    assert labels.dtype == (torch.uint8 if fused.shape[1] <= 256 else torch.int32)
    chosen = fused.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    best = fused.amax(1)
    assert labels.shape == confidence.shape == best.shape
    assert (chosen >= best - tolerance * fused.abs().max()).all()
    probability = fused.softmax(1).amax(1)
    assert ((confidence.double() - probability).abs() <= 2 * tolerance * fused.abs().max().clamp_min(1)).all()
