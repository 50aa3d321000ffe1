"""A trunk, the OCR head and the scale attention as one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.hrnet import HRNetConfig
from hmsa_ext.models.initialisation import initialise
from hmsa_ext.models.multi_scale import DEFAULT_SCALES, check_attention_statistics, forward_scales
from hmsa_ext.models.ocr import PUBLISHED_KEY_CHANNELS, PUBLISHED_MID_CHANNELS, OCRHead
from hmsa_ext.models.one_scale import run_network
from hmsa_ext.models.resnet import ResNetConfig
from hmsa_ext.models.scale_attention import (
    PUBLISHED_BOTTLENECK,
    ScaleAttentionHead,
    attention_width,
    build_attention_head,
)
from hmsa_ext.models.scale_outputs import ScaleOutputs
from hmsa_ext.models.trunks import build_trunk, check_features, stated
from hmsa_ext.normalisation import FirstLook


class OCRNetwork(nn.Module):
    """Any trunk, the OCR head and scale attention: ``model(images, scales)`` -> :class:`ScaleOutputs`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. The outputs have the
    stride of the trunk. The children are ``backbone``, ``ocr`` and ``scale_attn``, so that ``state_dict()`` has the
    names of the published checkpoints.

    :func:`hmsa_ext.models.initialisation.initialise` draws the weights of the heads, and those of a trunk that is given
    by its name in ``TRUNKS`` or as :class:`HRNetConfig`. A module, or what a factory returns, keeps its weights.

    >>> import torch
    >>> model = OCRNetwork("hrnet_small", num_classes=8, mid_channels=32, key_channels=16).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 16, 24], [1, 8, 8, 12]], [1, 8, 64, 96])

    Args:
        trunk: a name, a module, a factory or an :class:`HRNetConfig`: see :func:`build_trunk`.
        num_classes: classes, the ignored label not counted.
        mid_channels: channels of the features after the OCR head.
        key_channels: channels in which the OCR head compares pixels and classes.
        attention_bottleneck: inner channels of the attention head.
        attention_channels: 1 or ``"one"`` (one weight for all classes, published), ``num_classes`` or ``"classes"``.
        attention_head: see :func:`hmsa_ext.models.build_attention_head`.
        dropout: of the OCR features in training; published 0.05.
        attention_statistics: see :func:`hmsa_ext.models.multi_scale.forward_scales`.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """

    def __init__(
        self,
        trunk: str | HRNetConfig | nn.Module | Callable[[], nn.Module],
        num_classes: int,
        *,
        mid_channels: int = PUBLISHED_MID_CHANNELS,
        key_channels: int = PUBLISHED_KEY_CHANNELS,
        attention_bottleneck: int = PUBLISHED_BOTTLENECK,
        attention_channels: Literal["one", "classes"] | int = "one",
        attention_head: str | Callable[..., nn.Module] = "scale",
        dropout: float = 0.05,
        attention_statistics: str = "all",
    ) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ArgumentValueError(f"num_classes: expected a positive integer, got {num_classes!r}")
        width = attention_width(attention_channels, num_classes)
        if not 0.0 <= dropout < 1.0:
            raise ArgumentValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")
        check_attention_statistics(attention_statistics)
        self.backbone = build_trunk(trunk)
        in_channels, _, _ = stated(self.backbone)
        self.ocr = OCRHead(
            in_channels, num_classes, mid_channels=mid_channels, key_channels=key_channels, dropout=dropout
        )
        self.scale_attn = build_attention_head(attention_head, mid_channels, width, bottleneck=attention_bottleneck)
        self.num_classes = num_classes
        self.attention_statistics = attention_statistics
        self._first_look = FirstLook()

        is_ours = isinstance(trunk, HRNetConfig | ResNetConfig) or (isinstance(trunk, str) and ":" not in trunk)
        fresh: list[nn.Module] = [self.backbone, self.ocr] if is_ours else [self.ocr]
        predictions = [self.ocr.cls_head, self.ocr.aux_head[2]]
        if isinstance(self.scale_attn, ScaleAttentionHead):
            fresh.append(self.scale_attn)
            predictions.append(self.scale_attn.conv2)
        initialise(fresh, predictions)

    def forward(self, images: Tensor, scales: Sequence[float] = DEFAULT_SCALES) -> ScaleOutputs:
        self._first_look(images)
        return forward_scales(self.forward_one_scale, self.scale_attn, images, scales, self.attention_statistics)

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Trunk and OCR head alone: images [B, 3, H, W] -> (logits, aux, features) at the stride of the trunk."""
        out_channels, stride, divisor = stated(self.backbone)

        def trunk_and_head(padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            features = self.backbone(padded)
            check_features(features, padded, out_channels, stride)
            return self.ocr(features)

        return run_network(trunk_and_head, images, divisor)
