"""fuse_scales: memory formats and strides, what is allocated and saved, the same bits whatever the threads."""

from __future__ import annotations

import pytest
import torch

from bench.meters import LiveBytes, peak_memory
from hmsa_ext.ops import reference

from .problems import CHANNELS_LAST, CONTIGUOUS, Problem, make_problem

op = torch.ops.hmsa.fuse_scales
MEGABYTE = 1 << 20

# ---- memory formats and strides ---------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
def test_output_and_gradients_keep_the_memory_format(device, memory_format):
    problem = make_problem([2.0, 1.0, 0.5], (32, 48), memory_format=memory_format, device=device)
    fused = problem.fuse()
    assert fused.is_contiguous(memory_format=memory_format)
    for gradient in torch.autograd.grad(fused.sum(), problem.logits):
        assert gradient.is_contiguous(memory_format=memory_format)


def _gaps(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, t + 1], dim=-1).flatten(-2)[..., ::2]


def _transposed(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(2, 3).contiguous().transpose(2, 3)


def _rows_first(t: torch.Tensor) -> torch.Tensor:  # [h, B, w, C] in memory: neither contiguous nor channels_last
    return t.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)


def _channels_last(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous(memory_format=CHANNELS_LAST)


def _window(t: torch.Tensor, layout=torch.Tensor.contiguous) -> torch.Tensor:
    return layout(torch.nn.functional.pad(t, (3, 2, 1, 4), value=7.0))[..., 1:-4, 3:-2]


def _some_channels(t: torch.Tensor) -> torch.Tensor:
    return _channels_last(torch.cat([t, t + 1], dim=1))[:, : t.shape[1]]


# What holds the same values in memory in another way, and the format that the result and the gradient then have.
LAYOUTS = {
    "contiguous": (lambda t: t, CONTIGUOUS),
    "channels_last": (_channels_last, CHANNELS_LAST),
    "gaps between columns": (_gaps, CONTIGUOUS),
    "transposed": (_transposed, CONTIGUOUS),
    "rows first": (_rows_first, CONTIGUOUS),
    "window of a larger map": (_window, CONTIGUOUS),
    "some of the channels": (_some_channels, CHANNELS_LAST),
    "window, channels_last": (lambda t: _window(t, _channels_last), CHANNELS_LAST),
}


def laid_out(problem: Problem, *layouts: str) -> Problem:
    """The problem with its inputs laid out, in the order logits, attention, by the names in turn."""
    inputs = []
    for i, tensor in enumerate(problem.inputs()):
        layout, _ = LAYOUTS[layouts[i % len(layouts)]]
        inputs.append(layout(tensor.detach()).requires_grad_())
    count = len(problem.logits)
    return Problem(inputs[:count], inputs[count:], problem.scales, problem.size, problem.align_corners)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_change_no_bit_and_each_result_has_its_format(device, layout, dtype):
    plain = make_problem([2.0, 1.0, 0.5], (40, 56), class_wise=True, dtype=dtype, device=device)
    other = laid_out(plain, layout)
    assert all(map(torch.equal, other.inputs(), plain.inputs()))
    fused, expected = other.fuse(), plain.fuse()
    assert fused.is_contiguous(memory_format=LAYOUTS[layout][1])
    # The order of sums depends on the memory format alone, not on the strides within it.
    same_order = LAYOUTS[layout][1] == CONTIGUOUS
    compare = torch.testing.assert_close if not same_order else _assert_same_bits
    compare(fused, expected)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected)
    ours = torch.autograd.grad(fused, other.inputs(), grad)
    for got, want in zip(ours, torch.autograd.grad(expected, plain.inputs(), grad), strict=True):
        compare(got, want)
        assert got.is_contiguous(memory_format=LAYOUTS[layout][1])


def _assert_same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    assert torch.equal(got, want)


def test_output_follows_the_unit_scale_and_each_gradient_its_own_input(device):
    names = ["channels_last", "contiguous", "some of the channels", "transposed", "channels_last"]
    problem = laid_out(make_problem([2.0, 1.0, 0.5], (40, 56), class_wise=True, device=device), *names)
    fused = problem.fuse()
    assert fused.is_contiguous()  # logits[1] is at scale 1.0
    for gradient, name in zip(torch.autograd.grad(fused.square().sum(), problem.inputs()), names, strict=True):
        assert gradient.is_contiguous(memory_format=LAYOUTS[name][1]), name


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
def test_gradient_may_come_in_another_format(device, memory_format):
    problem = make_problem([2.0, 1.0, 0.5], (40, 56), memory_format=memory_format, device=device)
    fused = problem.fuse()
    grad = torch.randn(fused.shape, generator=torch.Generator().manual_seed(1)).to(device)
    expected = torch.autograd.grad(fused, problem.inputs(), grad, retain_graph=True)
    for layout in ("channels_last", "gaps between columns", "transposed", "rows first"):
        other = LAYOUTS[layout][0](grad)
        for got, want in zip(
            torch.autograd.grad(fused, problem.inputs(), other, retain_graph=True), expected, strict=True
        ):
            torch.testing.assert_close(got, want)
            assert got.stride() == want.stride()


def test_inputs_that_overlap_themselves_are_read(device):
    """A batch that was expanded (stride 0), channels that are windows of one another: gradients of each element are
    separate tensors, which autograd adds up."""
    one = make_problem([1.0, 0.5], (40, 56), batch=1, classes=8, dtype=torch.float64, device=device)
    base = torch.randn(2, 1, 10, 25, dtype=torch.float64, device=device, requires_grad=True)
    windows = base.as_strided((2, 8, 10, 14), (250, 1, 25, 1))
    low, attention = (t.detach().requires_grad_() for t in (one.logits[1], one.attention[0]))
    arguments = [windows, low.expand(2, -1, -1, -1)], [attention.expand(2, -1, -1, -1)], [1.0, 0.5], (40, 56)
    fused, expected = op(*arguments), reference.fuse_scales(*arguments)
    torch.testing.assert_close(fused, expected)
    leaves = [base, low, attention]
    ours = torch.autograd.grad(fused.square().sum(), leaves)
    for got, want in zip(ours, torch.autograd.grad(expected.square().sum(), leaves), strict=True):
        torch.testing.assert_close(got, want)


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


# ---- what is allocated ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "gaps between columns", "rows first", "some of the channels"]
)
@pytest.mark.memory
def test_nothing_is_allocated_but_results(device, layout):
    """No hidden copy of an input: heads of 48 MB and results that are smaller, or exactly as large."""
    heads = make_problem([1.0, 0.5], (96, 128), batch=1, classes=12, head_sizes=[(1024, 1024), (24, 32)], device=device)
    problem = laid_out(heads, layout)
    arguments = [t.detach() for t in problem.logits], [t.detach() for t in problem.attention], [1.0, 0.5]
    output, gradients = 12 * 96 * 128 * 4, sum(t.numel() for t in problem.inputs()) * 4
    grad = torch.randn(1, 12, 96, 128, device=device)

    def forward():
        op(*arguments, (96, 128))

    def backward():
        torch.ops.hmsa._fuse_scales_backward(grad, *arguments, False, 0b11, 0b1)

    for function, results in ((forward, output), (backward, gradients)):
        function()
        with LiveBytes() as meter:
            function()
        assert meter.peak <= results + MEGABYTE
        peak = peak_memory(function, device)
        if peak is not None:
            # The workspace (at most 16 MB) and pages of 2 MB at the ends of each result.
            assert peak <= results + (16 + 2 * len(problem.inputs())) * MEGABYTE


@pytest.mark.memory
def test_nothing_of_full_resolution_exists_beside_the_result(device):
    """Neither a grid of a scale (here 25 MB for scale 2.0) nor resized attention."""
    problem = make_problem([2.0, 1.0, 0.5], (256, 256), batch=1, classes=24, device=device)
    output = 24 * 256 * 256 * 4

    def forward_backward():
        torch.autograd.grad(problem.fuse(), problem.inputs(), grad)

    grad = torch.randn(1, 24, 256, 256, device=device)
    forward_backward()
    peak = peak_memory(forward_backward, device)
    gradients = sum(t.numel() for t in problem.inputs()) * 4
    assert peak is None or peak <= output + gradients + 18 * MEGABYTE


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


@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_same_bits_for_every_number_of_threads(dtype, memory_format, class_wise):
    problem = make_problem(
        [2.0, 1.0, 0.5], (97, 231), batch=3, classes=7, class_wise=class_wise, dtype=dtype, memory_format=memory_format
    )
    grad = torch.randn(3, 7, 97, 231, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            fused = problem.fuse()
            results.append([fused, *torch.autograd.grad(fused, problem.inputs(), grad)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert torch.equal(first, again)


@pytest.mark.parametrize("scales", [[1.0], [0.5], [1.0, 0.25], [2.0, 1.5, 1.0, 0.5]])
def test_same_bits_for_one_thread_and_two_whatever_the_scales(scales):
    problem = make_problem(scales, (130, 111), classes=3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [problem.fuse(), *torch.autograd.grad(problem.fuse().square().sum(), problem.inputs())]
        torch.set_num_threads(2)
        both = [problem.fuse(), *torch.autograd.grad(problem.fuse().square().sum(), problem.inputs())]
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, alone, both))
