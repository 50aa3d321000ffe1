"""``hmsa::fuse_scales``: everything about the op that is not a kernel.

Fake tensors, autograd, autocast, vmap and FLOP counts are registered here, on the op that csrc/ops/fuse_scales.cpp
defines; :func:`fuse_scales` is the form for people.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hmsa_ext.ops import autograd, chain, dispatch, reference

_op = torch.ops.hmsa.fuse_scales.default
_backward_op = torch.ops.hmsa._fuse_scales_backward.default


def fuse_scales(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    size: Sequence[int],
    *,
    align_corners: bool = False,
) -> Tensor:
    """Fuse the predictions of several scales by the attention between neighbours, at full resolution.

    With L and A the logits and attention of a scale resized (bilinear) to its own grid ``floor(size * scale)``, from
    the largest scale down (Tao, Sapra, Catanzaro 2020, eq. 1, chained)::

        first scale   P = L
        s >= 1        P = A * L + (1 - A) * resize(P -> grid of s)
        s <  1        P = resize(A * L -> size) + (1 - resize(A -> size)) * P

    Args:
        logits: one [B, C, h_s, w_s] per scale, at the head's own resolution; float32, float16, bfloat16 or float64.
        attention: one [B, 1 or C, h_s, w_s] per scale but the largest, in the order of ``scales``, in [0, 1].
        scales: up to 8 different positive numbers in any order, 1.0 among them when there is more than one.
        size: (H, W) of the image at scale 1.0, in pixels.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        [B, C, H, W] in the dtype of the inputs and the memory format of the logits at scale 1.0. Arithmetic is in
        float32 (float64 for float64). Only the inputs are saved for backward; both directions are deterministic.

    Raises:
        ValueError: for scales given twice or lists of different lengths.
        RuntimeError: for anything else that does not fit; it names the argument, what came and what was expected.

    >>> low, high = torch.randn(1, 19, 16, 32), torch.randn(1, 19, 32, 64)
    >>> alpha = torch.sigmoid(torch.randn(1, 1, 16, 32))
    >>> fuse_scales([low, high], [alpha], [0.5, 1.0], (128, 256)).shape
    torch.Size([1, 19, 128, 256])
    """
    logits, attention, scales = chain.descending("fuse_scales", logits, attention, scales)
    size = [int(side) for side in size]
    if not logits or dispatch.has_kernels("fuse_scales", logits[0].device):
        return _op(logits, attention, scales, size, align_corners=align_corners)
    return reference.fuse_scales(logits, attention, scales, size, align_corners=align_corners)


# ---- fake tensors -----------------------------------------------------------------------------------------------


@torch.library.register_fake("hmsa::fuse_scales")
def _fake(logits, attention, scales, size, *, align_corners=False):
    like = logits[chain.unit(scales)]
    return chain.empty_like_format(like, (like.shape[0], like.shape[1], size[0], size[1]))


@torch.library.register_fake("hmsa::_fuse_scales_backward")
def _fake_backward(grad, logits, attention, scales, align_corners, wanted_logits, wanted_attention):
    return chain.fake_gradients(logits, attention, wanted_logits, wanted_attention)


# ---- autograd ---------------------------------------------------------------------------------------------------


def _setup_context(ctx, fused, logits, attention, scales, size, *, align_corners=False):
    ctx.save_for_backward(*logits, *attention)
    ctx.options = scales, align_corners


def _backward(ctx, saved, wanted, grad):
    return _backward_op(grad, saved[: ctx.count], saved[ctx.count :], *ctx.options, *wanted)


autograd.register("fuse_scales", _setup_context, _backward)
autograd.forbid_double_backward("_fuse_scales_backward", "fuse_scales")


# ---- autocast ---------------------------------------------------------------------------------------------------


def _autocast(logits, attention, scales, size, *, align_corners=False):
    logits, attention = dispatch.promote(logits, attention)
    return _op(logits, attention, scales, size, align_corners=align_corners)


dispatch.register_autocast("fuse_scales", _autocast)


# ---- vmap: the mapped dimension becomes part of the batch -------------------------------------------------------


@torch.library.register_vmap("hmsa::fuse_scales")
def _vmap(info, in_dims, logits, attention, scales, size, *, align_corners=False):
    logits = dispatch.fold(logits, in_dims[0], info.batch_size)
    attention = dispatch.fold(attention, in_dims[1], info.batch_size)
    fused = _op(logits, attention, scales, size, align_corners=align_corners)
    return fused.unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("hmsa::_fuse_scales_backward")
def _vmap_backward(info, in_dims, grad, logits, attention, scales, align_corners, wanted_logits, wanted_attention):
    n = info.batch_size
    (grad,) = dispatch.fold([grad], [in_dims[0]], n)
    logits, attention = dispatch.fold(logits, in_dims[1], n), dispatch.fold(attention, in_dims[2], n)
    results = _backward_op(grad, logits, attention, scales, align_corners, wanted_logits, wanted_attention)
    return chain.unfold_gradients(results, n)


# ---- FLOPs -------------------------------------------------------------------------------------------------------


@register_flop_formula(torch.ops.hmsa.fuse_scales)
def _flops(logits, attention, scales, size, *args, out_shape=None, **kwargs) -> int:
    return chain.chain_flops(logits, attention, scales, size)


@register_flop_formula(torch.ops.hmsa._fuse_scales_backward)
def _backward_flops(grad, logits, attention, scales, *args, out_shape=None, **kwargs) -> int:
    """The adjoint; with attention, P_before is computed again: the chain but its last scale."""
    size = grad[2:]
    adjoint = chain.adjoint_flops(logits, attention, scales, size)
    if len(scales) > 1:
        adjoint += chain.chain_flops(logits[:-1], attention[:-1], scales[:-1], size)
    return adjoint
