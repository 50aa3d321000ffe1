"""fuse_scales_cross_entropy against F.cross_entropy of the fused logits in float64."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hmsa_ext
from hmsa_ext.ops import cross_entropy_sum, reference

from .agreement import check_cross_entropy, relative
from .problems import CHANNELS_LAST, CONTIGUOUS, Problem, make_problem, make_target, random_problem

op = torch.ops.hmsa.fuse_scales_cross_entropy
HALF = (torch.float16, torch.bfloat16)
REDUCTIONS = ("mean", "sum", "none")
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
SETS_OF_SCALES = ([1.0], [1.0, 0.5], [2.0, 1.0, 0.5], [2.0, 1.5, 1.0, 0.5], [0.5], [1.7])
# What is asked of float32: the value to 1e-6 and gradients to 1e-5, against float64.
FLOAT32 = (1e-6, 1e-5)
# Sums of some thousand terms in another order.
FLOAT64 = (1e-12, 1e-10)


def random_options(seed: int, classes: int, device) -> dict:
    rng = random.Random(seed)
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(seed)) + 0.1
    return {
        "weight": weight.to(device) if rng.random() < 0.5 else None,
        "label_smoothing": rng.choice([0.0, 0.0, 0.1, 1.0]),
        "reduction": rng.choice(REDUCTIONS),
        "ignore_index": rng.choice([255, 255, 254, 0]),
    }


def check_random(device, seed: int, dtype: torch.dtype, tolerances: tuple[float, float]) -> None:
    problem = random_problem(seed, dtype=dtype, device=device)
    options = random_options(seed, problem.logits[0].shape[1], device)
    label_type = LABELS[seed % len(LABELS)]
    target = make_target(problem, dtype=label_type, ignore_index=options["ignore_index"], seed=seed)
    # one pixel that counts, with a weight that does: a mean over nothing has no value
    target[0, 0, 0] = problem.logits[0].shape[1] - 1 if options["ignore_index"] == 0 else 0
    if options["ignore_index"] == 0 and problem.logits[0].shape[1] == 1:
        options["ignore_index"] = 255
    check_cross_entropy(problem, target, *tolerances, **options)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_value_and_gradients_match_pytorch_in_float64(device, seed):
    check_random(device, seed, torch.float64, FLOAT64)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_value_and_gradients_match_pytorch_in_float32(device, seed):
    check_random(device, seed, torch.float32, FLOAT32)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("scales", SETS_OF_SCALES)
def test_half_precision_computes_in_float32(device, dtype, memory_format, scales):
    problem = make_problem(scales, (41, 63), dtype=dtype, memory_format=memory_format, device=device)
    # The value as in float32; each gradient is rounded once: half a unit in the last place.
    for reduction in ("mean", "none"):
        check_cross_entropy(problem, make_target(problem), 1e-6, torch.finfo(dtype).eps, reduction=reduction)


@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize("scales", SETS_OF_SCALES)
def test_head_strides_and_class_wise_attention(device, scales, stride, class_wise):
    problem = make_problem(scales, (37, 54), stride=stride, class_wise=class_wise, device=device)
    check_cross_entropy(problem, make_target(problem), *FLOAT32)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", LABELS)
def test_labels_of_any_type_with_every_option(device, dtype, weighted, label_smoothing, reduction):
    problem = make_problem([1.0, 0.5], (29, 50), classes=7, device=device)
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    if weighted:
        options["weight"] = torch.linspace(0.0, 3.0, 7, device=device)
    check_cross_entropy(problem, make_target(problem, dtype=dtype), *FLOAT32, **options)


@pytest.mark.parametrize("ignore_index", [-100, -1, 2, 300])
def test_any_label_can_be_the_ignored_one(device, ignore_index):
    problem = make_problem([1.0, 0.5], (29, 50), device=device)
    target = make_target(problem, dtype=torch.int16, ignore_index=ignore_index)
    check_cross_entropy(problem, target, *FLOAT32, ignore_index=ignore_index)


def test_an_ignored_label_that_the_type_cannot_hold_ignores_nothing(device):
    problem = make_problem([1.0], (29, 50), device=device)
    check_cross_entropy(problem, make_target(problem, ignored=0.0), *FLOAT32, ignore_index=-100)


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 16, 19, 65, 150, 300])
@pytest.mark.parametrize("scales", [[1.0], [2.0, 1.0, 0.5]])
def test_numbers_of_classes(device, scales, classes):
    problem = make_problem(scales, (21, 45), classes=classes, batch=1, device=device)
    target = make_target(problem, dtype=torch.int16, ignore_index=-1)
    check_cross_entropy(problem, target, *FLOAT32, ignore_index=-1)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (2, 17), (33, 7), (64, 64)])
@pytest.mark.parametrize("head", [(1, 1), (2, 3), (5, 1)])
def test_small_maps(device, size, head):
    problem = make_problem([1.0], size, head_sizes=[head], batch=3, device=device)
    check_cross_entropy(problem, make_target(problem, ignored=0.0), *FLOAT32)


def test_several_tiles_in_both_directions(device):
    problem = make_problem([1.0, 0.5], (197, 1111), classes=3, batch=2, device=device)
    check_cross_entropy(problem, make_target(problem), *FLOAT32)


def test_published_value(device):
    n, c, y, x = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (2, 5, 32, 48)), indexing="ij")
    logits = (2 * torch.sin(0.1 * (n + 1) * (c + 1) * y + 0.07 * x)).float().to(device)
    n, y, x = (t[:, 0].long() for t in (n, y, x))
    target = (y // 8 + x // 12 + n) % 5
    target[(x + y) % 17 == 0] = 255
    assert op([logits], [], [1.0], target.to(device)).item() == pytest.approx(2.3513505, rel=1e-6)


@pytest.mark.parametrize("scales", [[1.0, 0.5], [2.0, 1.0, 0.5]])
def test_gradcheck(device, scales):
    problem = make_problem(scales, (9, 11), classes=3, batch=1, dtype=torch.float64, device=device)
    target = make_target(problem)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, device=device)
    count = len(scales)
    for reduction in REDUCTIONS:

        def loss(*inputs, reduction=reduction):
            return op(
                list(inputs[:count]), list(inputs[count:]), scales, target,
                weight=weight, label_smoothing=0.2, reduction=reduction,
            )  # fmt: skip

        assert torch.autograd.gradcheck(loss, problem.inputs(), fast_mode=reduction == "none")


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_every_instruction_set_is_right(level):
    # The choice is made once per process, so each one gets its own.
    code = (
        "import torch; from python_tests.ops.problems import make_problem, make_target\n"
        "from python_tests.ops.agreement import check_cross_entropy, check_prediction\n"
        "p = make_problem([2.0, 1.0, 0.5], (45, 77), classes=9); t = make_target(p)\n"
        "for r in ('mean', 'none'): check_cross_entropy(p, t, 1e-6, 1e-5, reduction=r, label_smoothing=0.1)\n"
        "labels, confidence = torch.ops.hmsa.fuse_scales_argmax(*p.args())\n"
        "check_prediction(labels, confidence, p.to(torch.float64).reference(), 1e-6)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HMSA_SIMD": level},
        capture_output=True,
        text=True,
    )
    if f"this processor has no x86-64-{level}" in result.stderr:
        pytest.skip(f"this processor has no x86-64-{level}")
    assert result.returncode == 0, result.stderr


# ---- what is at the edge ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_but_ignored_pixels_gives_what_pytorch_gives(device, reduction, weighted):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    target = torch.full((2, 24, 32), 255, dtype=torch.uint8, device=device)
    weight = torch.ones(5, device=device) if weighted else None
    loss = op(*problem.args()[:3], target, weight=weight, reduction=reduction)
    expected = F.cross_entropy(problem.reference(), target.long(), weight, ignore_index=255, reduction=reduction)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    for gradient in torch.autograd.grad(loss, problem.inputs(), torch.ones_like(loss)):
        assert not gradient.any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch_gives_what_pytorch_gives(device, reduction):
    problem = make_problem([1.0, 0.5], (16, 24), batch=0, device=device)
    target = torch.zeros(0, 16, 24, dtype=torch.int64, device=device)
    loss = op(*problem.args()[:3], target, reduction=reduction)
    expected = F.cross_entropy(torch.zeros(0, 5, 16, 24, device=device), target, reduction=reduction)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    gradients = torch.autograd.grad(loss, problem.inputs(), torch.ones_like(loss))
    assert [g.shape for g in gradients] == [t.shape for t in problem.inputs()]


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_large_logits_do_not_overflow(device, size):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    problem.logits = [(size * z.detach()).requires_grad_() for z in problem.logits]
    # Where logits are large, so is the rounding of the chain before the softmax: some 1e-7 of them.
    check_cross_entropy(problem, make_target(problem), 1e-6, 1e-5 if size < 1e3 else 1.0, reduction="mean")


def test_a_small_loss_is_not_lost_beside_large_logits(device):
    """log(1 + exp(-16)) beside a logit of 16 is below its rounding; the sum over the other classes is not."""
    logits = torch.zeros(1, 3, 4, 4, device=device)
    logits[:, 1] = 12.0
    loss = op([logits], [], [1.0], torch.ones(1, 16, 16, dtype=torch.uint8, device=device))
    expected = math.log1p(2 * math.exp(-12.0))
    assert loss.item() == pytest.approx(F.cross_entropy(logits, torch.ones(1, 4, 4).long().to(device)).item(), rel=1e-2)
    assert loss.item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("scales", [[1.0], [1.0, 0.5], [2.0, 1.0, 0.5]])
def test_nan_and_inf_in_the_logits_go_where_they_go_in_pytorch(device, scales, reduction, value):
    problem = make_problem(scales, (24, 32), classes=4, device=device)
    target = make_target(problem)
    with torch.no_grad():
        for i, logits in enumerate(problem.logits):
            logits[0, i % 3, 1, logits.shape[3] // 2] = value
        problem.logits[0][1, :, 0, 0] = value  # every class of a corner
    loss = op(*problem.args()[:3], target, reduction=reduction)
    expected = reference.fuse_scales_cross_entropy(*problem.args()[:3], target, reduction=reduction)
    assert torch.equal(loss.isnan(), expected.isnan())
    assert torch.equal(loss.isposinf(), expected.isposinf())
    finite = expected.isfinite()
    torch.testing.assert_close(loss[finite], expected[finite], rtol=1e-4, atol=1e-4)


def test_nan_in_the_logits_reaches_the_gradient_of_all_that_made_the_pixel(device):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    with torch.no_grad():
        problem.logits[0][0, 1, 2, 3] = math.nan
    target = make_target(problem, ignored=0.0)
    gradients = torch.autograd.grad(op(*problem.args()[:3], target), problem.inputs())
    assert gradients[0][0, :, 2, 3].isnan().all()  # the softmax spreads it to every class
    assert not any(g[1].isnan().any() for g in gradients)  # and not to the other image


def test_nan_below_an_ignored_pixel_does_not_reach_the_loss(device):
    logits = torch.randn(1, 3, 8, 8, device=device)
    logits[0, :, 0, 0] = math.nan
    target = torch.zeros(1, 8, 8, dtype=torch.uint8, device=device)
    target[0, 0, 0] = 255
    assert op([logits], [], [1.0], target).isfinite()


def test_infinite_upstream_gradient_stays_at_its_pixel(device):
    problem = Problem([torch.randn(1, 3, 6, 8, device=device, requires_grad=True)], [], [1.0], (6, 8))
    target = make_target(problem, ignored=0.0)
    loss = op(*problem.args()[:3], target, reduction="none")
    grad = torch.ones_like(loss)
    grad[0, 2, 3] = math.inf
    (gradient,) = torch.autograd.grad(loss, problem.logits, grad)
    assert not gradient[0, :, 2, 3].isfinite().any()
    assert gradient.isfinite().all(1).sum() == 6 * 8 - 1


# ---- labels that are no class -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("dtype", "wrong"), [(torch.uint8, 7), (torch.int16, -3), (torch.int32, 5), (torch.int64, 1 << 40)]
)
def test_a_wrong_label_is_loud(device, dtype, wrong, reduction):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    target = make_target(problem, dtype=dtype)
    target[1, 3, 4:6] = wrong
    if device.type == "cpu":
        message = rf"target has labels that are no class in 2 pixels, from {wrong} to {wrong}; expected 0 to 4, or 255"
        with pytest.raises(RuntimeError, match=message):
            op(*problem.args()[:3], target, reduction=reduction)
        return
    loss = op(*problem.args()[:3], target, reduction=reduction)
    gradients = torch.autograd.grad(loss.sum(), problem.inputs())
    assert gradients[0][1].isnan().any()
    assert not gradients[0][0].isnan().any()
    if reduction == "none":
        assert loss[1, 3, 4:6].isnan().all()
        assert loss.isnan().sum() == 2
    else:
        assert loss.isnan()


# ---- the public functions ---------------------------------------------------------------------------------------


def test_public_function_takes_scales_in_any_order(device):
    problem = make_problem([2.0, 1.0, 0.5], (24, 36), device=device)
    target = make_target(problem)
    two, one, half = problem.logits
    of_one, of_half = problem.attention
    expected = op(*problem.args()[:3], target, label_smoothing=0.1)
    arguments = ([half, two, one], [of_half, of_one], [0.5, 2.0, 1.0], target)
    assert torch.equal(hmsa_ext.fuse_scales_cross_entropy(*arguments, label_smoothing=0.1), expected)
    total, weight = cross_entropy_sum(*arguments, label_smoothing=0.1)
    torch.testing.assert_close(total / weight, expected)
    assert weight.item() == (target != 255).sum().item()


@pytest.mark.parametrize("align_corners", [False, True])
def test_one_scale_replaces_interpolate_and_cross_entropy(device, align_corners):
    logits = torch.randn(2, 7, 13, 17, device=device, requires_grad=True)
    target = torch.randint(0, 7, (2, 51, 66), device=device)
    target[:, 3:7] = -100
    weight = torch.rand(7, device=device)
    options = {"weight": weight, "ignore_index": -100, "label_smoothing": 0.05}
    loss = hmsa_ext.upsample_cross_entropy(logits, target, align_corners=align_corners, **options)
    large = F.interpolate(logits, (51, 66), mode="bilinear", align_corners=align_corners)
    expected = F.cross_entropy(large, target, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (loss, expected)))


def test_weights_of_any_floating_type_are_taken(device):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    target = make_target(problem)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.25, 4.0], device=device)
    expected = op(*problem.args()[:3], target, weight=weight)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(op(*problem.args()[:3], target, weight=weight.to(dtype)), expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_total_weight_of_the_sum(device, weighted):
    problem = make_problem([1.0], (24, 32), device=device)
    target = make_target(problem, dtype=torch.int64)
    weight = torch.rand(5, device=device) if weighted else None
    total, total_weight = cross_entropy_sum(*problem.args()[:3], target, weight=weight)
    valid = target[target != 255]
    expected = torch.tensor(float(valid.numel()), device=device) if weight is None else weight.double()[valid].sum()
    assert relative(total_weight, expected.double()) < 1e-6
    assert not total_weight.requires_grad
    assert total.requires_grad
