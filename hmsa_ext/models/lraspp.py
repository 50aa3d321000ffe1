"""LR-ASPP (Howard et al. 2019, "lite reduced atrous spatial pyramid pooling"): a decoder for training on a CPU.

The coarsest level of the trunk is weighted by what the mean of the image says of its channels. That and the finer
levels are projected to the same channels, resized to the finest, and added. docs/results.md says what else was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.fusions import Fusion
from hmsa_ext.models.joined_maps import Features
from hmsa_ext.models.layers import Layers, add, saves_memory
from hmsa_ext.models.one_scale import run_network
from hmsa_ext.models.presets import preset
from hmsa_ext.models.scale_attention import attention_width
from hmsa_ext.models.segmentation_network import SegmentationNetwork, check_dropout, check_num_classes
from hmsa_ext.models.trunks import Trunk, build_trunk, is_drawn_here, levels_of, stated, stated_levels
from hmsa_ext.settings import SettingError


class LRASPP(SegmentationNetwork):
    """A trunk of several levels, LR-ASPP and scale attention: ``model(images, scales)`` -> :class:`ScaleOutputs`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. The attention head
    and the classifier see the same features.

    :func:`hmsa_ext.models.initialisation.initialise` draws the weights of the decoder, and those of a trunk that is
    given by its name in ``TRUNKS`` or by its widths and depths. A module, or what a factory returns, keeps its weights.

    >>> model = LRASPP("efficientnet_lite0", num_classes=8).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 8, 12], [1, 8, 4, 6]], [1, 8, 64, 96])

    Args:
        trunk: a trunk with features of several strides: see :func:`build_trunk` and :mod:`hmsa_ext.models.trunks`.
        num_classes: classes, the ignored label not counted.
        stride: the smallest stride of the levels that are used, which is that of the outputs; finer levels are left
            out. Two levels at least have to remain.
        context_channels: of the weighted coarsest level.
        channels: of the features.
        attention_bottleneck: inner channels of the attention head.
        attention_channels: 1 or ``"one"`` (one weight for all classes), ``num_classes`` or ``"classes"``.
        attention_head: see :func:`hmsa_ext.models.build_attention_head`.
        dropout: of the features before the classifier in training, by whole channels.
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
        stride: int = 8,
        context_channels: int = 128,
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
        for name, value in (("context_channels", context_channels), ("channels", channels)):
            if value < 1:
                raise ArgumentValueError(f"{name}: expected a positive integer, got {value!r}")
        self.backbone = build_trunk(trunk)
        widths, strides = stated_levels(self.backbone)
        if stride not in strides[:-1]:
            raise SettingError("stride", stride, f"one of the strides of the trunk but for its largest, {strides[:-1]}")
        self.first_level = strides.index(stride)
        self.decoder = LRASPPDecoder(widths[self.first_level :], channels, context_channels=context_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.num_classes = num_classes
        self.add_attention(channels, width, head=attention_head, bottleneck=attention_bottleneck)
        fresh = [self.decoder, self.classifier, *([self.backbone] if is_drawn_here(trunk) else [])]
        self.initialise(fresh, predictions=[self.classifier])

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Features]:
        """One pass: images [B, 3, H, W] -> (logits, None, features) at ``stride``."""
        _, _, divisor = stated(self.backbone)
        return run_network(self._trunk_and_decoder, images, divisor)

    def _trunk_and_decoder(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.decoder(levels_of(self.backbone, images)[self.first_level :])
        return self.classifier(self.dropout(features)), features


class LRASPPDecoder(nn.Module):
    """Levels of a trunk, finest first -> features [B, channels, h, w] of the finest level's size.

    One layer sees all levels: the sum of their projections is a 1x1 convolution of their concatenation, computed at the
    size of each level instead of the finest. Few new weights are learnt quickly.

    Args:
        in_channels: channels of each level, finest first; two or more.
        channels: of the features.
        context_channels: of the weighted coarsest level.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, context_channels: int) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.context = ContextGate(coarsest, context_channels)
        self.project = nn.ModuleList(nn.Conv2d(c, channels, 1, bias=False) for c in (*finer, context_channels))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = levels
        inputs = [*finer, self.context(coarsest)]
        total, *others = (project(x) for project, x in zip(self.project, inputs, strict=True))
        size = total.shape[-2:]
        for x in others:
            total = add(total, F.interpolate(x, size, mode="bilinear", align_corners=False), save=saves_memory(self))
        return F.relu(self.norm(total), inplace=True)


class ContextGate(nn.Module):
    """[B, in_channels, h, w] -> [B, channels, h, w]: a projection, times what the mean of the map says of its channels.

    The mean goes through no batch norm, so that a batch of one image can be trained on.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.project = Layers(
            nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.gate = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x) * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


efficientnet_lite0_lraspp = preset(
    LRASPP,
    __name__,
    "efficientnet_lite0_lraspp",
    """The network for a CPU: EfficientNet-Lite0 up to stride 16, LR-ASPP and scale attention; 0.8 M parameters.

    It is meant to begin with ``--weights imagenet``. Arguments and errors are those of :class:`LRASPP`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.
    """,
    trunk="efficientnet_lite0",
)
