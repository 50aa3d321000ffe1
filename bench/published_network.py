"""HRNet-OCR with hierarchical scale attention as published, written plainly: what the memory of ours is held against.

Tao, Sapra, Catanzaro 2020 on HRNetV2 (Sun et al. 2019) and OCR (Yuan, Chen, Wang 2020). The four branches of the trunk
are concatenated at stride 4 (720 channels for W48). Logits, auxiliary logits and attention of each scale are resized to
that scale's own image, and blended there. Losses and predictions read the blended logits at full resolution. In
training the attention of the largest scale is computed, too, and used by nothing.

Left out is what a user of the network does not ask for: predictions of single scales and blended auxiliary logits in
evaluation. Parameters have the published names, which are those of :func:`hmsa_ext.models.hrnet_w48_ocr`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench import published_rmi

AUX_WEIGHT = 0.4
IGNORED = 255
STEM, INNER, EXPANSION = 64, 64, 4
MODULES, BLOCKS = (1, 4, 3), 4
MID, KEY, ATTENTION = 512, 256, 256
WIDTHS = {
    "hrnet_w18_ocr": (18, 36, 72, 144),
    "hrnet_w32_ocr": (32, 64, 128, 256),
    "hrnet_w48_ocr": (48, 96, 192, 384),
}

Run = Callable[..., Any]
"""``(part, *inputs)`` -> what ``part(*inputs)`` returns."""


def plainly(part: Callable[..., Any], *inputs: Any) -> Any:
    """A part as it is."""
    return part(*inputs)


def checkpointed(part: Callable[..., Any], *inputs: Any) -> Any:
    """A part that backward computes again from its inputs, as ``checkpoint_sequential`` does with segments.

    The second pass updates running statistics of batch norms a second time.
    """
    return checkpoint(part, *inputs, use_reentrant=False)


class PublishedNetwork(nn.Module):
    """The network at several scales; without padding, so that any size of image goes.

    Args:
        widths: channels of the four branches.
        num_classes: classes.
        dropout: probability with which channels of the OCR features are dropped in training.
        run: how each of the seven parts of a pass is run: the stem with stage 1, stages 2, 3 and 4 with what leads to
            them, the concatenation, the OCR head, the scale attention.
    """

    def __init__(
        self, widths: Sequence[int], num_classes: int = 19, *, dropout: float = 0.05, run: Run = plainly
    ) -> None:
        super().__init__()
        self.backbone = Trunk(widths, run)
        self.ocr = OCR(sum(widths), num_classes, dropout)
        self.scale_attn = Attention(MID)
        self.run = run

    def one_scale(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W] -> logits [B, C, H, W], auxiliary logits [B, C, H, W] and attention [B, 1, H, W]."""
        size = images.shape[-2:]
        logits, aux, features = self.run(self.ocr, self.backbone(images))
        attention = self.run(self.scale_attn, features)
        return _widened(logits, size), _widened(aux, size), _widened(attention, size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Blended logits and blended auxiliary logits of the scales 0.5 and 1.0, [B, C, H, W] each: the training."""
        height, width = images.shape[-2:]
        low_logits, low_aux, attention = self.one_scale(_resized(images, (height // 2, width // 2)))
        logits, aux, _ = self.one_scale(images)
        blended, blended_aux = attention * low_logits, attention * low_aux
        attention, blended, blended_aux = (_resized(x, (height, width)) for x in (attention, blended, blended_aux))
        return blended + (1 - attention) * logits, blended_aux + (1 - attention) * aux

    def predict(self, images: Tensor, scales: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Labels and their probabilities [B, H, W], of any scales with 1.0 among them."""
        confidence, labels = F.softmax(self.blended(images, scales), dim=1).max(dim=1)
        return labels, confidence

    def blended(self, images: Tensor, scales: Sequence[float]) -> Tensor:
        """Logits [B, C, H, W] of all scales, from the largest to the smallest."""
        size = (images.shape[-2], images.shape[-1])
        result: Tensor | None = None
        for scale in sorted(scales, reverse=True):
            grid = (int(size[0] * scale), int(size[1] * scale))
            logits, _, attention = self.one_scale(_resized(images, grid))
            if result is None:
                result = logits
            elif scale >= 1.0:
                result = attention * logits + (1 - attention) * _resized(result, grid)
            else:
                result = _resized(attention * logits, size) + (1 - _resized(attention, size)) * result
        assert result is not None  # there is a scale
        return _resized(result, size)


def training_loss(
    network: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor, target: Tensor, loss: str = "ce"
) -> Tensor:
    """The loss of the published training: main loss of the blended logits, plain loss of the auxiliary ones.

    Args:
        network: returns both.
        images: [B, 3, H, W].
        target: [B, H, W] int64, 255 where nothing is known.
        loss: ``"ce"``, or ``"rmi"``, with which the plain loss is the binary cross-entropy.
    """
    logits, aux = network(images)
    if loss == "ce":
        main, plain = (F.cross_entropy(z, target, ignore_index=IGNORED) for z in (logits, aux))
    else:
        main, plain = published_rmi.rmi_loss(logits, target), published_rmi.binary_cross_entropy(aux, target)
    return main + AUX_WEIGHT * plain


# ---- trunk -------------------------------------------------------------------------------------------------------


class Trunk(nn.Module):
    """HRNetV2: images [B, 3, H, W] -> features [B, sum of the widths, H / 4, W / 4]."""

    def __init__(self, widths: Sequence[int], run: Run) -> None:
        super().__init__()
        self.run = run
        self.conv1, self.bn1 = _conv3x3(3, STEM, 2), nn.BatchNorm2d(STEM)
        self.conv2, self.bn2 = _conv3x3(STEM, STEM, 2), nn.BatchNorm2d(STEM)
        self.layer1 = nn.Sequential(*(Bottleneck(STEM if k == 0 else INNER * EXPANSION, INNER) for k in range(BLOCKS)))
        self.transition1 = _transition([INNER * EXPANSION], widths[:2])
        self.stage2 = nn.Sequential(*(Exchange(widths[:2]) for _ in range(MODULES[0])))
        self.transition2 = _transition(widths[:2], widths[:3])
        self.stage3 = nn.Sequential(*(Exchange(widths[:3]) for _ in range(MODULES[1])))
        self.transition3 = _transition(widths[:3], widths)
        self.stage4 = nn.Sequential(*(Exchange(widths) for _ in range(MODULES[2])))

    def forward(self, images: Tensor) -> Tensor:
        branches = [self.run(self._stem, images)]
        branches = self.run(self._stage2, branches)
        branches = self.run(self._stage3, branches)
        branches = self.run(self._stage4, branches)
        return self.run(_concatenated, branches)

    def _stem(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        return self.layer1(F.relu(self.bn2(self.conv2(x)), inplace=True))

    def _stage2(self, branches: list[Tensor]) -> list[Tensor]:
        return self.stage2(_branched(self.transition1, branches))

    def _stage3(self, branches: list[Tensor]) -> list[Tensor]:
        return self.stage3(_branched(self.transition2, branches))

    def _stage4(self, branches: list[Tensor]) -> list[Tensor]:
        return self.stage4(_branched(self.transition3, branches))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        out = inner * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv3x3(inner, inner), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Basic(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(channels, channels), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv3x3(channels, channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + x, inplace=True)


class Exchange(nn.Module):
    """A module of a stage: blocks on each branch, then each branch becomes the sum of all."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(Basic(w) for _ in range(BLOCKS))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        branches = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        outputs = []
        for target, paths in enumerate(self.fuse_layers):
            size = branches[target].shape[-2:]
            terms = [_resized(path(x), size) for path, x in zip(paths.children(), branches, strict=True)]
            outputs.append(F.relu(sum(terms[1:], terms[0]), inplace=True))
        return outputs


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target]))
    between = [_halved(widths[source], widths[source]) for _ in range(target - source - 1)]
    last = nn.Sequential(_conv3x3(widths[source], widths[target], 2), nn.BatchNorm2d(widths[target]))
    return nn.Sequential(*between, last)


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    layers: list[nn.Module] = []
    for index, width in enumerate(after):
        if index >= len(before):
            layers.append(nn.Sequential(_halved(before[-1], width)))
        elif width == before[index]:
            layers.append(nn.Identity())
        else:
            layers.append(nn.Sequential(_conv3x3(before[index], width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
    return nn.ModuleList(layers)


def _branched(transition: nn.ModuleList, branches: Sequence[Tensor]) -> list[Tensor]:
    return [layer(branches[min(index, len(branches) - 1)]) for index, layer in enumerate(transition)]


def _concatenated(branches: Sequence[Tensor]) -> Tensor:
    return torch.cat([_resized(x, branches[0].shape[-2:]) for x in branches], dim=1)


# ---- heads -------------------------------------------------------------------------------------------------------


class OCR(nn.Module):
    """Features [B, N, h, w] -> logits [B, C, h, w], auxiliary logits [B, C, h, w], features [B, 512, h, w]."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv3x3_ocr = nn.Sequential(nn.Conv2d(channels, MID, 3, padding=1), _norm(MID))
        self.aux_head = nn.Sequential(
            nn.Conv2d(channels, channels, 1), _norm(channels), nn.Conv2d(channels, num_classes, 1)
        )
        self.ocr_distri_head = Distribution(dropout)
        self.cls_head = nn.Conv2d(MID, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels, aux = self.conv3x3_ocr(x), self.aux_head(x)
        weights = F.softmax(aux.flatten(2), dim=2)
        objects = (pixels.flatten(2) @ weights.mT).unsqueeze(3)
        features = self.ocr_distri_head(pixels, objects)
        return self.cls_head(features), aux, features


class Distribution(nn.Module):
    """Each pixel [B, 512, h, w] with the context that its class descriptors [B, 512, C, 1] give it."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.object_context_block = ObjectContext()
        self.conv_bn_dropout = nn.Sequential(*_projected(2 * MID, MID), nn.Dropout2d(dropout))

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        return self.conv_bn_dropout(torch.cat([self.object_context_block(pixels, objects), pixels], dim=1))


class ObjectContext(nn.Module):
    """Attention of pixels to class descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self.f_pixel = nn.Sequential(*_projected(MID, KEY), *_projected(KEY, KEY))
        self.f_object = nn.Sequential(*_projected(MID, KEY), *_projected(KEY, KEY))
        self.f_down = nn.Sequential(*_projected(MID, KEY))
        self.f_up = nn.Sequential(*_projected(KEY, MID))

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        query = self.f_pixel(pixels).flatten(2).mT
        key, value = self.f_object(objects).flatten(2), self.f_down(objects).flatten(2).mT
        weights = F.softmax(query @ key * KEY**-0.5, dim=-1)
        context = (weights @ value).mT.contiguous()
        return self.f_up(context.unflatten(2, pixels.shape[-2:]))


class Attention(nn.Module):
    """Features [B, N, h, w] -> attention [B, 1, h, w], between 0 and 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0, self.bn0 = _conv3x3(channels, ATTENTION), nn.BatchNorm2d(ATTENTION)
        self.conv1, self.bn1 = _conv3x3(ATTENTION, ATTENTION), nn.BatchNorm2d(ATTENTION)
        self.conv2 = nn.Conv2d(ATTENTION, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)), inplace=True)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return torch.sigmoid(self.conv2(x))


def _conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)


def _norm(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())  # not in place, as published


def _halved(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(_conv3x3(channels, out, 2), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _projected(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 1, bias=False), _norm(out)]


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _widened(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resized in float32 under autocast, as published."""
    return _resized(x.float() if torch.is_autocast_enabled(x.device.type) else x, size)
