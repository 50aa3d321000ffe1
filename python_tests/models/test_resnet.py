"""ResNet trunks: published names, strides, and files of torchvision's classifiers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hmsa_ext.models
from hmsa_ext.models import MultiScale, OCRNetwork, ResNet, ResNetConfig, WeightError, build_trunk, load_weights
from hmsa_ext.models.resnet import R18, R34, R50, R101
from python_tests.models.golden import entries_of, published_entries
from python_tests.models.gradients import check_gradients

TINY = ResNetConfig(blocks=(1, 1, 1, 1), widths=(2, 2, 3, 4), stem_channels=2)
TINY_BASIC = ResNetConfig(blocks=(2, 1, 1, 1), widths=(2, 2, 3, 4), stem_channels=2, bottleneck=False)


def torchvision_file(config: ResNetConfig) -> dict[str, Tensor]:
    """Entries of torchvision's classifier of the same depth, by its rules; values that no model begins with."""
    shapes: dict[str, list[int]] = {"conv1.weight": [config.stem_channels, 3, 7, 7]}

    def norm(name: str, channels: int) -> None:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{entry}"] = [channels]
        shapes[f"{name}.num_batches_tracked"] = []

    norm("bn1", config.stem_channels)
    before = config.stem_channels
    for stage, (blocks, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
        after = width * (4 if config.bottleneck else 1)
        kernels = (1, 3, 1) if config.bottleneck else (3, 3)
        for number in range(blocks):
            block = f"layer{stage + 1}.{number}"
            channels = before
            for index, kernel in enumerate(kernels):
                out = after if index == len(kernels) - 1 else width
                shapes[f"{block}.conv{index + 1}.weight"] = [out, channels, kernel, kernel]
                norm(f"{block}.bn{index + 1}", out)
                channels = out
            if number == 0 and (stage > 0 or before != after):
                shapes[f"{block}.downsample.0.weight"] = [after, before, 1, 1]
                norm(f"{block}.downsample.1", after)
            before = after
    shapes |= {"fc.weight": [1000, before], "fc.bias": [1000]}
    return {name: torch.full(shape, 3.0) for name, shape in shapes.items()}


def test_names_and_shapes_are_the_published_ones_in_order(reference_dir: Path):
    published = published_entries(reference_dir, "mscale.DeepV3R50")
    of_trunk = {name.removeprefix("backbone."): s for name, s in published.items() if name.startswith("backbone.")}
    assert len(of_trunk) == 318
    with torch.device("meta"):
        trunk = ResNet(R50)
    assert list(entries_of(trunk).items()) == list(of_trunk.items())


@pytest.mark.parametrize(("config", "entries"), [(R18, 122), (R34, 218), (R50, 320), (R101, 626)])
def test_files_of_torchvision_fill_every_entry(config: ResNetConfig, entries: int):
    file = torchvision_file(config)
    assert len(file) == entries
    trunk = ResNet(config)
    report = load_weights(trunk, file)
    assert report.missing == []
    assert report.mismatched == {}
    assert report.unexpected == ["fc.weight", "fc.bias"]
    assert all((value == 3).all() for value in trunk.state_dict().values())


def test_torchvision_names_mean_the_stem():
    file = torchvision_file(TINY)
    file["conv1.weight"], file["bn1.running_var"] = torch.full((2, 3, 7, 7), 5.0), torch.full((2,), 6.0)
    trunk = ResNet(TINY)
    load_weights(trunk, file)
    assert (trunk.get_parameter("layer0.0.weight") == 5).all()
    assert (trunk.get_buffer("layer0.1.running_var") == 6).all()


class Wrapped(nn.Module):
    """What data parallelism leaves: the model under ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Foreign(nn.Module):
    """A network around a trunk of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = ResNet(TINY), nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return self.head(features), features


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
@pytest.mark.parametrize("wrapper", [nn.Identity, Wrapped, torch.compile])
def test_files_of_torchvision_load_into_networks(wrapper, prefix: str):
    network = OCRNetwork(TINY, 3, mid_channels=8, key_channels=4, attention_bottleneck=4)
    model = network if wrapper is nn.Identity else wrapper(network)
    report = load_weights(model, {prefix + name: value for name, value in torchvision_file(TINY).items()})
    assert len(report.loaded) == len(ResNet(TINY).state_dict())
    assert report.unexpected == [prefix + "fc.weight", prefix + "fc.bias"]
    assert all((value == 3).all() for value in network.backbone.state_dict().values())


def test_the_wrapped_network_is_asked_for_names():
    class Renamed(Foreign):
        def weight_name(self, name: str) -> str | None:
            return name.replace("classifier.", "head.") if name.startswith("classifier.") else None

    source = Foreign().state_dict()
    file = {name.replace("head.", "classifier."): torch.full_like(value, 3) for name, value in source.items()}
    model = MultiScale(Renamed(), feature_channels=16, bottleneck=4)
    report = load_weights(model, file)
    assert report.unexpected == []
    assert [name for name in report.missing if not name.startswith("scale_attn.")] == []
    assert (model.get_parameter("network.head.weight") == 3).all()


def test_a_name_that_the_model_has_is_not_translated():
    class Swaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def weight_name(self, name: str) -> str | None:
            return {"a.weight": "b.weight"}.get(name)

    model = Swaps()
    report = load_weights(model, {"a.weight": torch.full((2, 2), 3.0)})
    assert report.loaded == ["a.weight"]


def test_files_of_another_depth_are_refused():
    with pytest.raises(WeightError, match="are of another network, nothing was changed"):
        load_weights(ResNet(R50), torchvision_file(R18))


@pytest.mark.parametrize("config", [TINY, TINY_BASIC])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47), (1, 8)])
def test_levels_have_the_stated_strides_and_channels(device, config: ResNetConfig, size: tuple[int, int]):
    trunk = ResNet(config).to(device).eval()
    with torch.no_grad():
        images = torch.randn(2, 3, *size, device=device)
        levels = trunk.levels(images)
        features = trunk(images)
    for level, channels, stride in zip(levels, trunk.level_channels, trunk.level_strides, strict=True):
        assert list(level.shape) == [2, channels, *(-(-side // stride) for side in size)]
    assert torch.equal(features, levels[-1])
    assert (trunk.out_channels, trunk.stride) == (trunk.level_channels[-1], trunk.level_strides[-1])


@pytest.mark.parametrize("config", [TINY, TINY_BASIC])
def test_the_last_stages_are_dilated_in_every_block(config: ResNetConfig):
    trunk = ResNet(config)
    for number, (stride, dilation) in enumerate([(1, 1), (2, 1), (1, 2), (1, 4)], start=1):
        stage = trunk.get_submodule(f"layer{number}")
        layers = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {m.dilation for m in layers} == {(dilation, dilation)}
        assert [m.stride[0] for m in layers] == [stride] + [1] * (len(layers) - 1)


class Levels(nn.Module):
    """A trunk whose forward gives its levels."""

    def __init__(self, trunk: ResNet) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.trunk.levels(images))


@pytest.mark.parametrize("config", [TINY, TINY_BASIC])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_agree_with_finite_differences(config: ResNetConfig, training: bool):
    torch.manual_seed(0)  # finite differences must not cross the kink of a ReLU
    check_gradients(Levels(ResNet(config)).train(training), torch.randn(2, 3, 17, 22))


def test_a_config_makes_a_trunk_that_begins_as_the_networks_do():
    assert isinstance(build_trunk(TINY), ResNet)
    config = ResNetConfig(blocks=(1, 1, 1, 1), widths=(4, 4, 8, 64), stem_channels=8)
    torch.manual_seed(0)
    weight = OCRNetwork(config, 3, mid_channels=8, key_channels=4).get_parameter("backbone.layer4.0.conv2.weight")
    # He normal, fan-out: what PyTorch draws by itself is narrower.
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (1, 1, 1)}, r"ResNetConfig.blocks: expected 4 positive integers, got \(1, 1, 1\)"),
        (
            {"blocks": (1, 1, 1, 1), "widths": (8, 8, 0, 8)},
            r"ResNetConfig.widths: expected 4 positive integers, got \(8, 8, 0, 8\)",
        ),
        (
            {"blocks": (1, 1, 1, 1), "stem_channels": 0},
            "ResNetConfig.stem_channels: expected a positive integer, got 0",
        ),
    ],
)
def test_bad_configs_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**options)


def test_the_public_names_are_there():
    assert {"ResNet", "ResNetConfig"} <= set(hmsa_ext.models.__all__)
