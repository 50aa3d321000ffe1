"""Cross-entropy over the valid pixels."""

import torch.nn.functional as F
from torch import Tensor

from hmsa_ext.losses.target import check_target


def cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Mean cross-entropy over the pixels of ``target`` that are not ``ignore_index``.

    ``logits`` [B, C, H, W] of any floating type, ``target`` [B, H, W] integers of any type. Returns a float32 scalar
    (float64 for float64). It equals ``F.cross_entropy`` but for a target without one valid pixel: there PyTorch's mean
    is NaN, and one crop of nothing but ignored pixels would end a training run; here it is 0, with gradients of 0.

    Raises ValueError and TypeError as :func:`hmsa_ext.losses.target.check_target` does.
    """
    target, valid = check_target(logits, target, ignore_index)
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total / valid.sum().clamp(min=1)
