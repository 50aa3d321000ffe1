"""Scales of a forward pass, and the images at each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError
from hmsa_ext.models.inputs import InputError

MAX_SCALES = 8


def descending_scales(scales: Sequence[float], name: str = "scales") -> tuple[float, ...]:
    """The scales of a forward pass, checked, in descending order. ``name``: of the argument, for messages.

    Raises:
        ValueError: scales that are empty, more than 8, not finite and positive, given twice, or without 1.0 when there
            are several.

    >>> descending_scales([0.5, 2, 1])
    (2.0, 1.0, 0.5)
    """
    if not isinstance(scales, Sequence) or isinstance(scales, str):
        raise ArgumentValueError(f"{name}: expected a sequence of numbers such as (0.5, 1.0), got {scales!r}")
    if not 1 <= len(scales) <= MAX_SCALES:
        raise ArgumentValueError(f"{name}: expected 1 to {MAX_SCALES} of them, got {len(scales)}: {tuple(scales)}")
    try:
        ordered = tuple(sorted((float(s) for s in scales), reverse=True))
    except (TypeError, ValueError) as error:
        raise ArgumentValueError(f"{name}: expected numbers, got {tuple(scales)}") from error
    if not all(math.isfinite(s) and s > 0 for s in ordered):
        raise ArgumentValueError(f"{name}: expected finite numbers above 0, got {tuple(scales)}")
    if len(set(ordered)) != len(ordered):
        raise ArgumentValueError(f"{name}: each may be given once, got {tuple(scales)}")
    if len(ordered) > 1 and 1.0 not in ordered:
        raise ArgumentValueError(f"{name}: 1.0 must be among several scales, got {tuple(scales)}")
    return ordered


def check_images(images: Tensor) -> None:
    """Raises ValueError or TypeError for what is no batch of normalised images."""
    if images.dim() != 4:
        raise ArgumentValueError(f"images: expected [B, 3, H, W], got a tensor of shape {list(images.shape)}")
    if not images.is_floating_point():
        raise ArgumentTypeError(f"images: expected normalised floating point, got {images.dtype}")


def resize_images(images: Tensor, scale: float) -> Tensor:
    """Images [B, 3, H, W] at a scale: ``floor(H * scale), floor(W * scale)``, bilinear, no antialias.

    Raises InputError, a ValueError, where nothing is left of them.
    """
    size = (images.shape[-2], images.shape[-1])
    grid = (math.floor(size[0] * scale), math.floor(size[1] * scale))
    if min(grid) < 1:
        raise InputError(f"scales: {scale} leaves nothing of images of {size[0]} x {size[1]}")
    return images if grid == size else resize(images, grid)


def resize(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Maps [B, C, h, w] on another grid (height, width): bilinear, ``align_corners=False``, no antialias."""
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    return F.interpolate(maps, tuple(grid), mode="bilinear", align_corners=False)
