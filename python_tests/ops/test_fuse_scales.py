"""fuse_scales against plain PyTorch in float64, on every instruction set, and its public function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hmsa_ext
from hmsa_ext.ops import reference

from .agreement import check_against_reference, relative
from .problems import make_problem, random_problem

op = torch.ops.hmsa.fuse_scales
HALF = (torch.float16, torch.bfloat16)
SETS_OF_SCALES = ([1.0], [1.0, 0.5], [2.0, 1.0, 0.5], [2.0, 1.5, 1.0, 0.5], [2.0, 1.0, 0.5, 0.25], [0.5], [1.7])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_forward_and_backward_match_plain_pytorch_in_float64(device, seed):
    # 1e-11: sums of some hundred terms in another order
    check_against_reference(random_problem(seed, dtype=torch.float64, device=device), 1e-11)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_forward_and_backward_match_plain_pytorch_in_float32(device, seed):
    check_against_reference(random_problem(seed, device=device), 1e-5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scales", SETS_OF_SCALES)
def test_half_precision_is_rounded_once(device, dtype, scales):
    # Arithmetic is in float32, so only the rounding of the result remains: half a unit in the last place.
    check_against_reference(make_problem(scales, (41, 63), dtype=dtype, device=device), torch.finfo(dtype).eps)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize(("size", "classes"), [((8, 8), 2), ((24, 240), 25), ((104, 64), 5)])
@pytest.mark.parametrize("scales", [[1.0, 0.5], [2.0, 1.0], [2.0, 1.0, 0.5]])
def test_octaves(device, scales, size, classes, dtype, tolerance):
    # Resizes by two and four only, for which the GPU has kernels of their own.
    check_against_reference(make_problem(scales, size, classes=classes, dtype=dtype, device=device), tolerance)


@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize("scales", SETS_OF_SCALES)
def test_head_strides_and_class_wise_attention(device, scales, stride, class_wise):
    problem = make_problem(scales, (37, 54), stride=stride, class_wise=class_wise, dtype=torch.float64, device=device)
    check_against_reference(problem, 1e-11)


def published_inputs(scale: float, height: int, width: int):
    """The inputs of the golden values (system.md 2.3.8)."""
    rows, columns = reference.grid_size((height, width), scale)
    c = torch.arange(3, dtype=torch.float64).view(3, 1, 1)
    i = torch.arange(-(-rows // 4), dtype=torch.float64).view(1, -1, 1)
    j = torch.arange(-(-columns // 4), dtype=torch.float64).view(1, 1, -1)
    logits = torch.sin(0.5 * (c + 1) * i + 0.3 * j + 0.1 * rows)
    attention = torch.sigmoid(torch.cos(0.4 * i - 0.2 * j + 0.05 * columns))
    return logits[None], attention[None]


GOLDEN = [
    ((16, 24), [1.0, 0.5], 610.4238242184, 0.8033286416, 0.4673758899, 0.4612258023),
    ((16, 24), [2.0, 1.0, 0.5], 636.4651906280, 0.6710664488, 0.6442896329, 0.1922735468),
    ((16, 24), [2.0, 1.0, 0.5, 0.25], 607.0640803836, 0.4676638134, 0.5441171719, 0.5222267577),
    ((16, 24), [2.0, 1.5, 1.0, 0.5], 622.8756501399, 0.7109196924, 0.5742823929, 0.2288301278),
    ((16, 24), [1.0], -108.8872761344, 0.9995736030, -0.4467579632, 0.9679196720),
    ((17, 23), [2.0, 1.0, 0.5], 654.0707550085, 0.6505005592, 0.5822026130, 0.1738396432),
    ((17, 23), [2.0, 1.0, 0.5, 0.25], 619.5528231732, 0.4612413638, 0.5346119277, 0.5175979358),
]


@pytest.mark.parametrize(("size", "scales", "total", "first", "middle", "last"), GOLDEN)
def test_golden_values_of_the_published_network(device, size, scales, total, first, middle, last):
    inputs = [published_inputs(scale, *size) for scale in scales]
    fused = op([z.to(device) for z, _ in inputs], [a.to(device) for _, a in inputs[1:]], scales, size)
    assert fused.sum().item() == pytest.approx(total, abs=1e-9)
    got = [fused[0, 0, 0, 0].item(), fused[0, 1, 7, 11].item(), fused[0, 2, -1, -1].item()]
    assert got == pytest.approx([first, middle, last], abs=1e-10)


def test_gradcheck(device):
    for class_wise in (False, True):
        problem = make_problem(
            [2.0, 1.0, 0.5], (9, 11), classes=2, batch=1, class_wise=class_wise, dtype=torch.float64, device=device
        )

        def fuse(*inputs, count=3, problem=problem):
            return op(list(inputs[:count]), list(inputs[count:]), problem.scales, problem.size)

        assert torch.autograd.gradcheck(fuse, problem.inputs())


def test_one_scale_equals_interpolate(device):
    logits = torch.randn(2, 7, 13, 17, device=device)
    expected = torch.nn.functional.interpolate(logits.double(), (51, 66), mode="bilinear", align_corners=False)
    assert relative(op([logits], [], [1.0], (51, 66)), expected) < 1e-6


@pytest.mark.parametrize(("head", "width"), [(14, 16), (17, 20), (67, 72), (71, 80)])
def test_two_resizes_in_one_step_whose_taps_come_and_go(device, head, width):
    """With align_corners some outputs lie exactly on an input: they read fewer than their neighbours, so the last
    input that a stretch of outputs reads need not be that of its last output."""
    logits = torch.randn(1, 2, 9, head, device=device)
    expected = reference.fuse_scales([logits.double()], [], [0.5], (18, width), align_corners=True)
    assert relative(op([logits], [], [0.5], (18, width), align_corners=True), expected) < 1e-5


def test_output_larger_than_the_caches(device):
    problem = make_problem([1.0, 0.5], (1463, 1447), classes=4, batch=1, device=device)
    with torch.no_grad():
        assert relative(problem.fuse(), problem.to(torch.float64).reference()) < 1e-6
    lone = torch.randn(1, 4, 366, 362, device=device)
    expected = torch.nn.functional.interpolate(lone.double(), (1463, 1447), mode="bilinear", align_corners=False)
    assert relative(op([lone], [], [1.0], (1463, 1447)), expected) < 1e-6


def test_eight_scales(device):
    scales = [3.0, 2.0, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]
    check_against_reference(
        make_problem(scales, (24, 20), classes=2, batch=1, dtype=torch.float64, device=device), 1e-11
    )


@pytest.mark.parametrize("head", [(1, 1), (2, 3)])
def test_tiny_heads_on_a_large_output(device, head):
    # One element of the head reaches most of the grid: on CUDA more than shared memory holds.
    problem = make_problem(
        [1.0, 0.5], (190, 170), classes=2, batch=1, head_sizes=[head, head], dtype=torch.float64, device=device
    )
    check_against_reference(problem, 1e-10)


def test_several_tiles_in_both_directions(device):
    # larger than any kernel's tile: seams between tiles must not show
    check_against_reference(make_problem([1.0, 0.5], (197, 1111), classes=3, batch=1, device=device), 1e-5)


def test_empty_batch(device):
    problem = make_problem([1.0, 0.5], (16, 24), batch=0, device=device)
    fused = problem.fuse()
    assert fused.shape == (0, 5, 16, 24)
    for gradient, tensor in zip(torch.autograd.grad(fused.sum(), problem.inputs()), problem.inputs(), strict=True):
        assert gradient.shape == tensor.shape


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_every_instruction_set_is_right(level):
    # The choice is made once per process, so each one gets its own.
    code = (
        "import torch; from python_tests.ops.problems import make_problem\n"
        "p = make_problem([2.0, 1.0, 0.5], (45, 77)); q = p.to(torch.float64)\n"
        "f, r = p.fuse(), q.reference(); assert (f - r).abs().max() < 1e-5, (f - r).abs().max()\n"
        "g = torch.autograd.grad(f.square().sum(), p.inputs()); h = torch.autograd.grad(r.square().sum(), q.inputs())\n"
        "assert all((a - b).abs().max() < 1e-5 * b.abs().max() for a, b in zip(g, h))\n"
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


# ---- the public function ----------------------------------------------------------------------------------------


def test_public_function_takes_scales_in_any_order(device):
    problem = make_problem([2.0, 1.0, 0.5], (24, 36), device=device)
    two, one, half = problem.logits
    of_one, of_half = problem.attention
    expected = problem.fuse()
    assert torch.equal(hmsa_ext.fuse_scales([half, two, one], [of_half, of_one], [0.5, 2.0, 1.0], (24, 36)), expected)
    assert torch.equal(hmsa_ext.fuse_scales(*problem.args()), expected)


def test_public_function_refuses_a_scale_given_twice():
    problem = make_problem([1.0, 0.5], (16, 24))
    with pytest.raises(ValueError, match=r"scales is \[1.0, 1.0\]; expected every scale once"):
        hmsa_ext.fuse_scales(problem.logits, problem.attention, [1.0, 1.0], (16, 24))
