"""Object-contextual representations (Yuan, Chen, Wang 2020): every pixel attends to one descriptor per class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PUBLISHED_MID_CHANNELS = 512
PUBLISHED_KEY_CHANNELS = 256


class OCRHead(nn.Module):
    """OCR decoder: trunk features [B, in, h, w] -> (logits, aux, features), all at the size of its input.

    ``aux`` [B, num_classes, h, w] is a first, coarse segmentation. It is trained by the auxiliary loss, and its softmax
    over positions says which pixels make up the descriptor of each class. ``features`` [B, mid_channels, h, w] feed
    the scale attention. Parameter names are the published ones.

    Args:
        in_channels: channels of the trunk.
        num_classes: classes.
        mid_channels: channels of the pixel representation and of ``features`` (published: 512).
        key_channels: channels in which pixels and class descriptors are compared (published: 256).
        dropout: probability with which channels of ``features`` are dropped in training (published: 0.05).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        mid_channels: int = PUBLISHED_MID_CHANNELS,
        key_channels: int = PUBLISHED_KEY_CHANNELS,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.conv3x3_ocr = nn.Sequential(nn.Conv2d(in_channels, mid_channels, 3, padding=1), _bn_relu(mid_channels))
        self.ocr_distri_head = ContextDistribution(mid_channels, key_channels, dropout)
        self.cls_head = nn.Conv2d(mid_channels, num_classes, 1)
        self.aux_head = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1), _bn_relu(in_channels), nn.Conv2d(in_channels, num_classes, 1)
        )

    def forward(self, trunk_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        aux = self.aux_head(trunk_features)
        pixels = self.conv3x3_ocr(trunk_features)
        features = self.ocr_distri_head(pixels, gather_descriptors(pixels, aux))
        return self.cls_head(features), aux, features


def gather_descriptors(pixels: Tensor, class_scores: Tensor) -> Tensor:
    """One descriptor per class: the mean of ``pixels``, weighted by the softmax of the scores over all positions.

    ``pixels`` [B, M, h, w] and ``class_scores`` [B, C, h, w] -> [B, M, C, 1] (classes take the place of positions, so
    that the same 1x1 convolutions and batch norms serve both).
    """
    weights = F.softmax(class_scores.flatten(2), dim=2)  # [B, C, h*w]
    descriptors = torch.matmul(pixels.flatten(2), weights.transpose(1, 2))  # [B, M, C]
    return descriptors.unsqueeze(3)


class ContextDistribution(nn.Module):
    """Adds to each pixel a context: the class descriptors, weighted by their similarity to that pixel."""

    def __init__(self, mid_channels: int, key_channels: int, dropout: float) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(mid_channels, key_channels)
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(2 * mid_channels, mid_channels, 1, bias=False), _bn_relu(mid_channels), nn.Dropout2d(dropout)
        )

    def forward(self, pixels: Tensor, descriptors: Tensor) -> Tensor:
        context = self.object_context_block(pixels, descriptors)
        return self.conv_bn_dropout(torch.cat([context, pixels], dim=1))


class ObjectAttention(nn.Module):
    """Attention of pixels [B, M, h, w] to class descriptors [B, M, C, 1]: ``softmax(Q K / sqrt(key)) V`` per pixel."""

    def __init__(self, mid_channels: int, key_channels: int) -> None:
        super().__init__()
        self.f_pixel = _two_layers(mid_channels, key_channels)
        self.f_object = _two_layers(mid_channels, key_channels)
        self.f_down = nn.Sequential(nn.Conv2d(mid_channels, key_channels, 1, bias=False), _bn_relu(key_channels))
        self.f_up = nn.Sequential(nn.Conv2d(key_channels, mid_channels, 1, bias=False), _bn_relu(mid_channels))

    def forward(self, pixels: Tensor, descriptors: Tensor) -> Tensor:
        query = self.f_pixel(pixels).flatten(2).transpose(1, 2)  # [B, h*w, K]
        key = self.f_object(descriptors).flatten(2)  # [B, K, C]
        value = self.f_down(descriptors).flatten(2).transpose(1, 2)  # [B, C, K]
        similarity = F.softmax(torch.matmul(query, key) * key.shape[1] ** -0.5, dim=2)  # [B, h*w, C]
        context = torch.matmul(similarity, value).transpose(1, 2)  # [B, K, h*w]
        return self.f_up(context.unflatten(2, pixels.shape[-2:]))


def _two_layers(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        _bn_relu(out_channels),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
        _bn_relu(out_channels),
    )


def _bn_relu(channels: int) -> nn.Sequential:
    """A nested Sequential, because the published names nest the batch norm (``conv3x3_ocr.1.0.weight``)."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
