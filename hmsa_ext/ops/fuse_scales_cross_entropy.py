"""``hmsa::fuse_scales_cross_entropy``: the public Python functions, and the declarations of the ops.

The public op is a composite over ``hmsa::_fuse_scales_cross_entropy``, which ``csrc/ops/fuse_scales_cross_entropy.cpp``
defines. The private op also returns what backward reads: the log-sum-exp of each pixel and the total weight. Fake
tensors, autograd, autocast, vmap and FLOPs belong to the private op. :func:`fuse_scales_cross_entropy` takes a chain of
scales, :func:`upsample_cross_entropy` one map of logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from hmsa_ext.ops import arguments, chain, reference, registration
from hmsa_ext.ops.arguments import CROSS_ENTROPY_DEFAULTS, CrossEntropyOptions
from hmsa_ext.ops.schema import Arguments, Signature, signature

_NAME = "fuse_scales_cross_entropy"


@arguments.documented(CROSS_ENTROPY_DEFAULTS)
def fuse_scales_cross_entropy(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    target: Tensor,
    *,
    reduction: str = "mean",
    **options: Unpack[CrossEntropyOptions],
) -> Tensor:
    """Cross-entropy of the fused logits of several scales, which never exist at full resolution.

    It equals ``F.cross_entropy(hmsa_ext.fuse_scales(...), target)``. With z the C fused logits of a pixel, y its label,
    w the weights (1 without ``weight``) and e the label smoothing::

        loss = (1 - e) * w[y] * (lse - z[y]) + e / C * sum_c w[c] * (lse - z[c]),    lse = log sum_c exp z[c]

    The mean is over the sum of w[y] of the pixels that are not ignored.

    Args:
        {chain}
        {target}
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        {weight}
        {ignore_index}
        {label_smoothing}
        {align_corners}

    Returns:
        A scalar, or [B, H, W] for ``"none"`` (0 at ignored pixels); float32, float64 for float64 logits. As in PyTorch
        the mean over nothing but ignored pixels is NaN, with gradients of 0. Saved for backward are the inputs and one
        float for each pixel; both directions are deterministic.

    Raises:
        {errors}

    A label that is neither a class nor ignored is a RuntimeError on the CPU; on CUDA it makes the loss NaN.

    >>> low, high = torch.randn(1, 19, 16, 32), torch.randn(1, 19, 32, 64, requires_grad=True)
    >>> alpha = torch.sigmoid(torch.randn(1, 1, 16, 32))
    >>> target = torch.randint(0, 19, (1, 128, 256), dtype=torch.uint8)
    >>> fuse_scales_cross_entropy([low, high], [alpha], [0.5, 1.0], target).backward()
    """
    return _terms(logits, attention, scales, target, reduction, options)[0]


@arguments.documented(CROSS_ENTROPY_DEFAULTS)
def upsample_cross_entropy(
    logits: Tensor, target: Tensor, *, reduction: str = "mean", **options: Unpack[CrossEntropyOptions]
) -> Tensor:
    """``F.cross_entropy(F.interpolate(logits, target.shape[1:], mode="bilinear"), target)`` without the large logits.

    ``logits`` [B, C, h, w] of any size, ``target`` [B, H, W]; everything else as for
    :func:`fuse_scales_cross_entropy`. Note that ``ignore_index`` is 255 by default, not PyTorch's -100.

    >>> logits = torch.randn(2, 150, 16, 16, requires_grad=True)
    >>> upsample_cross_entropy(logits, torch.zeros(2, 64, 64, dtype=torch.uint8)).backward()
    """
    arguments.tensor("upsample_cross_entropy", "logits", logits, arguments.FLOATING, "[B, C, h, w]")
    return _terms([logits], [], [1.0], target, reduction, options)[0]


@arguments.documented(CROSS_ENTROPY_DEFAULTS)
def cross_entropy_sum(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    target: Tensor,
    **options: Unpack[CrossEntropyOptions],
) -> tuple[Tensor, Tensor]:
    """The sum of the cross-entropy and the total weight of its pixels (their number without ``weight``): numerator and
    denominator of the mean. Use it to choose your own result when no pixel counts. Arguments and errors as for
    :func:`fuse_scales_cross_entropy`; the total weight has no gradient."""
    return _terms(logits, attention, scales, target, "sum", options)


def _terms(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    target: Tensor,
    reduction: str,
    options: CrossEntropyOptions,
) -> tuple[Tensor, Tensor]:
    """Loss and total weight."""
    complete = arguments.filled(_NAME, options, CROSS_ENTROPY_DEFAULTS)
    inputs = chain.sorted_chain(_NAME, logits, attention, scales, complete.pop("align_corners"))
    arguments.tensor(_NAME, "target", target, arguments.INTEGER, "[B, H, W]")
    complete["ignore_index"] = arguments.ignored(_NAME, complete["ignore_index"], inputs.classes)
    complete["reduction"] = reduction
    if inputs.has_kernels(_NAME):  # what the public op does, less a way through the dispatcher
        loss, _, total_weight = _call_private(inputs, target, complete)
        return loss, total_weight
    _check(inputs, target, **complete)
    loss = inputs.call(reference.fuse_scales_cross_entropy, target, **complete)
    return loss, _weight_of_items(target[None], complete["weight"], complete["ignore_index"], loss.dtype)[0]


# ---- the public op ----------------------------------------------------------------------------------------------


def _call_private(inputs: chain.Chain, target: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The private op's results for the options of the public op."""
    weight, *following = [options[name] for name in _OPTIONS]
    if weight is not None:
        weight = _cast_weight(weight, inputs.logits)
    return inputs.call_private(_op, target, weight, *following)


def _composite(logits, attention, scales, target, **options) -> Tensor:
    complete = {**signature(_NAME).options, **options}
    inputs = chain.Chain(logits, attention, scales, complete["align_corners"])
    return _call_private(inputs, target, complete)[0]


def _cast_weight(weight: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """The weights in the dtype that the kernels compute in; few numbers, so a copy costs nothing."""
    if not isinstance(weight, Tensor):
        raise arguments.ArgumentTypeError(f"{_NAME}: weight is a {type(weight).__name__}; expected a tensor [C]")
    if not weight.is_floating_point():
        raise RuntimeError(f"{_NAME}: weight is {arguments.dtype_name(weight)}; expected floating point")
    if weight.requires_grad:
        raise RuntimeError(f"{_NAME}: weight requires a gradient, but the op has none for it; expected weight.detach()")
    return weight.to(chain.arithmetic_dtype(logits[0])).contiguous() if logits else weight


# ---- declarations -----------------------------------------------------------------------------------------------


def _check(
    a: Arguments | chain.Chain,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> None:
    expect, dtype_name, number = arguments.expect, arguments.dtype_name, arguments.number
    chain.check_target(_NAME, a, target)
    expect(
        [0 <= label_smoothing <= 1],
        lambda: f"{_NAME}: label_smoothing is {number(label_smoothing)}; expected a number from 0 to 1",
    )
    if weight is not None:
        first = a.logits[0]
        expect([weight.dim() == 1], lambda: _weight_shape(weight, first))
        expect([weight.shape[0] == first.shape[1]], lambda: _weight_shape(weight, first))
        expect(
            [weight.device == first.device],
            lambda: (
                f"{_NAME}: weight is {dtype_name(weight)} on {weight.device} with stride {weight.stride(0)}; "
                f"expected contiguous {arguments.listed([chain.arithmetic_dtype(first)])} on {first.device}"
            ),
        )
    expect(
        [reduction in ("none", "sum", "mean")],
        lambda: f"{_NAME}: reduction is '{reduction}'; expected 'mean', 'sum' or 'none'",
    )
    chain.check(_NAME, a, target.shape[1:])


def _weight_shape(weight: Tensor, first: Tensor) -> str:
    shape, classes = arguments.shape_of(weight), first.shape[1]
    return f"{_NAME}: weight has shape {shape}; expected [{classes}], one factor for each class"


def _check_arguments(a: Arguments) -> None:
    _check(a, a.target, a.weight, a.ignore_index, a.label_smoothing, a.reduction)


def _fake(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    _check_arguments(a)
    first, dtype = a.logits[0], chain.arithmetic_dtype(a.logits[0])
    pixels = (first.shape[0], *a.target.shape[1:])
    loss = first.new_empty(pixels if a.reduction == "none" else (), dtype=dtype)
    return loss, first.new_empty(pixels, dtype=dtype), first.new_empty((), dtype=dtype)


def _fake_backward(a: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    _check_arguments(a)
    return chain.fake_gradients(a)


def _autocast(a: Arguments) -> None:
    registration.promote(a)
    if a.weight is not None:
        a.weight = _cast_weight(a.weight, a.logits)


def _vmap(its: Signature, a: Arguments, in_dims: Arguments, n: int) -> tuple[Any, Any]:
    """The mapped dimension becomes part of the batch, and each item gets its own sum or mean."""
    _refuse_mapped_weight(in_dims)
    reduction, a.reduction = a.reduction, "none"
    registration.fold_arguments(a, in_dims, n, ("logits", "attention", "target"))
    losses, log_sum_exp, _ = its.call(a)
    losses, log_sum_exp = losses.unflatten(0, (n, -1)), log_sum_exp.unflatten(0, (n, -1))
    total_weight = _weight_of_items(a.target.unflatten(0, (n, -1)), a.weight, a.ignore_index, losses.dtype)
    if reduction != "none":
        losses = losses.flatten(1).sum(1, dtype=torch.float64)
        losses = (losses / total_weight if reduction == "mean" else losses).to(log_sum_exp.dtype)
    return (losses, log_sum_exp, total_weight), (0, 0, 0)


def _vmap_backward(its: Signature, a: Arguments, in_dims: Arguments, n: int) -> tuple[Any, Any]:
    _refuse_mapped_weight(in_dims)
    registration.fold_arguments(a, in_dims, n, ("logits", "attention", "target", "log_sum_exp"))
    if a.reduction == "none":
        registration.fold_arguments(a, in_dims, n, ("grad",))
    else:  # one number for each item: the same for all of its pixels
        grad = registration.first(a.grad, in_dims.grad, n)
        if a.reduction == "mean":
            grad = grad / registration.first(a.total_weight, in_dims.total_weight, n)
        a.grad = grad.repeat_interleave(a.target.shape[0] // n).view(-1, 1, 1).expand(a.target.shape)
        a.reduction = "none"
    a.log_sum_exp = a.log_sum_exp.contiguous()
    a.total_weight = a.log_sum_exp.new_ones(())  # "none" does not read it
    return registration.unfold(its.call(a), n)


def _refuse_mapped_weight(in_dims: Arguments) -> None:
    if in_dims.weight is not None:
        raise RuntimeError(f"{_NAME}: vmap maps over weight; expected the same weights for every item")


def _weight_of_items(target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Total weight of each [n, B, H, W] -> [n]; NaN where there is a label that is neither a class nor ignored."""
    valid = arguments.is_valid(target, ignore_index)
    if weight is None:
        return valid.flatten(1).sum(1).to(dtype)
    target = target.long()
    outside = valid & ((target < 0) | (target >= len(weight)))
    weights = weight[torch.where(valid & ~outside, target, 0)].masked_fill(~valid, 0).masked_fill(outside, math.nan)
    return weights.flatten(1).sum(1, dtype=torch.float64).to(dtype)


def _fused_shape(a: Arguments) -> tuple[int, int]:
    """Pixels, and elements of the logits that are never stored."""
    pixels = a.logits[0][0] * a.target[1] * a.target[2]
    return pixels, pixels * a.logits[0][1]


def _flops(a: Arguments) -> int:
    """The chain, and then for each class of each pixel a difference, an exponential and a sum."""
    pixels, elements = _fused_shape(a)
    smoothing = 2 * elements if a.label_smoothing > 0 else 0  # sum_c w[c] z[c]
    return chain.chain_flops(a.logits, a.attention, a.scales, a.target[1:]) + 3 * elements + 3 * pixels + smoothing


def _backward_flops(a: Arguments) -> int:
    """The chain again, the gradient of each logit (a difference, an exponential, a product), and the adjoint."""
    pixels, elements = _fused_shape(a)
    smoothing = elements if a.label_smoothing > 0 else 0
    shapes = a.logits, a.attention, a.scales, a.target[1:]
    return chain.chain_flops(*shapes) + 3 * elements + pixels + smoothing + chain.adjoint_flops(*shapes)


registration.declare(
    "_fuse_scales_cross_entropy_backward",
    fake=_fake_backward,
    derivative=registration.NoSecond(of=_NAME),
    vmap=_vmap_backward,
    flops=_backward_flops,
)
_op = registration.declare(
    "_fuse_scales_cross_entropy",
    fake=_fake,
    derivative=registration.Reverse("_fuse_scales_cross_entropy_backward"),
    autocast=_autocast,
    vmap=_vmap,
    flops=_flops,
)
registration.define(
    "fuse_scales_cross_entropy(Tensor[] logits, Tensor[] attention, float[] scales, Tensor target, *, "
    'Tensor? weight=None, int ignore_index=255, float label_smoothing=0.0, str reduction="mean", '
    "bool align_corners=False) -> Tensor",
    _composite,
    doc=fuse_scales_cross_entropy.__doc__,
)
_OPTIONS = signature("_fuse_scales_cross_entropy").names[4:-1]
"""The private op's arguments between the target and ``align_corners``."""
