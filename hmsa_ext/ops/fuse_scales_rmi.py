"""``hmsa::_fuse_scales_rmi``: what the region mutual information loss reads of the fused logits.

Fake tensors, autograd, autocast and FLOP counts are registered here, on the op that csrc/ops/fuse_scales_rmi.cpp
defines; :mod:`hmsa_ext.losses.rmi` makes losses of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hmsa_ext.ops import autograd, chain, dispatch, reference

POOL = 4
"""Side and stride of the average pooling before neighbourhoods are taken; its padding is half of it."""
RADIUS = 3
"""Side of the neighbourhoods, in pooled pixels."""
VECTOR = 2 * RADIUS**2
"""Entries of a neighbourhood: pooled probabilities, then pooled one-hot labels, each row by row."""
PROBABILITY_FLOOR = 1e-6
"""Added to the probability of every pixel of the image."""

_op = torch.ops.hmsa._fuse_scales_rmi.default
_backward_op = torch.ops.hmsa._fuse_scales_rmi_backward.default


def fuse_scales_rmi(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    target: Tensor,
    *,
    ignore_index: int = 255,
    moments: bool = True,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Binary cross-entropy of the fused logits, and moments of the neighbourhoods of pooled pixels.

    With z the logits fused as by :func:`hmsa_ext.fuse_scales` at the size of ``target``, y the one-hot labels and p =
    sigmoid(z), 0 at ignored pixels: 1e-6 + p and y are average-pooled (4 x 4, stride 4, padding 2), and every 3 x 3
    neighbourhood of pooled pixels is a vector v of 18, for each image and class. The logits exist for a few rows at a
    time only; nothing is one-hot, unfolded or full-resolution.

    Args:
        logits, attention, scales, align_corners: as for :func:`hmsa_ext.fuse_scales`.
        target: [B, H, W] labels, uint8, int16, int32 or int64.
        ignore_index: label of the pixels that do not count, whatever their logits are.
        moments: False leaves ``mean`` and ``covariance`` out (empty tensors), and most of the work.

    Returns:
        float64, on the device of the logits: ``bce``, the sum over pixels and classes; ``valid``, the number of pixels
        that count; ``mean`` [B, C, 18] of v; ``covariance`` [B, C, 18, 18], the sum over neighbourhoods of
        (v - mean) (v - mean)^T, accurate however constant v is. Gradients are those of ``bce`` and ``covariance``;
        ``mean`` and ``valid`` have none. Only the inputs, ``target`` and ``mean`` are saved.

    Raises:
        ValueError: for scales given twice or lists of different lengths.
        RuntimeError: for anything else that does not fit, for images of less than 8 x 8 pixels with ``moments``, and on
            the CPU for labels that are neither a class nor ignored. On CUDA such a label makes the results NaN.
    """
    logits, attention, scales = chain.descending("fuse_scales_rmi", logits, attention, scales)
    if not logits or dispatch.has_kernels("fuse_scales_rmi", logits[0].device):
        return _op(logits, attention, scales, target, ignore_index, moments, align_corners)
    return _plain(logits, attention, scales, target, ignore_index, moments, align_corners)


def _plain(logits, attention, scales, target, ignore_index, moments, align_corners):
    """The same in plain PyTorch, for devices that have no kernel."""
    size = target.shape[1:]
    logits, attention = ([t if t.dtype.itemsize >= 4 else t.float() for t in ts] for ts in (logits, attention))
    fused = reference.fuse_scales(logits, attention, scales, size, align_corners=align_corners)
    classes = torch.arange(fused.shape[1], device=target.device).view(1, -1, 1, 1)
    valid = (target != ignore_index).unsqueeze(1)
    one_hot = (target.unsqueeze(1) == classes) & valid
    wrong = valid & ((target.unsqueeze(1) < 0) | (target.unsqueeze(1) >= fused.shape[1]))
    bce = F.binary_cross_entropy_with_logits(fused, one_hot.to(fused.dtype), reduction="none").double()
    bce = torch.where(wrong, torch.nan, torch.where(valid, bce, 0)).sum()
    if not moments:
        return bce, valid.double().sum(), bce.new_empty((0,)), bce.new_empty((0,))
    probabilities = torch.where(valid, torch.sigmoid(fused), 0) + PROBABILITY_FLOOR
    vectors = torch.cat([_neighbourhoods(probabilities), _neighbourhoods(one_hot)], dim=2)
    mean = vectors.mean(dim=3)
    vectors = vectors - mean.unsqueeze(3)
    return bce, valid.double().sum(), mean, vectors @ vectors.mT


def _neighbourhoods(x: Tensor) -> Tensor:
    """Average-pool [B, C, H, W], then take every neighbourhood inside: float64 [B, C, 9, positions]."""
    x = F.avg_pool2d(x.double(), POOL, stride=POOL, padding=POOL // 2)
    height, width = x.shape[2] - RADIUS + 1, x.shape[3] - RADIUS + 1
    shifted = [x[:, :, i : i + height, j : j + width] for i in range(RADIUS) for j in range(RADIUS)]
    return torch.stack(shifted, dim=2).flatten(3)


# ---- fake tensors -----------------------------------------------------------------------------------------------


@torch.library.register_fake("hmsa::_fuse_scales_rmi")
def _fake(logits, attention, scales, target, ignore_index, moments, align_corners):
    first = logits[0]
    batch, classes = first.shape[:2]
    mean, covariance = ((batch, classes, VECTOR), (batch, classes, VECTOR, VECTOR)) if moments else ((0,), (0,))
    return tuple(first.new_empty(shape, dtype=torch.float64) for shape in ((), (), mean, covariance))


@torch.library.register_fake("hmsa::_fuse_scales_rmi_backward")
def _fake_backward(
    grad_bce,
    grad_covariance,
    logits,
    attention,
    scales,
    target,
    mean,
    ignore_index,
    align_corners,
    wanted_logits,
    wanted_attention,
):
    return chain.fake_gradients(logits, attention, wanted_logits, wanted_attention)


# ---- autograd ---------------------------------------------------------------------------------------------------


def _setup_context(ctx, output, logits, attention, scales, target, ignore_index, moments, align_corners):
    _, valid, mean, _ = output
    ctx.mark_non_differentiable(valid, mean)
    ctx.save_for_backward(*logits, *attention, target, mean)
    ctx.scales, ctx.ignore_index, ctx.moments, ctx.align_corners = scales, ignore_index, moments, align_corners


def _backward(ctx, saved, wanted, grad_bce, grad_valid, grad_mean, grad_covariance):
    *inputs, target, mean = saved
    logits, attention = inputs[: ctx.count], inputs[ctx.count :]
    if grad_bce is None:
        grad_bce = mean.new_zeros(())
    if not ctx.moments:
        grad_covariance, mean = None, None
    elif grad_covariance is None:
        grad_covariance = mean.new_zeros((*mean.shape, VECTOR))
    else:
        grad_covariance = grad_covariance.contiguous()
    options = ctx.ignore_index, ctx.align_corners
    return _backward_op(grad_bce, grad_covariance, logits, attention, ctx.scales, target, mean, *options, *wanted)


autograd.register("_fuse_scales_rmi", _setup_context, _backward)
autograd.forbid_double_backward("_fuse_scales_rmi_backward", "fuse_scales_rmi")


# ---- autocast ---------------------------------------------------------------------------------------------------


def _autocast(logits, attention, scales, target, ignore_index, moments, align_corners):
    logits, attention = dispatch.promote(logits, attention)
    return _op(logits, attention, scales, target, ignore_index, moments, align_corners)


dispatch.register_autocast("_fuse_scales_rmi", _autocast)


# ---- FLOPs ------------------------------------------------------------------------------------------------------

# Of a pixel and class: sigmoid (exponential, sum, quotient), binary cross-entropy (product, two sums, maximum,
# logarithm), its gradient (difference, two products), pooling of probabilities and labels (a sum each).
_SIGMOID, _BCE, _GRADIENT, _POOLING = 3, 5, 3, 2
# Of a pooled pixel and class: products with its neighbours at 51 different distances, each a product and a sum; and the
# correlation with a kernel of 5 x 5 for probabilities and labels each.
_PRODUCTS, _CORRELATION = 2 * 51, 2 * 50


def _elements(logits, target) -> tuple[int, int]:
    """Pixels and pooled pixels, times images and classes."""
    batch, classes = logits[0][:2]
    height, width = target[1:]
    return batch * classes * height * width, batch * classes * (height // POOL + 1) * (width // POOL + 1)


@register_flop_formula(torch.ops.hmsa._fuse_scales_rmi)
def _flops(logits, attention, scales, target, ignore_index, moments, *args, out_shape=None, **kwargs) -> int:
    pixels, pooled = _elements(logits, target)
    flops = chain.chain_flops(logits, attention, scales, target[1:]) + pixels * (_SIGMOID + _BCE)
    return flops + (pixels * _POOLING + pooled * _PRODUCTS if moments else 0)


@register_flop_formula(torch.ops.hmsa._fuse_scales_rmi_backward)
def _backward_flops(
    grad_bce, grad_covariance, logits, attention, scales, target, *args, out_shape=None, **kwargs
) -> int:
    """Logits are fused once more, and twice where their pooled probabilities are needed first."""
    pixels, pooled = _elements(logits, target)
    size = target[1:]
    fused = chain.chain_flops(logits, attention, scales, size)
    flops = fused + pixels * (_SIGMOID + _GRADIENT) + chain.adjoint_flops(logits, attention, scales, size)
    if grad_covariance is None:
        return flops
    return flops + fused + pixels * (_SIGMOID + _POOLING + 3) + pooled * _CORRELATION
