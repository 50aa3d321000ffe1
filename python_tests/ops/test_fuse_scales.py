"""fuse_scales against plain PyTorch in float64, and every promise of its contract."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import hmsa_ext
from hmsa_ext.ops import reference

from .problems import CHANNELS_LAST, CONTIGUOUS, make_problem, random_problem

op = torch.ops.hmsa.fuse_scales
HALF = (torch.float16, torch.bfloat16)
SETS_OF_SCALES = ([1.0], [1.0, 0.5], [2.0, 1.0, 0.5], [2.0, 1.5, 1.0, 0.5], [2.0, 1.0, 0.5, 0.25], [0.5], [1.7])


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error over the largest value."""
    if expected.numel() == 0:
        return 0.0
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def check_against_reference(problem, tolerance: float) -> None:
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


# ---- values -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_pass_through_as_in_pytorch(device, value):
    problem = make_problem([1.0, 0.5], (24, 32), batch=1, device=device)
    with torch.no_grad():
        problem.logits[0][0, 1, 2, 3] = value
        problem.logits[1][0, 2, 1, 1] = value
    fused, expected = problem.fuse(), problem.reference()
    assert torch.equal(fused.isnan(), expected.isnan())
    assert torch.equal(fused.isinf(), expected.isinf())
    torch.testing.assert_close(fused, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


# ---- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
def test_output_and_gradients_keep_the_memory_format(device, memory_format):
    problem = make_problem([2.0, 1.0, 0.5], (32, 48), memory_format=memory_format, device=device)
    fused = problem.fuse()
    assert fused.is_contiguous(memory_format=memory_format)
    for gradient in torch.autograd.grad(fused.sum(), problem.logits):
        assert gradient.is_contiguous(memory_format=memory_format)


def test_any_strides_are_read(device):
    problem = make_problem([1.0, 0.5], (40, 56), device=device)
    expected = problem.fuse()

    def strided(tensor):  # every second column of a wider, transposed tensor
        wide = torch.zeros(*tensor.shape[:2], 2 * tensor.shape[3], tensor.shape[2] + 3, device=device)
        view = wide.transpose(2, 3)[:, :, 1:-2, ::2]
        return _filled(view, tensor)

    other = make_problem([1.0, 0.5], (40, 56), device=device)
    other.logits = [strided(t) for t in problem.logits]
    other.attention = [strided(t) for t in problem.attention]
    assert torch.equal(other.fuse(), expected)
    ours = torch.autograd.grad(other.fuse().square().sum(), other.inputs())
    theirs = torch.autograd.grad(expected.square().sum(), problem.inputs())
    for got, want in zip(ours, theirs, strict=True):
        assert torch.equal(got, want)


def _filled(view: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        view.copy_(values)
    assert not view.is_contiguous()
    return view.requires_grad_()


def test_expanded_gradient_is_read(device):
    problem = make_problem([1.0, 0.5], (24, 32), dtype=torch.float64, device=device)
    ours = torch.autograd.grad(problem.fuse().sum(), problem.inputs())  # sum() hands back a stride of zero
    theirs = torch.autograd.grad(problem.reference().sum(), problem.inputs())
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want)


def test_only_the_inputs_are_saved_for_backward(device):
    problem = make_problem([2.0, 1.0, 0.5], (64, 96), device=device)
    storages = {t.untyped_storage().data_ptr() for t in problem.inputs()}
    saved = []

    def pack(tensor):
        saved.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        problem.fuse()
    assert saved
    assert set(saved) <= storages


def test_gradients_that_nobody_wants_are_not_made(device):
    problem = make_problem([2.0, 1.0, 0.5], (32, 48), dtype=torch.float64, device=device)
    everything = torch.autograd.grad(problem.fuse().square().sum(), problem.inputs())
    for i, tensor in enumerate(problem.inputs()):
        for other in problem.inputs():
            other.requires_grad_(other is tensor)
        (alone,) = torch.autograd.grad(problem.fuse().square().sum(), [tensor])
        assert torch.equal(alone, everything[i])


# ---- determinism ------------------------------------------------------------------------------------------------


def test_same_bits_in_every_run(device):
    problem = make_problem([2.0, 1.0, 0.5], (97, 131), device=device)
    runs = [[problem.fuse(), *torch.autograd.grad(problem.fuse().square().sum(), problem.inputs())] for _ in range(3)]
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)


def test_same_bits_for_every_number_of_threads():
    problem = make_problem([2.0, 1.0, 0.5], (197, 331))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append([problem.fuse(), *torch.autograd.grad(problem.fuse().square().sum(), problem.inputs())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert torch.equal(first, again)


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


# ---- PyTorch's machinery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("class_wise", [False, True])
def test_opcheck(device, class_wise, memory_format):
    problem = make_problem([2.0, 1.0, 0.5], (26, 38), class_wise=class_wise, memory_format=memory_format, device=device)
    opcheck(op, problem.args(), {"align_corners": True})
    detached = [t.detach() for t in problem.logits], [t.detach() for t in problem.attention]
    opcheck(op, (*detached, problem.scales, problem.size))
    grad = torch.randn(2, 5, 26, 38, device=device)
    opcheck(torch.ops.hmsa._fuse_scales_backward, (grad, *detached, problem.scales, False, 0b111, 0b10))


def test_compiles_whole_with_changing_sizes(device):
    def function(low, high, attention, height: int, width: int):
        return op([high * 2, low], [attention.sigmoid()], [1.0, 0.5], (height, width)).relu()

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for size in ((32, 48), (41, 63), (56, 40)):
        problem = make_problem([1.0, 0.5], size, device=device)
        inputs = (problem.logits[1], problem.logits[0], problem.attention[0])
        ours, eager = compiled(*inputs, *size), function(*inputs, *size)
        torch.testing.assert_close(ours, eager)
        for got, want in zip(
            torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(eager.sum(), inputs), strict=True
        ):
            torch.testing.assert_close(got, want)


def test_vmap_maps_over_the_batch(device):
    problem = make_problem([1.0, 0.5], (20, 28), batch=6, dtype=torch.float64, device=device)
    stacked = [t.detach().unflatten(0, (3, 2)) for t in problem.inputs()]

    def fuse(high, low, attention):
        return op([high, low], [attention], problem.scales, problem.size)

    mapped = torch.vmap(fuse)(*stacked)
    torch.testing.assert_close(mapped.flatten(0, 1), problem.fuse())
    shared = torch.vmap(fuse, in_dims=(0, 0, None))(stacked[0], stacked[1], stacked[2][0])
    assert shared.shape == mapped.shape


@pytest.mark.parametrize("low", HALF)
def test_autocast_promotes_to_the_widest_dtype_and_keeps_it(device, low):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    mixed = [problem.logits[0].detach().to(low), problem.logits[1].detach()]
    attention = [a.detach().to(low) for a in problem.attention]
    with torch.autocast(device.type, torch.bfloat16):
        assert op(mixed, attention, problem.scales, problem.size).dtype == torch.float32
        narrow = op([z.to(low) for z in mixed], attention, problem.scales, problem.size)
        assert narrow.dtype == low


def test_gradients_flow_through_autocast(device):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    with torch.autocast(device.type, torch.bfloat16):
        fused = op([problem.logits[0].bfloat16(), problem.logits[1]], problem.attention, problem.scales, problem.size)
    for gradient, tensor in zip(torch.autograd.grad(fused.sum(), problem.inputs()), problem.inputs(), strict=True):
        assert gradient.dtype == tensor.dtype


def test_double_backward_raises(device):
    problem = make_problem([1.0, 0.5], (16, 24), device=device)
    (gradient,) = torch.autograd.grad(problem.fuse().square().sum(), problem.logits[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="fuse_scales cannot be differentiated twice"):
        gradient.sum().backward()


def test_flops_are_counted(device):
    problem = make_problem([1.0], (32, 64), classes=3, batch=1, device=device)  # head 8 x 16
    with FlopCounterMode(display=False) as counter:
        fused = problem.fuse()
        fused.sum().backward()
    resize = 3 * (8 * 64 + 32 * 64)  # columns, then rows; two products and a sum for every element made
    assert counter.get_flop_counts()["Global"][op] == 3 * resize
    assert counter.get_flop_counts()["Global"][torch.ops.hmsa._fuse_scales_backward] == 3 * resize


# ---- the friendly form ------------------------------------------------------------------------------------------


def test_friendly_form_takes_scales_in_any_order(device):
    problem = make_problem([2.0, 1.0, 0.5], (24, 36), device=device)
    two, one, half = problem.logits
    of_one, of_half = problem.attention
    expected = problem.fuse()
    assert torch.equal(hmsa_ext.fuse_scales([half, two, one], [of_half, of_one], [0.5, 2.0, 1.0], (24, 36)), expected)
    assert torch.equal(hmsa_ext.fuse_scales(*problem.args()), expected)


def test_friendly_form_refuses_a_scale_given_twice():
    problem = make_problem([1.0, 0.5], (16, 24))
    with pytest.raises(ValueError, match=r"scales is \[1.0, 1.0\]; expected every scale once"):
        hmsa_ext.fuse_scales(problem.logits, problem.attention, [1.0, 1.0], (16, 24))


# ---- bad input: each error names the argument, what came and what was expected -----------------------------------


def bad(change):
    """The arguments of a sound problem, changed."""
    problem = make_problem([2.0, 1.0, 0.5], (16, 24))
    arguments = {
        "logits": [t.detach() for t in problem.logits],
        "attention": [t.detach() for t in problem.attention],
        "scales": problem.scales,
        "size": [16, 24],
    }
    change(arguments)
    return arguments


def set_item(name, index, value):
    def change(arguments):
        old = arguments[name][index]
        arguments[name][index] = value(old) if callable(value) else value

    return change


def set_whole(name, value):
    def change(arguments):
        arguments[name] = value(arguments[name]) if callable(value) else value

    return change


BAD_INPUT = {
    "no scales": (set_whole("scales", []), r"scales has 0 entries; expected 1 to 8"),
    "too many scales": (set_whole("scales", [9.0 - i for i in range(9)]), r"scales has 9 entries; expected 1 to 8"),
    "logits missing": (set_whole("logits", lambda x: x[:2]), r"logits has 2 entries; expected 3, one for each"),
    "attention missing": (set_whole("attention", lambda x: x[:1]), r"attention has 1 entries; expected 2, one for"),
    "ascending": (set_whole("scales", [0.5, 1.0, 2.0]), r"scales\[1\] is 1 after 0.5; expected strictly descending"),
    "no unit": (set_whole("scales", [2.0, 1.5, 0.5]), r"scales has 3 entries without 1.0; expected 1.0 among them"),
    "negative": (set_whole("scales", [2.0, 1.0, -0.5]), r"scales\[2\] is -0.5; expected a positive number"),
    "nan": (set_whole("scales", [2.0, 1.0, math.nan]), r"scales\[2\] is nan; expected a positive number"),
    "empty grid": (
        set_whole("scales", [2.0, 1.0, 0.01]),
        r"scales\[2\] is 0.01, which gives a grid of 0 x 0 for size \(16, 24\); expected 1 to",
    ),
    "size of zero": (set_whole("size", [0, 24]), r"size is \(0, 24\); expected 1 to \d+ in height and width"),
    "huge size": (set_whole("size", [1 << 30, 24]), r"size is \(1073741824, 24\); expected 1 to"),
    "integers": (set_item("logits", 0, torch.Tensor.long), r"logits\[0\] is int64; expected float32, float16"),
    "dtypes": (set_item("logits", 1, torch.Tensor.half), r"logits\[1\] is float16, but logits\[0\] is float32"),
    "attention dtype": (set_item("attention", 0, torch.Tensor.double), r"attention\[0\] is float64, but logits\[0\]"),
    "dimensions": (set_item("logits", 2, lambda x: x[0]), r"logits\[2\] has shape \[5, 2, 3\]; expected four dim"),
    "batch": (set_item("logits", 1, lambda x: x[:1]), r"logits\[1\] has batch size 1, but logits\[0\] has 2"),
    "channels": (set_item("logits", 1, lambda x: x[:, :3]), r"logits\[1\] has 3 channels, logits\[0\] has 5"),
    "attention channels": (
        set_item("attention", 1, lambda x: x.expand(-1, 2, -1, -1)),
        r"attention\[1\] has 2 channels; expected 1, or 5 as the logits have",
    ),
    "attention map": (
        set_item("attention", 0, lambda x: x[..., :-1]),
        r"attention\[0\] has a map of 4 x 5; expected 4 x 6, the map of logits\[1\]",
    ),
    "empty map": (set_item("logits", 2, lambda x: x[..., :0]), r"logits\[2\] has a map of 2 x 0; expected 1 to"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case):
    change, message = BAD_INPUT[case]
    with pytest.raises(RuntimeError, match=f"^fuse_scales: {message}"):
        op(**bad(change))
