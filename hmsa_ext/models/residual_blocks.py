"""Residual blocks (He et al. 2016), which HRNet and ResNet share; parameter names are the published ones."""

from torch import Tensor, nn

from hmsa_ext.models.layers import Layers, Residual, conv_norm

BATCH_NORM_MOMENTUM = 0.1
BOTTLENECK_EXPANSION = 4


class BasicBlock(Residual):
    """Two 3x3 convolutions to ``out_channels``; the shortcut is projected where channels or size differ.

    The first convolution has the stride, both have the dilation.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride, dilation)
        self.bn1 = batch_norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels, 1, dilation)
        self.bn2 = batch_norm(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    def inner(self, x: Tensor, *, save: bool) -> Tensor:
        return self.relu(conv_norm(x, self.conv1, self.bn1, save=save))

    @property
    def last(self) -> tuple[nn.Conv2d, nn.Module]:
        return self.conv2, self.bn2


class Bottleneck(Residual):
    """1x1, 3x3, 1x1 convolutions to ``4 * inner`` channels; the shortcut is projected where channels or size differ.

    The 3x3 convolution has the stride and the dilation.
    """

    def __init__(self, in_channels: int, inner: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        out_channels = inner * BOTTLENECK_EXPANSION
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = batch_norm(inner)
        self.conv2 = conv3x3(inner, inner, stride, dilation)
        self.bn2 = batch_norm(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = batch_norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, out_channels, stride)

    def inner(self, x: Tensor, *, save: bool) -> Tensor:
        out = self.relu(conv_norm(x, self.conv1, self.bn1, save=save))
        return self.relu(conv_norm(out, self.conv2, self.bn2, save=save))

    @property
    def last(self) -> tuple[nn.Conv2d, nn.Module]:
        return self.conv3, self.bn3


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=BATCH_NORM_MOMENTUM)


def _projection(in_channels: int, out_channels: int, stride: int) -> Layers | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return Layers(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), batch_norm(out_channels))
