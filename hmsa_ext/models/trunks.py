"""Trunks: modules that turn images into features, for any head.

A trunk is any ``nn.Module`` whose ``forward(images [B, 3, H, W])`` gives features [B, out_channels, h, w], and that has

- ``out_channels``: channels of the features;
- ``stride``: pixels of the image per pixel of the features; h and w are H / stride and W / stride, rounded up or down;
- ``divisor`` (1 where there is none): a number that the trunk needs H and W to be multiples of.

Decoders that combine features of several strides ask for levels. A trunk that has them also has

- ``levels(images)``: a list of features, finest first;
- ``level_channels``, ``level_strides``: tuples with the channels and the stride of each.

A module without these attributes is adapted in a line: ``trunk.out_channels, trunk.stride = 256, 4``. A new trunk is a
file of its own and a line in ``TRUNKS``; a trunk outside this package is named ``package.module:factory``, one of timm
``timm:NAME``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from hmsa_ext import parts
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models import timm_trunk
from hmsa_ext.models.hrnet import SMALL, W18, W32, W48, HRNet, HRNetConfig
from hmsa_ext.settings import SettingError

TRUNKS: dict[str, Callable[[], nn.Module]] = {
    "hrnet_small": partial(HRNet, SMALL),
    "hrnet_w18": partial(HRNet, W18),
    "hrnet_w32": partial(HRNet, W32),
    "hrnet_w48": partial(HRNet, W48),
}
TRUNK_PREFIXES: dict[str, Callable[[str], Callable[[], nn.Module]]] = {"timm": timm_trunk.factory}


def build_trunk(trunk: str | HRNetConfig | nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The trunk that a name, a module or a factory means.

    Args:
        trunk: a name of ``TRUNKS``, ``timm:NAME``, ``package.module:factory``, a factory without arguments, a
            module, or the widths and depths of an HRNet.

    Returns:
        The module; it has ``out_channels`` and ``stride``.

    Raises:
        hmsa_ext.settings.SettingError: no such trunk, or what came is none.
    """
    if isinstance(trunk, HRNetConfig):
        trunk = HRNet(trunk)
    built = trunk if isinstance(trunk, nn.Module) else parts.find(trunk, TRUNKS, "trunk", TRUNK_PREFIXES)
    if not isinstance(built, nn.Module):
        if not callable(built):
            raise SettingError("trunk", trunk, "a factory without arguments that returns a module")
        built = built()
    if not isinstance(built, nn.Module):
        raise SettingError("trunk", type(built).__name__, "a factory that returns a torch.nn.Module")
    stated(built)
    return built


def is_drawn_here(trunk: str | HRNetConfig | nn.Module | Callable[[], nn.Module]) -> bool:
    """Whether a network draws the first weights of this trunk: those of modules and factories of others stay."""
    return isinstance(trunk, HRNetConfig) or (isinstance(trunk, str) and ":" not in trunk)


def stated(trunk: nn.Module) -> tuple[int, int, int]:
    """``(out_channels, stride, divisor)`` of a trunk; raises SettingError where one is missing or not a number."""
    values = []
    for name, default in (("out_channels", None), ("stride", None), ("divisor", 1)):
        value = getattr(trunk, name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingError("trunk", type(trunk).__name__, f"a module with a positive integer {name}, not {value!r}")
        values.append(value)
    out_channels, stride, divisor = values
    return out_channels, stride, divisor


def stated_levels(trunk: nn.Module, wanted: int = 2) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """``(level_channels, level_strides)`` of a trunk, finest first.

    Raises SettingError where a trunk has fewer than ``wanted`` levels.
    """
    channels, strides = (tuple(getattr(trunk, name, ())) for name in ("level_channels", "level_strides"))
    if len(channels) < wanted or len(strides) != len(channels) or not callable(getattr(trunk, "levels", None)):
        raise SettingError(
            "trunk",
            type(trunk).__name__,
            f"a trunk with features at {wanted} or more strides: levels(), level_channels and level_strides",
        )
    return channels, strides


def check_features(features: object, images: Tensor, out_channels: int, stride: int) -> None:
    """Raises ValueError unless the features of ``images`` have the channels and the stride that their trunk states."""
    if not isinstance(features, Tensor) or features.dim() != 4:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ArgumentValueError(f"trunk: expected features [B, {out_channels}, h, w], got {got}")
    fits = features.shape[1] == out_channels and all(
        abs(of_features * stride - of_image) < stride
        for of_features, of_image in zip(features.shape[-2:], images.shape[-2:], strict=True)
    )
    if not fits:
        raise ArgumentValueError(
            f"trunk: it states out_channels={out_channels} and stride={stride}, but made features "
            f"{list(features.shape)} of images {list(images.shape)}"
        )
