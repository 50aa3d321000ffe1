"""Labels alone, for which most classes are never fused, against the labels that come with a confidence: bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmsa_ext.ops import reference

from .problems import CHANNELS_LAST, CONTIGUOUS, Problem, make_problem

op = torch.ops.hmsa.fuse_scales_argmax
SIZE = (150, 330)
CHAINS = ([1.0], [1.0, 0.5], [2.0, 1.0, 0.5], [2.0, 1.5, 1.0, 0.5, 0.25], [0.5], [1.7])


def regions(scales: list[float], spread: float, *, classes: int = 19, margin: float = 6.0, **options) -> Problem:
    """Logits of a map of regions: one class leads in each by ``margin``, and all have noise of size ``spread``."""
    problem = make_problem(scales, options.pop("size", SIZE), classes=classes, **options)
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(problem.logits[0].shape[0], classes, 4, 7, generator=generator)
    leads = margin * F.one_hot(coarse.argmax(1), classes).permute(0, 3, 1, 2).double()
    problem.logits = [
        (F.interpolate(leads, z.shape[-2:]) + spread * torch.randn(z.shape, generator=generator))
        .to(z.device, z.dtype)
        .contiguous(memory_format=options.get("memory_format", CONTIGUOUS))
        for z in problem.logits
    ]
    problem.attention = [a.detach() for a in problem.attention]
    return problem


def check(problem: Problem, **options) -> Tensor:
    options["align_corners"] = problem.align_corners
    expected, _ = op(*problem.args(), **options)
    labels, _ = op(*problem.args(), confidence=False, **options)
    assert torch.equal(labels, expected)
    return labels


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 6.0])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("scales", CHAINS)
def test_labels_are_the_same_where_classes_fall(device, scales, views, spread):
    labels = check(regions(scales, spread, device=device), views=views)
    assert labels.unique().numel() > 2


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("align_corners", [False, True])
def test_labels_are_the_same_in_every_dtype_and_layout(device, align_corners, dtype, memory_format):
    options = {"dtype": dtype, "memory_format": memory_format, "align_corners": align_corners, "device": device}
    problem = regions([2.0, 1.0, 0.5], 1.0, **options)
    check(problem)
    check(problem, views=2)
    # The reference rounds in another order: where it differs, two classes are as good as equal.
    expected, _ = reference.fuse_scales_argmax(*problem.args(), align_corners=align_corners)
    assert (check(problem) == expected).float().mean() > 0.999


@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize("size", [(97, 231), (64, 256), (65, 257), (16, 64), (1, 700)])
def test_labels_are_the_same_at_any_size(device, size, stride):
    check(regions([2.0, 1.0], 1.0, size=size, stride=stride, device=device))


@pytest.mark.parametrize("ulps", [0, 1, 2, 40])
@pytest.mark.parametrize("value", [0.0, 1.0, 17.3, -3e4])
def test_ties_and_near_ties_are_kept(device, value, ulps):
    """Three classes that differ by some units in the last place, in either order, far above the others."""
    problem = regions([2.0, 1.0, 0.5], 0.0, device=device)
    generator = torch.Generator().manual_seed(1)
    for z in problem.logits:
        top = torch.full_like(z[:, 0], value)
        above = top
        for _ in range(ulps):
            above = above.nextafter(torch.full_like(top, math.inf))
        z.copy_(value - 10 - z.abs())
        z[:, 11] = top
        for c in (4, 7):
            z[:, c] = torch.where(torch.rand(top.shape, generator=generator).to(device) < 0.5, top, above)
    labels = check(problem)
    assert set(labels.unique().tolist()) <= {4, 7, 11}
    check(problem, views=2)


@pytest.mark.parametrize("size", [1e-37, 1e-41, 1e-44])
def test_numbers_too_small_for_relative_errors_are_kept(device, size):
    problem = regions([2.0, 1.0, 0.5], 1.0, device=device)
    for z in problem.logits:
        z *= size
    check(problem)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
def test_irregular_logits_are_not_skipped(device, value):
    problem = regions([2.0, 1.0, 0.5], 0.3, device=device)
    for k, z in enumerate(problem.logits):
        z[0, 5, z.shape[2] // 2, 3 * k + 2] = value
        z[1, 3 + k, 1, 1] = value
    check(problem)
    check(problem, views=2)
    for z in problem.logits:
        z[0, 2] = value
    check(problem)


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (-0.5, 1.5), (-3.0, -2.0), (math.nan, 0.5)])
def test_any_attention_will_do(device, values):
    """Outside [0, 1], where the fused logits are no means, no class falls."""
    problem = regions([2.0, 1.5, 1.0, 0.5], 1.0, device=device)
    generator = torch.Generator().manual_seed(2)
    for a in problem.attention:
        first = torch.rand(a.shape, generator=generator) < 0.5
        a.copy_(torch.where(first, values[0], values[1]))
    check(problem)
    check(problem, views=2)


def test_a_class_that_leads_nowhere_can_still_win(device):
    """Between two elements led by two classes, a third one that is second in both has the largest mean."""
    logits = torch.zeros(1, 3, 1, 2, device=device)
    logits[0, :, 0, 0] = torch.tensor([10.0, -10.0, 9.0])
    logits[0, :, 0, 1] = torch.tensor([-10.0, 10.0, 9.0])
    labels, _ = op([logits], [], [1.0], (16, 64), confidence=False)
    assert labels.unique().tolist() == [0, 1, 2]


def test_class_wise_attention_fuses_all_classes(device):
    check(regions([2.0, 1.0, 0.5], 1.0, classes=7, class_wise=True, device=device))


@pytest.mark.parametrize("classes", [1, 2, 3, 150, 300])
def test_labels_are_the_same_for_any_number_of_classes(device, classes):
    check(regions([1.0, 0.5], 0.5, classes=classes, size=(70, 130), device=device))
    check(make_problem([1.0, 0.5], (70, 130), classes=classes, device=device))


def test_same_labels_for_every_number_of_threads():
    problem, before = regions([2.0, 1.0, 0.5], 1.0), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(check(problem))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
