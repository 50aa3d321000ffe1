"""The region mutual information loss as the published network computes it, written plainly: what ours is held against.

Zhao et al. 2019, with the settings of Tao, Sapra, Catanzaro 2020: 3x3 neighbourhoods of maps average-pooled by 4,
one-hot labels, every view and every matrix in float64, an explicit inverse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS, POOL = 3, 4
CLIP_MIN, POS_ALPHA = 1e-6, 5e-4


def rmi_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Half the binary cross-entropy, half the RMI part. ``logits`` [B, C, H, W], ``target`` [B, H, W] int64; labels
    from C on are ignored."""
    one_hot, mask = _one_hot(logits, target)
    probabilities = logits.sigmoid() * mask + CLIP_MIN
    return 0.5 * _binary_cross_entropy(logits, one_hot, mask) + 0.5 * _lower_bound(one_hot, probabilities)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The binary cross-entropy alone, at full weight: the loss of auxiliary logits and single scales."""
    return _binary_cross_entropy(logits, *_one_hot(logits, target))


def _one_hot(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Labels [B, C, H, W] and the mask of those that count [B, 1, H, W]."""
    classes = logits.shape[1]
    mask = target < classes
    one_hot = F.one_hot(torch.where(mask, target, 0), classes).to(logits.dtype) * mask[..., None].to(logits.dtype)
    return one_hot.permute(0, 3, 1, 2), mask[:, None].to(logits.dtype)


def _binary_cross_entropy(logits: Tensor, one_hot: Tensor, mask: Tensor) -> Tensor:
    total = F.binary_cross_entropy_with_logits(logits, one_hot, weight=mask, reduction="sum")
    return total / (mask.sum() + 1.0)


def _lower_bound(one_hot: Tensor, probabilities: Tensor) -> Tensor:
    labels, predictions = _vectors(one_hot), _vectors(probabilities)
    labels = labels - labels.mean(dim=3, keepdim=True)
    predictions = predictions - predictions.mean(dim=3, keepdim=True)
    ridge = POS_ALPHA * torch.eye(RADIUS**2, dtype=labels.dtype, device=labels.device)
    label_covariance = labels @ labels.mT
    inverse = torch.linalg.inv(predictions @ predictions.mT + ridge)
    cross = labels @ predictions.mT
    approximate = label_covariance - cross @ inverse @ cross.mT + ridge
    half_log_det = torch.log(torch.linalg.cholesky(approximate).diagonal(dim1=-2, dim2=-1) + 1e-8).sum(-1)
    return (half_log_det.mean(0) / RADIUS**2).sum().to(probabilities.dtype)


def _vectors(maps: Tensor) -> Tensor:
    """[B, C, 9, positions] in float64: all 3x3 neighbourhoods of the pooled maps, each a copy."""
    maps = F.avg_pool2d(maps, POOL, stride=POOL, padding=POOL // 2)
    height, width = maps.shape[2] - RADIUS + 1, maps.shape[3] - RADIUS + 1
    shifted = [maps[:, :, i : i + height, j : j + width] for i in range(RADIUS) for j in range(RADIUS)]
    return torch.stack(shifted, dim=2).flatten(3).double()
