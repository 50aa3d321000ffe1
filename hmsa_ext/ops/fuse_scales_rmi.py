"""``hmsa::_fuse_scales_rmi``: the sums over the fused logits that the region mutual information loss needs.

The kernels, the schema and the checks are in ``csrc/ops/fuse_scales_rmi.cpp``; :mod:`hmsa_ext.losses.rmi` makes losses
of the op's results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from hmsa_ext.ops import arguments, chain, reference, registration
from hmsa_ext.ops.arguments import LOSS_DEFAULTS, LossOptions
from hmsa_ext.ops.schema import Arguments

_NAME = "fuse_scales_rmi"
POOL = 4
"""Side and stride of the average pooling before neighbourhoods are taken; its padding is half of it."""
RADIUS = 3
"""Side of the neighbourhoods, in pooled pixels."""
VECTOR = 2 * RADIUS**2
"""Entries of a neighbourhood: pooled probabilities, then pooled one-hot labels, each row by row."""
PROBABILITY_FLOOR = 1e-6
"""Added to the probability of every pixel of the image."""


@arguments.documented(LOSS_DEFAULTS)
def fuse_scales_rmi(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    target: Tensor,
    *,
    moments: bool = True,
    **options: Unpack[LossOptions],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Binary cross-entropy of the fused logits, and moments of the neighbourhoods of pooled pixels.

    With z the logits fused as by :func:`hmsa_ext.fuse_scales` at the size of ``target``, y the one-hot labels and p =
    sigmoid(z), 0 at ignored pixels: 1e-6 + p and y are average-pooled (4 x 4, stride 4, padding 2), and every 3 x 3
    neighbourhood of pooled pixels is a vector v of 18, for each image and class. The logits exist for a few rows at a
    time only; nothing is one-hot, unfolded or full-resolution.

    Args:
        {chain}
        {target}
        moments: False leaves ``mean`` and ``covariance`` out (empty tensors), and most of the work.
        {ignore_index}
        {align_corners}

    Returns:
        float64, on the device of the logits: ``bce``, the sum over pixels and classes; ``valid``, the number of pixels
        that count; ``mean`` [B, C, 18] of v; ``covariance`` [B, C, 18, 18], the sum over neighbourhoods of
        (v - mean) (v - mean)^T, accurate however constant v is. Gradients are those of ``bce`` and ``covariance``;
        ``mean`` and ``valid`` have none. Only the inputs, ``target`` and ``mean`` are saved.

    Raises:
        {errors}

    Images of less than 8 x 8 pixels with ``moments`` are a RuntimeError. So are labels that are neither a class nor
    ignored on the CPU; on CUDA such a label makes the results NaN.
    """
    complete = arguments.filled(_NAME, options, LOSS_DEFAULTS)
    inputs = chain.sorted_chain(_NAME, logits, attention, scales, complete["align_corners"])
    arguments.tensor(_NAME, "target", target, arguments.INTEGER, "[B, H, W]")
    ignore_index = arguments.ignored(_NAME, complete["ignore_index"], inputs.classes)
    if inputs.has_kernels(_NAME):
        return inputs.call_private(_op, target, ignore_index, moments)
    _check(_NAME, inputs, target, moments)
    return inputs.call(_plain, target, ignore_index, moments)


def _plain(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    target: Tensor,
    ignore_index: int,
    moments: bool,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same in plain PyTorch, for devices that have no kernel."""
    size = target.shape[1:]
    logits, attention = ([t if t.dtype.itemsize >= 4 else t.float() for t in ts] for ts in (logits, attention))
    fused = reference.fuse_scales(logits, attention, scales, size, align_corners=align_corners)
    classes = torch.arange(fused.shape[1], device=target.device).view(1, -1, 1, 1)
    valid = arguments.is_valid(target, ignore_index).unsqueeze(1)
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


# ---- declarations -----------------------------------------------------------------------------------------------

_SMALLEST = (RADIUS - 1) * POOL


def _check(op: str, a: Arguments | chain.Chain, target: Tensor, moments: bool) -> None:
    chain.check_target(op, a, target)
    arguments.expect(
        [side >= _SMALLEST for side in target.shape[1:]] if moments else [],
        lambda: (
            f"{op}: target has shape {arguments.shape_of(target)}; expected at least {_SMALLEST} x {_SMALLEST} pixels"
        ),
    )
    chain.check(op, a, target.shape[1:])


def _fake(a: Arguments) -> tuple[Tensor, ...]:
    _check(_NAME, a, a.target, a.moments)
    first = a.logits[0]
    batch, classes = first.shape[:2]
    mean, covariance = ((batch, classes, VECTOR), (batch, classes, VECTOR, VECTOR)) if a.moments else ((0,), (0,))
    return tuple(first.new_empty(shape, dtype=torch.float64) for shape in ((), (), mean, covariance))


def _fake_backward(a: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    _check("_fuse_scales_rmi_backward", a, a.target, a.grad_covariance is not None)
    return chain.fake_gradients(a)


def _prepare_gradients(given: dict[str, Any]) -> None:
    mean: Tensor = given["mean"]
    if given["grad_bce"] is None:
        given["grad_bce"] = mean.new_zeros(())
    if mean.dim() == 1:  # the forward pass left the moments out
        given["grad_covariance"], given["mean"] = None, None
    elif given["grad_covariance"] is None:
        given["grad_covariance"] = mean.new_zeros((*mean.shape, VECTOR))
    else:
        given["grad_covariance"] = given["grad_covariance"].contiguous()


# Of a pixel and class: sigmoid (exponential, sum, quotient), binary cross-entropy (product, two sums, maximum,
# logarithm), its gradient (difference, two products), pooling of probabilities and labels (a sum each).
_SIGMOID, _BCE, _GRADIENT, _POOLING = 3, 5, 3, 2
# Of a pooled pixel and class: products with its neighbours at 51 different distances, each a product and a sum; and the
# correlation with a kernel of 5 x 5 for probabilities and labels each.
_PRODUCTS, _CORRELATION = 2 * 51, 2 * 50


def _elements(a: Arguments) -> tuple[int, int]:
    """Pixels and pooled pixels, times images and classes."""
    batch, classes = a.logits[0][:2]
    height, width = a.target[1:]
    return batch * classes * height * width, batch * classes * (height // POOL + 1) * (width // POOL + 1)


def _flops(a: Arguments) -> int:
    pixels, pooled = _elements(a)
    flops = chain.chain_flops(a.logits, a.attention, a.scales, a.target[1:]) + pixels * (_SIGMOID + _BCE)
    return flops + (pixels * _POOLING + pooled * _PRODUCTS if a.moments else 0)


def _backward_flops(a: Arguments) -> int:
    """Logits are fused once more, and twice where their pooled probabilities are needed first."""
    pixels, pooled = _elements(a)
    shapes = a.logits, a.attention, a.scales, a.target[1:]
    fused = chain.chain_flops(*shapes)
    flops = fused + pixels * (_SIGMOID + _GRADIENT) + chain.adjoint_flops(*shapes)
    if a.grad_covariance is None:
        return flops
    return flops + fused + pixels * (_SIGMOID + _POOLING + 3) + pooled * _CORRELATION


registration.declare(
    "_fuse_scales_rmi_backward",
    fake=_fake_backward,
    derivative=registration.NoSecond(of=_NAME),
    flops=_backward_flops,
)
_op = registration.declare(
    "_fuse_scales_rmi",
    fake=_fake,
    derivative=registration.Reverse("_fuse_scales_rmi_backward", _prepare_gradients),
    autocast=registration.promote,
    flops=_flops,
    doc=fuse_scales_rmi.__doc__,
)
