"""ResNet trunks (He et al. 2016) at stride 8: the last two stages are dilated instead of strided.

Parameter names are those of the published segmentation networks: ``layer0`` is what comes before the residual stages.
Files of torchvision's classifiers load as well: see :meth:`ResNet.weight_name`.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.layers import Layers
from hmsa_ext.models.residual_blocks import BOTTLENECK_EXPANSION, BasicBlock, Bottleneck, batch_norm

# Of the four residual stages. With the stem's stride of 4 that makes 8. Every block of the dilated stages has the
# dilation, as published; torchvision's dilated ResNets begin a stage with the dilation of the one before.
STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)


@dataclass(frozen=True)
class ResNetConfig:
    """Depths and widths of a trunk."""

    blocks: tuple[int, int, int, int]
    """Residual blocks of the four stages."""
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Channels of the 3x3 convolutions of the four stages; outputs of bottleneck blocks have four times as many."""
    bottleneck: bool = True
    """Blocks of 1x1, 3x3 and 1x1 convolutions; else of two 3x3 convolutions."""
    stem_channels: int = 64
    """Channels of the 7x7 convolution that begins the trunk."""

    def __post_init__(self) -> None:
        for name in ("blocks", "widths"):
            values = getattr(self, name)
            if len(values) != 4 or any(v < 1 for v in values):
                raise ArgumentValueError(f"ResNetConfig.{name}: expected 4 positive integers, got {values!r}")
        if self.stem_channels < 1:
            raise ArgumentValueError(
                f"ResNetConfig.stem_channels: expected a positive integer, got {self.stem_channels!r}"
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the outputs of the four stages."""
        return tuple(width * (BOTTLENECK_EXPANSION if self.bottleneck else 1) for width in self.widths)


R18 = ResNetConfig(blocks=(2, 2, 2, 2), bottleneck=False)
R34 = ResNetConfig(blocks=(3, 4, 6, 3), bottleneck=False)
R50 = ResNetConfig(blocks=(3, 4, 6, 3))
R101 = ResNetConfig(blocks=(3, 4, 23, 3))


class ResNet(nn.Module):
    """ResNet trunk: images [B, 3, H, W] -> features [B, out_channels, ceil(H / 8), ceil(W / 8)].

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.

    Args:
        config: depths and widths.

    >>> import torch
    >>> trunk = ResNet(R18)
    >>> [list(level.shape) for level in trunk.levels(torch.zeros(1, 3, 65, 64))]
    [[1, 64, 17, 16], [1, 512, 9, 8]]
    """

    stride = 8
    level_strides = (4, 8)

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        channels = config.stage_channels
        self.out_channels = channels[-1]
        self.level_channels = (channels[0], channels[-1])
        stem = config.stem_channels
        self.layer0 = Layers(
            nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False),
            batch_norm(stem),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.layer1 = _stage(config, 0)
        self.layer2 = _stage(config, 1)
        self.layer3 = _stage(config, 2)
        self.layer4 = _stage(config, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(images)[-1]

    def levels(self, images: Tensor) -> list[Tensor]:
        """The features of the first stage, at stride 4, and of the last, at stride 8."""
        fine = self.layer1(self.layer0(images))
        return [fine, self.layer4(self.layer3(self.layer2(fine)))]

    def weight_name(self, name: str) -> str | None:
        """What an entry of a torchvision ResNet is called here, where that differs; None for other names.

        >>> ResNet(R18).weight_name("bn1.running_mean")
        'layer0.1.running_mean'
        """
        layer, _, rest = name.partition(".")
        index = {"conv1": 0, "bn1": 1}.get(layer)
        return None if index is None else f"layer0.{index}.{rest}"


def _stage(config: ResNetConfig, index: int) -> Layers:
    block = Bottleneck if config.bottleneck else BasicBlock
    channels = config.stage_channels[index - 1] if index else config.stem_channels
    stage = Layers()
    for number in range(config.blocks[index]):
        stride = STRIDES[index] if number == 0 else 1
        stage.append(block(channels, config.widths[index], stride=stride, dilation=DILATIONS[index]))
        channels = config.stage_channels[index]
    return stage
