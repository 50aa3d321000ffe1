"""Light decoders that were tried on EfficientNet-Lite0, for training on one CPU core: see docs/results.md.

    hmsa train --model bench.light_decoders:lraspp --weights imagenet ...
    python -m bench.light_decoders                  # seconds of a training step of each, on one thread

Each is a factory ``(num_classes) -> network``. The features go to an attention head of 32 inner channels. The one that
was chosen is ``hmsa_ext.models.lraspp``; what is here serves to measure others against it.
"""

from __future__ import annotations

import statistics
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import EfficientNetLite, EfficientNetLiteConfig, MultiScale, load_weights
from hmsa_ext.models.efficientnet import LITE0, LITE0_CLASSIFIER
from hmsa_ext.models.initialisation import initialise

DROPOUT = 0.05
BOTTLENECK = 32


def lraspp(num_classes: int) -> MultiScale:
    """LR-ASPP (MobileNetV3): 128 channels at stride 16, gated by the mean of the image, and level 8; logits at 8."""
    return _multi_scale(LRASPP(num_classes, width=128, channels=64))


def lraspp_stride_4(num_classes: int) -> MultiScale:
    """The same with level 4 too; logits at 4."""
    return _multi_scale(LRASPPSum(num_classes, width=128, channels=64))


def fpn(num_classes: int) -> MultiScale:
    """Feature pyramid: pyramid pooling at stride 16, then sums with finer levels; logits at stride 4."""
    return _multi_scale(FPN(num_classes, 64))


def fpn_gate(num_classes: int) -> MultiScale:
    """The same with the gate of LR-ASPP instead of pyramid pooling."""
    return _multi_scale(FPN(num_classes, 64, context=Gate))


def fpn_stride_8(num_classes: int) -> MultiScale:
    """The same, ended at stride 8."""
    return _multi_scale(FPN(num_classes, 64, finest=1))


def fpn_dense(num_classes: int) -> MultiScale:
    """The same with dense 3x3 convolutions instead of depthwise separable ones."""
    return _multi_scale(FPN(num_classes, 64, is_dense=True))


def fpn_wide(num_classes: int) -> MultiScale:
    """The same with 96 channels."""
    return _multi_scale(FPN(num_classes, 96))


def fpn_stride_32(num_classes: int) -> MultiScale:
    """The same on the whole trunk, whose last stages have stride 32."""
    return _multi_scale(FPN(num_classes, 64, config=LITE0_CLASSIFIER))


def deeplab(num_classes: int) -> MultiScale:
    """DeepLabV3+ of separable convolutions: ASPP of 96 channels with rates 3, 6, 9, and level 4."""
    return _multi_scale(DeepLab(num_classes, width=96, channels=64))


def bifpn(num_classes: int) -> MultiScale:
    """BiFPN (EfficientDet): twice down and up the levels; the sum of all at stride 4."""
    return _multi_scale(BiFPN(num_classes, 64, rounds=2))


DECODERS = (fpn, fpn_gate, fpn_stride_8, fpn_dense, fpn_wide, fpn_stride_32, lraspp, lraspp_stride_4, deeplab, bifpn)


def step_seconds(factory: Callable[[int], nn.Module], *, steps: int = 7) -> float:
    """Processor time of a training step (8 crops of 192x256 at scales 0.5 and 1, 11 classes): the median of some."""
    model: Any = factory(11)
    load_weights(model, "imagenet")
    model = model.to(memory_format=torch.channels_last)
    criterion, optimizer = MultiScaleLoss(), torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(8, 3, 192, 256).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 11, (8, 192, 256))
    seconds = []
    for _ in range(steps + 1):  # the first is not like the others
        begun = time.process_time()
        criterion(model(images, (0.5, 1.0)), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds[1:])


class Network(nn.Module):
    """A trunk, a decoder of its levels, and the classifier of pixels: images -> (logits, features)."""

    def __init__(self, num_classes: int, channels: int, config: EfficientNetLiteConfig = LITE0) -> None:
        super().__init__()
        self.feature_channels = channels
        self.backbone = EfficientNetLite(config)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    @abstractmethod
    def decode(self, levels: list[Tensor]) -> Tensor:
        """The levels of the trunk -> features [B, channels, h, w]."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.decode(self.backbone.levels(images))
        return self.classifier(self.dropout(features)), features


class LRASPP(Network):
    def __init__(self, num_classes: int, width: int, channels: int) -> None:
        super().__init__(num_classes, channels)
        _, middle, coarsest = self.backbone.level_channels
        self.context = Gate(coarsest, width)
        self.blend = _conv(width + middle, channels)

    def decode(self, levels: list[Tensor]) -> Tensor:
        _, middle, coarsest = levels
        return self.blend(torch.cat([_resize(self.context(coarsest), middle), middle], dim=1))


class LRASPPSum(Network):
    """One layer of all levels: what a 1x1 convolution of their concatenation computes, at the size of each."""

    def __init__(self, num_classes: int, width: int, channels: int, finest: int = 0) -> None:
        super().__init__(num_classes, channels)
        *finer, coarsest = self.backbone.level_channels
        self.finest = finest
        self.context = Gate(coarsest, width)
        self.project = nn.ModuleList(nn.Conv2d(c, channels, 1, bias=False) for c in (*finer[finest:], width))
        self.norm = nn.BatchNorm2d(channels)

    def decode(self, levels: list[Tensor]) -> Tensor:
        *finer, coarsest = levels
        inputs = [*finer[self.finest :], self.context(coarsest)]
        first, *others = (project(x) for project, x in zip(self.project, inputs, strict=True))
        return F.relu(self.norm(sum((_resize(x, first) for x in others), first)))


class FPN(Network):
    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        context: Callable[[int, int], nn.Module] | None = None,
        finest: int = 0,
        is_dense: bool = False,
        config: EfficientNetLiteConfig = LITE0,
    ) -> None:
        super().__init__(num_classes, channels, config)
        *finer, coarsest = self.backbone.level_channels
        finer = finer[finest:]
        self.finest = finest
        self.context = (context or PyramidPooling)(coarsest, channels)
        self.lateral = nn.ModuleList(_conv(c, channels, relu=False) for c in finer)
        self.blend = nn.ModuleList(
            _conv(channels, channels, 3) if is_dense else _separable(channels, channels) for _ in finer
        )

    def decode(self, levels: list[Tensor]) -> Tensor:
        x = self.context(levels[-1])
        finer = zip(self.lateral, self.blend, levels[self.finest : -1], strict=True)
        for lateral, blend, level in reversed(list(finer)):
            x = blend(_resize(x, level) + lateral(level))
        return x


class DeepLab(Network):
    def __init__(self, num_classes: int, width: int, channels: int) -> None:
        super().__init__(num_classes, channels)
        finest, _, coarsest = self.backbone.level_channels
        self.context = ASPP(coarsest, width)
        self.low_level = _conv(finest, 32)
        self.blend = _separable(width + 32, channels, 5)
        self.refine = _separable(channels, channels, 5)

    def decode(self, levels: list[Tensor]) -> Tensor:
        finest, _, coarsest = levels
        return self.refine(
            self.blend(torch.cat([_resize(self.context(coarsest), finest), self.low_level(finest)], dim=1))
        )


class BiFPN(Network):
    def __init__(self, num_classes: int, channels: int, rounds: int) -> None:
        super().__init__(num_classes, channels)
        widths = self.backbone.level_channels
        self.lateral = nn.ModuleList(_conv(c, channels, relu=False) for c in widths)
        self.mean = nn.Conv2d(widths[-1], channels, 1)
        self.down, self.up = (
            nn.ModuleList(
                nn.ModuleList(_separable(channels, channels) for _ in range(len(widths) - 1)) for _ in range(rounds)
            )
            for _ in range(2)
        )

    def decode(self, levels: list[Tensor]) -> Tensor:
        x = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        x[-1] = x[-1] + self.mean(levels[-1].mean((2, 3), keepdim=True))
        for down, up in zip(self.down, self.up, strict=True):
            x = _down_and_up(x, list(down.children()), list(up.children()))
        finest, *coarser = x
        return sum((_resize(y, finest) for y in coarser), finest)


def _down_and_up(levels: list[Tensor], down: Sequence[nn.Module], up: Sequence[nn.Module]) -> list[Tensor]:
    """One round: from the coarsest level to the finest, and back."""
    downward = [levels[-1]]
    for level, layer in zip(reversed(levels[:-1]), reversed(down), strict=True):
        downward.insert(0, layer(_resize(downward[0], level) + level))
    out = [downward[0]]
    for level, passed, layer in zip(levels[1:], downward[1:], up, strict=True):
        smaller = F.adaptive_avg_pool2d(out[-1], (level.shape[-2], level.shape[-1]))
        out.append(layer(smaller + level + passed))
    return out


class PyramidPooling(nn.Module):
    """Pyramid pooling (PSPNet): means over 1, 2 x 2, 4 x 4, 8 x 8 parts beside the features."""

    GRIDS = (1, 2, 4, 8)

    def __init__(self, in_channels: int, channels: int, branch: int = 32) -> None:
        super().__init__()
        self.reduce = _conv(in_channels, channels)
        self.branches = nn.ModuleList(_conv(channels, branch) for _ in self.GRIDS)
        self.blend = _conv(channels + branch * len(self.GRIDS), channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        pooled = [
            _resize(branch(F.adaptive_avg_pool2d(x, grid)), x)
            for branch, grid in zip(self.branches, self.GRIDS, strict=True)
        ]
        return self.blend(torch.cat([x, *pooled], dim=1))


class Gate(nn.Module):
    """Channels weighted by what the mean of the image says of them (LR-ASPP)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = _conv(in_channels, channels)
        self.gate = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x) * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class ASPP(nn.Module):
    RATES = (3, 6, 9)

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.point = _conv(in_channels, channels)
        self.branches = nn.ModuleList(_separable(in_channels, channels, dilation=rate) for rate in self.RATES)
        self.mean = _conv(in_channels, channels)
        self.blend = _conv(channels * (2 + len(self.RATES)), channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.blend(torch.cat([self.point(x), *(branch(x) for branch in self.branches), mean], dim=1))


def _multi_scale(network: Network) -> MultiScale:
    decoder = [module for name, module in network.named_children() if name != "backbone"]
    initialise(decoder, predictions=[network.classifier])
    return MultiScale(network, network.feature_channels, bottleneck=BOTTLENECK)


def _conv(in_channels: int, channels: int, kernel: int = 1, *, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def _separable(in_channels: int, channels: int, kernel: int = 3, *, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            in_channels,
            kernel,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=in_channels,
            bias=False,
        ),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        _conv(in_channels, channels),
    )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, (like.shape[-2], like.shape[-1]), mode="bilinear", align_corners=False)


def main() -> None:
    torch.set_num_threads(1)
    for factory in DECODERS:
        print(f"{factory.__name__:14} {step_seconds(factory):.2f} s", flush=True)


if __name__ == "__main__":
    main()
