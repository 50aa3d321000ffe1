"""One declaration for each op: all that PyTorch needs to know of an op beside its kernels.

The module of an op ends in :func:`declare`, once for each op that ``csrc/ops/<op>.cpp`` defines. From that come the
fake kernel, autograd, autocast, vmap, the FLOP formula, the message where CUDA kernels are missing, and the op's place
in :func:`names`. A declaration gets the arguments of a call by name (:class:`hmsa_ext.ops.schema.Arguments`), so that
the schema stays the one list of them. :func:`define` makes a public op that is composed of others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import register_flop_formula

from hmsa_ext.ops import autograd, library
from hmsa_ext.ops.schema import Arguments, Signature, signature

library.load()  # before anything is registered for its ops

_AUTOCAST_KEYS = ("AutocastCPU", "AutocastCUDA", "AutocastXPU")
_autocast_set = functools.reduce(
    lambda keys, key: keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)),
    _AUTOCAST_KEYS[1:],
    torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST_KEYS[0])),
)
# Registrations live as long as the Library objects.
_library = torch.library.Library("hmsa", "IMPL")
_definitions = torch.library.Library("hmsa", "FRAGMENT")
_names: list[str] = []


@dataclass(frozen=True)
class Reverse:
    """The derivative of an op on a chain of scales: see :func:`hmsa_ext.ops.autograd.differentiate`."""

    op: str
    prepare: Callable[[dict[str, Any]], None] | None = None


@dataclass(frozen=True)
class NoSecond:
    """An op that computes the gradients of the function ``of`` and has no derivative itself: using one is an error."""

    of: str


def declare(
    op: str,
    *,
    fake: Callable[[Arguments], Any],
    derivative: Reverse | NoSecond | None = None,
    autocast: Callable[[Arguments], None] | None = None,
    vmap: Callable[[Signature, Arguments, Arguments, int], tuple[Any, Any]] | None = None,
    flops: Callable[[Arguments], int] | None = None,
    doc: str | None = None,
) -> OpOverload:
    """Register all of this for ``hmsa::<op>``, which the library defines, and return the op.

    Args:
        op: its name. A backward op is declared before the op that it belongs to.
        fake: results without contents for fake and meta tensors. Raises the errors that the kernels raise.
        derivative: None for an op that has none: its results never require a gradient.
        autocast: changes the arguments under autocast, before the op is called with autocast off.
        vmap: results and their ``out_dims``, given the op's signature, the arguments, their ``in_dims`` (None where
            there is none) and the length of the mapped dimension. :func:`fold` makes it for most ops.
        flops: floating-point operations of a call; tensors come as their shapes.
        doc: ``__doc__`` of ``torch.ops.hmsa.<op>``.
    """
    its = signature(op)
    qualified = f"hmsa::{op}"
    torch.library.register_fake(qualified, lambda *args, **kwargs: fake(its.bind(args, kwargs)))
    if isinstance(derivative, Reverse):
        autograd.differentiate(op, derivative.op, derivative.prepare)
    elif isinstance(derivative, NoSecond):
        autograd.forbid_double_backward(op, derivative.of)
    else:
        _library.impl(op, torch.library.fallthrough_kernel, "Autograd")
    if autocast is not None:
        _register_autocast(its, autocast)
    if vmap is not None:
        _register_vmap(its, vmap)
    if flops is not None:
        _register_flops(its, flops)
    if not library.has_cuda_kernels():
        _library.impl(op, _refuse_cuda, "CUDA")
    _name(op, doc)
    return its.overload


def define(schema: str, function: Callable, doc: str | None = None) -> None:
    """Define a public op, whose name begins ``schema``, by a Python function that calls other ops."""
    op = schema.partition("(")[0]
    _definitions.define(schema)
    # vmap does not take a composite apart unless it is told.
    for key in ("CompositeImplicitAutograd", "FuncTorchBatchedDecomposition"):
        _definitions.impl(op, function, key)
    _name(op, doc)


def names() -> list[str]:
    """Names of all ops ``torch.ops.hmsa.<name>``, sorted: public ones, private ones and backward ops."""
    return sorted(_names)


def _name(op: str, doc: str | None) -> None:
    _names.append(op)
    if doc is not None:
        getattr(torch.ops.hmsa, op).__doc__ = doc


def _refuse_cuda(*args, **kwargs):
    library.require_kernels(torch.device("cuda"))


# ---- autocast ---------------------------------------------------------------------------------------------------


def _register_autocast(its: Signature, change: Callable[[Arguments], None]) -> None:
    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(_autocast_set):
            arguments = its.bind(args, kwargs)
            change(arguments)
            return its.call(arguments)

    for key in _AUTOCAST_KEYS:
        _library.impl(its.overload._schema.name.removeprefix("hmsa::"), kernel, key)


def promote(arguments: Arguments) -> None:
    """For autocast: cast logits and attention to the widest floating dtype among them."""
    dtypes = {tensor.dtype for tensor in (*arguments.logits, *arguments.attention)}
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    if len(dtypes) < 2 or not floating:
        return
    widest = functools.reduce(torch.promote_types, floating)
    arguments.logits = [tensor.to(widest) for tensor in arguments.logits]
    arguments.attention = [tensor.to(widest) for tensor in arguments.attention]


# ---- vmap -------------------------------------------------------------------------------------------------------


def _register_vmap(its: Signature, function: Callable) -> None:
    def rule(info, in_dims, *args, **kwargs):
        dims = dict.fromkeys(its.names) | dict(zip(its.names, in_dims, strict=False))
        return function(its, its.bind(args, kwargs), Arguments(**dims), info.batch_size)

    torch.library.register_vmap(its.overload._schema.name, rule)


def fold(*names: str) -> Callable[[Signature, Arguments, Arguments, int], tuple[Any, Any]]:
    """For vmap: the mapped dimension of these arguments becomes part of their batch, which comes first; so do all
    results have it."""

    def function(its: Signature, arguments: Arguments, in_dims: Arguments, n: int) -> tuple[Any, Any]:
        fold_arguments(arguments, in_dims, n, names)
        return unfold(its.call(arguments), n)

    return function


def fold_arguments(arguments: Arguments, in_dims: Arguments, n: int, names: Sequence[str]) -> None:
    """Make the mapped dimension of these tensors and lists of tensors part of their batch; repeat what has none."""
    for name in names:
        value, dims = getattr(arguments, name), getattr(in_dims, name)
        if isinstance(value, Tensor):
            folded = first(value, dims, n).flatten(0, 1)
        else:
            dims = dims or [None] * len(value)
            folded = [first(tensor, dim, n).flatten(0, 1) for tensor, dim in zip(value, dims, strict=True)]
        setattr(arguments, name, folded)


def unfold(results: Any, n: int) -> tuple[Any, Any]:
    """Results of folded arguments with the mapped dimension first, and their ``out_dims``."""
    if isinstance(results, Tensor):
        return results.unflatten(0, (n, results.shape[0] // n)), 0
    pairs = [unfold(result, n) for result in results]
    kind = type(results) if isinstance(results, list) else tuple
    return kind(result for result, _ in pairs), kind(dims for _, dims in pairs)


def first(tensor: Tensor, in_dim: int | None, n: int) -> Tensor:
    """The tensor with its mapped dimension first, or repeated ``n`` times where it has none."""
    return tensor.movedim(in_dim, 0) if in_dim is not None else tensor.expand(n, *tensor.shape)


# ---- FLOPs ------------------------------------------------------------------------------------------------------


def _register_flops(its: Signature, function: Callable[[Arguments], int]) -> None:
    def formula(*args, out_shape=None, **kwargs) -> int:
        return function(its.bind(args, kwargs))

    register_flop_formula(its.overload.overloadpacket)(formula)
