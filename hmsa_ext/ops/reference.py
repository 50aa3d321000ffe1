"""The ops in plain PyTorch: slow, readable, and the truth that kernels are tested against.

Every function here takes what the op of the same name takes and returns what it returns. Nothing is fused, and
every intermediate map exists at full resolution: this is also the formulation that the benchmarks call "eager".
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width of the grid of a scale: ``floor(size * scale)``, computed in double precision; they may be
    symbolic. Exactly ``size`` at 1.0."""
    if scale == 1.0:
        return size[0], size[1]
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


def fuse_scales_cross_entropy(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    align_corners: bool = False,
) -> Tensor:
    """``F.cross_entropy`` of the fused logits and ``target`` [B, H, W], whose size is that of the image.

    Half precision is computed in float32. Returns a scalar, or [B, H, W] for the reduction "none".
    """
    logits, attention = in_arithmetic_dtype(logits), in_arithmetic_dtype(attention)
    fused = fuse_scales(logits, attention, scales, target.shape[1:], align_corners=align_corners)
    if weight is not None:
        weight = weight.to(fused.dtype)
    return F.cross_entropy(
        fused,
        target.long(),
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def fuse_scales_argmax(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    size: Sequence[int],
    *,
    views: int = 1,
    align_corners: bool = False,
    confidence: bool = True,
) -> tuple[Tensor, Tensor]:
    """The class of the largest fused logit, uint8 up to 256 classes and int32 beyond, and its softmax probability.

    With two views the second half of the batch are outputs for the mirrored images, still mirrored: the fused logits
    are mirrored back and averaged with those of the first half. Returns [B, H, W] twice; without ``confidence`` the
    second result is empty, of shape [0].
    """
    logits, attention = in_arithmetic_dtype(logits), in_arithmetic_dtype(attention)
    fused = fuse_scales(logits, attention, scales, size, align_corners=align_corners)
    if views == 2:
        straight, mirrored = fused.chunk(2)
        fused = (straight + mirrored.flip(-1)) / 2
    labels = fused.argmax(1, keepdim=True)
    probability = F.softmax(fused, 1).gather(1, labels).squeeze(1) if confidence else fused.new_empty(0)
    return labels.squeeze(1).to(torch.uint8 if fused.shape[1] <= 256 else torch.int32), probability


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, *, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Counts int64 [K, K] of pixels by truth (rows) and prediction, and an int64 scalar: the pixels that are neither
    counted nor ignored, since their truth or their prediction is no class."""
    prediction, target = prediction.flatten().long(), target.flatten().long()
    is_class = (target >= 0) & (target < num_classes) & (target != ignore_index)
    counted = is_class & (prediction >= 0) & (prediction < num_classes)
    # What is not counted goes to one bin past the end: no tensor whose size depends on the values.
    bins = torch.where(counted, target * num_classes + prediction, num_classes**2)
    counts = torch.bincount(bins, minlength=num_classes**2 + 1)[:-1].reshape(num_classes, num_classes)
    return counts, ((target != ignore_index) & ~counted).sum()


def in_arithmetic_dtype(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Half precision as float32, in which the ops compute; float32 and float64 as they are."""
    return [tensor.float() if tensor.dtype.itemsize < 4 else tensor for tensor in tensors]
