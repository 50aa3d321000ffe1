"""Scale attention: for each pixel, the weight of a scale against the next larger one.

An attention head is any module: features [B, in_channels, h, w] -> attention [B, out_channels, h, w] in [0, 1]. A new
one is a file of its own and a line in ``ATTENTION_HEADS``; one outside this package is named
``package.module:factory``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from hmsa_ext import parts
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.joined_maps import Features
from hmsa_ext.models.layers import run_in_strips, run_layers, saves_memory
from hmsa_ext.settings import SettingError

PUBLISHED_BOTTLENECK = 256


class ScaleAttentionHead(nn.Module):
    """Features [B, in, h, w] -> attention [B, out, h, w] in (0, 1): 3x3, 3x3, 1x1 convolutions and a sigmoid.

    The features may be joined maps.

    The weight belongs to the features' own scale: 1 takes its logits, 0 those of the larger scales. Under autocast the
    sigmoid is computed in float32, because half precision cannot tell weights near 1 apart.

    Args:
        in_channels: channels of the features.
        out_channels: 1, one weight for all classes (published), or the number of classes.
        bottleneck: inner channels (published: 256).
        sigmoid: False leaves the sigmoid out: scores of any size, for explicit attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1,
        *,
        bottleneck: int = PUBLISHED_BOTTLENECK,
        sigmoid: bool = True,
    ) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        self.conv0 = nn.Conv2d(in_channels, bottleneck, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(bottleneck)
        self.conv1 = nn.Conv2d(bottleneck, bottleneck, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(bottleneck)
        self.conv2 = nn.Conv2d(bottleneck, out_channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    takes_joined = True

    def forward(self, features: Features) -> Tensor:
        layers = [self.conv0, self.bn0, self.relu, self.conv1, self.bn1, self.relu, self.conv2]
        x = run_in_strips(layers, features) if saves_memory(self) else run_layers(layers, features, save=False)
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()
        return torch.sigmoid(x) if self.sigmoid else x


ATTENTION_HEADS: dict[str, Callable[..., nn.Module]] = {"scale": ScaleAttentionHead}
"""``(in_channels, out_channels) -> module`` by name."""


def build_attention_head(
    head: str | Callable[..., nn.Module],
    in_channels: int,
    out_channels: int,
    *,
    bottleneck: int = PUBLISHED_BOTTLENECK,
    sigmoid: bool = True,
) -> nn.Module:
    """The attention head that a name or a factory means.

    Args:
        head: a name of ``ATTENTION_HEADS``, ``package.module:factory``, or a factory. A factory is called with
            ``(in_channels, out_channels)``, and with ``bottleneck=`` and ``sigmoid=`` where its signature has them.
        in_channels: channels of the features.
        out_channels: channels of the attention.
        bottleneck: inner channels.
        sigmoid: whether the head ends in [0, 1]; False: in scores of any size, which explicit attention needs.

    Raises:
        hmsa_ext.settings.SettingError: no such head, a factory that returns no module, or, for scores, one that does
            not take ``sigmoid``.
    """
    factory = parts.find(head, ATTENTION_HEADS, "attention_head")
    if not callable(factory):
        raise SettingError("attention_head", head, "a factory (in_channels, out_channels) -> module")
    names, takes_any = parts.parameters(factory)
    options = {"bottleneck": bottleneck, "sigmoid": sigmoid}
    if not sigmoid and "sigmoid" not in names and not takes_any:
        raise SettingError(
            "attention_head", parts.spelled(head), "a factory that takes sigmoid=False, which explicit attention needs"
        )
    built = factory(in_channels, out_channels, **{name: value for name, value in options.items() if name in names})
    if not isinstance(built, nn.Module):
        raise SettingError("attention_head", type(built).__name__, "a factory that returns a torch.nn.Module")
    return built


def attention_width(attention_channels: Literal["one", "classes"] | int, num_classes: int) -> int:
    """Channels of the attention: 1 for ``"one"`` or 1, ``num_classes`` for ``"classes"`` or that number."""
    width = {"one": 1, "classes": num_classes}.get(attention_channels, attention_channels)  # type: ignore[call-overload]
    if width not in (1, num_classes):
        raise ArgumentValueError(
            f"attention_channels: expected 1 or num_classes={num_classes}, got {attention_channels!r}"
        )
    return width
