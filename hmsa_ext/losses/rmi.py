"""Region mutual information loss (Zhao et al. 2019), as the published multi-scale network uses it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hmsa_ext.losses.target import check_target, outside

RADIUS = 3
"""Side of the neighbourhoods, in pooled pixels: each is a vector of 9."""
POOL = 4
"""Side and stride of the average pooling before neighbourhoods are taken."""
RIDGE = 5e-4
"""Added to the diagonals of both covariances."""
PROBABILITY_FLOOR = 1e-6
LOG_FLOOR = 1e-8
RMI_SHARE = 0.5
"""Share of the RMI part in the loss; the rest is that of the binary cross-entropy."""


def rmi_loss(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Half the binary cross-entropy plus half the region mutual information loss, over ``target``'s valid pixels.

    ``logits`` [B, C, H, W] of any floating type, H and W at least 8; ``target`` [B, H, W] integers of any type. Returns
    a float32 scalar (float64 for float64 logits). It may be negative. A target without one valid pixel gives 0, with
    gradients of 0.

    RMI part: one-hot labels y and probabilities p = sigmoid(logits) (0 and 1e-6 on ignored pixels) are average-pooled
    by 4; per image and class, the 3x3 neighbourhoods are vectors of 9, with un-normalised covariances Y, P and
    cross-covariance C = cov(y, p) in float64. With M = Y - C (P + eps I)^-1 C^T + eps I, eps = 5e-4,

        rmi = sum over classes, mean over images, of log(det(M)) / (2 * 9)

    bounds the entropy of y given p from above. Where the published code inverts P + eps I and then factorises M, this
    factorises [[P + eps I, C^T], [C, Y + eps I]] once: the lower right block of that Cholesky factor *is* the factor of
    M. The value is the same; but the joint matrix stays positive definite in floating point, while M after an inverse
    may not (its rounding grows with the square of the map), which is how the published loss comes to abort. Absent
    classes, constant and saturated predictions are all regular here. Logits that are not finite give NaN.

    Raises:
        ValueError: shapes that do not fit, images too small, labels outside the classes (on the CPU; elsewhere such a
            label makes the loss NaN).
        TypeError: logits that are not floating point, a target that is not of integers.

    >>> logits = torch.zeros(1, 3, 16, 16, requires_grad=True)
    >>> rmi_loss(logits, torch.ones(1, 16, 16, dtype=torch.uint8)).backward()
    """
    if logits.dim() == 4 and min(logits.shape[-2:]) // POOL + 1 < RADIUS:
        smallest = (RADIUS - 1) * POOL
        raise ValueError(
            f"logits: the RMI loss needs at least {smallest} x {smallest} pixels, got {list(logits.shape)}"
        )
    logits, one_hot, valid = _prepare(logits, target, ignore_index)
    bce = _binary_cross_entropy(logits, one_hot, valid)
    rmi = _region_mutual_information(logits, one_hot, valid)
    any_valid = valid.any().to(logits.dtype)
    return any_valid * ((1 - RMI_SHARE) * bce + RMI_SHARE * rmi)


def rmi_bce_loss(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """The binary cross-entropy that goes with :func:`rmi_loss`, alone and at full weight.

    Sum over valid pixels *and* classes of ``BCE(sigmoid(logits), one-hot target)``, divided by the number of valid
    pixels plus 1. Arguments, result and errors as for :func:`rmi_loss`, of any size.
    """
    return _binary_cross_entropy(*_prepare(logits, target, ignore_index))


def _prepare(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in at least float32; one-hot labels [B, C, H, W] and valid pixels [B, 1, H, W] in the same type."""
    target, valid = check_target(logits, target, ignore_index)
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    num_classes = logits.shape[1]
    wrong = outside(target, valid, num_classes)
    one_hot = torch.zeros_like(logits)
    one_hot.scatter_(1, torch.where(valid & ~wrong, target, 0).unsqueeze(1), valid.unsqueeze(1).to(logits.dtype))
    valid = valid.unsqueeze(1).to(logits.dtype)
    # Only devices where labels are not looked at come here with a wrong one: NaN is loud, and needs no waiting.
    return logits, one_hot, valid.masked_fill(wrong.unsqueeze(1), float("nan"))


def _binary_cross_entropy(logits: Tensor, one_hot: Tensor, valid: Tensor) -> Tensor:
    total = F.binary_cross_entropy_with_logits(logits, one_hot, weight=valid, reduction="sum")
    return total / (valid.sum() + 1)


def _region_mutual_information(logits: Tensor, one_hot: Tensor, valid: Tensor) -> Tensor:
    probabilities = torch.sigmoid(logits) * valid + PROBABILITY_FLOOR
    predicted = _neighbourhoods(probabilities)
    labelled = _neighbourhoods(one_hot)
    vectors = torch.cat([predicted, labelled], dim=2)  # [B, C, 18, n]
    vectors = vectors - vectors.mean(dim=3, keepdim=True)
    covariance = torch.matmul(vectors, vectors.transpose(2, 3))
    ridge = RIDGE * torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    factor, info = torch.linalg.cholesky_ex(covariance + ridge)
    half_log_det = torch.log(factor.diagonal(dim1=2, dim2=3)[..., RADIUS**2 :] + LOG_FLOOR).sum(dim=2)  # [B, C]
    # Positive definite whenever the logits are finite; if not, say so instead of returning half a factor.
    half_log_det = half_log_det.masked_fill(info > 0, float("nan"))
    return (half_log_det / RADIUS**2).mean(dim=0).sum().to(logits.dtype)


def _neighbourhoods(x: Tensor) -> Tensor:
    """Average-pool [B, C, H, W], then take every 3x3 neighbourhood inside: float64 [B, C, 9, positions]."""
    x = F.avg_pool2d(x, POOL, stride=POOL, padding=POOL // 2)
    height, width = x.shape[2] - RADIUS + 1, x.shape[3] - RADIUS + 1
    shifted = [x[:, :, i : i + height, j : j + width] for i in range(RADIUS) for j in range(RADIUS)]
    return torch.stack(shifted, dim=2).flatten(3).double()
