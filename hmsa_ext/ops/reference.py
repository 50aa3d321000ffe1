"""The ops in plain PyTorch: slow, readable, and the truth that kernels are tested against.

Every function here takes what the op of the same name takes and returns what it returns. Nothing is fused, and
every intermediate map exists at full resolution: this is also the formulation that the benchmarks call "eager".
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def grid_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width of the grid of a scale: ``floor(size * scale)``, computed in double precision."""
    return math.floor(size[0] * scale), math.floor(size[1] * scale)


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Plain bilinear resize [B, C, h, w] -> [B, C, *size], no antialias; the identity when the size stays."""
    if tuple(x.shape[-2:]) == tuple(size) or x.shape[0] == 0:
        return x.expand(*x.shape[:2], *size) if x.shape[0] else x.new_empty(*x.shape[:2], *size)
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)


def fuse_scales(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    size: Sequence[int],
    *,
    align_corners: bool = False,
) -> Tensor:
    """Chain the scales from the largest down (Tao, Sapra, Catanzaro 2020, eq. 1, in its published n-scale form).

    ``logits[i]`` [B, C, h_i, w_i] belongs to ``scales[i]`` (descending), ``attention[i]`` [B, 1 or C, ...] to
    ``scales[i + 1]``. Returns [B, C, *size]. With L and A the logits and attention on the grid of scale s::

        first     P = L
        s >= 1    P = A * L + (1 - A) * resize(P -> grid of s)
        s <  1    P = resize(A * L -> size) + (1 - resize(A -> size)) * P
    """
    fused = resize(logits[0], grid_size(size, scales[0]), align_corners)
    for z, a, scale in zip(logits[1:], attention, scales[1:], strict=True):
        grid = grid_size(size, scale)
        z = resize(z, grid, align_corners)
        a = resize(a, grid, align_corners)
        if scale >= 1.0:
            fused = a * z + (1 - a) * resize(fused, grid, align_corners)
        else:
            fused = resize(a * z, size, align_corners) + (1 - resize(a, size, align_corners)) * fused
    return resize(fused, size, align_corners)
