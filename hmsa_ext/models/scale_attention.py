"""The head that says, per pixel, how far a scale is to be trusted against the next larger one."""

import torch
from torch import Tensor, nn

PUBLISHED_BOTTLENECK = 256


class ScaleAttentionHead(nn.Module):
    """Features [B, in, h, w] -> attention [B, out, h, w] in (0, 1): 3x3, 3x3, 1x1 convolutions and a sigmoid.

    ``out_channels`` 1 shares one weight among all classes (published); as many as there are classes gives each its
    own. The weight belongs to the features' own scale: 1 takes its logits, 0 those of the larger scales.

    Where half precision is used (autocast), the sigmoid is still computed in float32, so that weights near 1 differ.
    """

    def __init__(self, in_channels: int, *, bottleneck: int = PUBLISHED_BOTTLENECK, out_channels: int = 1) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(in_channels, bottleneck, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(bottleneck)
        self.conv1 = nn.Conv2d(bottleneck, bottleneck, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(bottleneck)
        self.conv2 = nn.Conv2d(bottleneck, out_channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.conv0(features)))
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.conv2(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()
        return torch.sigmoid(x)
