"""fuse_scales_cross_entropy under PyTorch's machinery: opcheck, torch.compile, vmap, autocast, fake tensors, FLOPs."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import hmsa_ext
from hmsa_ext.ops import chain

from .problems import CHANNELS_LAST, CONTIGUOUS, make_problem, make_target

op = torch.ops.hmsa.fuse_scales_cross_entropy
forward_op = torch.ops.hmsa._fuse_scales_cross_entropy
backward_op = torch.ops.hmsa._fuse_scales_cross_entropy_backward
REDUCTIONS = ("mean", "sum", "none")

# ---- opcheck and fake tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.compile
def test_opcheck(device, memory_format, reduction):
    class_wise = reduction == "mean"
    problem = make_problem([2.0, 1.0, 0.5], (26, 38), class_wise=class_wise, memory_format=memory_format, device=device)
    target, weight = make_target(problem), torch.rand(5, device=device)
    inputs = *problem.args()[:3], target
    opcheck(op, inputs, {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, "align_corners": True})
    opcheck(forward_op, (*inputs, None, 255, 0.0, reduction, False))
    detached = [t.detach() for t in problem.logits], [t.detach() for t in problem.attention], problem.scales, target
    loss, log_sum_exp, total_weight = forward_op(*detached, weight, 255, 0.1, reduction, False)
    options = (weight, log_sum_exp, total_weight, 255, 0.1, reduction, False)
    opcheck(backward_op, (torch.rand_like(loss), *detached, *options, 0b101, 0b10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.compile
def test_opcheck_of_a_lone_scale_in_other_dtypes(device, dtype):
    problem = make_problem([0.5], (21, 34), dtype=dtype, device=device)
    opcheck(op, (*problem.args()[:3], make_target(problem, dtype=torch.int32)))


@pytest.mark.compile
def test_opcheck_of_part_of_the_gradients_and_strided_inputs(device):
    problem = make_problem([1.0, 0.5], (26, 38), device=device)
    problem.logits[0] = problem.logits[0].detach().transpose(2, 3).contiguous().transpose(2, 3)
    problem.attention[0] = problem.attention[0].detach()
    target = make_target(problem).transpose(1, 2).contiguous().transpose(1, 2)
    opcheck(op, (*problem.args()[:3], target))


def _facts(logits, attention, target, reduction: str) -> list[tuple]:
    scales, options = [1.0, 0.5], (255, 0.0, reduction, False)
    loss, log_sum_exp, total = forward_op(logits, attention, scales, target, None, *options)
    grad = torch.zeros_like(loss)
    gradients = backward_op(grad, logits, attention, scales, target, None, log_sum_exp, total, *options, 0b10, 0b1)
    # The stride of an axis of length 1 means nothing.
    return [
        (t.shape, [stride for stride, length in zip(t.stride(), t.shape, strict=True) if length > 1], t.dtype, t.device)
        for t in (loss, log_sum_exp, total, *gradients[0], *gradients[1])
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_fake_tensors_are_like_real_ones(device, batch, reduction, dtype):
    for memory_format in (CONTIGUOUS, CHANNELS_LAST):
        problem = make_problem(
            [1.0, 0.5], (26, 38), batch=batch, dtype=dtype, memory_format=memory_format, device=device
        )
        logits, attention = ([t.detach() for t in tensors] for tensors in (problem.logits, problem.attention))
        target = make_target(problem)
        real = _facts(logits, attention, target, reduction)
        with FakeTensorMode() as mode:
            z, a = ([mode.from_tensor(t) for t in tensors] for tensors in (logits, attention))
            assert _facts(z, a, mode.from_tensor(target), reduction) == real


# ---- torch.compile ----------------------------------------------------------------------------------------------


@pytest.mark.compile
def test_compiles_whole_with_changing_sizes(device):
    def function(low, high, attention, target):
        loss = hmsa_ext.fuse_scales_cross_entropy([low, high * 2], [attention.sigmoid()], [0.5, 1.0], target)
        return loss + hmsa_ext.upsample_cross_entropy(low, target, reduction="none").mean()

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for size in ((32, 48), (41, 63), (56, 40)):
        problem = make_problem([1.0, 0.5], size, device=device)
        inputs, target = (problem.logits[1], problem.logits[0], problem.attention[0]), make_target(problem)
        ours, eager = compiled(*inputs, target), function(*inputs, target)
        torch.testing.assert_close(ours, eager)
        for got, want in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(eager, inputs), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.compile
def test_changing_sizes_are_compiled_at_most_twice(device):
    counter = CompileCounterWithBackend("aot_eager")

    def function(low, high, attention, target):
        return op([high, low], [attention], [1.0, 0.5], target)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for size, batch, classes in [((32, 48), 2, 5), ((41, 63), 2, 5), ((56, 40), 3, 7), ((20, 97), 4, 2)]:
        problem = make_problem([1.0, 0.5], size, batch=batch, classes=classes, device=device)
        inputs, target = (problem.logits[1], problem.logits[0], problem.attention[0]), make_target(problem)
        loss, eager = compiled(*inputs, target), function(*inputs, target)
        assert torch.equal(loss, eager)
        assert all(map(torch.equal, torch.autograd.grad(loss, inputs), torch.autograd.grad(eager, inputs)))
    assert counter.frame_count <= 2


# ---- vmap -------------------------------------------------------------------------------------------------------

# Which of logits[0], logits[1], attention[0], target are mapped, and over which dimension.
IN_DIMS = {
    "all": (0, 0, 0, 0),
    "logits": (0, 0, None, None),
    "target": (None, None, None, 0),
    "attention": (None, None, 0, None),
    "other dimensions": (1, -1, 2, 1),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("in_dims", IN_DIMS.values(), ids=IN_DIMS)
def test_vmap_is_a_loop_forward_and_backward(device, in_dims, reduction):
    problem = make_problem([1.0, 0.5], (20, 28), dtype=torch.float64, device=device)
    target = make_target(problem)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.25, 4.0], device=device)
    generator = torch.Generator().manual_seed(2)
    inputs = []
    for tensor, dim in zip([*problem.inputs(), target], in_dims, strict=True):
        tensor = tensor.detach()
        if dim is not None:
            order = [torch.randperm(tensor.numel(), generator=generator).to(device) for _ in range(3)]
            tensor = torch.stack([tensor.flatten()[o].view(tensor.shape) for o in order], dim)
        inputs.append(tensor)
    leaves = [t.detach().requires_grad_() for t in inputs[:3]]

    def loss(high, low, attention, target):
        return op([high, low], [attention], problem.scales, target, weight=weight, reduction=reduction)

    def item(i):
        tensors = zip([*leaves, inputs[3]], in_dims, strict=True)
        return [t if dim is None else t.select(dim, i) for t, dim in tensors]

    mapped = torch.vmap(loss, in_dims)(leaves[0], leaves[1], leaves[2], inputs[3])
    alone = torch.stack([loss(*item(i)) for i in range(3)])
    torch.testing.assert_close(mapped, alone)
    if mapped.requires_grad:
        grad = torch.rand(mapped.shape, dtype=torch.float64, generator=generator).to(device)
        ours = torch.autograd.grad(mapped, leaves, grad)
        for got, want in zip(ours, torch.autograd.grad(alone, leaves, grad), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_over_upstream_gradients(device, reduction):
    problem = make_problem([2.0, 1.0, 0.5], (20, 28), dtype=torch.float64, device=device)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.25, 4.0], device=device)
    loss = op(*problem.args()[:3], make_target(problem), weight=weight, reduction=reduction)
    grads = torch.randn(3, *loss.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    batched = torch.vmap(lambda g: torch.autograd.grad(loss, problem.inputs(), g, retain_graph=True))(grads)
    for i in range(3):
        one = torch.autograd.grad(loss, problem.inputs(), grads[i], retain_graph=True)
        for got, want in zip(batched, one, strict=True):
            torch.testing.assert_close(got[i], want)


def test_vmap_over_the_weights_is_refused(device):
    problem = make_problem([1.0], (20, 28), device=device)
    target = make_target(problem)
    with pytest.raises(RuntimeError, match="vmap maps over weight; expected the same weights for every item"):
        torch.vmap(lambda w: op(*problem.args()[:3], target, weight=w))(torch.rand(3, 5, device=device))


# ---- autocast ---------------------------------------------------------------------------------------------------

MIXTURES = [
    # logits[0], logits[1], attention[0], the widest
    (torch.float32, torch.float16, torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16, torch.float16, torch.float32),  # neither holds the other
    (torch.float16, torch.float16, torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32, torch.float64, torch.float64),
]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_autocast_computes_in_the_widest_dtype_and_gives_each_gradient_its_own(device, mixture):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    target, weight = make_target(problem), torch.rand(5, device=device)
    inputs = [t.detach().to(dtype).requires_grad_() for t, dtype in zip(problem.inputs(), mixture, strict=False)]
    wide = [t.detach().to(mixture[-1]).requires_grad_() for t in inputs]
    with torch.autocast(device.type, torch.bfloat16):
        loss = op(inputs[:2], inputs[2:], problem.scales, target, weight=weight)
    expected = op(wide[:2], wide[2:], problem.scales, target, weight=weight)
    assert loss.dtype == (torch.float64 if mixture[-1] == torch.float64 else torch.float32)
    assert torch.equal(loss, expected)
    ours, theirs = torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, wide)
    for got, want, dtype in zip(ours, theirs, mixture, strict=False):
        assert torch.equal(got, want.to(dtype))


def test_mixed_dtypes_raise_where_autocast_is_off(device):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    logits = [problem.logits[0].detach(), problem.logits[1].detach().half()]
    with pytest.raises(RuntimeError, match=r"^fuse_scales_cross_entropy: logits\[1\] is float16, but logits\[0\] is"):
        op(logits, problem.attention, problem.scales, make_target(problem))


# ---- the rest ---------------------------------------------------------------------------------------------------


def test_double_backward_raises(device):
    problem = make_problem([1.0, 0.5], (16, 24), device=device)
    loss = op(*problem.args()[:3], make_target(problem))
    (gradient,) = torch.autograd.grad(loss, problem.logits[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="fuse_scales_cross_entropy cannot be differentiated twice"):
        gradient.sum().backward()


def test_what_backward_reads_has_no_gradient_itself(device):
    problem = make_problem([1.0, 0.5], (16, 24), device=device)
    results = forward_op(*problem.args()[:3], make_target(problem), None, 255, 0.0, "mean", False)
    assert [t.requires_grad for t in results] == [True, False, False]


def test_flops_are_counted(device):
    problem = make_problem([1.0], (32, 64), classes=3, batch=1, device=device)  # head 8 x 16
    with FlopCounterMode(display=False) as counter:
        op(*problem.args()[:3], make_target(problem)).backward()
    resize = 3 * 3 * (8 * 64 + 32 * 64)  # columns, then rows; two products and a sum for every element made
    pixels = 32 * 64
    counts = counter.get_flop_counts()["Global"]
    # A difference, an exponential and a sum for each class; a logarithm, a sum and a difference for each pixel.
    assert counts[forward_op] == resize + 3 * 3 * pixels + 3 * pixels
    # Again the resize; a difference, an exponential and a product; one minus at the label; the adjoint.
    assert counts[backward_op] == resize + 3 * 3 * pixels + pixels + resize
    assert chain.chain_flops([(1, 3, 8, 16)], [], [1.0], (32, 64)) == resize
