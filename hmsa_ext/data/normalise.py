"""Normalised input of networks back to pictures; label maps in colour. :func:`hmsa_ext.data.cut` normalises."""

from __future__ import annotations

import numpy as np
import torch

from hmsa_ext.data.types import ClassTable
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.normalisation import MEAN, STD


def denormalise(image: torch.Tensor) -> np.ndarray:
    """The picture that was normalised: float [3, H, W] on any device to uint8 [H, W, 3]."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ArgumentValueError(f"image: expected [3, H, W], got {list(image.shape)}")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    picture = (image.detach().float().cpu() * std + mean) * 255
    return picture.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def colourise(label: np.ndarray | torch.Tensor, classes: ClassTable) -> np.ndarray:
    """The label map in the colours of its classes, uint8 [H, W, 3]; ignored pixels are black.

    label: integer [H, W] of class numbers and 255 for ignored.
    """
    array = label.detach().cpu().numpy() if isinstance(label, torch.Tensor) else np.asarray(label)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ArgumentValueError(f"label: expected integers [H, W], got {array.dtype} {list(array.shape)}")
    wrong = (array != classes.ignore_label) & ((array < 0) | (array >= classes.num_classes))
    if wrong.any():
        raise ArgumentValueError(
            f"label: expected 0..{classes.num_classes - 1} or {classes.ignore_label}, got {array[wrong][0]} "
            f"and such in {wrong.sum()} pixels"
        )
    palette = np.zeros((256, 3), np.uint8)
    palette[: classes.num_classes] = classes.colours
    return palette[array.astype(np.uint8)]
