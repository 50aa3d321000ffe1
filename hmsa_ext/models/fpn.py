"""A light feature-pyramid decoder, for networks that train on a CPU.

The coarsest level of the trunk is weighted by what the mean of the image says of its channels (the gate of LR-ASPP,
Howard et al. 2019). From there the decoder goes up to the finest level: it resizes, adds the level, and blends both by
a depthwise separable convolution (feature pyramid network, Lin et al. 2017). docs/results.md says what else was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.fusions import Fusion
from hmsa_ext.models.one_scale import run_network
from hmsa_ext.models.presets import preset
from hmsa_ext.models.scale_attention import attention_width
from hmsa_ext.models.segmentation_network import SegmentationNetwork, check_dropout, check_num_classes
from hmsa_ext.models.trunks import Trunk, build_trunk, is_drawn_here, levels_of, stated, stated_levels


class FPNNetwork(SegmentationNetwork):
    """A trunk of several levels, the light decoder and scale attention: ``model(images, scales)`` -> ``ScaleOutputs``.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. The outputs have the
    stride of the trunk's finest level.

    >>> model = FPNNetwork("efficientnet_lite0", num_classes=8).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 16, 24], [1, 8, 8, 12]], [1, 8, 64, 96])

    Args:
        trunk: a name, a module or a factory of a trunk with two levels or more: see :func:`build_trunk`.
        num_classes: classes, the ignored label not counted.
        channels: of the decoder and of its features.
        attention_bottleneck: inner channels of the attention head.
        attention_channels: 1 or ``"one"`` (one weight for all classes), ``num_classes`` or ``"classes"``.
        attention_head: see :func:`hmsa_ext.models.build_attention_head`.
        dropout: of the features in training, by whole channels.
        attention_statistics: see :meth:`hmsa_ext.models.SegmentationNetwork.forward`.
        fusion, train_scales: see :class:`hmsa_ext.models.SegmentationNetwork`.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """

    def __init__(
        self,
        trunk: Trunk,
        num_classes: int,
        *,
        channels: int = 64,
        attention_bottleneck: int = 32,
        attention_channels: Literal["one", "classes"] | int = "one",
        attention_head: str | Callable[..., nn.Module] = "scale",
        dropout: float = 0.05,
        attention_statistics: str = "all",
        fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
        train_scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__(fusion=fusion, train_scales=train_scales, attention_statistics=attention_statistics)
        check_num_classes(num_classes)
        width = attention_width(attention_channels, num_classes)
        check_dropout(dropout)
        if channels < 1:
            raise ArgumentValueError(f"channels: expected a positive integer, got {channels!r}")
        self.backbone = build_trunk(trunk)
        widths, _ = stated_levels(self.backbone)
        self.decoder = FPNDecoder(widths, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.num_classes = num_classes
        self.add_attention(channels, width, head=attention_head, bottleneck=attention_bottleneck)
        fresh = [self.decoder, self.classifier, *([self.backbone] if is_drawn_here(trunk) else [])]
        self.initialise(fresh, predictions=[self.classifier])

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Trunk and decoder: images [B, 3, H, W] -> (logits, None, features) at the stride of the finest level."""
        _, _, divisor = stated(self.backbone)
        return run_network(self._trunk_and_decoder, images, divisor)

    def _trunk_and_decoder(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.decoder(levels_of(self.backbone, images))
        return self.classifier(self.dropout(features)), features


class FPNDecoder(nn.Module):
    """Levels of a trunk, finest first -> features [B, channels, h, w] of the finest level's size.

    Args:
        in_channels: channels of each level, finest first; two or more.
        channels: of the features.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.context = ContextGate(coarsest, channels)
        self.lateral = nn.ModuleList(_conv_bn(width, channels) for width in finer)
        self.blend = nn.ModuleList(_separable(channels) for _ in finer)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = levels
        x = self.context(coarsest)
        steps = zip(finer, self.lateral, self.blend, strict=True)
        for level, lateral, blend in reversed(list(steps)):
            x = F.interpolate(x, level.shape[-2:], mode="bilinear", align_corners=False)
            x = blend(x + lateral(level))
        return x


class ContextGate(nn.Module):
    """[B, in_channels, h, w] -> [B, channels, h, w]: a projection, times what the mean of the map says of its channels.

    The mean goes through no batch norm, so that a batch of one image can be trained on.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Sequential(*_conv_bn(in_channels, channels), nn.ReLU(inplace=True))
        self.gate = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x) * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


efficientnet_lite0_fpn = preset(
    FPNNetwork,
    __name__,
    "efficientnet_lite0_fpn",
    """The network for a CPU: EfficientNet-Lite0 up to stride 16 and a light feature pyramid; 0.8 M parameters.

    It is meant to begin with ``--weights imagenet``. Arguments and errors are those of :class:`FPNNetwork`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.
    """,
    trunk="efficientnet_lite0",
)


def _conv_bn(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))


def _separable(channels: int) -> nn.Sequential:
    """A depthwise 3x3 convolution and a 1x1 convolution, each with batch norm and ReLU."""
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(depthwise, nn.BatchNorm2d(channels), relu, *_conv_bn(channels, channels), relu)
