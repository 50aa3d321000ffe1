"""Cross-entropy over the valid pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hmsa_ext.losses.target import check_target


def cross_entropy(logits: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int = 255) -> Tensor:
    """Mean cross-entropy over the pixels of ``target`` that are not ``ignore_index``.

    ``logits`` [B, C, H, W] of any floating type, ``target`` [B, H, W] integers of any type, ``weight`` [C] one factor
    for each class (the mean is then over the weights of the pixels). Returns a float32 scalar (float64 for float64). It
    equals ``F.cross_entropy`` but for a target without one valid pixel: there PyTorch's mean is NaN, and one crop of
    nothing but ignored pixels would end a training run; here it is 0, with gradients of 0.

    Raises ValueError and TypeError as :func:`hmsa_ext.losses.target.check_target` does, and ValueError for weights of
    another length than C.
    """
    target, valid = check_target(logits, target, ignore_index)
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    if weight is None:
        total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
        return total / valid.sum().clamp(min=1)
    if tuple(weight.shape) != (logits.shape[1],):
        raise ValueError(f"weight: expected one factor for each of {logits.shape[1]} classes, got {list(weight.shape)}")
    weight = weight.to(logits)
    total = F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="sum")
    of_pixels = weight[torch.where(valid, target, 0)].masked_fill(~valid, 0).sum()
    return total / of_pixels.clamp(min=torch.finfo(of_pixels.dtype).tiny)
