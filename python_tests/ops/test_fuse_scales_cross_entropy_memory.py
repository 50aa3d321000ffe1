"""fuse_scales_cross_entropy: strides of inputs and labels, what is allocated and saved, same bits for any threads."""

from __future__ import annotations

import pytest
import torch

from bench.meters import LiveBytes, peak_memory, saved_bytes

from .problems import CHANNELS_LAST, CONTIGUOUS, Problem, make_problem, make_target
from .test_fuse_scales_memory import LAYOUTS, MEGABYTE, laid_out

op = torch.ops.hmsa.fuse_scales_cross_entropy
forward_op = torch.ops.hmsa._fuse_scales_cross_entropy
backward_op = torch.ops.hmsa._fuse_scales_cross_entropy_backward
WORKSPACE = 16 * MEGABYTE


def loss_and_gradients(problem: Problem, target: torch.Tensor, **options) -> list[torch.Tensor]:
    loss = op(*problem.args()[:3], target, **options)
    grad = torch.rand(loss.shape, generator=torch.Generator().manual_seed(1)).to(loss)
    return [loss, *torch.autograd.grad(loss, problem.inputs(), grad)]


# ---- memory formats and strides ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_of_the_inputs_change_nothing(device, layout, dtype):
    plain = make_problem([2.0, 1.0, 0.5], (40, 56), class_wise=True, dtype=dtype, device=device)
    target = make_target(plain)
    other = loss_and_gradients(laid_out(plain, layout), target, reduction="none")
    rtol, atol = (None, None) if dtype == torch.float32 else (2e-2, 1e-3)
    for got, want in zip(other, loss_and_gradients(plain, target, reduction="none"), strict=True):
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
    for gradient in other[1:]:
        assert gradient.is_contiguous(memory_format=LAYOUTS[layout][1])


LABEL_LAYOUTS = {
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "gaps": lambda t: t.repeat_interleave(2, dim=2)[..., ::2],
    "batch in the middle": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "window": lambda t: torch.nn.functional.pad(t, (3, 2, 1, 4), value=7)[:, 1:-4, 3:-2],
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("layout", LABEL_LAYOUTS)
def test_labels_are_read_at_any_strides(device, layout, dtype):
    problem = make_problem([1.0, 0.5], (40, 56), device=device)
    target = LABEL_LAYOUTS[layout](make_target(problem, dtype=dtype))
    assert not target.is_contiguous()
    ours = loss_and_gradients(problem, target)
    assert all(map(torch.equal, ours, loss_and_gradients(problem, target.contiguous())))


def test_upstream_gradient_of_the_map_is_read_at_any_strides(device):
    problem = make_problem([1.0, 0.5], (40, 56), device=device)
    loss = op(*problem.args()[:3], make_target(problem), reduction="none")
    grad = torch.randn(loss.shape, generator=torch.Generator().manual_seed(1)).to(device)
    expected = torch.autograd.grad(loss, problem.inputs(), grad, retain_graph=True)
    for layout in ("transposed", "gaps", "batch in the middle", "window"):
        ours = torch.autograd.grad(loss, problem.inputs(), LABEL_LAYOUTS[layout](grad), retain_graph=True)
        assert all(map(torch.equal, ours, expected))


def test_reductions_have_the_same_gradients(device):
    problem = make_problem([2.0, 1.0, 0.5], (40, 56), dtype=torch.float64, device=device)
    target = make_target(problem)
    none = op(*problem.args()[:3], target, reduction="none")
    total = op(*problem.args()[:3], target, reduction="sum")
    mean = op(*problem.args()[:3], target)
    torch.testing.assert_close(none.sum(), total)
    torch.testing.assert_close(total / (target != 255).sum(), mean)
    expected = torch.autograd.grad(none.sum(), problem.inputs())
    for got, want in zip(torch.autograd.grad(total, problem.inputs()), expected, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(torch.autograd.grad(mean, problem.inputs()), expected, strict=True):
        torch.testing.assert_close(got * (target != 255).sum(), want)


# ---- what is allocated ------------------------------------------------------------------------------------------

LARGE = {
    # name: scales, size, classes, heads' stride, batch: the logits of the first would take 50 MB, of the last 157 MB
    "three scales": ([2.0, 1.0, 0.5], (512, 512), 48, 4, 1),
    "many classes": ([1.0], (256, 256), 150, 4, 4),
}


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", LARGE)
@pytest.mark.memory
def test_nothing_of_full_resolution_with_classes_exists(device, case, reduction, memory_format):
    scales, size, classes, stride, batch = LARGE[case]
    problem = make_problem(
        scales, size, classes=classes, stride=stride, batch=batch, memory_format=memory_format, device=device
    )
    target = make_target(problem)
    inputs = [t.detach() for t in problem.logits], [t.detach() for t in problem.attention], scales, target
    options = (255, 0.0, reduction, False)
    loss, log_sum_exp, total = forward_op(*inputs, None, *options)
    grad = torch.ones_like(loss)
    everything = (1 << len(scales)) - 1

    def forward():
        forward_op(*inputs, None, *options)

    def backward():
        backward_op(grad, *inputs, None, log_sum_exp, total, *options, everything, everything >> 1)

    maps = target.numel() * 4 * (2 if reduction == "none" else 1)
    gradients = sum(t.numel() for t in problem.inputs()) * 4
    for function, results in ((forward, maps), (backward, gradients)):
        function()
        with LiveBytes() as meter:
            function()
        assert meter.peak <= results + (WORKSPACE if device.type == "cuda" else MEGABYTE)
        peak = peak_memory(function, device)
        # The workspace, and pages of 2 MB at the ends of each result.
        assert peak is None or peak <= results + WORKSPACE + 2 * (len(problem.inputs()) + 1) * MEGABYTE


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.memory
def test_saved_for_backward_are_the_inputs_and_one_float_for_each_pixel(device, reduction):
    problem = make_problem([2.0, 1.0, 0.5], (64, 96), device=device)
    target = make_target(problem)
    weight = torch.ones(5, device=device)

    def loss():
        return op(*problem.args()[:3], target, weight=weight, reduction=reduction)

    assert saved_bytes(loss, [*problem.inputs(), target, weight]) <= 4 * target.numel() + 16


@pytest.mark.memory
def test_labels_are_not_copied(device):
    problem = make_problem([1.0], (1024, 1024), classes=2, batch=1, stride=64, device=device)
    target = make_target(problem)  # 1 MB; as int64 it would be 8
    with LiveBytes() as meter, torch.no_grad():
        op(*problem.args()[:3], target)
    assert meter.peak <= 4 * target.numel() + MEGABYTE


def test_gradients_that_nobody_wants_are_not_made(device):
    problem = make_problem([2.0, 1.0, 0.5], (32, 48), dtype=torch.float64, device=device)
    target = make_target(problem)
    everything = torch.autograd.grad(op(*problem.args()[:3], target), problem.inputs())
    for i, tensor in enumerate(problem.inputs()):
        for other in problem.inputs():
            other.requires_grad_(other is tensor)
        (alone,) = torch.autograd.grad(op(*problem.args()[:3], target), [tensor])
        torch.testing.assert_close(alone, everything[i], rtol=1e-12, atol=1e-18)


# ---- determinism ------------------------------------------------------------------------------------------------


def test_same_bits_in_every_run(device):
    problem = make_problem([2.0, 1.0, 0.5], (97, 131), device=device)
    target = make_target(problem)
    first = loss_and_gradients(problem, target)
    for _ in range(2):
        assert all(map(torch.equal, first, loss_and_gradients(problem, target)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("scales", [[1.0], [0.5], [1.0, 0.25], [2.0, 1.5, 1.0, 0.5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_same_bits_for_every_number_of_threads(dtype, scales, reduction):
    problem = make_problem(scales, (97, 231), batch=3, classes=7, dtype=dtype, class_wise=len(scales) == 4)
    target = make_target(problem)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(loss_and_gradients(problem, target, reduction=reduction, label_smoothing=0.1))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
