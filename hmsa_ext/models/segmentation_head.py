"""The published head of networks without OCR: trunk or decoder features to logits."""

from collections import OrderedDict

from torch import nn

from hmsa_ext.models.layers import StripLayers

PUBLISHED_HEAD_CHANNELS = 256


def segmentation_head(
    in_channels: int, num_classes: int, *, channels: int = PUBLISHED_HEAD_CHANNELS, dropout: float = 0.0
) -> StripLayers:
    """Features [B, in, h, w] -> logits [B, num_classes, h, w]: 3x3, 3x3 (each batch norm, ReLU), 1x1; no biases.

    The features may be joined maps.

    Args:
        in_channels: channels of the features.
        num_classes: classes.
        channels: inner channels (published: 256).
        dropout: probability with which inner channels are dropped before the last convolution in training (published:
            none).
    """
    layers: list[nn.Module] = []
    for before in (in_channels, channels):
        layers.append(nn.Conv2d(before, channels, 3, padding=1, bias=False))
        layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.ReLU(inplace=True))
    named = OrderedDict((str(index), layer) for index, layer in enumerate(layers))
    # The published names count the layers, of which dropout is none.
    named["dropout"] = nn.Dropout2d(dropout)
    named["6"] = nn.Conv2d(channels, num_classes, 1, bias=False)
    return StripLayers(named)
