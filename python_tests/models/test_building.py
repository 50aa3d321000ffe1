"""``models.build``: our networks, networks of somebody else, and settings."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hmsa_ext.models
from hmsa_ext import settings
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import NAMES, NETWORKS, TRUNKS, ModelSettings, MultiScale, OCRNetwork, ScaleOutputs, build
from hmsa_ext.models.hrnet_ocr import hrnet_small_ocr
from hmsa_ext.parts import object_name
from hmsa_ext.settings import SettingError

MINE = """
import torch
from torch import nn

class Net(nn.Module):
    feature_channels = 6

    def __init__(self, num_classes, dropout=0.3):
        super().__init__()
        self.rate = dropout
        self.features, self.logits = nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.Conv2d(6, num_classes, 1)

    def forward(self, images):
        features = self.features(images)
        return self.logits(features), features
"""


class Network(nn.Module):
    """Logits and features at stride 4."""

    feature_channels = 12

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.logits = nn.Conv2d(3, 12, 4, stride=4), nn.Conv2d(12, num_classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stem(images)
        return self.logits(features), features


class Strict(Network):
    """It needs multiples of 16, and says so."""

    divisor = 16

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[-1] % 16 or images.shape[-2] % 16:
            raise AssertionError("sides must be divisible by 16")
        return super().forward(images)


class Whole(nn.Module):
    """A network that runs its scales by itself."""

    def __init__(self, num_classes: int, *, attention_channels: int = 1, dropout: float = 0.5) -> None:
        super().__init__()
        self.width, self.rate = attention_channels, dropout
        self.inner = MultiScale(Network(num_classes), 12, attention_channels=attention_channels, bottleneck=4)

    def forward(self, images: Tensor, scales=(0.5, 1.0)) -> ScaleOutputs:
        return self.inner(images, scales)


def test_a_network_file_of_ones_own_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("my_network.py").write_text(MINE)
    model = build("my_network:Net", 7, attention_channels="classes")
    outputs = model(torch.randn(2, 3, 32, 48), scales=(0.5, 1.0, 2.0))
    assert isinstance(model, MultiScale)
    assert isinstance(outputs, ScaleOutputs)
    assert list(outputs.attention[0].shape) == [2, 7, 8, 12]
    assert model.network.rate == 0.3
    assert build("my_network:Net", 7, dropout=0.1).get_submodule("network").rate == 0.1
    MultiScaleLoss()(outputs, torch.zeros(2, 32, 48).long()).backward()


def test_settings_build_the_same_network():
    chosen = ModelSettings(name="hrnet_small_ocr", attention_channels="classes", dropout=0.2)
    model = build(chosen, 4)
    assert isinstance(model, OCRNetwork)
    assert len(model.get_parameter("scale_attn.conv2.weight")) == 4
    assert model.get_submodule("ocr.ocr_distri_head.conv_bn_dropout.2").p == 0.2
    torch.manual_seed(0)
    plain = build(ModelSettings(), 4).state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(value, plain[name]) for name, value in hrnet_small_ocr(4).state_dict().items())


def test_settings_take_factories_in_python():
    assert isinstance(build(ModelSettings(name=Network, attention_channels="classes"), 3), MultiScale)


def test_a_network_that_runs_its_own_scales_is_left_as_it_is():
    model = build(Whole, 5, attention_channels="classes", dropout=0.1)
    assert isinstance(model, Whole)
    assert (model.width, model.rate) == (5, 0.1)
    model = build(Whole, 5)
    assert (model.width, model.rate) == (1, 0.5)  # its own, where nothing else is asked


def test_a_network_states_its_divisor():
    model = build(Strict, 3).eval()
    assert list(model(torch.randn(1, 3, 40, 24)).logits[0].shape) == [1, 3, 10, 6]


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (Network, {"dropout": 0.1}, "dropout: got 0.1, expected the default, since the network Network does not take"),
        (Network, {"trunk": "hrnet_w18"}, "trunk: got 'hrnet_w18', expected the default, since the network Network"),
        (Whole, {"trunk": "hrnet_w18"}, "trunk: got 'hrnet_w18', expected the default, since the network Whole"),
        (
            Whole,
            {"attention_head": "scale:x"},
            "attention_head: got 'scale:x', expected the default, since the network",
        ),
        (Whole, {"attention_statistics": "used"}, "attention_statistics: got 'used', expected the default"),
        (lambda n: 3, {}, "model: got '<lambda>', expected a factory that returns a module, not int"),
        (lambda n: nn.Conv2d(3, n, 1), {}, "model: .* forward takes images and scales, or one that states feature_ch"),
        (
            "hmsa_ext:__version__",
            {},
            r"model: got 'hmsa_ext:__version__', expected a factory \(num_classes\) -> module",
        ),
        ("hmsa_ext.nowhere:x", {}, "model: got 'hmsa_ext.nowhere:x', expected .* no module hmsa_ext.nowhere"),
        (ModelSettings(), {"dropout": 0.1}, "dropout: got 0.1, expected no such argument beside ModelSettings"),
    ],
)
def test_what_does_not_fit_is_named_and_never_ignored(factory, options: dict, message: str):
    with pytest.raises(SettingError, match=message):
        build(factory, 3, **options)


def test_help_shows_every_option():
    shared = {"trunk", "attention_channels", "attention_head", "dropout", "attention_statistics"}
    for function in (build, *NETWORKS.values()):
        found = inspect.signature(function).parameters
        assert shared < found.keys(), function
        assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in found.values())
        assert "(x / 255 - mean) / std" in (inspect.getdoc(function) or "")
    for network in (OCRNetwork, MultiScale):
        assert "(x / 255 - mean) / std" in (inspect.getdoc(network) or "")


def test_the_package_lists_what_it_has():
    assert set(hmsa_ext.models.__all__) <= set(dir(hmsa_ext.models))
    assert set(NAMES) <= set(hmsa_ext.models.__all__)
    for name in hmsa_ext.models.__all__:
        value = getattr(hmsa_ext.models, name)
        assert inspect.getdoc(value), name


def test_a_network_that_explicit_attention_would_not_fit_is_refused() -> None:
    def whole(num_classes: int, *, fusion: str = "hierarchical") -> nn.Module:
        class Runs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = MultiScale(Network(num_classes), 4, fusion=fusion)

            def forward(self, images: Tensor, scales: tuple[float, ...]) -> ScaleOutputs:
                return self.inner(images, scales)

        return Runs()

    assert build(whole, 3, fusion="mean", train_scales=(1.0, 2.0))
    assert build(whole, 3, fusion="explicit", train_scales=(2.0, 1.0, 0.5))  # what it has without being told
    with pytest.raises(SettingError, match=r"train_scales: got 1.0,2.0, expected the default, since .*whole"):
        build(whole, 3, fusion="explicit", train_scales=(1.0, 2.0))


@pytest.mark.parametrize("name", NAMES)
def test_a_named_network_is_a_function_that_files_can_name(name: str) -> None:
    factory = NETWORKS[name]
    assert settings.load_object(object_name(factory), "model") is factory
    parameters = inspect.signature(factory).parameters
    assert next(iter(parameters)) == "num_classes"
    assert parameters["trunk"].default in TRUNKS
    assert "(x / 255 - mean) / std" in (factory.__doc__ or "")
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        factory(5, depth=3)


def test_what_an_absent_attention_cannot_use_is_named() -> None:
    with pytest.raises(SettingError, match="attention_channels: got 'classes', expected one, since the fusion has no"):
        build("hrnet_small_ocr", 4, fusion="mean", attention_channels="classes")
    # A network that has a head of its own says so once, whatever its fusion is.
    model = MultiScale(nn.Identity(), 3, attention_channels=5, attention_head=nn.Conv2d, fusion="mean")
    assert model.scale_attn is None


def wrapped(num_classes: int) -> MultiScale:
    """A network of somebody who wraps it himself, and knows nothing of fusions."""
    torch.manual_seed(0)
    features = nn.Conv2d(3, 6, 3, stride=4, padding=1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.logits = features, nn.Conv2d(6, num_classes, 1)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            found = self.features(images)
            return self.logits(found), found

    return MultiScale(Net(), 6, bottleneck=8)


def test_a_network_that_knows_no_fusion_can_do_without_its_attention() -> None:
    images = torch.randn(1, 3, 32, 48)
    model, plain = build(wrapped, 4, fusion="max"), wrapped(4)
    assert isinstance(model, MultiScale)
    outputs = model.eval()(images, (0.5, 1.0))
    assert not any(name.startswith("scale_attn") for name in model.state_dict())
    maps = plain.eval()(images, (0.5, 1.0))
    expected = torch.maximum(maps.single_scale(0), maps.single_scale(1))
    torch.testing.assert_close(outputs.fuse(), expected)
    with pytest.raises(SettingError, match="fusion: got 'explicit', expected the default, since the network wrapped"):
        build(wrapped, 4, fusion="explicit")
    with pytest.raises(SettingError, match="fusion: got 'explicit', expected one without attention"):
        model.leave_attention("explicit")
