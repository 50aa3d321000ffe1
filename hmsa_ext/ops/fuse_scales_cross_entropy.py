"""``hmsa::fuse_scales_cross_entropy``: everything about the op that is not a kernel.

The public op is a composite over ``hmsa::_fuse_scales_cross_entropy``, which csrc/ops defines and which also returns
what backward reads: the log-sum-exp of each pixel and the total weight. Fake tensors, autograd, autocast, vmap and FLOP
counts are registered on that one. :func:`fuse_scales_cross_entropy` is the form for people,
:func:`upsample_cross_entropy` that for one map of logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hmsa_ext.ops import autograd, chain, dispatch, reference

_NAME = "fuse_scales_cross_entropy"
_op = torch.ops.hmsa._fuse_scales_cross_entropy.default
_backward_op = torch.ops.hmsa._fuse_scales_cross_entropy_backward.default


def fuse_scales_cross_entropy(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    align_corners: bool = False,
) -> Tensor:
    """Cross-entropy of the fused logits of several scales, which never exist at full resolution.

    It equals ``F.cross_entropy(hmsa_ext.fuse_scales(...), target)``. With z the C fused logits of a pixel, y its label,
    w the weights (1 without ``weight``) and e the label smoothing::

        loss = (1 - e) * w[y] * (lse - z[y]) + e / C * sum_c w[c] * (lse - z[c]),    lse = log sum_c exp z[c]

    The mean is over the sum of w[y] of the pixels that are not ignored.

    Args:
        logits: one [B, C, h_s, w_s] per scale, at the head's own resolution; float32, float16, bfloat16 or float64.
        attention: one [B, 1 or C, h_s, w_s] per scale but the largest, in the order of ``scales``, in [0, 1].
        scales: up to 8 different positive numbers in any order, 1.0 among them when there is more than one.
        target: [B, H, W] labels at the size of the image; uint8, int16, int32 or int64, read as they are.
        weight: [C], a factor for each class, of any floating dtype; it gets no gradient.
        ignore_index: label of the pixels that do not count.
        label_smoothing: in [0, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        A scalar, or [B, H, W] for ``"none"`` (0 at ignored pixels); float32, float64 for float64 logits. As in PyTorch
        the mean over nothing but ignored pixels is NaN, with gradients of 0. Saved for backward are the inputs and one
        float for each pixel; both directions are deterministic.

    Raises:
        ValueError: for scales given twice or lists of different lengths.
        RuntimeError: for anything else that does not fit; it names the argument, what came and what was expected. Among
            them, on the CPU, labels that are neither a class nor ignored; on CUDA such a label makes the loss NaN.

    >>> low, high = torch.randn(1, 19, 16, 32), torch.randn(1, 19, 32, 64, requires_grad=True)
    >>> alpha = torch.sigmoid(torch.randn(1, 1, 16, 32))
    >>> target = torch.randint(0, 19, (1, 128, 256), dtype=torch.uint8)
    >>> fuse_scales_cross_entropy([low, high], [alpha], [0.5, 1.0], target).backward()
    """
    logits, attention, scales = chain.descending(_NAME, logits, attention, scales)
    function = reference.fuse_scales_cross_entropy
    if not logits or dispatch.has_kernels(_NAME, logits[0].device):
        function = _composite  # what the public op does, less a way through the dispatcher
    return function(
        logits,
        attention,
        scales,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        align_corners=align_corners,
    )


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    align_corners: bool = False,
) -> Tensor:
    """``F.cross_entropy(F.interpolate(logits, target.shape[1:], mode="bilinear"), target)`` without the large logits.

    ``logits`` [B, C, h, w] of any size, ``target`` [B, H, W]; everything else as for
    :func:`fuse_scales_cross_entropy`. Note that ``ignore_index`` is 255 by default, not PyTorch's -100.

    >>> logits = torch.randn(2, 150, 16, 16, requires_grad=True)
    >>> upsample_cross_entropy(logits, torch.zeros(2, 64, 64, dtype=torch.uint8)).backward()
    """
    return fuse_scales_cross_entropy(
        [logits],
        [],
        [1.0],
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        align_corners=align_corners,
    )


def cross_entropy_sum(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """The sum of the cross-entropy and the total weight of its pixels (their number without ``weight``): numerator and
    denominator of the mean, for who wants to say what a mean over nothing is. Arguments and errors as for
    :func:`fuse_scales_cross_entropy`; the total weight has no gradient."""
    logits, attention, scales = chain.descending(_NAME, logits, attention, scales)
    if not logits or dispatch.has_kernels(_NAME, logits[0].device):
        weight = _cast_weight(weight, logits)
        total, _, total_weight = _op(
            logits, attention, scales, target, weight, ignore_index, label_smoothing, "sum", align_corners
        )
        return total, total_weight
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    total = reference.fuse_scales_cross_entropy(
        logits, attention, scales, target, reduction="sum", align_corners=align_corners, **options
    )
    return total, _weight_of_items(target[None], weight, ignore_index, total.dtype)[0]


# ---- the public op ----------------------------------------------------------------------------------------------

# Registrations live as long as the Library object.
_library = torch.library.Library("hmsa", "FRAGMENT")
_library.define(
    "fuse_scales_cross_entropy(Tensor[] logits, Tensor[] attention, float[] scales, Tensor target, *, "
    'Tensor? weight=None, int ignore_index=255, float label_smoothing=0.0, str reduction="mean", '
    "bool align_corners=False) -> Tensor"
)


def _composite(
    logits,
    attention,
    scales,
    target,
    *,
    weight=None,
    ignore_index=255,
    label_smoothing=0.0,
    reduction="mean",
    align_corners=False,
):
    weight = _cast_weight(weight, logits)
    results = _op(logits, attention, scales, target, weight, ignore_index, label_smoothing, reduction, align_corners)
    return results[0]


# vmap does not take a composite apart unless it is told.
for _key in ("CompositeImplicitAutograd", "FuncTorchBatchedDecomposition"):
    _library.impl("fuse_scales_cross_entropy", _composite, _key)


def _cast_weight(weight: Tensor | None, logits: Sequence[Tensor]) -> Tensor | None:
    """The weights in the dtype that the kernels compute in; few numbers, so a copy costs nothing."""
    if weight is None or not logits:
        return weight
    if not weight.is_floating_point():
        raise RuntimeError(f"{_NAME}: weight is {str(weight.dtype).removeprefix('torch.')}; expected floating point")
    if weight.requires_grad:
        raise RuntimeError(f"{_NAME}: weight requires a gradient, but the op has none for it; expected weight.detach()")
    return weight.to(chain.arithmetic_dtype(logits[0])).contiguous()


# ---- fake tensors -----------------------------------------------------------------------------------------------


@torch.library.register_fake("hmsa::_fuse_scales_cross_entropy")
def _fake(logits, attention, scales, target, weight, ignore_index, label_smoothing, reduction, align_corners):
    if target.dim() != 3:  # the kernels say the same of real tensors; here the size could not even be read
        raise RuntimeError(f"{_NAME}: target has shape {list(target.shape)}; expected [B, H, W]")
    dtype = chain.arithmetic_dtype(logits[0])
    pixels = (logits[0].shape[0], target.shape[1], target.shape[2])
    loss = logits[0].new_empty(pixels if reduction == "none" else (), dtype=dtype)
    return loss, logits[0].new_empty(pixels, dtype=dtype), logits[0].new_empty((), dtype=dtype)


@torch.library.register_fake("hmsa::_fuse_scales_cross_entropy_backward")
def _fake_backward(
    grad,
    logits,
    attention,
    scales,
    target,
    weight,
    log_sum_exp,
    total_weight,
    ignore_index,
    label_smoothing,
    reduction,
    align_corners,
    wanted_logits,
    wanted_attention,
):
    return chain.fake_gradients(logits, attention, wanted_logits, wanted_attention)


# ---- autograd ---------------------------------------------------------------------------------------------------


def _setup_context(ctx, output, logits, attention, scales, target, weight, *options):
    _, log_sum_exp, total_weight = output
    ctx.mark_non_differentiable(log_sum_exp, total_weight)
    ctx.save_for_backward(*logits, *attention, target, weight, log_sum_exp, total_weight)
    ctx.scales, ctx.options = scales, options


def _backward(ctx, saved, wanted, grad, *_):
    inputs, rest = saved[:-4], saved[-4:]
    logits, attention = inputs[: ctx.count], inputs[ctx.count :]
    return _backward_op(grad, logits, attention, ctx.scales, *rest, *ctx.options, *wanted)


autograd.register("_fuse_scales_cross_entropy", _setup_context, _backward)
autograd.forbid_double_backward("_fuse_scales_cross_entropy_backward", _NAME)


# ---- autocast ---------------------------------------------------------------------------------------------------


def _autocast(logits, attention, scales, target, weight, *options):
    logits, attention = dispatch.promote(logits, attention)
    return _op(logits, attention, scales, target, _cast_weight(weight, logits), *options)


dispatch.register_autocast("_fuse_scales_cross_entropy", _autocast)


# ---- vmap: the mapped dimension becomes part of the batch, and each item gets its own sum or mean ----------------


@torch.library.register_vmap("hmsa::_fuse_scales_cross_entropy")
def _vmap(
    info,
    in_dims,
    logits,
    attention,
    scales,
    target,
    weight,
    ignore_index,
    label_smoothing,
    reduction,
    align_corners,
):
    n = info.batch_size
    _refuse_mapped_weight(in_dims[4])
    logits, attention = dispatch.fold(logits, in_dims[0], n), dispatch.fold(attention, in_dims[1], n)
    (target,) = dispatch.fold([target], [in_dims[3]], n)
    losses, log_sum_exp, _ = _op(
        logits, attention, scales, target, weight, ignore_index, label_smoothing, "none", align_corners
    )
    losses, log_sum_exp = losses.unflatten(0, (n, -1)), log_sum_exp.unflatten(0, (n, -1))
    total_weight = _weight_of_items(target.unflatten(0, (n, -1)), weight, ignore_index, losses.dtype)
    if reduction != "none":
        losses = losses.flatten(1).sum(1, dtype=torch.float64)
        losses = (losses / total_weight if reduction == "mean" else losses).to(log_sum_exp.dtype)
    return (losses, log_sum_exp, total_weight), (0, 0, 0)


@torch.library.register_vmap("hmsa::_fuse_scales_cross_entropy_backward")
def _vmap_backward(
    info,
    in_dims,
    grad,
    logits,
    attention,
    scales,
    target,
    weight,
    log_sum_exp,
    total_weight,
    ignore_index,
    label_smoothing,
    reduction,
    align_corners,
    wanted_logits,
    wanted_attention,
):
    n = info.batch_size
    _refuse_mapped_weight(in_dims[5])
    logits, attention = dispatch.fold(logits, in_dims[1], n), dispatch.fold(attention, in_dims[2], n)
    target, log_sum_exp = dispatch.fold([target, log_sum_exp], [in_dims[4], in_dims[6]], n)
    if reduction == "none":
        (grad,) = dispatch.fold([grad], [in_dims[0]], n)
    else:  # one number for each item: the same for all of its pixels
        grad = _first(grad, in_dims[0], n)
        if reduction == "mean":
            grad = grad / _first(total_weight, in_dims[7], n)
        grad = grad.repeat_interleave(target.shape[0] // n).view(-1, 1, 1).expand(target.shape)
    total_weight = log_sum_exp.new_ones(())  # of no use to "none"
    options = (ignore_index, label_smoothing, "none", align_corners, wanted_logits, wanted_attention)
    log_sum_exp = log_sum_exp.contiguous()
    results = _backward_op(grad, logits, attention, scales, target, weight, log_sum_exp, total_weight, *options)
    return chain.unfold_gradients(results, n)


def _refuse_mapped_weight(in_dim: int | None) -> None:
    if in_dim is not None:
        raise RuntimeError(f"{_NAME}: vmap maps over weight; expected the same weights for every item")


def _first(tensor: Tensor, in_dim: int | None, batch_size: int) -> Tensor:
    return tensor.movedim(in_dim, 0) if in_dim is not None else tensor.expand(batch_size, *tensor.shape)


def _weight_of_items(target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Total weight of each [n, B, H, W] -> [n]; NaN where there is a label that is neither a class nor ignored."""
    valid = target != ignore_index
    if weight is None:
        return valid.flatten(1).sum(1).to(dtype)
    target = target.long()
    outside = valid & ((target < 0) | (target >= len(weight)))
    weights = weight[torch.where(valid & ~outside, target, 0)].masked_fill(~valid, 0).masked_fill(outside, math.nan)
    return weights.flatten(1).sum(1, dtype=torch.float64).to(dtype)


# ---- FLOPs: the chain, and then for each class of each pixel a difference, an exponential and a sum ---------------


def _fused_shape(logits, target) -> tuple[int, int]:
    """Pixels, and elements of the logits that are never stored."""
    pixels = logits[0][0] * target[1] * target[2]
    return pixels, pixels * logits[0][1]


@register_flop_formula(torch.ops.hmsa._fuse_scales_cross_entropy)
def _flops(logits, attention, scales, target, weight, ignore_index, label_smoothing, *args, out_shape=None, **kwargs):
    pixels, elements = _fused_shape(logits, target)
    smoothing = 2 * elements if label_smoothing > 0 else 0  # sum_c w[c] z[c]
    return chain.chain_flops(logits, attention, scales, target[1:]) + 3 * elements + 3 * pixels + smoothing


@register_flop_formula(torch.ops.hmsa._fuse_scales_cross_entropy_backward)
def _backward_flops(
    grad, logits, attention, scales, target, weight, lse, total, ignore_index, label_smoothing, *args, **kwargs
):
    """The chain again, the gradient of each logit (a difference, an exponential, a product), and the adjoint."""
    pixels, elements = _fused_shape(logits, target)
    smoothing = elements if label_smoothing > 0 else 0
    again = chain.chain_flops(logits, attention, scales, target[1:])
    return again + 3 * elements + pixels + smoothing + chain.adjoint_flops(logits, attention, scales, target[1:])
