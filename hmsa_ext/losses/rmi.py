"""Region mutual information loss (Zhao et al. 2019), as the published multi-scale network uses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.ops import arguments, chain
from hmsa_ext.ops.arguments import LOSS_DEFAULTS, LossOptions
from hmsa_ext.ops.fuse_scales_rmi import POOL, RADIUS, fuse_scales_rmi

RIDGE = 5e-4
"""Added to the diagonals of both covariances."""
LOG_FLOOR = 1e-8
RMI_SHARE = 0.5
"""Share of the RMI part in the loss; the rest is that of the binary cross-entropy."""
SMALLEST_SIDE = (RADIUS - 1) * POOL
"""Pixels that an image must have in height and width for one neighbourhood."""


@arguments.documented(LOSS_DEFAULTS)
def rmi_loss(
    logits: Sequence[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    target: Tensor,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Half the binary cross-entropy plus half the region mutual information loss of the fused logits.

    The fused logits never exist at full resolution. One map of logits, of any size, is
    ``rmi_loss([logits], [], [1.0], target)``.

    RMI part: one-hot labels y and probabilities p = sigmoid(logits) (0 and 1e-6 on ignored pixels) are average-pooled
    by 4; per image and class, the 3x3 neighbourhoods are vectors of 9, with un-normalised covariances Y, P and
    cross-covariance C = cov(y, p) in float64. With M = Y - C (P + eps I)^-1 C^T + eps I, eps = 5e-4,

        rmi = sum over classes, mean over images, of log(det(M)) / (2 * 9)

    bounds the entropy of y given p from above. Where the published code inverts P + eps I and then factorises M, this
    factorises [[P + eps I, C^T], [C, Y + eps I]] once: the lower right block of that Cholesky factor *is* the factor of
    M. The value is the same. In floating point the joint matrix stays positive definite. M after an inverse may not,
    because its rounding grows with the square of the map; the published loss then aborts.

    Special inputs:

    - a class that is absent from an image: Y and C are 0, M is eps I, and its part of the RMI is log(eps) / 2, without
      a gradient; its binary cross-entropy counts as any other;
    - constant, saturated and perfect predictions: P or M is singular but for eps I, which bounds value and gradients;
      covariances are accumulated around local means, so that their rounding stays far below eps however large the map;
    - no valid pixel: the loss is 0, with gradients of 0;
    - ignored pixels: their logits do not matter, not even NaN;
    - NaN at a pixel that counts: the loss is NaN. Infinite logits are the limits of large ones: an infinite loss where
      the label says otherwise, nothing special where it agrees.

    Accuracy, for logits that are not float64: probabilities are float32, or rounded to 2^-24 once they are pooled, and
    what is made of them is exact to 1e-15 of the number of neighbourhoods. Against the same formulas in float64, the
    loss is right to 1e-5 of itself, or to 1e-5 where it is smaller than 1, even where the matrices are singular but for
    eps I. Gradients are right to 1e-5 of the largest one; where the matrices are singular, to 1e-3 of it, or of 1 over
    the number of pixels where that is more: they are products with (P + eps I)^-1.

    Args:
        {chain}
        target: [B, H, W] labels, uint8, int16, int32 or int64; H and W, at least 8, are the size that is fused to.
        {ignore_index}
        {align_corners}

    Returns:
        A float32 scalar (float64 for float64 logits). It may be negative. Saved for backward are the inputs and some
        350 float64 numbers for each image and class; both directions are deterministic.

    Raises:
        ValueError: images smaller than 8 x 8; scales given twice or lists of different lengths.
        RuntimeError: anything else that does not fit, and labels outside the classes (on the CPU; elsewhere such a
            label makes the loss NaN).

    >>> logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    >>> rmi_loss([logits], [], [1.0], torch.ones(1, 16, 16, dtype=torch.uint8)).backward()
    """
    if isinstance(target, Tensor) and target.dim() == 3 and min(target.shape[-2:]) < SMALLEST_SIDE:
        raise ArgumentValueError(
            f"target: the RMI loss needs at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, got {list(target.shape)}"
        )
    bce, valid, _, covariance = fuse_scales_rmi(logits, attention, scales, target, **options)
    loss = (1 - RMI_SHARE) * bce / (valid + 1) + RMI_SHARE * _region_mutual_information(covariance)
    return ((valid > 0) * loss).to(chain.arithmetic_dtype(logits[0]))


@arguments.documented(LOSS_DEFAULTS)
def rmi_bce_loss(
    logits: Sequence[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    target: Tensor,
    **options: Unpack[LossOptions],
) -> Tensor:
    """The binary cross-entropy that goes with :func:`rmi_loss`, alone and at full weight.

    Sum over valid pixels *and* classes of ``BCE(sigmoid(fused logits), one-hot target)``, divided by the number of
    valid pixels plus 1.

    Args:
        logits, attention, scales, target, ignore_index, align_corners: as for :func:`rmi_loss`; images of any size.

    Returns:
        A float32 scalar (float64 for float64 logits).

    Raises:
        ValueError: scales given twice or lists of different lengths.
        RuntimeError: anything else that does not fit, as for :func:`rmi_loss`.
    """
    bce, valid, _, _ = fuse_scales_rmi(logits, attention, scales, target, moments=False, **options)
    return (bce / (valid + 1)).to(chain.arithmetic_dtype(logits[0]))


def _region_mutual_information(covariance: Tensor) -> Tensor:
    """``covariance`` [B, C, 18, 18] of pooled probabilities and labels; a float64 scalar, 0 for an empty batch."""
    return _HalfLogDet.apply(covariance)[0].sum() / (RADIUS**2 * max(covariance.shape[0], 1))


class _HalfLogDet(torch.autograd.Function):
    """log(det(M)) / 2 of each image and class, [B, C, 18, 18] -> [B, C]; beside it the factor, and where there is none.

    With J = L L^T the joint matrix of the loss's docstring, the sum of log(L_ii + floor) over the labels' rows. Its
    gradient in J is K^T diag(L_ii / (L_ii + floor)) K / 2, K being these rows of L^-1.
    """

    @staticmethod
    def forward(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ridge = RIDGE * torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        factor, info = torch.linalg.cholesky_ex(covariance + ridge)
        half_log_det = torch.log(factor.diagonal(dim1=2, dim2=3)[..., RADIUS**2 :] + LOG_FLOOR).sum(dim=2)
        # Positive definite whenever the logits are finite; if not, say so instead of returning half a factor.
        failed = info > 0
        return half_log_det.masked_fill(failed, float("nan")), factor, failed

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, factor, failed = output
        ctx.mark_non_differentiable(factor, failed)
        ctx.save_for_backward(factor, failed)

    @staticmethod
    # torch's stub has one parameter for all gradients.
    def backward(ctx, grad: Tensor, *_) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        factor, failed = ctx.saved_tensors
        rows = _rows_by_solve(factor) if factor.is_cuda else _rows_by_inverse(factor)
        diagonal = factor.diagonal(dim1=2, dim2=3)[..., RADIUS**2 :]
        weight = grad.unsqueeze(-1) * diagonal / (diagonal + LOG_FLOOR) / 2
        gradient = rows.mT @ (weight.unsqueeze(-1) * rows)
        return gradient.masked_fill(failed.unsqueeze(-1).unsqueeze(-1), float("nan"))


# Rows of L^-1 of the labels, [B, C, 18, 18] -> [B, C, 9, 18], in the way that suits the device. On a GPU triangular
# solves of all matrices are one kernel, and the inverse is a call of cuSOLVER for each. On the CPU each solve would be
# divided among all threads, one small matrix after the other: on a busy machine that costs more than everything else
# here.


def _rows_by_solve(factor: Tensor) -> Tensor:
    unit = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)[RADIUS**2 :]
    return torch.linalg.solve_triangular(factor, unit, upper=False, left=False)


def _rows_by_inverse(factor: Tensor) -> Tensor:
    """L^-1 = L^T J^-1"""
    return factor[..., RADIUS**2 :].mT @ torch.cholesky_inverse(factor)
