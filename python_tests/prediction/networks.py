"""Small networks for the tests of predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.models import MultiScale


class Local(nn.Module):
    """Logits that depend on the 4x4 pixels under them alone: tiles of it must agree with the whole exactly."""

    feature_channels = 6

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(num_classes)
        self.features = nn.Conv2d(3, self.feature_channels, 1)
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.sin(3 * self.features(F.avg_pool2d(images, 4)))
        return 8 * self.logits(features), features


class PointwiseAttention(nn.Module):
    """Attention of 1x1 convolutions, so that the whole network stays local."""

    def __init__(self, feature_channels: int, attention_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(feature_channels, attention_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(4 * self.conv(features))


def local_network(num_classes: int = 5, attention_channels: int = 1) -> MultiScale:
    """A multi-scale network without any context."""
    network = Local(num_classes)
    return MultiScale(
        network, network.feature_channels, attention_channels=attention_channels, attention_head=PointwiseAttention
    ).eval()
