"""``hmsa::fuse_scales_argmax``: the public Python functions, and the declaration of the op.

:func:`fuse_scales_argmax` takes a chain of scales, :func:`upsample_argmax` one map of logits. The kernels, the schema
and the checks are in ``csrc/ops/fuse_scales_argmax.cpp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from hmsa_ext.ops import arguments, chain, reference, registration
from hmsa_ext.ops.schema import Arguments, Signature

_NAME = "fuse_scales_argmax"


@overload
def fuse_scales_argmax(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    size: Sequence[int],
    *,
    views: int = 1,
    align_corners: bool = False,
    confidence: Literal[True] = True,
) -> tuple[Tensor, Tensor]: ...
@overload
def fuse_scales_argmax(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    size: Sequence[int],
    *,
    views: int = 1,
    align_corners: bool = False,
    confidence: Literal[False],
) -> Tensor: ...
@overload
def fuse_scales_argmax(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    size: Sequence[int],
    *,
    views: int = 1,
    align_corners: bool = False,
    confidence: bool,
) -> tuple[Tensor, Tensor] | Tensor: ...
@arguments.documented()
def fuse_scales_argmax(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    size: Sequence[int],
    *,
    views: int = 1,
    align_corners: bool = False,
    confidence: bool = True,
) -> tuple[Tensor, Tensor] | Tensor:
    """The predicted class of each pixel and its probability, from logits that never exist at full resolution.

    With z the fused logits (see :func:`hmsa_ext.fuse_scales`) of a pixel::

        label = argmax_c z[c],    confidence = exp z[label] / sum_c exp z[c]

    Args:
        {chain}
        {size}
        views: 1, or 2: then the batch of every input is 2B, and its second half are outputs for the mirrored images,
            still mirrored. The op mirrors them back and averages the fused logits of both.
        {align_corners}
        confidence: False for the labels alone, which are the same and take less time: no exponential is computed.

    Returns:
        Labels [B, H, W], uint8 up to 256 classes and int32 beyond, and confidence [B, H, W], float32 (float64 for
        float64); with ``confidence=False`` the labels alone, a tensor. Among equal logits the smallest class wins; a
        NaN among them wins as in ``torch.argmax``, with a confidence of NaN. Neither has a gradient.

    Raises:
        {errors}

    >>> low, high = torch.randn(1, 19, 16, 32), torch.randn(1, 19, 32, 64)
    >>> alpha = torch.sigmoid(torch.randn(1, 1, 16, 32))
    >>> labels, confidence = fuse_scales_argmax([low, high], [alpha], [0.5, 1.0], (128, 256))
    >>> labels.shape, labels.dtype
    (torch.Size([1, 128, 256]), torch.uint8)
    >>> alone = fuse_scales_argmax([low, high], [alpha], [0.5, 1.0], (128, 256), confidence=False)
    >>> torch.equal(alone, labels)
    True
    """
    inputs = chain.sorted_chain(_NAME, logits, attention, scales, align_corners)
    size = arguments.sides(_NAME, "size", size)
    confidence = arguments.flag(_NAME, "confidence", confidence)
    if inputs.has_kernels(_NAME):
        results = inputs.call(_op, size, views=views, confidence=confidence)
    else:
        _check(inputs, size, views)
        with torch.no_grad():
            results = inputs.call(reference.fuse_scales_argmax, size, views=views, confidence=confidence)
    return results if confidence else results[0]


@overload
def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    views: int = 1,
    align_corners: bool = False,
    confidence: Literal[True] = True,
) -> tuple[Tensor, Tensor]: ...
@overload
def upsample_argmax(
    logits: Tensor, size: Sequence[int], *, views: int = 1, align_corners: bool = False, confidence: Literal[False]
) -> Tensor: ...
@overload
def upsample_argmax(
    logits: Tensor, size: Sequence[int], *, views: int = 1, align_corners: bool = False, confidence: bool
) -> tuple[Tensor, Tensor] | Tensor: ...
def upsample_argmax(
    logits: Tensor, size: Sequence[int], *, views: int = 1, align_corners: bool = False, confidence: bool = True
) -> tuple[Tensor, Tensor] | Tensor:
    """``F.interpolate(logits, size, mode="bilinear")``, its argmax and softmax maximum, without the large logits.

    ``logits`` [B, C, h, w] of any size; the rest, and what is returned, as for :func:`fuse_scales_argmax`.

    >>> logits = torch.randn(2, 150, 16, 16)
    >>> labels, confidence = upsample_argmax(logits, (64, 64))
    >>> labels = upsample_argmax(logits, (64, 64), confidence=False)
    """
    arguments.tensor("upsample_argmax", "logits", logits, arguments.FLOATING, "[B, C, h, w]")
    size = arguments.sides("upsample_argmax", "size", size)
    confidence = arguments.flag("upsample_argmax", "confidence", confidence)
    return fuse_scales_argmax(
        [logits], [], [1.0], size, views=views, align_corners=align_corners, confidence=confidence
    )


# ---- declaration ------------------------------------------------------------------------------------------------


def _check(a: Arguments | chain.Chain, size: Sequence[int], views: int) -> None:
    arguments.expect([len(size) == 2], lambda: f"{_NAME}: size has {len(size)} entries; expected (height, width)")
    arguments.expect(
        [views in (1, 2)], lambda: f"{_NAME}: views is {views}; expected 1, or 2 with the mirrored images behind"
    )
    chain.check(_NAME, a, size)
    batch = a.logits[0].shape[0]
    arguments.expect(
        [batch % views == 0],
        lambda: (
            f"{_NAME}: logits[0] has batch size {batch}; expected an even one with two views, "
            "the mirrored images behind the others"
        ),
    )


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    _check(a, a.size, a.views)
    first = a.logits[0]
    shape = (first.shape[0] // a.views, *a.size)
    labels = first.new_empty(shape, dtype=torch.uint8 if first.shape[1] <= 256 else torch.int32)
    return labels, first.new_empty(shape if a.confidence else (0,), dtype=chain.arithmetic_dtype(first))


def _vmap(its: Signature, a: Arguments, in_dims: Arguments, n: int) -> tuple[tuple, tuple]:
    """The mapped dimension becomes part of the batch, behind the views."""
    registration.fold_arguments(a, in_dims, n, ("logits", "attention"))  # [n * views * B, ...]
    if a.views == 2:
        for name in ("logits", "attention"):
            views_first = [t.unflatten(0, (n, a.views, -1)).movedim(1, 0).flatten(0, 2) for t in getattr(a, name)]
            setattr(a, name, views_first)
    return registration.unfold(its.call(a), n)


def _flops(a: Arguments) -> int:
    """The chain, and for the confidence then for each class of each pixel a difference, an exponential and a sum."""
    batch, classes = a.logits[0][:2]
    pixels = batch // a.views * a.size[0] * a.size[1]
    mean = 2 * pixels * classes if a.views == 2 else 0
    softmax = 3 * pixels * classes + pixels if a.confidence else 0
    return chain.chain_flops(a.logits, a.attention, a.scales, a.size) + mean + softmax


_op = registration.declare(
    _NAME,
    fake=_fake,
    autocast=registration.promote,
    vmap=_vmap,
    flops=_flops,
    doc=fuse_scales_argmax.__doc__,
)
