"""One pass of a model over images, as evaluation and prediction run it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hmsa_ext.engine.device import arithmetic
from hmsa_ext.models import ScaleOutputs


def run(
    model: nn.Module,
    images: Tensor,
    scales: Sequence[float],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    flip: bool = False,
) -> ScaleOutputs:
    """The model's outputs for ``images`` [B, 3, H, W]; with ``flip`` for 2B images, the second half mirrored ones."""
    images = images.to(device, non_blocking=True)
    if flip:
        images = with_mirrored(images)
    with arithmetic(device, dtype):
        return model(images, scales=scales)


def with_mirrored(images: Tensor) -> Tensor:
    """The images and, behind them, their mirror images: [B, C, H, W] -> [2B, C, H, W]."""
    return torch.cat([images, images.flip(-1)])


def unmirrored(maps: Tensor, *, flip: bool = True) -> Tensor:
    """Mean of the maps of images and of their mirror images: [2B, C, H, W] -> [B, C, H, W]."""
    if not flip:
        return maps
    straight, mirrored = maps.chunk(2)
    return (straight + mirrored.flip(-1)) / 2
