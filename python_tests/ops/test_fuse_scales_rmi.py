"""The op under the RMI loss: moments to the last digit, PyTorch's machinery, memory and threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from bench.meters import LiveBytes, peak_memory
from hmsa_ext.ops.fuse_scales_rmi import _plain, fuse_scales_rmi
from python_tests.losses import rmi_reference

from .problems import CHANNELS_LAST, CONTIGUOUS, Problem, make_problem

op = torch.ops.hmsa._fuse_scales_rmi
backward_op = torch.ops.hmsa._fuse_scales_rmi_backward
HALF = (torch.float16, torch.bfloat16)
MEGABYTE = 1 << 20


def labels_for(problem: Problem, dtype: torch.dtype = torch.uint8) -> Tensor:
    batch, classes = problem.logits[0].shape[:2]
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randint(0, classes, (batch, 1 + problem.size[0] // 6, 1 + problem.size[1] // 6), generator=generator)
    labels = coarse.repeat_interleave(6, 1).repeat_interleave(6, 2)[:, : problem.size[0], : problem.size[1]].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return labels.to(problem.logits[0].device, dtype)


def run(problem: Problem, target: Tensor, moments: bool = True) -> list[Tensor]:
    """Results and gradients of a fixed function of them."""
    results = fuse_scales_rmi(*problem.args()[:3], target, moments=moments, align_corners=problem.align_corners)
    loss = results[0] / target.numel()
    if moments:
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(results[3].shape, generator=generator, dtype=torch.float64).to(loss.device)
        loss = loss + (weight * results[3]).sum() / results[3].detach().abs().sum()
    return [*results, *torch.autograd.grad(loss, problem.inputs())]


# ---- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (11, 15), (64, 48), (107, 530)])
def test_moments_are_those_of_the_unfolded_maps(device, shape):
    problem = make_problem([1.0, 0.5], shape, classes=3, dtype=torch.float64, device=device)
    target = labels_for(problem)
    bce, valid, mean, covariance = fuse_scales_rmi(*problem.args()[:3], target)
    expected_mean, expected = rmi_reference.moments(problem.reference(), target)
    assert valid.item() == (target != 255).sum().item()
    torch.testing.assert_close(mean, expected_mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(covariance, expected, rtol=1e-11, atol=1e-10)
    assert torch.equal(covariance, covariance.mT)
    expected_bce = rmi_reference.rmi_bce_loss(problem.reference(), target) * (valid + 1)
    assert bce.item() == pytest.approx(expected_bce.item(), rel=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.7, -9.0, 40.0])
def test_covariances_of_constant_predictions_do_not_drift(device, constant):
    """All but the padding is constant, on a map of 200 000 pooled pixels. The loss adds 5e-4 to the diagonal: rounding
    of a sum of so many products, 200 000 times 1e-16, would already be 4e-8 of it."""
    logits = torch.full((1, 2, 8, 8), constant, dtype=torch.float64, device=device)
    target = torch.zeros(1, 512, 6400, dtype=torch.uint8, device=device)
    covariance = fuse_scales_rmi([logits], [], [1.0], target)[3]
    inside = covariance[0, 1, 4, 4]  # the middle of a neighbourhood never lies in the padding
    assert abs(inside.item()) <= 1e-12
    expected = rmi_reference.moments(logits[..., :1, :1].expand(1, 2, 512, 6400), target)[1]
    torch.testing.assert_close(covariance, expected, rtol=1e-10, atol=1e-10)


def test_without_moments_only_they_are_missing(device):
    problem = make_problem([1.0, 0.5], (61, 43), device=device)
    target = labels_for(problem)
    with_moments, without = (fuse_scales_rmi(*problem.args()[:3], target, moments=m) for m in (True, False))
    assert torch.equal(with_moments[0], without[0])
    assert torch.equal(with_moments[1], without[1])
    assert without[2].numel() == without[3].numel() == 0


def test_plain_formulation_for_other_devices_agrees(device):
    problem = make_problem([2.0, 1.0, 0.5], (26, 38), dtype=torch.float64, device=device)
    target = labels_for(problem, torch.int16)
    args = problem.logits, problem.attention, problem.scales, target, 255
    for moments in (True, False):
        for got, want in zip(op(*args, moments, True), _plain(*args, moments, True), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    assert _plain(*args[:4], 1, False, False)[0].isnan()  # 255 is wrong where 1 is ignored


# ---- PyTorch's machinery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.compile
def test_opcheck(device, memory_format, moments):
    problem = make_problem([2.0, 1.0, 0.5], (26, 38), memory_format=memory_format, device=device)
    target = labels_for(problem)
    opcheck(op, (*problem.args()[:3], target, 255, moments, True))
    detached = [t.detach() for t in problem.logits], [t.detach() for t in problem.attention], problem.scales
    _, _, mean, covariance = op(*detached, target, 255, moments, False)
    grad = torch.ones((), dtype=torch.float64, device=device)
    given = (covariance, mean) if moments else (None, None)
    opcheck(backward_op, (grad, given[0], *detached, target, given[1], 255, False, 0b101, 0b10))


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.compile
def test_opcheck_of_a_lone_scale_in_other_dtypes(device, dtype):
    problem = make_problem([0.5], (21, 34), dtype=dtype, device=device)
    opcheck(op, (*problem.args()[:3], labels_for(problem, torch.int64), 255, True, False))


def test_fake_results_are_float64(device):
    with FakeTensorMode():
        logits = torch.empty(3, 7, 10, 12, dtype=torch.float16, device=device)
        target = torch.empty(3, 40, 48, dtype=torch.uint8, device=device)
        results = op([logits], [], [1.0], target, 255, True, False)
    assert [tuple(r.shape) for r in results] == [(), (), (3, 7, 18), (3, 7, 18, 18)]
    assert all(r.dtype == torch.float64 for r in results)


@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("scales", [[1.0], [0.6], [1.0, 0.5, 0.3], [2.0, 1.5, 1.0, 0.5]])
def test_gradcheck_of_a_random_direction(device, scales, class_wise, align_corners, moments):
    options = {"classes": 3, "class_wise": class_wise, "dtype": torch.float64, "device": device}
    problem = make_problem(scales, (11, 14), align_corners=align_corners, **options)
    target = labels_for(problem)

    def differentiable(*inputs):
        count = len(scales)
        results = op(list(inputs[:count]), list(inputs[count:]), scales, target, 255, moments, align_corners)
        return (results[0], results[3]) if moments else results[0]

    assert torch.autograd.gradcheck(differentiable, problem.inputs(), fast_mode=True)


def test_autocast_computes_in_the_widest_dtype(device):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    target = labels_for(problem)
    low = [problem.logits[0].detach().half().requires_grad_(), problem.logits[1]]
    with torch.autocast(device.type, torch.bfloat16):
        bce = op(low, problem.attention, problem.scales, target, 255, True, False)[0]
    expected = op([low[0].float(), low[1]], problem.attention, problem.scales, target, 255, True, False)[0]
    assert torch.equal(bce, expected)
    assert torch.autograd.grad(bce, low[0])[0].dtype == torch.float16


def test_double_backward_raises(device):
    problem = make_problem([1.0], (16, 24), device=device)
    bce = op(*problem.args()[:3], labels_for(problem), 255, True, False)[0]
    (gradient,) = torch.autograd.grad(bce, problem.logits, create_graph=True)
    with pytest.raises(RuntimeError, match="fuse_scales_rmi cannot be differentiated twice"):
        gradient.sum().backward()


def test_mean_and_valid_have_no_gradient(device):
    problem = make_problem([1.0], (16, 24), device=device)
    _, valid, mean, covariance = op(*problem.args()[:3], labels_for(problem), 255, True, False)
    assert not valid.requires_grad
    assert not mean.requires_grad
    assert covariance.requires_grad


def test_flops_are_counted(device):
    problem = make_problem([1.0], (32, 64), classes=3, batch=2, stride=1, device=device)
    target = labels_for(problem)
    pixels, pooled = 2 * 3 * 32 * 64, 2 * 3 * 9 * 17
    with FlopCounterMode(display=False) as counter:
        run(problem, target)
    counts = counter.get_flop_counts()["Global"]
    assert counts[op] == pixels * (3 + 5 + 2) + pooled * 102
    assert counts[backward_op] == pixels * (3 + 3 + 3 + 2 + 3) + pooled * 100


# ---- errors -----------------------------------------------------------------------------------------------------


def test_errors_name_the_argument(device):
    problem = make_problem([1.0, 0.5], (16, 24), device=device)
    target = labels_for(problem)
    logits, attention, scales = (
        [t.detach() for t in problem.logits],
        [t.detach() for t in problem.attention],
        [1, 0.5],
    )

    def expect(message: str, *args, **options) -> None:
        with pytest.raises(RuntimeError, match=message):
            fuse_scales_rmi(*args, **options)

    expect(r"fuse_scales_rmi: target is float32; expected uint8, int16", logits, attention, scales, target.float())
    expect(r"fuse_scales_rmi: target has shape \[2, 384\]; expected", logits, attention, scales, target.flatten(1))
    expect(r"fuse_scales_rmi: .*target has shape \[1, 16, 24\]", logits, attention, scales, target[:1])
    expect(r"fuse_scales_rmi: .*\[2, 7, 24\]; expected at least 8 x 8", logits, attention, scales, target[:, :7])
    expect(r"fuse_scales_rmi: attention has 0 entries; expected 1", logits, [], scales, target)
    expect(r"fuse_scales_rmi: logits\[1\] is float16", [logits[0], logits[1].half()], attention, scales, target)
    if device.type == "cpu":
        wrong = target.clone()
        wrong[0, 1:3, 5] = torch.tensor([5, 9], dtype=torch.uint8)
        expect(r"no class in 2 pixels, from 5 to 9; expected 0 to 4, or 255", logits, attention, scales, wrong)
    _, _, mean, covariance = op(logits, attention, scales, target, 255, True, False)
    grad = torch.ones((), dtype=torch.float64, device=device)
    rest = (255, False, 0b11, 0b1)
    with pytest.raises(RuntimeError, match="_fuse_scales_rmi_backward: grad_covariance is given, mean is not"):
        backward_op(grad, covariance, logits, attention, scales, target, None, *rest)
    with pytest.raises(RuntimeError, match=r"grad_bce is float32 \[\] .* expected contiguous float64 \[\]"):
        backward_op(grad.float(), covariance, logits, attention, scales, target, mean, *rest)
    with pytest.raises(RuntimeError, match=r"mean is float64 \[2, 5, 9\] .*; expected contiguous float64 \[2, 5, 18\]"):
        backward_op(grad, covariance, logits, attention, scales, target, mean[..., :9].contiguous(), *rest)


# ---- memory and threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.memory
def test_nothing_is_allocated_but_gradients(device, memory_format, moments):
    """32 MB of fused logits, 25 MB of one-hot labels as float: the workspace is at most 16 MB."""
    problem = make_problem([1.0, 0.5], (512, 768), classes=21, batch=1, memory_format=memory_format, device=device)
    target = labels_for(problem)
    detached = [t.detach() for t in problem.logits], [t.detach() for t in problem.attention], problem.scales
    gradients = sum(t.numel() for t in problem.inputs()) * 4
    small = 21 * 19 * 18 * 8  # moments
    grad = torch.ones((), dtype=torch.float64, device=device)
    _, _, mean, covariance = op(*detached, target, 255, moments, False)
    given = (covariance, mean) if moments else (None, None)

    def forward():
        op(*detached, target, 255, moments, False)

    def backward():
        backward_op(grad, given[0], *detached, target, given[1], 255, False, 0b11, 0b1)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for function, results in ((forward, small), (backward, gradients)):
            function()
            with LiveBytes() as meter:
                function()
            # On CUDA the workspace is a tensor.
            assert meter.peak <= results + (16 * MEGABYTE if device.type == "cuda" else MEGABYTE)
            peak = peak_memory(function, device)
            assert peak is None or peak <= results + (16 + 2 * len(problem.inputs())) * MEGABYTE
    finally:
        torch.set_num_threads(before)


def test_inputs_target_and_means_are_saved(device):
    problem = make_problem([2.0, 1.0, 0.5], (64, 96), device=device)
    target = labels_for(problem)
    given = {t.untyped_storage().data_ptr() for t in [*problem.inputs(), target]}
    saved: list[Tensor] = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fuse_scales_rmi(*problem.args()[:3], target)
    others = [t for t in saved if t.untyped_storage().data_ptr() not in given]
    assert [tuple(t.shape) for t in others] == [(2, 5, 18)]


@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_same_bits_for_every_number_of_threads(dtype, memory_format, class_wise):
    options = {"class_wise": class_wise, "dtype": dtype, "memory_format": memory_format}
    problem = make_problem([2.0, 1.0, 0.5], (219, 531), batch=2, classes=3, **options)
    target = labels_for(problem)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(problem, target))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_same_bits_in_every_run(device):
    problem = make_problem([1.0, 0.5], (97, 131), device=device)
    runs = [run(problem, labels_for(problem)) for _ in range(3)]
    for other in runs[1:]:
        assert all(map(torch.equal, runs[0], other))


def test_labels_are_read_at_any_strides(device):
    problem = make_problem([1.0, 0.5], (40, 56), device=device)
    target = labels_for(problem)
    expected = run(problem, target)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        wide = torch.zeros(2, 56, 90, dtype=dtype, device=device)
        view = wide.transpose(1, 2)[:, 5:85:2]
        view.copy_(target)
        assert all(map(torch.equal, run(problem, view), expected))


def test_gradients_that_nobody_wants_are_not_made(device):
    problem = make_problem([2.0, 1.0, 0.5], (32, 48), dtype=torch.float64, device=device)
    target = labels_for(problem)
    everything = run(problem, target)[4:]
    for i, tensor in enumerate(problem.inputs()):
        for other in problem.inputs():
            other.requires_grad_(other is tensor)
        _, _, _, covariance = fuse_scales_rmi(*problem.args()[:3], target)
        bce = fuse_scales_rmi(*problem.args()[:3], target)[0]
        weight = torch.randn(covariance.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        loss = bce / target.numel() + (weight.to(device) * covariance).sum() / covariance.detach().abs().sum()
        (alone,) = torch.autograd.grad(loss, [tensor])
        torch.testing.assert_close(alone, everything[i], rtol=1e-12, atol=1e-12)
