"""Trunks of timm: ``timm:NAME`` is the feature extractor of any network of timm that has one.

    hmsa train --trunk timm:convnext_tiny --weights convnext_tiny.pth

timm is imported when such a trunk is asked for, and not before. Nothing is downloaded: weights come from a file.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.models.inputs import InputError
from hmsa_ext.normalisation import MEAN, STD
from hmsa_ext.settings import SettingError

FINEST_STRIDE = 4
"""Finer levels are left out: they are large, and shallow."""
# What networks that are built for one image size call the permission to run at others.
SIZE_OPTIONS: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
# Where the kinds of extractors put the network that they wrap.
PLACES = ("", "model.", "body.", "graph_module.")


def factory(name: str) -> Callable[[], TimmTrunk]:
    """The factory of the trunk ``timm:name``.

    Raises:
        SettingError: timm cannot be imported, or has no network of this name.
    """
    timm = _import_timm(name)
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name, known, 5) or [other for other in known if name in other][:5]
        hint = f"; near ones: {', '.join(near)}" if near else "; timm.list_models() has them all"
        raise SettingError("trunk", f"timm:{name}", f"timm: and the name of a network of timm{hint}")
    return partial(TimmTrunk, name)


class TimmTrunk(nn.Module):
    """The feature extractor of a network of timm: images [B, 3, H, W] -> features [B, out_channels, h, w].

    Its levels are the last features of each stride from 4 on. ``forward`` resizes them (bilinear,
    ``align_corners=False``) to the finest and concatenates them. A network whose features all have one stride, such as
    a vision transformer, has one level.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`; where timm says that
    the network was trained with other constants, they are converted to those. Sides are multiples of ``divisor``, the
    coarsest stride, so that the levels lie exactly on each other. Weights are drawn as timm draws them.

    Attributes: ``level_channels`` and ``level_strides``, finest first; ``out_channels``, the sum of the channels;
    ``stride``, the finest; ``divisor``.

    Args:
        name: as ``timm.list_models()`` has it, with a tag of its weights or without; the tag chooses the constants.

    Raises:
        SettingError: timm cannot be imported, or makes no extractor of feature maps of this network.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        timm = _import_timm(name)
        try:
            self.extractor = _create(timm, name)
        except Exception as error:  # each network of timm has a way of its own to say that it has no extractor
            raise SettingError(
                "trunk", f"timm:{name}", f"a network that timm makes an extractor of: {error}"
            ) from error
        output_format = getattr(self.extractor, "output_fmt", None) or "NCHW"
        if output_format not in ("NCHW", "NHWC"):
            raise SettingError("trunk", f"timm:{name}", f"a network of feature maps, not of {output_format}")
        self._channels_come_last = output_format == "NHWC"

        info: Any = self.extractor.feature_info
        channels, strides = info.channels(), info.reduction()
        self._taken = chosen_levels(strides)
        self.level_channels = tuple(int(channels[i]) for i in self._taken)
        self.level_strides = tuple(int(strides[i]) for i in self._taken)
        self.out_channels, self.stride = sum(self.level_channels), self.level_strides[0]
        self.divisor = math.lcm(*self.level_strides)

        about: Any = self.extractor.pretrained_cfg
        self._own_size, self._may_be_fixed = tuple(about["input_size"][-2:]), bool(about.get("fixed_input_size"))
        mean, std = tuple(about["mean"]), tuple(about["std"])
        self._is_normalised_otherwise = (mean, std) != (MEAN, STD)
        constants = list(zip(MEAN, STD, mean, std, strict=True))
        factor, offset = [s / t for _, s, _, t in constants], [(m - n) / t for m, _, n, t in constants]
        self.register_buffer("_factor", torch.tensor(factor).view(3, 1, 1), persistent=False)
        self.register_buffer("_offset", torch.tensor(offset).view(3, 1, 1), persistent=False)
        self._names = frozenset(self.extractor.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        levels = self.levels(images)
        size = levels[0].shape[-2:]
        resized = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in levels[1:])
        return torch.cat([levels[0], *resized], dim=1)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Features of each stride, finest first: [B, level_channels[i], H / level_strides[i], W / level_strides[i]].

        Raises InputError where the network runs at one size of images alone, and these have another.
        """
        if self._is_normalised_otherwise:
            images = images * self.get_buffer("_factor") + self.get_buffer("_offset")
        features = self._extract(images)
        taken = [features[i] for i in self._taken]
        return [x.permute(0, 3, 1, 2) for x in taken] if self._channels_come_last else taken

    def weight_name(self, name: str) -> str | None:
        """What the entry ``name`` of the state dict of timm's network is called in this trunk's; None: not in it.

        Extractors of timm put the network under a name of their own, or take its outer containers apart:
        ``stem.0.weight`` becomes ``stem_0.weight``.
        """
        candidates = [*(place + name for place in PLACES), name.replace(".", "_", 1)]
        return next((f"extractor.{found}" for found in candidates if found in self._names), None)

    def with_shared_statistics(self) -> TimmTrunk:
        """This trunk with synchronized batch norm, by timm: its layers are batch norm and activation in one."""
        self.extractor = importlib.import_module("timm.layers").convert_sync_batchnorm(self.extractor)
        return self

    def _extract(self, images: Tensor) -> Sequence[Tensor]:
        if tuple(images.shape[-2:]) == self._own_size or torch.compiler.is_compiling():
            return self.extractor(images)
        try:
            return self.extractor(images)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            # Many networks that timm calls fixed to one size run at any: only those that fail are. Of the others, what
            # timm asserts is about sizes as well.
            if not self._may_be_fixed and not isinstance(error, AssertionError):
                raise
            got, own = (" x ".join(map(str, size)) for size in (images.shape[-2:], self._own_size))
            raise InputError(
                f"trunk: timm:{self.name} failed on images of {got} pixels ({error}); timm runs it at {own}: use crops "
                "and images of this size at the scale 1, or another trunk"
            ) from error


def chosen_levels(strides: Sequence[int]) -> tuple[int, ...]:
    """Which of an extractor's features are levels: the last of each stride from 4 on, finest first.

    Where the strides are no multiples of the finest, their maps do not lie on each other: then the last one alone.

    >>> chosen_levels([2, 4, 8, 16, 32]), chosen_levels([16, 16, 16]), chosen_levels([12, 17])
    ((1, 2, 3, 4), (2,), (1,))
    """
    last = {stride: number for number, stride in enumerate(strides) if stride >= FINEST_STRIDE}
    finest = min(last, default=0)
    if not last or any(stride % finest for stride in last):
        return (len(strides) - 1,)
    return tuple(last[stride] for stride in sorted(last))


def _create(timm: Any, name: str) -> nn.Module:
    about = timm.get_pretrained_cfg(name)
    choices = SIZE_OPTIONS if about is not None and about.fixed_input_size else ({},)
    for options in choices[:-1]:
        try:
            return timm.create_model(name, pretrained=False, features_only=True, **options)
        except TypeError as error:  # a network without this option
            if not any(option in str(error) for option in options):
                raise
    return timm.create_model(name, pretrained=False, features_only=True)


def _import_timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except Exception as error:  # timm needs torchvision, which raises RuntimeError beside another build of torch
        raise SettingError(
            "trunk",
            f"timm:{name}",
            f"the package timm, which cannot be imported ({type(error).__name__}: {error}); install timm and the "
            f"torchvision that belongs to torch {torch.__version__}: pip install timm torchvision",
        ) from error
