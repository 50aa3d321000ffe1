"""How the ops on a chain of scales are differentiated: a ``torch.autograd.Function`` behind each op's Autograd key.

``torch.library.register_autograd`` does the same for any op. To do so it takes all arguments and gradients apart as
trees of arbitrary objects, which costs the host more time than everything else in a small step. Here the tensors that
have gradients are known to be those of two lists.

Gradients that are not needed are not computed. Differentiating twice raises an error. Forward mode, which the ops do
not have, also raises an error instead of giving zeros.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from hmsa_ext.ops.schema import Signature, signature, tensors

# Registrations live as long as the Library object.
_library = torch.library.Library("hmsa", "IMPL")
_LISTS = ("logits", "attention")


def differentiate(op: str, backward_op: str, prepare: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Differentiate ``hmsa::op(Tensor[] logits, Tensor[] attention, ...)`` with respect to these two lists.

    ``hmsa::backward_op`` computes the gradients; its arguments say what it needs. ``grad`` is the gradient of the first
    result and ``grad_x`` that of result ``x``; results without such an argument are not differentiable. The others are
    arguments or results of ``op``, saved in the forward pass. The last two are ``wanted_logits`` and
    ``wanted_attention``: bit i says whether entry i of the list needs a gradient.

    ``prepare`` may change the arguments of ``backward_op``, by name, before the call. A result without a gradient
    leaves None there; where no result has one, nothing is called.
    """
    forward_signature, plan = signature(op), _plan(signature(op), signature(backward_op))
    overload, name = forward_signature.overload, op.lstrip("_")
    backward_signature = signature(backward_op)

    def forward(ctx, call, *inputs):
        keyset, count, arguments, options = call
        logits, attention = list(inputs[:count]), list(inputs[count:])
        with _recording_below():
            output = overload.redispatch(keyset, logits, attention, *arguments, **options)
        ctx.count = count
        ctx.set_materialize_grads(False)
        results = output if isinstance(output, tuple) else (output,)
        values = *forward_signature.values((logits, attention, *arguments), options), *results
        if plan.constant_results:
            ctx.mark_non_differentiable(*[results[i] for i in plan.constant_results])
        # Saved tensors are read once, since activation checkpointing computes them again for each reading.
        ctx.save_for_backward(*inputs, *[values[source] for _, source in plan.saved])
        ctx.options = [values[source] for _, source in plan.options]
        return output

    def backward(ctx, *grads):
        needs = ctx.needs_input_grad[1:]
        if all(grad is None for grad in grads):
            return (None,) * (1 + len(needs))
        saved = ctx.saved_tensors  # hooks run here, which may record a graph
        count, inputs = ctx.count, len(needs)
        call: list[Any] = [None] * plan.length
        call[plan.logits], call[plan.logits + 1] = saved[:count], saved[count:inputs]
        call[-2:] = _masks(needs, count)
        for place, source in plan.gradients:
            call[place] = grads[source]
        for (place, _), tensor in zip(plan.saved, saved[inputs:], strict=True):
            call[place] = tensor
        for (place, _), value in zip(plan.options, ctx.options, strict=True):
            call[place] = value
        if prepare is not None:
            by_name = dict(zip(backward_signature.names, call, strict=True))
            prepare(by_name)
            call = list(by_name.values())
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            gradients = backward_signature.overload(*call)
        else:  # no second derivative can be asked for, and the backward op's own Autograd key does nothing else
            with torch._C._AutoDispatchBelowAutograd():
                gradients = backward_signature.overload(*call)
        of_inputs = zip(needs, (*gradients[0], *gradients[1]), strict=True)
        return None, *(gradient if need else None for need, gradient in of_inputs)

    function = _function(op, forward, backward)

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
    overload = signature(backward_op).overload

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
        if torch.is_grad_enabled() and _any_requires_grad(tensors(arguments)):
            count = len(next(argument for argument in arguments if isinstance(argument, list)))
            gradients = function((keyset, arguments), *tensors(arguments))
            return list(gradients[:count]), list(gradients[count:])
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset, *arguments)

    _library.impl(backward_op, kernel, "Autograd", with_keyset=True)


@dataclass(frozen=True)
class _Plan:
    """Where the arguments of a backward op come from; worked out once, so that a step only copies.

    Pairs are (place among the arguments of the backward op, source). Sources count the gradients of the results in
    ``gradients``, else the arguments of the forward op and then its results.
    """

    length: int
    logits: int
    """Place of the logits; the attention follows."""
    gradients: tuple[tuple[int, int], ...]
    saved: tuple[tuple[int, int], ...]
    """Tensors beside the two lists."""
    options: tuple[tuple[int, int], ...]
    constant_results: tuple[int, ...]
    """Results that are not differentiable."""


def _plan(forward: Signature, backward: Signature) -> _Plan:
    sources = (*forward.names, *forward.results)
    gradients, saved, options = [], [], []
    for place, argument in enumerate(backward.overload._schema.arguments[:-2]):
        if argument.name == "grad":
            gradients.append((place, 0))
        elif argument.name.startswith("grad_"):
            gradients.append((place, forward.results.index(argument.name.removeprefix("grad_"))))
        elif argument.name not in _LISTS:
            is_tensor = str(argument.type) in ("Tensor", "Optional[Tensor]")
            (saved if is_tensor else options).append((place, sources.index(argument.name)))
    differentiable = {source for _, source in gradients}
    return _Plan(
        len(backward.names),
        backward.names.index("logits"),
        tuple(gradients),
        tuple(saved),
        tuple(options),
        tuple(i for i in range(len(forward.results)) if i not in differentiable),
    )


def _function(op: str, forward: Callable, backward: Callable) -> Callable:
    """``apply`` of a Function whose node in the graph is named after the op: fuse_scales -> FuseScalesBackward."""
    name = op.title().replace("_", "")
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    apply = type(name, (torch.autograd.Function,), members).apply
    # functorch takes a Function apart by itself. When ours is called, the op has already been taken apart for one level
    # of functorch, and functorch uses this class for a Function of one level.
    at_one_level: Any = type(name, (_SingleLevelFunction,), members)

    def record(*arguments):
        if not torch._C._are_functorch_transforms_active():
            return apply(*arguments)
        with enable_single_level_autograd_function():
            return at_one_level.apply(*arguments)

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


def _any_requires_grad(candidates: Iterable[Tensor]) -> bool:
    return any(tensor.requires_grad for tensor in candidates)


def _refuse_tangents(name: str, arguments: tuple) -> None:
    """Raise NotImplementedError where an argument has a tangent of forward-mode differentiation."""
    # The level is private; in a torch without it each tensor is looked at.
    if getattr(forward_ad, "_current_level", 0) < 0 or not torch._C._is_fwd_grad_enabled():
        return
    for tensor in tensors(arguments):
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{name} has no forward-mode derivative; expected reverse mode")
