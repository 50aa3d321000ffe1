"""How the ops on a chain of scales are differentiated: a ``torch.autograd.Function`` behind each op's Autograd key.

``torch.library.register_autograd`` does the same for any op, and for that takes all arguments and gradients apart as
trees of whatever may be in them, which takes the host longer than everything else in a small step. Here the tensors
that have gradients are known to be those of two lists.

Gradients that nobody needs are not computed. Differentiating twice raises. So does forward mode, which the ops do not
have, instead of giving zeros.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

# Registrations live as long as the Library object.
_library = torch.library.Library("hmsa", "IMPL")


def register(op: str, setup_context: Callable, backward: Callable) -> None:
    """Differentiate ``hmsa::op(Tensor[] logits, Tensor[] attention, ...)`` with respect to these two lists.

    ``setup_context(ctx, output, *arguments, **options)`` gets what the op was given, less some arguments at the end
    that are equal to their default, and saves what backward reads. ``backward(ctx, saved, wanted, *grads)`` gets the
    saved tensors, which are read once, since activation checkpointing computes them again for it. It returns two lists
    as the backward ops do: bit i of ``wanted[0]`` is whether ``logits[i]`` needs a gradient, ``wanted[1]`` is that of
    attention, and anything may stand in place of those that need none. An output without a gradient comes as None;
    where none of them has one, ``backward`` is not called.
    """
    overload = getattr(torch.ops.hmsa, op).default
    name = op.lstrip("_")

    def forward(ctx, call, *inputs):
        keyset, count, arguments, options = call
        logits, attention = list(inputs[:count]), list(inputs[count:])
        with _recording_below():
            output = overload.redispatch(keyset, logits, attention, *arguments, **options)
        ctx.count = count
        ctx.set_materialize_grads(False)
        setup_context(ctx, output, logits, attention, *arguments, **options)
        return output

    def differentiate(ctx, *grads):
        needs = ctx.needs_input_grad[1:]
        if all(grad is None for grad in grads):
            return (None,) * (1 + len(needs))
        saved = ctx.saved_tensors  # hooks run here, which may record a graph
        wanted = _masks(needs, ctx.count)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            gradients = backward(ctx, saved, wanted, *grads)
        else:  # no second derivative can be asked for, which is all that the backward op's own Autograd key is about
            with torch._C._AutoDispatchBelowAutograd():
                gradients = backward(ctx, saved, wanted, *grads)
        of_inputs = zip(needs, (*gradients[0], *gradients[1]), strict=True)
        return None, *(gradient if need else None for need, gradient in of_inputs)

    function = _function(op, forward, differentiate)

    def kernel(keyset, logits, attention, *arguments, **options):
        keyset = keyset & torch._C._after_autograd_keyset
        _refuse_tangents(name, (logits, attention, *arguments))
        if torch.is_grad_enabled() and _any_requires_grad((*logits, *attention)):
            return function((keyset, len(logits), arguments, options), *logits, *attention)
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset, logits, attention, *arguments, **options)

    _library.impl(op, kernel, "Autograd", with_keyset=True)


def forbid_double_backward(backward_op: str, name: str) -> None:
    """Make differentiating the backward op of ``name`` an error; without this PyTorch would go on with wrong zeros.

    The first of its lists is the logits, and it returns their gradients and those of the attention as lists.
    """
    overload = getattr(torch.ops.hmsa, backward_op).default

    def forward(ctx, call, *inputs):
        keyset, arguments = call
        with _recording_below():
            grad_logits, grad_attention = overload.redispatch(keyset, *arguments)
        return *grad_logits, *grad_attention  # a Function returns tensors, no lists

    def refuse(ctx, *grads):
        raise RuntimeError(f"{name} cannot be differentiated twice: its backward has no derivative")

    function = _function(backward_op, forward, refuse)

    def kernel(keyset, *arguments):
        keyset = keyset & torch._C._after_autograd_keyset
        _refuse_tangents(name, arguments)
        if torch.is_grad_enabled() and _any_requires_grad(_tensors(arguments)):
            count = len(next(argument for argument in arguments if isinstance(argument, list)))
            gradients = function((keyset, arguments), *_tensors(arguments))
            return list(gradients[:count]), list(gradients[count:])
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset, *arguments)

    _library.impl(backward_op, kernel, "Autograd", with_keyset=True)


def _function(op: str, forward: Callable, backward: Callable) -> Callable:
    """``apply`` of a Function whose node in the graph is named after the op: fuse_scales -> FuseScalesBackward."""
    name = op.title().replace("_", "")
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    apply = type(name, (torch.autograd.Function,), members).apply
    # functorch takes a Function apart by itself. Ours is called when the op has been taken apart already, for one level
    # of functorch, and this is the class that functorch itself makes for that.
    apply_at_one_level = type(name, (_SingleLevelFunction,), members).apply

    def record(*arguments):
        if not torch._C._are_functorch_transforms_active():
            return apply(*arguments)
        with enable_single_level_autograd_function():
            return apply_at_one_level(*arguments)

    return record


def _recording_below():
    """The context in which a Function's forward calls the op again, behind its Autograd key."""
    if torch._C._are_functorch_transforms_active():
        return _recording_at_other_levels()
    return torch._C._AutoDispatchBelowAutograd()


@contextlib.contextmanager
def _recording_at_other_levels() -> Iterator[None]:
    """Derivatives are off in a Function's forward, but functorch's outer levels have theirs to record or refuse."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        yield


@functools.cache
def _masks(needs: tuple[bool, ...], count: int) -> tuple[int, int]:
    """Which of the first ``count`` inputs need a gradient, the first one in the lowest bit, and which of the others."""
    bits = sum(1 << i for i, need in enumerate(needs) if need)
    return bits & ((1 << count) - 1), bits >> count


def _any_requires_grad(tensors: Iterable[Tensor]) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


def _tensors(arguments: Iterable) -> Iterator[Tensor]:
    """The tensors among the arguments of an op, and in the lists among them."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from (entry for entry in argument if isinstance(entry, Tensor))


def _refuse_tangents(name: str, arguments: Iterable) -> None:
    """Raise NotImplementedError where an argument has a tangent of forward-mode differentiation."""
    # The level is private; without it each tensor is looked at.
    if getattr(forward_ad, "_current_level", 0) < 0 or not torch._C._is_fwd_grad_enabled():
        return
    for tensor in _tensors(arguments):
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{name} has no forward-mode derivative; expected reverse mode")
