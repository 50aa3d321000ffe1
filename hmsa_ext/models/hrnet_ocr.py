"""HRNetV2 + OCR + scale attention: the published network, and smaller ones of the same build."""

from collections.abc import Sequence

from torch import Tensor, nn

from hmsa_ext.models.hrnet import SMALL, W18, W32, W48, HRNet, HRNetConfig
from hmsa_ext.models.initialisation import initialise
from hmsa_ext.models.multi_scale import DEFAULT_SCALES, check_attention_statistics, forward_scales
from hmsa_ext.models.ocr import PUBLISHED_KEY_CHANNELS, PUBLISHED_MID_CHANNELS, OCRHead
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK, ScaleAttentionHead
from hmsa_ext.models.scale_outputs import ScaleOutputs


def hrnet_w48_ocr(num_classes: int, **options) -> "HRNetOCR":
    """The published network (72.1 M parameters for 19 classes); options as for :class:`HRNetOCR`."""
    return HRNetOCR(W48, num_classes, **options)


def hrnet_w32_ocr(num_classes: int, **options) -> "HRNetOCR":
    """The published heads on HRNetV2-W32; options as for :class:`HRNetOCR`."""
    return HRNetOCR(W32, num_classes, **options)


def hrnet_w18_ocr(num_classes: int, **options) -> "HRNetOCR":
    """The published heads on HRNetV2-W18; options as for :class:`HRNetOCR`."""
    return HRNetOCR(W18, num_classes, **options)


def hrnet_small_ocr(num_classes: int, **options) -> "HRNetOCR":
    """A network that trains on a CPU, all four branches and both heads in it; options as for :class:`HRNetOCR`."""
    narrow = {"mid_channels": 64, "key_channels": 32, "attention_bottleneck": 32}
    return HRNetOCR(SMALL, num_classes, **(narrow | options))


class HRNetOCR(nn.Module):
    """HRNet trunk, OCR head and scale attention: ``model(images, scales)`` -> :class:`ScaleOutputs`, head stride 4.

    It is called as :class:`hmsa_ext.models.MultiScale` is, and runs the scales by the same function; its children are
    ``backbone``, ``ocr`` and ``scale_attn``, so that ``state_dict()`` has the names of the published checkpoints.

    >>> import torch
    >>> model = hrnet_small_ocr(num_classes=8).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 16, 24], [1, 8, 8, 12]], [1, 8, 64, 96])

    Args:
        trunk: widths and depths of the trunk.
        num_classes: classes, the ignored label not counted.
        mid_channels, key_channels: widths of the OCR head.
        attention_bottleneck: inner channels of the attention head.
        attention_channels: 1 (one weight for all classes, published) or ``num_classes``.
        dropout: of the OCR features in training; published 0.05.
        attention_statistics: see :func:`hmsa_ext.models.multi_scale.forward_scales`.
    """

    def __init__(
        self,
        trunk: HRNetConfig,
        num_classes: int,
        *,
        mid_channels: int = PUBLISHED_MID_CHANNELS,
        key_channels: int = PUBLISHED_KEY_CHANNELS,
        attention_bottleneck: int = PUBLISHED_BOTTLENECK,
        attention_channels: int = 1,
        dropout: float = 0.05,
        attention_statistics: str = "all",
    ) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes: expected a positive integer, got {num_classes!r}")
        if attention_channels not in (1, num_classes):
            raise ValueError(f"attention_channels: expected 1 or num_classes={num_classes}, got {attention_channels!r}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")
        check_attention_statistics(attention_statistics)
        self.backbone = HRNet(trunk)
        self.ocr = OCRHead(
            trunk.out_channels,
            num_classes,
            mid_channels=mid_channels,
            key_channels=key_channels,
            dropout=dropout,
        )
        self.scale_attn = ScaleAttentionHead(
            mid_channels, bottleneck=attention_bottleneck, out_channels=attention_channels
        )
        self.num_classes = num_classes
        self.attention_statistics = attention_statistics
        initialise(self, predictions=[self.ocr.cls_head, self.ocr.aux_head[2], self.scale_attn.conv2])

    def forward(self, images: Tensor, scales: Sequence[float] = DEFAULT_SCALES) -> ScaleOutputs:
        return forward_scales(self.forward_one_scale, self.scale_attn, images, scales, self.attention_statistics)

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk and OCR head alone: images [B, 3, H, W] -> (logits, aux, features) at stride 4."""
        return self.ocr(self.backbone(images))
