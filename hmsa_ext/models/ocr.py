"""Object-contextual representations (Yuan, Chen, Wang 2020): every pixel attends to one descriptor per class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.models.joined_maps import Features, JoinedMaps, takes_joined
from hmsa_ext.models.layers import (
    Layers,
    StripLayers,
    Strips,
    can_fold,
    empty_map,
    is_local,
    leaves,
    norm_relu,
    saves_memory,
)
from hmsa_ext.models.recomputation import run_part

PUBLISHED_MID_CHANNELS = 512
PUBLISHED_KEY_CHANNELS = 256
KEPT_BYTES = 384 * 2**20
"""Of the pixel representation in evaluation; a larger one is computed twice rather than kept."""


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

    recomputes = "none"

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
        self.conv3x3_ocr = Layers(nn.Conv2d(in_channels, mid_channels, 3, padding=1), norm_relu(mid_channels))
        self.ocr_distri_head = ContextDistribution(mid_channels, key_channels, dropout)
        self.cls_head = nn.Conv2d(mid_channels, num_classes, 1)
        self.aux_head = StripLayers(
            nn.Conv2d(in_channels, in_channels, 1), norm_relu(in_channels), nn.Conv2d(in_channels, num_classes, 1)
        )

    def forward(self, trunk_features: Features) -> tuple[Tensor, Tensor, Tensor]:
        if self._saves_memory():
            logits, aux, features = self.in_strips(trunk_features, features=True)
            assert features is not None, "they were asked for"
            return logits, aux, features
        aux = self.aux_head(trunk_features)
        pixels = self.conv3x3_ocr(trunk_features)
        logits, features = run_part(self, self._distribute, pixels, aux)
        return logits, aux, features

    def recompute_parts(self, mode: str) -> list[nn.Module]:
        """See :func:`hmsa_ext.models.recomputation.run_part`."""
        context, join = self.ocr_distri_head.object_context_block, self.ocr_distri_head.conv_bn_dropout
        inner = [context, context.f_pixel, context.f_up, join] if mode == "all" else []
        return [self.aux_head, self.conv3x3_ocr, *inner]

    def _distribute(self, pixels: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        features = self.ocr_distri_head(pixels, gather_descriptors(pixels, aux))
        return self.cls_head(features), features

    def without_features(self, trunk_features: Features) -> tuple[Tensor, Tensor]:
        """(logits, aux) alone, for evaluation: the features of ``mid_channels`` never exist as a whole."""
        if self._saves_memory():
            return self.in_strips(trunk_features, features=False)[:2]
        return self(trunk_features)[:2]

    def _saves_memory(self) -> bool:
        return saves_memory(self) and all(map(is_local, leaves(self))) and takes_joined(self.conv3x3_ocr[0])

    def in_strips(self, trunk_features: Features, *, features: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`forward`, for evaluation, in two passes over strips of rows.

        The descriptor of a class is a sum over all pixels. The first pass adds it up, the second one uses it. In
        between the pixel representation is kept if it is small, and else computed again.
        """
        aux = self.aux_head(trunk_features)
        conv, (norm, relu) = self.conv3x3_ocr[0], self.conv3x3_ocr[1].children()
        assert isinstance(conv, nn.Conv2d), "it was built as one"
        folds = can_fold(conv, norm)
        strips, rest = Strips(trunk_features, conv, norm if folds else None), relu if folds else self.conv3x3_ocr[1]

        weights = F.softmax(aux.flatten(2), dim=2)  # [B, C, h * w]
        width = aux.shape[3]
        kept: Tensor | None = None
        is_kept = aux[:, :1].numel() * strips.channels * aux.element_size() < KEPT_BYTES
        total: Tensor | None = None
        for first, last in strips.ranges():
            pixels = rest(strips.rows(first, last))
            part = _weighted_sum(pixels, weights[:, :, first * width : last * width])
            total = part if total is None else total + part
            if is_kept:
                kept = empty_map(pixels, trunk_features) if kept is None else kept
                kept[:, :, first:last] = pixels
        assert total is not None, "a map has rows"
        del weights
        key, value = self.ocr_distri_head.object_context_block.keys_and_values(total.unsqueeze(3))

        logits: Tensor | None = None
        all_features: Tensor | None = None
        for first, last in strips.ranges():
            pixels = rest(strips.rows(first, last)) if kept is None else kept[:, :, first:last]
            of_rows = self.ocr_distri_head.distribute(pixels, key, value)
            part = self.cls_head(of_rows)
            logits = empty_map(part, trunk_features) if logits is None else logits
            logits[:, :, first:last] = part
            if features:
                all_features = empty_map(of_rows, trunk_features) if all_features is None else all_features
                all_features[:, :, first:last] = of_rows
        assert logits is not None, "a map has rows"
        return logits, aux, all_features


def gather_descriptors(pixels: Tensor, class_scores: Tensor) -> Tensor:
    """One descriptor per class: the mean of ``pixels``, weighted by the softmax of the scores over all positions.

    ``pixels`` [B, M, h, w] and ``class_scores`` [B, C, h, w] -> [B, M, C, 1] (classes take the place of positions, so
    that the same 1x1 convolutions and batch norms serve both).
    """
    return _weighted_sum(pixels, F.softmax(class_scores.flatten(2), dim=2)).unsqueeze(3)


def _weighted_sum(pixels: Tensor, weights: Tensor) -> Tensor:
    """Pixels [B, M, h, w], weights [B, C, h * w] -> [B, M, C]."""
    return torch.matmul(pixels.flatten(2), weights.transpose(1, 2))


class ContextDistribution(nn.Module):
    """Adds to each pixel a context: the class descriptors, weighted by their similarity to that pixel."""

    def __init__(self, mid_channels: int, key_channels: int, dropout: float) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(mid_channels, key_channels)
        self.conv_bn_dropout = Layers(
            nn.Conv2d(2 * mid_channels, mid_channels, 1, bias=False), norm_relu(mid_channels), nn.Dropout2d(dropout)
        )

    def forward(self, pixels: Tensor, descriptors: Tensor) -> Tensor:
        return self.conv_bn_dropout(JoinedMaps((self.object_context_block(pixels, descriptors), pixels)))

    def distribute(self, pixels: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As :meth:`forward`, of some rows of pixels, with what the descriptors give: see :class:`ObjectAttention`."""
        return self.conv_bn_dropout(JoinedMaps((self.object_context_block.attend(pixels, key, value), pixels)))


class ObjectAttention(nn.Module):
    """Attention of pixels [B, M, h, w] to class descriptors [B, M, C, 1]: ``softmax(Q K / sqrt(key)) V`` per pixel."""

    def __init__(self, mid_channels: int, key_channels: int) -> None:
        super().__init__()
        self.f_pixel = _two_layers(mid_channels, key_channels)
        self.f_object = _two_layers(mid_channels, key_channels)
        self.f_down = Layers(nn.Conv2d(mid_channels, key_channels, 1, bias=False), norm_relu(key_channels))
        self.f_up = Layers(nn.Conv2d(key_channels, mid_channels, 1, bias=False), norm_relu(mid_channels))

    def forward(self, pixels: Tensor, descriptors: Tensor) -> Tensor:
        return self.attend(pixels, *self.keys_and_values(descriptors))

    def keys_and_values(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors [B, M, C, 1] -> keys [B, K, C] and values [B, C, K]."""
        return self.f_object(descriptors).flatten(2), self.f_down(descriptors).flatten(2).transpose(1, 2)

    def attend(self, pixels: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The context of some rows of pixels [B, M, rows, w]: of each pixel for itself."""
        query = self.f_pixel(pixels).flatten(2).transpose(1, 2)  # [B, h*w, K]
        similarity = F.softmax(torch.matmul(query, key) * key.shape[1] ** -0.5, dim=2)  # [B, h*w, C]
        context = torch.matmul(similarity, value).transpose(1, 2)  # [B, K, h*w]
        return self.f_up(context.unflatten(2, pixels.shape[-2:]))


# NormReLU is a sequence inside of another one, because the published names nest the batch norm
# (``conv3x3_ocr.1.0.weight``).
def _two_layers(in_channels: int, out_channels: int) -> Layers:
    return Layers(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        norm_relu(out_channels),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
        norm_relu(out_channels),
    )
