"""The RMI loss written plainly over full-resolution logits: one-hot tensors, unfolded copies, float64 maps.

Slow and obviously right: what :mod:`hmsa_ext.losses.rmi` is tested against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE, PROBABILITY_FLOOR, LOG_FLOOR = 5e-4, 1e-6, 1e-8


def rmi_loss(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Of fused ``logits`` [B, C, H, W] and ``target`` [B, H, W]; the joint covariance is factorised once."""
    one_hot, valid = _one_hot(logits, target, ignore_index)
    covariance = moments(logits, target, ignore_index)[1]
    ridge = RIDGE * torch.eye(18, dtype=covariance.dtype, device=covariance.device)
    factor = torch.linalg.cholesky(covariance + ridge)
    rmi = torch.log(factor.diagonal(dim1=2, dim2=3)[..., 9:] + LOG_FLOOR).sum(dim=2)
    bce = _bce_sum(logits, one_hot, valid) / (valid.sum() + 1)
    return valid.any().to(bce.dtype) * (0.5 * bce + 0.5 * (rmi / 9).mean(dim=0).sum().to(bce.dtype))


def rmi_bce_loss(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Its binary cross-entropy, at full weight."""
    one_hot, valid = _one_hot(logits, target, ignore_index)
    return _bce_sum(logits, one_hot, valid) / (valid.sum() + 1)


def inverse_formulation(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """The loss with an explicit inverse, term by term as its formula is usually written."""
    one_hot, valid = _one_hot(logits, target, ignore_index)

    def vectors(x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 4, 4, 2)
        patches = F.unfold(x.flatten(0, 1).unsqueeze(1), 3).unflatten(0, x.shape[:2])
        return patches - patches.mean(dim=-1, keepdim=True)

    y, p = vectors(one_hot), vectors(torch.sigmoid(logits) * valid + PROBABILITY_FLOOR)
    ridge = RIDGE * torch.eye(9, dtype=logits.dtype, device=logits.device)
    m = y @ y.mT - (y @ p.mT) @ torch.linalg.inv(p @ p.mT + ridge) @ (y @ p.mT).mT + ridge
    rmi = torch.log(torch.linalg.cholesky(m).diagonal(dim1=-2, dim2=-1) + LOG_FLOOR).sum(-1)
    bce = _bce_sum(logits, one_hot, valid) / (valid.sum() + 1)
    return 0.5 * bce + 0.5 * (rmi.mean(0) / 9).sum()


def moments(logits: Tensor, target: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Mean [B, C, 18] and un-normalised covariance [B, C, 18, 18] of the neighbourhoods of pooled pixels, float64."""
    one_hot, valid = _one_hot(logits, target, ignore_index)
    probabilities = torch.sigmoid(logits) * valid + PROBABILITY_FLOOR
    vectors = torch.cat([_neighbourhoods(probabilities), _neighbourhoods(one_hot)], dim=2)
    mean = vectors.mean(dim=3)
    vectors = vectors - mean.unsqueeze(3)
    return mean, vectors @ vectors.mT


def _one_hot(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """One-hot labels [B, C, H, W] and valid pixels [B, 1, H, W] in the type of the logits."""
    valid = (target != ignore_index).unsqueeze(1).to(logits.dtype)
    labels = torch.where(target == ignore_index, 0, target).long()
    return F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype) * valid, valid


def _bce_sum(logits: Tensor, one_hot: Tensor, valid: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, one_hot, weight=valid, reduction="sum")


def _neighbourhoods(x: Tensor) -> Tensor:
    """Average-pool [B, C, H, W], then take every 3x3 neighbourhood inside: float64 [B, C, 9, positions]."""
    x = F.avg_pool2d(x, 4, stride=4, padding=2)
    height, width = x.shape[2] - 2, x.shape[3] - 2
    shifted = [x[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.stack(shifted, dim=2).flatten(3).double()
