"""``hmsa::fuse_scales_argmax``: everything about the op that is not a kernel.

:func:`fuse_scales_argmax` is the form for people, :func:`upsample_argmax` that for one map of logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hmsa_ext.ops import chain, dispatch, reference

_NAME = "fuse_scales_argmax"
_op = torch.ops.hmsa.fuse_scales_argmax.default


def fuse_scales_argmax(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    size: Sequence[int],
    *,
    views: int = 1,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """The predicted class of each pixel and its probability, from logits that never exist at full resolution.

    With z the fused logits (see :func:`hmsa_ext.fuse_scales`) of a pixel::

        label = argmax_c z[c],    confidence = exp z[label] / sum_c exp z[c]

    Args:
        logits: one [B, C, h_s, w_s] per scale, at the head's own resolution; float32, float16, bfloat16 or float64.
        attention: one [B, 1 or C, h_s, w_s] per scale but the largest, in the order of ``scales``, in [0, 1].
        scales: up to 8 different positive numbers in any order, 1.0 among them when there is more than one.
        size: (H, W) of the image at scale 1.0, in pixels.
        views: 1, or 2: then the batch of every input is 2B, and its second half are outputs for the mirrored images,
            still mirrored. The op mirrors them back and averages the fused logits of both.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        Labels [B, H, W], uint8 up to 256 classes and int32 beyond, and confidence [B, H, W], float32 (float64 for
        float64). Among equal logits the smallest class wins; a NaN among them wins as in ``torch.argmax``, with a
        confidence of NaN. Neither has a gradient.

    Raises:
        ValueError: for scales given twice or lists of different lengths.
        RuntimeError: for anything else that does not fit; it names the argument, what came and what was expected.

    >>> low, high = torch.randn(1, 19, 16, 32), torch.randn(1, 19, 32, 64)
    >>> alpha = torch.sigmoid(torch.randn(1, 1, 16, 32))
    >>> labels, confidence = fuse_scales_argmax([low, high], [alpha], [0.5, 1.0], (128, 256))
    >>> labels.shape, labels.dtype
    (torch.Size([1, 128, 256]), torch.uint8)
    """
    logits, attention, scales = chain.descending(_NAME, logits, attention, scales)
    size = [int(side) for side in size]
    if not logits or dispatch.has_kernels(_NAME, logits[0].device):
        return _op(logits, attention, scales, size, views=views, align_corners=align_corners)
    with torch.no_grad():
        return reference.fuse_scales_argmax(logits, attention, scales, size, views=views, align_corners=align_corners)


def upsample_argmax(
    logits: Tensor, size: Sequence[int], *, views: int = 1, align_corners: bool = False
) -> tuple[Tensor, Tensor]:
    """``F.interpolate(logits, size, mode="bilinear")``, its argmax and softmax maximum, without the large logits.

    ``logits`` [B, C, h, w] of any size; the rest, and what is returned, as for :func:`fuse_scales_argmax`.

    >>> labels, confidence = upsample_argmax(torch.randn(2, 150, 16, 16), (64, 64))
    """
    return fuse_scales_argmax([logits], [], [1.0], size, views=views, align_corners=align_corners)


# ---- fake tensors -----------------------------------------------------------------------------------------------


@torch.library.register_fake("hmsa::fuse_scales_argmax")
def _fake(logits, attention, scales, size, *, views=1, align_corners=False):
    first = logits[0]
    shape = (first.shape[0] // views, size[0], size[1])
    labels = first.new_empty(shape, dtype=torch.uint8 if first.shape[1] <= 256 else torch.int32)
    return labels, first.new_empty(shape, dtype=chain.arithmetic_dtype(first))


# ---- autograd: none, and it says so instead of warning in the backward pass --------------------------------------


_library = torch.library.Library("hmsa", "IMPL")  # the registration lives as long
_library.impl("fuse_scales_argmax", torch.library.fallthrough_kernel, "Autograd")


# ---- autocast ---------------------------------------------------------------------------------------------------


def _autocast(logits, attention, scales, size, *, views=1, align_corners=False):
    logits, attention = dispatch.promote(logits, attention)
    return _op(logits, attention, scales, size, views=views, align_corners=align_corners)


dispatch.register_autocast("fuse_scales_argmax", _autocast)


# ---- vmap: the mapped dimension becomes part of the batch, behind the views ---------------------------------------


@torch.library.register_vmap("hmsa::fuse_scales_argmax")
def _vmap(info, in_dims, logits, attention, scales, size, *, views=1, align_corners=False):
    n = info.batch_size

    def fold(tensors, dims):
        folded = dispatch.fold(tensors, dims, n)  # [n * views * B, ...]
        if views == 1:
            return folded
        return [t.unflatten(0, (n, views, -1)).movedim(1, 0).flatten(0, 2) for t in folded]

    logits, attention = fold(logits, in_dims[0]), fold(attention, in_dims[1])
    labels, confidence = _op(logits, attention, scales, size, views=views, align_corners=align_corners)
    return (labels.unflatten(0, (n, -1)), confidence.unflatten(0, (n, -1))), (0, 0)


# ---- FLOPs: the chain, and then for each class of each pixel a difference, an exponential and a sum ---------------


@register_flop_formula(torch.ops.hmsa.fuse_scales_argmax)
def _flops(logits, attention, scales, size, *args, views=1, out_shape=None, **kwargs) -> int:
    batch, classes = logits[0][:2]
    pixels = batch // views * size[0] * size[1]
    mean = 2 * pixels * classes if views == 2 else 0
    return chain.chain_flops(logits, attention, scales, size) + mean + 3 * pixels * classes + pixels
