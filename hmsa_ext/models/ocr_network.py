"""A trunk, the OCR head and the scale attention as one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from hmsa_ext.models.fusions import Fusion
from hmsa_ext.models.joined_maps import as_tensor
from hmsa_ext.models.ocr import PUBLISHED_KEY_CHANNELS, PUBLISHED_MID_CHANNELS, OCRHead
from hmsa_ext.models.one_scale import run_network
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK, attention_width
from hmsa_ext.models.segmentation_network import SegmentationNetwork, check_dropout, check_num_classes
from hmsa_ext.models.trunks import Trunk, build_trunk, features_of, is_drawn_here, stated


class OCRNetwork(SegmentationNetwork):
    """Any trunk, the OCR head and scale attention: ``model(images, scales)`` -> :class:`ScaleOutputs`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. The outputs have the
    stride of the trunk. The children are ``backbone``, ``ocr`` and ``scale_attn``, so that ``state_dict()`` has the
    names of the published checkpoints.

    :func:`hmsa_ext.models.initialisation.initialise` draws the weights of the heads, and those of a trunk that is given
    by its name in ``TRUNKS`` or by its widths and depths. A module, or what a factory returns, keeps its weights.

    >>> import torch
    >>> model = OCRNetwork("hrnet_small", num_classes=8, mid_channels=32, key_channels=16).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 16, 24], [1, 8, 8, 12]], [1, 8, 64, 96])

    Args:
        trunk: a name, a module, a factory, or widths and depths: see :func:`build_trunk`.
        num_classes: classes, the ignored label not counted.
        mid_channels: channels of the features after the OCR head.
        key_channels: channels in which the OCR head compares pixels and classes.
        attention_bottleneck: inner channels of the attention head.
        attention_channels: 1 or ``"one"`` (one weight for all classes, published), ``num_classes`` or ``"classes"``.
        attention_head: see :func:`hmsa_ext.models.build_attention_head`.
        dropout: of the OCR features in training; published 0.05.
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
        mid_channels: int = PUBLISHED_MID_CHANNELS,
        key_channels: int = PUBLISHED_KEY_CHANNELS,
        attention_bottleneck: int = PUBLISHED_BOTTLENECK,
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
        self.backbone = build_trunk(trunk)
        in_channels, _, _ = stated(self.backbone)
        self.ocr = OCRHead(
            in_channels, num_classes, mid_channels=mid_channels, key_channels=key_channels, dropout=dropout
        )
        self.num_classes = num_classes
        self.add_attention(mid_channels, width, head=attention_head, bottleneck=attention_bottleneck)
        fresh = [self.backbone, self.ocr] if is_drawn_here(trunk) else [self.ocr]
        self.initialise(fresh, predictions=[self.ocr.cls_head, self.ocr.aux_head[2]])

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Trunk and OCR head alone: images [B, 3, H, W] -> (logits, aux, features) at the stride of the trunk."""
        logits, aux, features = run_network(
            lambda padded: self.ocr(features_of(self.backbone, padded)), images, stated(self.backbone)[2]
        )
        return logits, aux, as_tensor(features)

    def logits_of_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        def trunk_and_head(padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, aux = self.ocr.without_features(features_of(self.backbone, padded))
            return logits, aux, logits

        return run_network(trunk_and_head, images, stated(self.backbone)[2])[:2]
