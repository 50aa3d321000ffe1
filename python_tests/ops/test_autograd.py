"""How the ops on a chain of scales are differentiated: what holds for all of them, whatever they compute."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from .problems import make_problem, make_target

hmsa = torch.ops.hmsa
SCALES, SIZE = [1.0, 0.5], (16, 24)


def _rmi(logits, attention, target) -> Tensor:
    bce, _, _, covariance = hmsa._fuse_scales_rmi(logits, attention, SCALES, target, 255, True, False)
    return bce + covariance.sum()


# Each makes a tensor of logits, attention and a target.
OPS: dict[str, Callable[[list[Tensor], list[Tensor], Tensor], Tensor]] = {
    "fuse_scales": lambda logits, attention, target: hmsa.fuse_scales(logits, attention, SCALES, SIZE),
    "fuse_scales_cross_entropy": lambda logits, attention, target: hmsa.fuse_scales_cross_entropy(
        logits, attention, SCALES, target
    ),
    "fuse_scales_rmi": _rmi,
}


@pytest.fixture(params=OPS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def inputs(device) -> list[Tensor]:
    """Logits of two scales and attention, which require gradients."""
    return make_problem(SCALES, SIZE, dtype=torch.float64, device=device).inputs()


@pytest.fixture
def call(name, inputs) -> Callable[..., Tensor]:
    """The op as a function of the three tensors."""
    target = torch.randint(0, 5, (2, *SIZE), generator=torch.Generator().manual_seed(0)).to(inputs[0].device).byte()
    return lambda high, low, attention: OPS[name]([high, low], [attention], target)


def gradients(call, inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(call(*inputs).square().sum(), inputs)


# ---- saved tensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(call, inputs, use_reentrant):
    expected = gradients(call, inputs)
    checkpoint(call, *inputs, use_reentrant=use_reentrant).square().sum().backward()
    assert all(map(torch.equal, (leaf.grad for leaf in inputs), expected))


def test_saved_tensors_are_read_once(call, inputs):
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor)
        return len(packed) - 1

    def unpack(index):
        unpacked.append(index)
        return packed[index]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = call(*inputs)
    count = len(packed)
    assert count >= len(inputs)
    assert not unpacked
    torch.autograd.grad(result.sum(), inputs)
    assert sorted(unpacked)[:count] == list(range(count))
    assert len(unpacked) == count


def test_what_hooks_of_saved_tensors_compute_is_recorded(call, inputs):
    """They run in the backward pass, where the op itself calls what has no gradient."""
    recorded = []

    def unpack(tensor):
        with torch.enable_grad():
            recorded.append((inputs[0] * 2).requires_grad)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        result = call(*inputs)
    torch.autograd.grad(result.sum(), inputs)
    assert recorded
    assert all(recorded)


def test_nothing_is_left_for_the_garbage_collector(call, inputs):
    """Cycles of references would keep the tensors of a step alive until some later one."""
    torch.autograd.grad(call(*inputs).sum(), inputs)
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            torch.autograd.grad(call(*inputs).sum(), inputs)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_inputs_that_change_before_backward_raise(call, inputs):
    copies = [leaf * 1 for leaf in inputs]
    result = call(*copies).sum()
    copies[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_a_graph_that_was_not_retained_raises_the_second_time(call, inputs):
    result = call(*inputs).sum()
    result.backward(retain_graph=True)
    result.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        result.backward()


# ---- which gradients --------------------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Remembers name and arguments of each op of ours that runs."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "hmsa":
            self.calls.append((function.name().removeprefix("hmsa::"), args))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, True), (False, False, True)])
def test_gradients_that_nobody_needs_are_not_computed(name, call, inputs, needs):
    expected = [g for g, need in zip(gradients(call, inputs), needs, strict=True) if need]
    leaves = [leaf.detach().requires_grad_(need) for leaf, need in zip(inputs, needs, strict=True)]
    with Calls() as mode:
        got = gradients(lambda *_: call(*leaves), [leaf for leaf in leaves if leaf.requires_grad])
    assert all(map(torch.equal, got, expected))
    (_, arguments) = mode.calls[-1]
    assert [op for op, _ in mode.calls] == [f"{'_' * (name != 'fuse_scales')}{name}", f"_{name}_backward"]
    assert arguments[-2:] == (needs[0] + 2 * needs[1], int(needs[2]))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_where_gradients_are_off(call, inputs, context):
    expected = call(*inputs)
    with context():
        result = call(*inputs)
    assert torch.equal(result, expected)
    assert not result.requires_grad
    assert result.is_inference() == (context is torch.inference_mode)


def test_tensors_of_inference_mode_are_taken_outside_of_it(call, inputs):
    with torch.inference_mode():
        copies = [leaf.clone() for leaf in inputs]
    assert torch.equal(call(*copies), call(*inputs))


def test_one_tensor_in_two_places_gets_the_sum(call, inputs):
    high, _, attention = inputs
    high = high[..., : attention.shape[2], : attention.shape[3]].detach().requires_grad_()
    first, second = high.detach().requires_grad_(), high.detach().requires_grad_()
    (both,) = torch.autograd.grad(call(high, high, attention).sum(), high)
    parts = torch.autograd.grad(call(first, second, attention).sum(), (first, second))
    torch.testing.assert_close(both, sum(parts))


def test_results_of_rmi_without_a_gradient_count_as_zero(inputs, device):
    target = make_target(make_problem(SCALES, SIZE, device=device))
    bce, _, _, covariance = hmsa._fuse_scales_rmi(inputs[:2], inputs[2:], SCALES, target, 255, True, False)
    of_bce = torch.autograd.grad(bce, inputs, retain_graph=True)
    of_covariance = torch.autograd.grad(covariance.sum(), inputs, retain_graph=True)
    of_both = torch.autograd.grad(bce + covariance.sum(), inputs)
    for one, other, both in zip(of_bce, of_covariance, of_both, strict=True):
        torch.testing.assert_close(one + other, both)


def test_argmax_records_nothing(device):
    problem = make_problem(SCALES, SIZE, device=device)
    labels, confidence = hmsa.fuse_scales_argmax(*problem.args())
    assert not labels.requires_grad
    assert not confidence.requires_grad


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("which", range(3))
def test_forward_mode_raises_instead_of_giving_zeros(name, call, inputs, which, context, requires_grad):
    inputs = [leaf.detach().requires_grad_(requires_grad) for leaf in inputs]
    with forward_ad.dual_level(), context():
        inputs[which] = forward_ad.make_dual(inputs[which], torch.ones_like(inputs[which]))
        with pytest.raises(NotImplementedError, match=f"^{name} has no forward-mode derivative"):
            call(*inputs)


def test_forward_mode_goes_around_an_op_that_has_no_tangents(call, inputs):
    inputs = [leaf.detach() for leaf in inputs]
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(*inputs) * forward_ad.make_dual(inputs[0].sum(), inputs[0].sum())).tangent
    torch.testing.assert_close(tangent, call(*inputs) * inputs[0].sum())


def test_forward_mode_of_the_backward_op_raises(inputs, device):
    inputs = [leaf.detach() for leaf in inputs]
    grad = torch.ones(2, 5, *SIZE, dtype=torch.float64, device=device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(grad, grad)
        with pytest.raises(NotImplementedError, match=r"^fuse_scales has no forward-mode derivative"):
            hmsa._fuse_scales_backward(dual, inputs[:2], inputs[2:], SCALES, False, 0b11, 0b1)


FUNCTORCH_REFUSALS = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "grad of jvp": lambda f, x: torch.func.grad(lambda y: torch.func.jvp(f, (y,), (y,))[1])(x),
    "jvp of grad": lambda f, x: torch.func.jvp(torch.func.grad(f), (x,), (x,)),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "grad of grad": lambda f, x: torch.func.grad(lambda y: torch.func.grad(f)(y).sum())(x),
    "vjp of grad": lambda f, x: torch.func.vjp(torch.func.grad(f), x)[1](x),
}


@pytest.mark.parametrize("transform", FUNCTORCH_REFUSALS)
def test_functorch_refuses_what_the_ops_do_not_have(call, inputs, transform):
    high, low, attention = (leaf.detach() for leaf in inputs)
    with pytest.raises(RuntimeError, match=r"has no forward-mode derivative|cannot be differentiated twice"):
        FUNCTORCH_REFUSALS[transform](lambda leaf: call(leaf, low, attention).square().sum(), high)


# ---- PyTorch's machinery ----------------------------------------------------------------------------------------


def test_functorch_gives_the_same_gradients(call, inputs):
    expected = gradients(call, inputs)
    leaves = [leaf.detach() for leaf in inputs]
    got = torch.func.grad(lambda *leaves: call(*leaves).square().sum(), argnums=(0, 1, 2))(*leaves)
    assert all(map(torch.equal, got, expected))
    result, pullback = torch.func.vjp(call, *leaves)[:2]
    assert all(map(torch.equal, pullback(2 * result), expected))


@pytest.mark.parametrize("name", ["fuse_scales", "fuse_scales_cross_entropy"], indirect=True)
def test_functorch_maps_gradients(call, inputs):
    high, low, attention = (leaf.detach() for leaf in inputs)
    stacked = torch.stack([high, 2 * high])

    def loss(leaf):
        return call(leaf, low, attention).square().sum()

    expected = torch.stack([torch.func.grad(loss)(leaf) for leaf in stacked])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(stacked), expected)
    torch.testing.assert_close(torch.func.grad(lambda leaves: torch.vmap(loss)(leaves).sum())(stacked), expected)


def test_an_outer_transform_sees_through_an_inner_one(call, inputs):
    """The inner gradient is with respect to something else, so that the op is differentiated once."""
    (expected, *_) = gradients(call, inputs)
    high, low, attention = (leaf.detach() for leaf in inputs)

    def inner(leaf):
        one = torch.ones((), dtype=leaf.dtype, device=leaf.device)
        return torch.func.grad(lambda factor: factor * call(leaf, low, attention).square().sum())(one)

    assert torch.equal(torch.func.grad(inner)(high), expected)


@pytest.mark.compile
def test_compiled_functorch_gives_the_same_gradients(call, inputs):
    torch._dynamo.reset()
    (expected, *_) = gradients(call, inputs)
    leaves = [leaf.detach() for leaf in inputs]
    gradient = torch.func.grad(lambda *leaves: call(*leaves).square().sum())
    assert torch.equal(torch.compile(gradient, fullgraph=True, backend="aot_eager")(*leaves), expected)


@pytest.mark.compile
def test_compiled_autograd_gives_the_same_gradients(call, inputs):
    torch._dynamo.reset()
    expected = gradients(call, inputs)
    result = call(*inputs).square().sum()
    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True), dynamic=False):
        result.backward()
    assert all(map(torch.equal, (leaf.grad for leaf in inputs), expected))


def test_tensor_subclasses_are_kept(call, inputs):
    """TwoTensor has no storage of its own: everything reaches it as a call of an op."""
    doubled = [leaf.detach() * 2 for leaf in inputs]
    leaves = [TwoTensor(leaf.detach(), twice).requires_grad_() for leaf, twice in zip(inputs, doubled, strict=True)]
    got = gradients(call, leaves)
    of_second = gradients(call, [leaf.requires_grad_() for leaf in doubled])
    for pair, first, second in zip(got, gradients(call, inputs), of_second, strict=True):
        assert isinstance(pair, TwoTensor)
        torch.testing.assert_close(pair.a, first)
        torch.testing.assert_close(pair.b, second)


@pytest.mark.filterwarnings("ignore::UserWarning")  # that it is on; and the traceback of what gave the NaN
def test_anomaly_detection_works(call, inputs):
    expected = gradients(call, inputs)
    with torch.autograd.detect_anomaly(check_nan=True):
        assert all(map(torch.equal, gradients(call, inputs), expected))
        with pytest.raises(RuntimeError, match="nan values"):
            torch.autograd.grad(call(*inputs).sum() * float("nan"), inputs)


def test_the_graph_names_the_op(inputs):
    fused = hmsa.fuse_scales(inputs[:2], inputs[2:], SCALES, SIZE)
    assert fused.grad_fn.name() == "FuseScalesBackward"
