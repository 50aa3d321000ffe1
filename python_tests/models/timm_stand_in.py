"""A small stand-in for timm, with networks of a few layers under names of timm.

Where a network's extractor of timm has a peculiarity that our trunk deals with, its stand-in has it too: parameters
with other names than the classifier's, channels last, features of one stride, one size of images, constants of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class BatchNormAct(nn.BatchNorm2d):
    """Batch norm and a ReLU in one."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class SyncBatchNormAct(nn.SyncBatchNorm):
    """The same, synchronized."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct):
            converted = SyncBatchNormAct(child.num_features)
            converted.load_state_dict(child.state_dict())
            module.add_module(name, converted.train(child.training))
        else:
            convert_sync_batchnorm(child)
    return module


@dataclass(frozen=True)
class Config:
    """What timm says about the weights of a network."""

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    fixed_input_size: bool = False
    input_size: tuple[int, int, int] = (3, 224, 224)


class FeatureInfo:
    """Channels and strides of the features."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        self._channels, self._strides = channels, strides

    def channels(self) -> list[int]:
        return self._channels

    def reduction(self) -> list[int]:
        return self._strides


class Convolutional(nn.Module):
    """A stem and stages, each of which halves the sides, and a classifier."""

    output_fmt = "NCHW"

    def __init__(self, stem_stride: int) -> None:
        super().__init__()
        self.channels, self.strides = [8], [stem_stride]
        self.stem = nn.Sequential(nn.Conv2d(3, 8, stem_stride, stride=stem_stride), BatchNormAct(8))
        self.stages = nn.Sequential()
        while self.strides[-1] < 32:
            self.stages.append(nn.Conv2d(self.channels[-1], self.channels[-1] + 4, 2, stride=2))
            self.channels.append(self.channels[-1] + 4)
            self.strides.append(2 * self.strides[-1])
        self.head = nn.Linear(self.channels[-1], 10)

    def forward_intermediates(self, images: Tensor, indices: int, intermediates_only: bool) -> list[Tensor]:
        assert intermediates_only
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[-indices:]


class ChannelsLast(Convolutional):
    """Its extractor gives [B, h, w, channels]; it takes other sizes than its own where it is told so."""

    output_fmt = "NHWC"

    def __init__(self, stem_stride: int, strict_img_size: bool = True) -> None:
        super().__init__(stem_stride)
        self.strict_img_size = strict_img_size


class TakenApart(nn.ModuleDict):
    """The extractor of a convolutional network: containers are taken apart, and their names with them."""

    def __init__(self, network: Convolutional) -> None:
        super().__init__()
        self.output_fmt = network.output_fmt
        self.feature_info = FeatureInfo(network.channels, network.strides)
        for container in ("stem", "stages"):
            for name, layer in network.get_submodule(container).named_children():
                self[f"{container}_{name}"] = layer

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        for name, layer in self.items():
            images = layer(images)
            if name != "stem_0":
                features.append(images)
        return [x.permute(0, 2, 3, 1) for x in features] if self.output_fmt == "NHWC" else features


class Transformer(nn.Module):
    """Patches of 16 pixels and three layers over them, with an embedding of each place."""

    def __init__(self, dynamic_img_size: bool = False) -> None:
        super().__init__()
        self.dynamic_img_size = dynamic_img_size
        self.patch_embed = nn.Conv2d(3, 12, 16, stride=16)
        self.pos_embed = nn.Parameter(torch.randn(1, 12, 14, 14))
        self.blocks = nn.Sequential(*(nn.Conv2d(12, 12, 1) for _ in range(3)))
        self.head = nn.Linear(12, 10)

    def forward_intermediates(self, images: Tensor, indices: int, intermediates_only: bool) -> list[Tensor]:
        assert intermediates_only
        places = self.pos_embed
        if tuple(images.shape[-2:]) != (224, 224):
            assert self.dynamic_img_size, f"Input height ({images.shape[-2]}) doesn't match model (224)."
            places = nn.functional.interpolate(places, [side // 16 for side in images.shape[-2:]])
        x, features = self.patch_embed(images) + places, []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features[-indices:]


class FixedTransformer(Transformer):
    """It has no option for images of another size."""

    def __init__(self) -> None:
        super().__init__()


class Wrapped(nn.Module):
    """The extractor of a transformer, which holds it as ``model``, without its head."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.model, self.output_fmt = network, "NCHW"
        del self.model.head
        self.feature_info = FeatureInfo([12] * 3, [16] * 3)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(images, indices=3, intermediates_only=True)


class Tokens(TakenApart):
    """An extractor of sequences, not of maps."""

    def __init__(self, network: Convolutional) -> None:
        super().__init__(network)
        self.output_fmt = "NLC"


# name -> (network, its arguments, its extractor, what timm says about its weights)
NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...], Any, Config]] = {
    "resnet18": (Convolutional, (2,), TakenApart, Config()),
    "convnext_atto": (Convolutional, (4,), TakenApart, Config()),
    "swin_tiny_patch4_window7_224": (ChannelsLast, (4,), TakenApart, Config(fixed_input_size=True)),
    "vit_tiny_patch16_224": (Transformer, (), Wrapped, Config(*HALF, fixed_input_size=True)),
    "beit_base_patch16_224": (FixedTransformer, (), Wrapped, Config(*HALF, fixed_input_size=True)),
    "tokens": (Convolutional, (4,), Tokens, Config()),
    "no_extractor": (Convolutional, (4,), None, Config()),
}


def create_model(name: str, pretrained: bool = False, features_only: bool = False, **options: Any) -> nn.Module:
    assert not pretrained, "nothing is downloaded"
    kind, arguments, extractor, config = NETWORKS[name]
    network: Any = kind(*arguments, **options)
    if features_only:
        if extractor is None:
            raise RuntimeError(f"features_only not implemented for {kind.__name__} models.")
        network = extractor(network)
    network.pretrained_cfg = asdict(config)
    return network


def stand_in() -> ModuleType:
    """The module ``timm``."""
    module: Any = ModuleType("timm")
    module.create_model = create_model
    module.get_pretrained_cfg = lambda name: NETWORKS[name][3]
    module.is_model = lambda name: name in NETWORKS
    module.list_models = lambda: list(NETWORKS)
    return module


def stand_in_layers() -> ModuleType:
    """The module ``timm.layers``."""
    module: Any = ModuleType("timm.layers")
    module.convert_sync_batchnorm = convert_sync_batchnorm
    return module
