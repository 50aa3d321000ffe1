"""Trunks: modules that turn images into features, for any head.

A trunk is any ``nn.Module`` whose ``forward(images [B, 3, H, W])`` gives features [B, out_channels, h, w], and that has

- ``out_channels``: channels of the features;
- ``stride``: pixels of the image per pixel of the features; h and w are H / stride and W / stride, rounded up or down;
- ``divisor`` (1 where there is none): a number that the trunk needs H and W to be multiples of.

A trunk that has features of several strides may offer them to decoders that take several (DeepLabV3+) by

- ``level_channels`` and ``level_strides``: tuples of their channels and strides, finest first;
- ``levels(images)``: a list of these features, each of H / stride x W / stride, rounded up or down.

A trunk whose features are several maps, resized to the finest and concatenated, may offer them as they are: it has the
attribute ``joins = True``, and ``forward(images, joined=True)`` gives
:class:`hmsa_ext.models.joined_maps.JoinedMaps`. Heads that take them compute most of a convolution at the size of each
map.

Optional too is ``weight_name(name)``: what an entry of a file of this trunk alone is called in the ``state_dict()`` of
the trunk, where the file has names of its own, or None. :func:`hmsa_ext.models.load_weights` asks it.

A module without these attributes is adapted in a line: ``trunk.out_channels, trunk.stride = 256, 4``. A new trunk is a
file of its own and a line in ``TRUNKS``; a trunk outside this package is named ``package.module:factory``, one of timm
``timm:NAME``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from hmsa_ext import parts
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models import timm_trunk
from hmsa_ext.models.efficientnet import LITE0, EfficientNetLite, EfficientNetLiteConfig
from hmsa_ext.models.hrnet import SMALL, W18, W32, W48, HRNet, HRNetConfig
from hmsa_ext.models.joined_maps import Features, JoinedMaps
from hmsa_ext.models.resnet import R18, R34, R50, R101, ResNet, ResNetConfig
from hmsa_ext.settings import SettingError

Trunk: TypeAlias = "str | HRNetConfig | ResNetConfig | EfficientNetLiteConfig | nn.Module | Callable[[], nn.Module]"
"""What :func:`build_trunk` takes."""

TRUNKS: dict[str, Callable[[], nn.Module]] = {
    "hrnet_small": partial(HRNet, SMALL),
    "hrnet_w18": partial(HRNet, W18),
    "hrnet_w32": partial(HRNet, W32),
    "hrnet_w48": partial(HRNet, W48),
    "resnet18": partial(ResNet, R18),
    "resnet34": partial(ResNet, R34),
    "resnet50": partial(ResNet, R50),
    "resnet101": partial(ResNet, R101),
    "efficientnet_lite0": partial(EfficientNetLite, LITE0),
}
TRUNK_PREFIXES: dict[str, Callable[[str], Callable[[], nn.Module]]] = {"timm": timm_trunk.factory}

_HRNET, _RESNET = "hrnetv2_{}_imagenet_pretrained.pth of HRNet-Image-Classification", "{} of torchvision"
TRUNK_WEIGHTS: dict[str, str] = {
    "hrnet_w18": _HRNET.format("w18"),
    "hrnet_w32": _HRNET.format("w32"),
    "hrnet_w48": _HRNET.format("w48"),
    "resnet18": _RESNET.format("resnet18"),
    "resnet34": _RESNET.format("resnet34"),
    "resnet50": _RESNET.format("resnet50"),
    "resnet101": _RESNET.format("resnet101"),
    "efficientnet_lite0": "imagenet (with hmsa_ext[pretrained])",
}
"""ImageNet weights of a trunk, for ``--weights``: files that people fetch themselves, or ``imagenet``."""


def build_trunk(trunk: Trunk) -> nn.Module:
    """The trunk that a name, a module or a factory means.

    Args:
        trunk: a name of ``TRUNKS``, ``timm:NAME``, ``package.module:factory``, a factory without arguments, a
            module, or the widths and depths of an HRNet, a ResNet or an EfficientNet-Lite.

    Returns:
        The module; it has ``out_channels`` and ``stride``.

    Raises:
        hmsa_ext.settings.SettingError: no such trunk, or what came is none.
    """
    if isinstance(trunk, HRNetConfig):
        trunk = HRNet(trunk)
    elif isinstance(trunk, ResNetConfig):
        trunk = ResNet(trunk)
    elif isinstance(trunk, EfficientNetLiteConfig):
        trunk = EfficientNetLite(trunk)
    built = trunk if isinstance(trunk, nn.Module) else parts.find(trunk, TRUNKS, "trunk", TRUNK_PREFIXES)
    if not isinstance(built, nn.Module):
        if not callable(built):
            raise SettingError("trunk", trunk, "a factory without arguments that returns a module")
        built = built()
    if not isinstance(built, nn.Module):
        raise SettingError("trunk", type(built).__name__, "a factory that returns a torch.nn.Module")
    stated(built)
    return built


def is_drawn_here(trunk: Trunk) -> bool:
    """Whether a network draws the first weights of this trunk: those of modules and factories of others stay."""
    return isinstance(trunk, HRNetConfig | ResNetConfig | EfficientNetLiteConfig) or (
        isinstance(trunk, str) and ":" not in trunk
    )


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

    Raises:
        SettingError: a trunk with fewer than ``wanted`` levels, or one that states something else than ascending
            strides and channels for each.
    """
    name = type(trunk).__name__
    if not callable(getattr(trunk, "levels", None)):
        expected = f"a trunk with features of {wanted} or more strides, such as resnet50: levels, level_channels and "
        raise SettingError("trunk", name, expected + "level_strides")
    channels, strides = (_positive_integers(trunk, attribute) for attribute in ("level_channels", "level_strides"))
    if len(strides) < wanted or len(channels) != len(strides) or list(strides) != sorted(set(strides)):
        raise SettingError(
            "trunk",
            name,
            f"a trunk with {wanted} or more level_strides, finest first, and level_channels for each, not {strides} "
            f"and {channels}",
        )
    return channels, strides


def _positive_integers(trunk: nn.Module, attribute: str) -> tuple[int, ...]:
    values = getattr(trunk, attribute, None)
    if not isinstance(values, tuple | list) or not all(type(value) is int and value > 0 for value in values):
        expected = f"a module with a tuple of positive integers {attribute}, not {values!r}"
        raise SettingError("trunk", type(trunk).__name__, expected)
    return tuple(values)


def features_of(trunk: nn.Module, images: Tensor) -> Features:
    """The features of ``images``, checked: joined maps of a trunk that offers them, else a tensor.

    Raises:
        ValueError: the features are other than the trunk states.
    """
    out_channels, stride, _ = stated(trunk)
    features = trunk(images, joined=True) if getattr(trunk, "joins", False) else trunk(images)
    check_features(features, images, out_channels, stride)
    return features


def check_features(features: object, images: Tensor, out_channels: int, stride: int) -> None:
    """Raises ValueError unless the features of ``images`` have the channels and the stride that their trunk states."""
    if not isinstance(features, Tensor | JoinedMaps) or features.dim() != 4:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ArgumentValueError(f"trunk: expected features [B, {out_channels}, h, w], got {got}")
    if not _fits(features, images, out_channels, stride):
        raise ArgumentValueError(
            f"trunk: it states out_channels={out_channels} and stride={stride}, but made features "
            f"{list(features.shape)} of images {list(images.shape)}"
        )


def levels_of(trunk: nn.Module, images: Tensor, wanted: int = 2) -> list[Tensor]:
    """The levels of ``images`` [B, 3, H, W], finest first: [B, channels, h, w] each, as the trunk states them.

    Raises:
        SettingError: the trunk has no levels: see :func:`stated_levels`.
        ValueError: the levels are other than stated.
    """
    channels, strides = stated_levels(trunk, wanted)
    made = cast(Any, trunk).levels(images)
    are_maps = isinstance(made, list | tuple) and all(isinstance(x, Tensor) and x.dim() == 4 for x in made)
    if not are_maps or len(made) != len(strides):
        got = f"{len(made)} values" if isinstance(made, list | tuple) else type(made).__name__
        raise ArgumentValueError(
            f"trunk: expected levels(images) to give {len(strides)} tensors [B, *, h, w], got {got}"
        )
    if not all(_fits(x, images, c, stride) for x, c, stride in zip(made, channels, strides, strict=True)):
        shapes = ", ".join(str(list(x.shape)) for x in made)
        raise ArgumentValueError(
            f"trunk: it states level_channels={channels} and level_strides={strides}, but made levels {shapes} of "
            f"images {list(images.shape)}"
        )
    return list(made)


def _fits(features: Features, images: Tensor, channels: int, stride: int) -> bool:
    return features.shape[1] == channels and all(
        abs(of_features * stride - of_image) < stride
        for of_features, of_image in zip(features.shape[-2:], images.shape[-2:], strict=True)
    )
