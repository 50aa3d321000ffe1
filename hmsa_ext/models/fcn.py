"""A trunk and a few convolutions (Long, Shelhamer, Darrell 2015): the published networks without OCR or decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from hmsa_ext.models.fusions import Fusion
from hmsa_ext.models.joined_maps import Features
from hmsa_ext.models.one_scale import run_network
from hmsa_ext.models.presets import preset
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK, attention_width
from hmsa_ext.models.segmentation_head import PUBLISHED_HEAD_CHANNELS, segmentation_head
from hmsa_ext.models.segmentation_network import SegmentationNetwork, check_dropout, check_num_classes
from hmsa_ext.models.trunks import Trunk, build_trunk, features_of, is_drawn_here, stated

# Published names of the head: beside scale attention, and in the network of a single scale.
WITH_ATTENTION, ALONE = "cls_head", "seg_head"


class FCN(SegmentationNetwork):
    """Any trunk, the published convolutional head and scale attention: ``model(images, scales)`` ->
    :class:`ScaleOutputs`.

    Both heads see the features of the trunk, and the outputs have its stride. Images are RGB,
    ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.

    ``state_dict()`` has the names of the published networks: the head is ``cls_head`` where the fusion has an attention
    (``mscale.HRNet``), and ``seg_head`` where it has none (``basic.HRNet``). :func:`hmsa_ext.models.load_weights` loads
    either into either.

    :func:`hmsa_ext.models.initialisation.initialise` draws the weights of the heads, and those of a trunk that is given
    by its name in ``TRUNKS`` or by its widths and depths. A module, or what a factory returns, keeps its weights.

    >>> import torch
    >>> model = FCN("hrnet_small", num_classes=8, head_channels=16).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 16, 24], [1, 8, 8, 12]], [1, 8, 64, 96])

    Args:
        trunk: a name, a module, a factory, or widths and depths: see :func:`build_trunk`.
        num_classes: classes, the ignored label not counted.
        head_channels: inner channels of the head; published 256.
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
        in_channels, _, _ = stated(self.backbone)
        head = segmentation_head(in_channels, num_classes, channels=head_channels, dropout=dropout)
        self.head_name = ALONE if self.fusion.attention is None else WITH_ATTENTION
        self.add_module(self.head_name, head)
        self.num_classes = num_classes
        self.add_attention(in_channels, width, head=attention_head, bottleneck=attention_bottleneck)
        self.initialise([self.backbone, head] if is_drawn_here(trunk) else [head], predictions=[head[-1]])

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Features]:
        """Trunk and head alone: images [B, 3, H, W] -> (logits, None, trunk features) at the stride of the trunk."""

        def trunk_and_head(padded: Tensor) -> tuple[Tensor, Features]:
            features = features_of(self.backbone, padded)
            return self.get_submodule(self.head_name)(features), features

        return run_network(trunk_and_head, images, stated(self.backbone)[2])

    def weight_name(self, name: str) -> str | None:
        """What an entry of a head is called here if the file's network has another fusion; None for other names.

        >>> FCN("hrnet_small", 5, fusion="single").weight_name("cls_head.6.weight")
        'seg_head.6.weight'
        """
        head, dot, rest = name.partition(".")
        return self.head_name + dot + rest if head in (WITH_ATTENTION, ALONE) else None


hrnet_w48_fcn = preset(
    FCN,
    __name__,
    "hrnet_w48_fcn",
    """HRNetV2-W48 and the published head without OCR; 69.8 M parameters for 19 classes with scale attention.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. Arguments and errors
    are those of :class:`FCN`.
    """,
    trunk="hrnet_w48",
)

hrnet_small_fcn = preset(
    FCN,
    __name__,
    "hrnet_small_fcn",
    """A network that trains on a CPU: :func:`hrnet_w48_fcn`, but narrow.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.
    """,
    trunk="hrnet_small",
    head_channels=32,
    attention_bottleneck=32,
)
