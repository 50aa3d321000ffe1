"""HRNetV2 + OCR + scale attention: the published network, and smaller ones of the same build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from hmsa_ext.models.fusions import Fusion
from hmsa_ext.models.ocr import PUBLISHED_KEY_CHANNELS, PUBLISHED_MID_CHANNELS
from hmsa_ext.models.ocr_network import OCRNetwork
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK
from hmsa_ext.models.trunks import Trunk


def hrnet_w48_ocr(
    num_classes: int,
    *,
    trunk: Trunk = "hrnet_w48",
    mid_channels: int = PUBLISHED_MID_CHANNELS,
    key_channels: int = PUBLISHED_KEY_CHANNELS,
    attention_bottleneck: int = PUBLISHED_BOTTLENECK,
    attention_channels: Literal["one", "classes"] | int = "one",
    attention_head: str | Callable[..., nn.Module] = "scale",
    dropout: float = 0.05,
    attention_statistics: str = "all",
    fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
    train_scales: Sequence[float] | None = None,
) -> OCRNetwork:
    """The published network: HRNetV2-W48, OCR and scale attention; 72.1 M parameters for 19 classes.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.

    Args:
        num_classes: classes, the ignored label not counted.
        trunk: see :func:`hmsa_ext.models.build_trunk`.
        mid_channels: channels of the features after the OCR head.
        key_channels: channels in which the OCR head compares pixels and classes.
        attention_bottleneck: inner channels of the attention head.
        attention_channels: ``"one"`` weight for all classes (published), or one for each of the ``"classes"``.
        attention_head: see :func:`hmsa_ext.models.build_attention_head`.
        dropout: of the OCR features in training.
        attention_statistics: ``"all"`` or ``"used"``: see :meth:`hmsa_ext.models.SegmentationNetwork.forward`.
        fusion, train_scales: see :class:`hmsa_ext.models.SegmentationNetwork`.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """
    return OCRNetwork(
        trunk,
        num_classes,
        mid_channels=mid_channels,
        key_channels=key_channels,
        attention_bottleneck=attention_bottleneck,
        attention_channels=attention_channels,
        attention_head=attention_head,
        dropout=dropout,
        attention_statistics=attention_statistics,
        fusion=fusion,
        train_scales=train_scales,
    )


def hrnet_w32_ocr(
    num_classes: int,
    *,
    trunk: Trunk = "hrnet_w32",
    mid_channels: int = PUBLISHED_MID_CHANNELS,
    key_channels: int = PUBLISHED_KEY_CHANNELS,
    attention_bottleneck: int = PUBLISHED_BOTTLENECK,
    attention_channels: Literal["one", "classes"] | int = "one",
    attention_head: str | Callable[..., nn.Module] = "scale",
    dropout: float = 0.05,
    attention_statistics: str = "all",
    fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
    train_scales: Sequence[float] | None = None,
) -> OCRNetwork:
    """The published heads on HRNetV2-W32. Arguments, images and errors are those of :func:`hrnet_w48_ocr`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.
    """
    return OCRNetwork(
        trunk,
        num_classes,
        mid_channels=mid_channels,
        key_channels=key_channels,
        attention_bottleneck=attention_bottleneck,
        attention_channels=attention_channels,
        attention_head=attention_head,
        dropout=dropout,
        attention_statistics=attention_statistics,
        fusion=fusion,
        train_scales=train_scales,
    )


def hrnet_w18_ocr(
    num_classes: int,
    *,
    trunk: Trunk = "hrnet_w18",
    mid_channels: int = PUBLISHED_MID_CHANNELS,
    key_channels: int = PUBLISHED_KEY_CHANNELS,
    attention_bottleneck: int = PUBLISHED_BOTTLENECK,
    attention_channels: Literal["one", "classes"] | int = "one",
    attention_head: str | Callable[..., nn.Module] = "scale",
    dropout: float = 0.05,
    attention_statistics: str = "all",
    fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
    train_scales: Sequence[float] | None = None,
) -> OCRNetwork:
    """The published heads on HRNetV2-W18. Arguments, images and errors are those of :func:`hrnet_w48_ocr`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.
    """
    return OCRNetwork(
        trunk,
        num_classes,
        mid_channels=mid_channels,
        key_channels=key_channels,
        attention_bottleneck=attention_bottleneck,
        attention_channels=attention_channels,
        attention_head=attention_head,
        dropout=dropout,
        attention_statistics=attention_statistics,
        fusion=fusion,
        train_scales=train_scales,
    )


def hrnet_small_ocr(
    num_classes: int,
    *,
    trunk: Trunk = "hrnet_small",
    mid_channels: int = 64,
    key_channels: int = 32,
    attention_bottleneck: int = 32,
    attention_channels: Literal["one", "classes"] | int = "one",
    attention_head: str | Callable[..., nn.Module] = "scale",
    dropout: float = 0.05,
    attention_statistics: str = "all",
    fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
    train_scales: Sequence[float] | None = None,
) -> OCRNetwork:
    """A network that trains on a CPU: all four branches and both heads, but narrow.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. Arguments and errors
    are those of :func:`hrnet_w48_ocr`.

    >>> import torch
    >>> model = hrnet_small_ocr(num_classes=8).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 16, 24], [1, 8, 8, 12]], [1, 8, 64, 96])
    """
    return OCRNetwork(
        trunk,
        num_classes,
        mid_channels=mid_channels,
        key_channels=key_channels,
        attention_bottleneck=attention_bottleneck,
        attention_channels=attention_channels,
        attention_head=attention_head,
        dropout=dropout,
        attention_statistics=attention_statistics,
        fusion=fusion,
        train_scales=train_scales,
    )
