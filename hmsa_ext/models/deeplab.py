"""DeepLabV3+ (Chen et al. 2018): atrous convolutions of several rates, and a decoder that adds a finer stride."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.models.fusions import Fusion
from hmsa_ext.models.inputs import InputError
from hmsa_ext.models.joined_maps import Features, JoinedMaps, convolve
from hmsa_ext.models.layers import Layers
from hmsa_ext.models.one_scale import run_network
from hmsa_ext.models.presets import preset
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK, attention_width
from hmsa_ext.models.segmentation_head import PUBLISHED_HEAD_CHANNELS, segmentation_head
from hmsa_ext.models.segmentation_network import SegmentationNetwork, check_dropout, check_num_classes
from hmsa_ext.models.trunks import Trunk, build_trunk, is_drawn_here, levels_of, stated, stated_levels

PUBLISHED_ASPP_CHANNELS = 256
PUBLISHED_FINE_CHANNELS = 48
# Rates of the atrous convolutions, in pixels of the image: 12, 24, 36 at stride 8, as published.
REACH = (96, 192, 288)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: features [B, in, h, w] -> joined maps [B, 5 * channels, h, w].

    The parts are, in this order: the mean of the image, a 1x1 convolution, and three 3x3 convolutions of growing rate;
    each with batch norm and ReLU. The rates follow from the stride, so that they reach equally far in the image.

    In training, the batch norm after the mean of the image sees one value per image and channel. So it needs at least
    two images.

    Args:
        in_channels: channels of the features.
        stride: pixels of the image per pixel of the features.
        channels: channels of each part (published: 256).
    """

    def __init__(self, in_channels: int, stride: int, *, channels: int = PUBLISHED_ASPP_CHANNELS) -> None:
        super().__init__()
        self.features = nn.ModuleList([_conv_bn_relu(in_channels, channels, 1)])
        for reach in REACH:
            self.features.append(_conv_bn_relu(in_channels, channels, 3, rate=max(1, round(reach / stride))))
        self.img_conv = _conv_bn_relu(in_channels, channels, 1)

    def forward(self, features: Tensor) -> JoinedMaps:
        norm = self.img_conv[1]
        # Synchronised batch norm counts the images of all processes, and checks them itself.
        if features.shape[0] == 1 and isinstance(norm, nn.BatchNorm2d) and norm.training:
            raise InputError(
                "images: DeepLabV3+ pools an image to one value per channel, and batch norm in training needs more "
                "than one, got a batch of 1; use a batch size of 2 or more, or synchronised batch norm on several GPUs"
            )
        pooled = self.img_conv(F.adaptive_avg_pool2d(features, 1))
        parts = [part(features) for part in self.features]
        return JoinedMaps((pooled.expand_as(parts[0]), *parts))


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int, *, rate: int = 1) -> Layers:
    padding = rate * (kernel // 2)
    return Layers(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=rate, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DeepLabV3Plus(SegmentationNetwork):
    """Any trunk with levels, ASPP, the DeepLabV3+ decoder and scale attention: ``model(images, scales)`` ->
    :class:`ScaleOutputs`.

    ASPP works on the trunk's coarsest level, the decoder brings its output to the finest one. The outputs have the
    stride of that. The attention head and the last convolutions see the same features. Images are RGB,
    ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. ``state_dict()`` has the names of
    the published network.

    In training the network needs at least two images: see :class:`ASPP`.

    :func:`hmsa_ext.models.initialisation.initialise` draws the weights of the decoder, and those of a trunk that is
    given by its name in ``TRUNKS`` or by its widths and depths. A module, or what a factory returns, keeps its weights.

    >>> import torch
    >>> model = DeepLabV3Plus("resnet18", num_classes=8, aspp_channels=16, head_channels=16).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 16, 24], [1, 8, 8, 12]], [1, 8, 64, 96])

    Args:
        trunk: a trunk with features of several strides: see :func:`build_trunk` and :mod:`hmsa_ext.models.trunks`.
        num_classes: classes, the ignored label not counted.
        aspp_channels: of each part of ASPP, and of its output in the decoder; published 256.
        fine_channels: to which the finest level is brought in the decoder; published 48.
        head_channels: inner channels of the last convolutions; published 256.
        attention_bottleneck: inner channels of the attention head.
        attention_channels: 1 or ``"one"`` (one weight for all classes, published), ``num_classes`` or ``"classes"``.
        attention_head: see :func:`hmsa_ext.models.build_attention_head`.
        dropout: before the last convolution, in training; published none.
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
        aspp_channels: int = PUBLISHED_ASPP_CHANNELS,
        fine_channels: int = PUBLISHED_FINE_CHANNELS,
        head_channels: int = PUBLISHED_HEAD_CHANNELS,
        attention_bottleneck: int = PUBLISHED_BOTTLENECK,
        attention_channels: Literal["one", "classes"] | int = "one",
        attention_head: str | Callable[..., nn.Module] = "scale",
        dropout: float = 0.0,
        attention_statistics: str = "all",
        fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
        train_scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__(fusion=fusion, train_scales=train_scales, attention_statistics=attention_statistics)
        check_num_classes(num_classes)
        width = attention_width(attention_channels, num_classes)
        check_dropout(dropout)
        self.backbone = build_trunk(trunk)
        channels, strides = stated_levels(self.backbone)
        self.aspp = ASPP(channels[-1], strides[-1], channels=aspp_channels)
        self.bot_fine = nn.Conv2d(channels[0], fine_channels, 1, bias=False)
        self.bot_aspp = nn.Conv2d(5 * aspp_channels, aspp_channels, 1, bias=False)
        features = fine_channels + aspp_channels
        self.final = segmentation_head(features, num_classes, channels=head_channels, dropout=dropout)
        self.num_classes = num_classes
        self.add_attention(features, width, head=attention_head, bottleneck=attention_bottleneck)
        decoder = [self.aspp, self.bot_fine, self.bot_aspp, self.final]
        fresh = [self.backbone, *decoder] if is_drawn_here(trunk) else decoder
        self.initialise(fresh, predictions=[self.final[-1]])

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Features]:
        """One pass: images [B, 3, H, W] -> (logits, None, features) at the finest stride of the trunk's levels."""
        _, _, divisor = stated(self.backbone)
        return run_network(self._trunk_and_decoder, images, divisor)

    def _trunk_and_decoder(self, images: Tensor) -> tuple[Tensor, Features]:
        levels = levels_of(self.backbone, images)
        features = JoinedMaps((self.bot_fine(levels[0]), convolve(self.bot_aspp, self.aspp(levels[-1]))))
        return self.final(features), features


resnet50_deeplabv3plus = preset(
    DeepLabV3Plus,
    __name__,
    "resnet50_deeplabv3plus",
    """The published smaller network: ResNet-50 at stride 8, DeepLabV3+ and scale attention; 41.6 M parameters.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. Arguments and errors
    are those of :class:`DeepLabV3Plus`. In training it needs a batch of at least two images.
    """,
    trunk="resnet50",
)

resnet101_deeplabv3plus = preset(
    DeepLabV3Plus,
    __name__,
    "resnet101_deeplabv3plus",
    """The same with ResNet-101: see :func:`resnet50_deeplabv3plus`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.
    """,
    trunk="resnet101",
)
