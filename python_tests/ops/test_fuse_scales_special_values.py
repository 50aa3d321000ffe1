"""fuse_scales: NaN and inf go where they go in PyTorch; half precision is float32 arithmetic, rounded once."""

from __future__ import annotations

import math

import pytest
import torch

from hmsa_ext.ops import reference

from .problems import CHANNELS_LAST, CONTIGUOUS, Problem, make_problem

op = torch.ops.hmsa.fuse_scales
HALF = (torch.float16, torch.bfloat16)


# ---- NaN and inf ------------------------------------------------------------------------------------------------

# scales, and how large the heads are beside their grids (rows, columns): an equal size in both axes is a copy in
# PyTorch, an equal size in one is an interpolation with weights of zero, and zero times inf is NaN.
GEOMETRIES = {
    "heads at stride 4": ([1.0, 0.5], (4, 4)),
    "heads of the grid's size": ([1.0, 0.5], (1, 1)),
    "heads as high as the grid": ([1.0, 0.5], (1, 4)),
    "heads as wide as the grid": ([1.0, 0.5], (4, 1)),
    "up and down": ([2.0, 1.0, 0.5], (4, 4)),
    "up and down, heads of the grid's size": ([2.0, 1.0, 0.5], (1, 1)),
    "two above": ([2.0, 1.5, 1.0], (4, 4)),
    "one scale": ([1.0], (4, 4)),
    "one scale, head of the output's size": ([1.0], (1, 1)),
    "one scale, as high as the output": ([1.0], (1, 4)),
    "one scale, two resizes": ([0.5], (4, 4)),
    "one scale, head of its grid's size": ([0.5], (1, 1)),
    "one scale above": ([2.0], (4, 4)),
    "one scale above, head of its grid's size": ([2.0], (1, 1)),
}


def _problem(geometry: str, device, **options) -> Problem:
    scales, (down, across) = GEOMETRIES[geometry]
    size = (24, 32)
    grids = [reference.grid_size(size, scale) for scale in scales]
    heads = [(-(-height // down), -(-width // across)) for height, width in grids]
    return make_problem(scales, size, batch=1, classes=3, head_sizes=heads, device=device, **options)


def _assert_same_kinds(got: torch.Tensor, want: torch.Tensor) -> None:
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isposinf(), want.isposinf())
    assert torch.equal(got.isneginf(), want.isneginf())
    # PyTorch works positions out in float32: off by some 1e-5 of the way between two elements.
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_nan_and_inf_pass_through_as_in_pytorch(device, geometry, value, align_corners, memory_format):
    problem = _problem(geometry, device, align_corners=align_corners, memory_format=memory_format)
    with torch.no_grad():
        for i, logits in enumerate(problem.logits):  # in the middle, at a corner, at the other corner
            logits[0, i % 3, 1, logits.shape[3] // 2] = value
        problem.logits[0][0, 1, 0, 0] = value
        problem.logits[-1][0, 2, -1, -1] = value
    _assert_same_kinds(problem.fuse(), problem.reference())


@pytest.mark.parametrize("geometry", ["heads at stride 4", "heads of the grid's size", "up and down", "two above"])
def test_nan_in_the_attention_passes_through_as_in_pytorch(device, geometry):
    problem = _problem(geometry, device)
    with torch.no_grad():
        for attention in problem.attention:
            attention[0, 0, 1, 1] = math.nan
    _assert_same_kinds(problem.fuse(), problem.reference())


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_nan_in_the_upstream_gradient_reaches_every_input_that_made_the_pixel(device, geometry):
    """PyTorch's adjoint also spreads NaN to neighbours whose weight is zero; ours may or may not."""
    problem = _problem(geometry, device)
    grad = torch.ones(1, 3, 24, 32, device=device)
    grad[0, 1, 10, 13] = math.nan
    gradients = torch.autograd.grad(problem.fuse(), problem.inputs(), grad)
    # Which inputs made the pixel: those that a gradient there reaches.
    only = torch.zeros_like(grad)
    only[0, 1, 10, 13] = 1
    reached = torch.autograd.grad(problem.reference(), problem.inputs(), only)
    spread = torch.autograd.grad(problem.reference(), problem.inputs(), grad)
    for got, touched, most in zip(gradients, reached, spread, strict=True):
        assert got.isnan()[touched != 0].all()
        assert not got.isnan()[~most.isnan()].any()


# ---- half precision ---------------------------------------------------------------------------------------------


def _extremes(shape, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """The largest and smallest numbers, subnormals, zeros of both signs, and ordinary numbers, at random."""
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps
    kinds = [info.max, -info.max, info.tiny, -info.tiny, smallest, -smallest, 0.0, -0.0, 1.0, -3.3, info.max / 2]
    generator = torch.Generator().manual_seed(seed)
    choice = torch.randint(len(kinds), shape, generator=generator)
    return torch.tensor(kinds, dtype=torch.float64)[choice].to(dtype)


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scales", [[1.0, 0.5], [2.0, 1.0, 0.5], [0.5], [2.0, 1.5, 1.0, 0.75, 0.5, 0.25]])
def test_half_precision_is_float32_rounded_once(device, scales, dtype, class_wise, memory_format):
    options = {"class_wise": class_wise, "memory_format": memory_format, "device": device}
    half = make_problem(scales, (41, 63), dtype=dtype, **options)
    full = half.to(torch.float32)
    _assert_rounded_once(half, full, torch.randn(2, 5, 41, 63, generator=torch.Generator().manual_seed(1)).to(dtype))


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scales", [[1.0, 0.5], [2.0, 1.0, 0.5], [1.0]])
def test_half_precision_at_extreme_values(device, scales, dtype, memory_format):
    half = make_problem(scales, (41, 63), dtype=dtype, memory_format=memory_format, device=device)
    with torch.no_grad():
        for i, logits in enumerate(half.logits):
            logits.copy_(_extremes(logits.shape, dtype, i))
        for i, attention in enumerate(half.attention):
            # Up to 2, which no network's attention is: makes results overflow.
            attention.copy_(2 * torch.rand(attention.shape, generator=torch.Generator().manual_seed(i)))
    full = half.to(torch.float32)
    if len(scales) > 1 and dtype == torch.float16:
        assert half.fuse().isinf().any()
    _assert_rounded_once(half, full, _extremes((2, 5, 41, 63), dtype, 9))


def _assert_rounded_once(half: Problem, full: Problem, grad: torch.Tensor) -> None:
    """Forward and backward: the bits of the same arithmetic on float32 copies, cast, overflow to inf included."""
    grad = grad.to(half.logits[0].device)
    fused, expected = half.fuse(), full.fuse()
    torch.testing.assert_close(fused, expected.to(fused.dtype), rtol=0, atol=0, equal_nan=True)
    ours = torch.autograd.grad(fused, half.inputs(), grad)
    theirs = torch.autograd.grad(expected, full.inputs(), grad.float())
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=0, atol=0, equal_nan=True)


def test_subnormals_of_float16_survive(device):
    """They are normal numbers of float32, so nothing flushes them to zero."""
    smallest = 2.0**-24
    logits = [torch.full((1, 2, 6, 8), smallest, dtype=torch.float16, device=device, requires_grad=True)]
    fused = op(logits, [], [1.0], (24, 32))
    assert (fused == smallest).all()
    (gradient,) = torch.autograd.grad(fused, logits, torch.full_like(fused, smallest))
    assert (gradient >= smallest).all()
