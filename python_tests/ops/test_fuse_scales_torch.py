"""fuse_scales under PyTorch's machinery: opcheck, torch.compile, vmap, autocast, fake tensors, FLOPs."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from .problems import CHANNELS_LAST, CONTIGUOUS, make_problem

op = torch.ops.hmsa.fuse_scales
backward_op = torch.ops.hmsa._fuse_scales_backward
HALF = (torch.float16, torch.bfloat16)

# ---- opcheck and fake tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.compile
def test_opcheck(device, class_wise, memory_format):
    problem = make_problem([2.0, 1.0, 0.5], (26, 38), class_wise=class_wise, memory_format=memory_format, device=device)
    opcheck(op, problem.args(), {"align_corners": True})
    detached = [t.detach() for t in problem.logits], [t.detach() for t in problem.attention]
    opcheck(op, (*detached, problem.scales, problem.size))
    grad = torch.randn(2, 5, 26, 38, device=device)
    opcheck(backward_op, (grad, *detached, problem.scales, False, 0b111, 0b10))
    opcheck(backward_op, (grad.to(memory_format=CHANNELS_LAST), *detached, problem.scales, True, 0b001, 0b11))


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.compile
def test_opcheck_of_a_lone_scale_in_other_dtypes(device, dtype):
    problem = make_problem([0.5], (21, 34), dtype=dtype, device=device)
    opcheck(op, problem.args())
    grad = torch.randn(2, 5, 21, 34, device=device, dtype=dtype)
    opcheck(backward_op, (grad, [problem.logits[0].detach()], [], [0.5], False, 0b1, 0b0))


@pytest.mark.compile
def test_opcheck_of_part_of_the_gradients_and_strided_inputs(device):
    problem = make_problem([1.0, 0.5], (26, 38), device=device)
    problem.logits[0] = problem.logits[0].detach().transpose(2, 3).contiguous().transpose(2, 3)
    problem.attention[0] = problem.attention[0].detach()
    opcheck(op, problem.args())


def _strides_of_everything(logits, attention, grad) -> list[tuple]:
    fused = op(logits, attention, [1.0, 0.5], (26, 38))
    gradients = backward_op(grad, logits, attention, [1.0, 0.5], False, 0b10, 0b1)
    # The stride of an axis of length 1 means nothing.
    return [
        (t.shape, [stride for stride, length in zip(t.stride(), t.shape, strict=True) if length > 1], t.dtype, t.device)
        for t in (fused, *gradients[0], *gradients[1])
        if t.numel() > 0
    ]


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("head", [(7, 10), (1, 10), (7, 1), (1, 1)])
def test_fake_tensors_have_the_strides_of_real_ones(device, head, batch, classes):
    """Where a map has one channel, row or column, contiguous and channels_last are told apart by strides alone."""
    layouts = {
        "contiguous": lambda t: t,
        "channels_last": lambda t: t.to(memory_format=CHANNELS_LAST),
        "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        "gaps": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
        "some channels": lambda t: torch.cat([t, t], dim=1).to(memory_format=CHANNELS_LAST)[:, : t.shape[1]],
        "expanded": lambda t: t[:1].expand(t.shape),
    }
    problem = make_problem([1.0, 0.5], (26, 38), batch=batch, classes=classes, head_sizes=[head, head], device=device)
    for name, layout in layouts.items():
        logits, attention = ([layout(t.detach()) for t in tensors] for tensors in (problem.logits, problem.attention))
        grad = torch.zeros(batch, classes, 26, 38, device=device)
        real = _strides_of_everything(logits, attention, grad)
        with FakeTensorMode() as mode:
            z, a = ([mode.from_tensor(t) for t in tensors] for tensors in (logits, attention))
            assert _strides_of_everything(z, a, mode.from_tensor(grad)) == real, name


# ---- torch.compile ----------------------------------------------------------------------------------------------


@pytest.mark.compile
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


@pytest.mark.compile
def test_changing_sizes_are_compiled_at_most_twice(device):
    counter = CompileCounterWithBackend("aot_eager")

    def function(low, high, attention, height: int, width: int):
        return op([high, low], [attention], [1.0, 0.5], (height, width))

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    shapes = [((32, 48), 2, 5), ((41, 63), 2, 5), ((56, 40), 3, 7), ((20, 97), 4, 2), ((33, 33), 2, 3)]
    for size, batch, classes in shapes:
        problem = make_problem([1.0, 0.5], size, batch=batch, classes=classes, device=device)
        inputs = (problem.logits[1], problem.logits[0], problem.attention[0])
        fused = compiled(*inputs, *size)
        assert torch.equal(fused, function(*inputs, *size))
        ours = torch.autograd.grad(fused.square().sum(), inputs)
        theirs = torch.autograd.grad(problem.fuse().square().sum(), inputs)
        assert all(map(torch.equal, ours, theirs))
    assert counter.frame_count <= 2


@pytest.mark.compile
def test_compiled_result_has_the_memory_format_that_was_promised(device):
    compiled = torch.compile(lambda z, a: op(z, a, [1.0, 0.5], (33, 47)), fullgraph=True, backend="aot_eager")
    problem = make_problem([1.0, 0.5], (33, 47), memory_format=CHANNELS_LAST, device=device)
    fused = compiled(problem.logits, problem.attention)
    assert fused.is_contiguous(memory_format=CHANNELS_LAST)
    for gradient in torch.autograd.grad(fused.sum(), problem.logits):
        assert gradient.is_contiguous(memory_format=CHANNELS_LAST)


# ---- vmap -------------------------------------------------------------------------------------------------------


def test_vmap_maps_over_the_batch(device):
    problem = make_problem([1.0, 0.5], (20, 28), batch=6, dtype=torch.float64, device=device)
    stacked = [t.detach().unflatten(0, (3, 2)) for t in problem.inputs()]

    def fuse(high, low, attention):
        return op([high, low], [attention], problem.scales, problem.size)

    mapped = torch.vmap(fuse)(*stacked)
    torch.testing.assert_close(mapped.flatten(0, 1), problem.fuse())


# Which of logits[0], logits[1], attention[0] are mapped, and over which dimension.
IN_DIMS = {
    "all": (0, 0, 0),
    "logits": (0, 0, None),
    "attention": (None, None, 0),
    "one of the logits": (None, 0, None),
    "the largest scale and attention": (0, None, 0),
    "other dimensions": (1, -1, 2),
}


@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("in_dims", IN_DIMS.values(), ids=IN_DIMS)
def test_vmap_is_a_loop_forward_and_backward(device, in_dims, class_wise):
    problem = make_problem([1.0, 0.5], (20, 28), class_wise=class_wise, dtype=torch.float64, device=device)
    generator = torch.Generator().manual_seed(2)
    inputs = []
    for tensor, dim in zip(problem.inputs(), in_dims, strict=True):
        tensor = tensor.detach()
        if dim is not None:
            copies = [torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(device) for _ in range(3)]
            tensor = torch.stack(copies, dim)
        inputs.append(tensor)

    def loss(high, low, attention):
        return op([high, low], [attention], problem.scales, problem.size).square().mean()

    def item(i, leaves):
        return [t if dim is None else t.select(dim, i) for t, dim in zip(leaves, in_dims, strict=True)]

    leaves = [t.detach().requires_grad_() for t in inputs]
    mapped = torch.vmap(loss, in_dims)(*leaves)
    alone = torch.stack([loss(*item(i, leaves)) for i in range(3)])
    torch.testing.assert_close(mapped, alone)
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, device=device)
    ours = torch.autograd.grad(mapped, leaves, weight)
    for got, want in zip(ours, torch.autograd.grad(alone, leaves, weight), strict=True):
        torch.testing.assert_close(got, want)


def test_vmap_over_upstream_gradients(device):
    problem = make_problem([2.0, 1.0, 0.5], (20, 28), dtype=torch.float64, device=device)
    fused = problem.fuse()
    grads = torch.randn(3, *fused.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    batched = torch.vmap(lambda g: torch.autograd.grad(fused, problem.inputs(), g, retain_graph=True))(grads)
    for i in range(3):
        one = torch.autograd.grad(fused, problem.inputs(), grads[i], retain_graph=True)
        for got, want in zip(batched, one, strict=True):
            torch.testing.assert_close(got[i], want)


def test_vmap_of_vmap(device):
    problem = make_problem([1.0, 0.5], (20, 28), batch=6, dtype=torch.float64, device=device)
    high, low, attention = (t.detach().unflatten(0, (3, 2, 1)) for t in problem.inputs())

    def fuse(high, low):
        return op([high, low], [attention[0, 0]], problem.scales, problem.size)

    nested = torch.vmap(torch.vmap(fuse), in_dims=(0, 0))(high, low)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(nested[i, j], fuse(high[i, j], low[i, j]))


# ---- autocast ---------------------------------------------------------------------------------------------------


MIXTURES = [
    # logits[0], logits[1], attention[0], the widest
    (torch.float32, torch.float16, torch.bfloat16, torch.float32),
    (torch.float16, torch.float16, torch.float32, torch.float32),
    (torch.bfloat16, torch.float32, torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16, torch.float16, torch.float32),  # neither holds the other
    (torch.float16, torch.float16, torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32, torch.float64, torch.float64),
]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_autocast_computes_in_the_widest_dtype_and_gives_each_gradient_its_own(device, mixture):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    inputs = [t.detach().to(dtype).requires_grad_() for t, dtype in zip(problem.inputs(), mixture, strict=False)]
    wide = [t.detach().to(mixture[-1]).requires_grad_() for t in inputs]
    with torch.autocast(device.type, torch.bfloat16):
        fused = op(inputs[:2], inputs[2:], problem.scales, problem.size)
    expected = op(wide[:2], wide[2:], problem.scales, problem.size)
    assert fused.dtype == mixture[-1]
    assert torch.equal(fused, expected)
    ours = torch.autograd.grad(fused.float().square().sum(), inputs)
    theirs = torch.autograd.grad(expected.float().square().sum(), wide)
    for got, want, dtype in zip(ours, theirs, mixture, strict=False):
        assert torch.equal(got, want.to(dtype))


def test_mixed_dtypes_raise_where_autocast_is_off(device):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    logits = [problem.logits[0].detach(), problem.logits[1].detach().half()]
    with (
        torch.autocast(device.type, torch.bfloat16),
        torch.autocast(device.type, enabled=False),
        pytest.raises(RuntimeError, match=r"fuse_scales: logits\[1\] is float16, but logits\[0\] is float32"),
    ):
        op(logits, problem.attention, problem.scales, problem.size)


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


# ---- the rest ---------------------------------------------------------------------------------------------------


def test_double_backward_raises(device):
    problem = make_problem([1.0, 0.5], (16, 24), device=device)
    (gradient,) = torch.autograd.grad(problem.fuse().square().sum(), problem.logits[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="fuse_scales cannot be differentiated twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("scales", [[1.0], [0.6], [1.0, 0.5, 0.3], [2.0, 1.5, 1.0], [2.0, 1.5, 1.0, 0.5, 0.25]])
def test_gradcheck_of_a_random_direction(device, scales, class_wise, align_corners, memory_format):
    problem = make_problem(
        scales,
        (9, 14),
        classes=3,
        class_wise=class_wise,
        dtype=torch.float64,
        device=device,
        memory_format=memory_format,
        align_corners=align_corners,
    )

    def fuse(*inputs):
        count = len(scales)
        return op(list(inputs[:count]), list(inputs[count:]), scales, problem.size, align_corners=align_corners)

    assert torch.autograd.gradcheck(fuse, problem.inputs(), fast_mode=True)


def test_flops_are_counted(device):
    problem = make_problem([1.0], (32, 64), classes=3, batch=1, device=device)  # head 8 x 16
    with FlopCounterMode(display=False) as counter:
        fused = problem.fuse()
        fused.sum().backward()
    resize = 3 * (8 * 64 + 32 * 64)  # columns, then rows; two products and a sum for every element made
    assert counter.get_flop_counts()["Global"][op] == 3 * resize
    assert counter.get_flop_counts()["Global"][torch.ops.hmsa._fuse_scales_backward] == 3 * resize
