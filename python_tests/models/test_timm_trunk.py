"""Trunks of timm: on a stand-in for timm, and on timm itself where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmsa_ext import parts, train
from hmsa_ext.engine.distributed import Process, with_shared_statistics
from hmsa_ext.engine.trained import open_model
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import ModelSettings, OCRNetwork, build, build_trunk
from hmsa_ext.models.inputs import InputError
from hmsa_ext.models.timm_trunk import TimmTrunk, chosen_levels
from hmsa_ext.models.trunks import check_features, stated
from hmsa_ext.models.weights import compare_weights
from hmsa_ext.normalisation import MEAN, STD
from hmsa_ext.settings import SettingError
from python_tests.models import timm_stand_in

STRIDES = {
    "resnet18": (4, 8, 16, 32),
    "convnext_atto": (4, 8, 16, 32),
    "swin_tiny_patch4_window7_224": (4, 8, 16, 32),
    "vit_tiny_patch16_224": (16,),
}
# More families that differ in how timm builds their extractors.
FAMILIES = [
    "regnetx_002",
    "efficientnet_lite0",
    "mobilenetv3_small_050",
    "hrnet_w18_small",
    "densenet121",
    "xcit_nano_12_p8_224",
]


@pytest.fixture(params=["stand-in", "installed"])
def timm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module timm: ours, and the real one where it can be imported."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "timm", timm_stand_in.stand_in())
        monkeypatch.setitem(sys.modules, "timm.layers", timm_stand_in.stand_in_layers())
        return sys.modules["timm"]
    return installed_timm()


def installed_timm() -> Any:
    """timm itself. It imports torchvision but needs none of its operators, which a torchvision that was built for
    another torch lacks, and then cannot be imported without: they are declared here."""
    for package in ("torchvision", "timm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
    return importlib.import_module("timm")


def trunk_of(name: str) -> TimmTrunk:
    torch.manual_seed(0)
    trunk = build_trunk(f"timm:{name}")
    assert isinstance(trunk, TimmTrunk)
    return trunk.eval()


def narrow(trunk: Any) -> OCRNetwork:
    return OCRNetwork(trunk, 5, mid_channels=16, key_channels=8, attention_bottleneck=8)


@pytest.mark.parametrize("name", STRIDES)
def test_features_are_the_levels_at_the_finest_stride(timm: Any, name: str, device: torch.device):
    trunk = trunk_of(name).to(device)
    assert trunk.level_strides == STRIDES[name]
    assert stated(trunk) == (sum(trunk.level_channels), STRIDES[name][0], STRIDES[name][-1])
    images = torch.randn(1, 3, 64, 96, device=device)
    with torch.no_grad():
        levels, features = trunk.levels(images), trunk(images)
    assert [list(x.shape) for x in levels] == [
        [1, channels, 64 // stride, 96 // stride]
        for channels, stride in zip(trunk.level_channels, trunk.level_strides, strict=True)
    ]
    check_features(features, images, trunk.out_channels, trunk.stride)
    parts_of = features.split(trunk.level_channels, dim=1)
    torch.testing.assert_close(parts_of[0], levels[0], rtol=0, atol=0)
    resized = nn.functional.interpolate(levels[-1], features.shape[-2:], mode="bilinear")
    torch.testing.assert_close(parts_of[-1], resized, rtol=0, atol=0)


@pytest.mark.parametrize("name", STRIDES)
def test_weights_of_the_classifier_fill_the_trunk(timm: Any, name: str):
    check_weights(timm, name)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_classifiers_of_other_families_fill_their_trunks(name: str):
    check_weights(installed_timm(), name)


def check_weights(timm: Any, name: str) -> None:
    """That the classifier's state dict has every entry of the trunk, which then computes what the classifier does."""
    trunk = trunk_of(name)
    torch.manual_seed(1)
    classifier = timm.create_model(name, pretrained=False).eval()
    state = classifier.state_dict()
    named = {trunk.weight_name(entry): value for entry, value in state.items()}
    unexpected = [entry for entry in state if trunk.weight_name(entry) is None]
    assert unexpected, "the classifier's last layer is none of the trunk's"
    assert len(named) - 1 == len(state) - len(unexpected)
    trunk.load_state_dict({entry: value for entry, value in named.items() if entry is not None})

    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        last = trunk.levels(images)[-1]
        own = as_trained(images, classifier)
        expected = classifier.forward_intermediates(own, indices=1, intermediates_only=True)[-1]
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("network", ["hrnet_small_ocr", "resnet50_deeplabv3plus"])
@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_file_of_the_classifier_loads_into_any_network(timm: Any, tmp_path: Path, network: str, name: str):
    torch.manual_seed(1)
    classifier = timm.create_model(name, pretrained=False)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    report = compare_weights(build(network, 5, trunk=f"timm:{name}"), tmp_path / "weights.pth")
    assert not report.mismatched
    assert not [entry for entry in report.missing if entry.startswith("backbone.")]
    assert {entry.partition(".")[0] for entry in report.unexpected} <= {"head", "norm"}


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_decoders_of_several_strides_take_its_levels(timm: Any, name: str, device: torch.device):
    model = build("resnet50_deeplabv3plus", 5, trunk=f"timm:{name}").to(device)
    images, target = torch.randn(2, 3, 64, 128, device=device), torch.zeros(2, 64, 128, device=device).long()
    outputs = model(images, (0.5, 1.0))
    assert list(outputs.logits[0].shape) == [2, 5, 16, 32]
    MultiScaleLoss()(outputs, target).backward()


def test_decoders_of_several_strides_refuse_a_trunk_of_one(timm: Any):
    with pytest.raises(SettingError, match=r"trunk: got 'TimmTrunk', expected .*level_strides.*not \(16,\)"):
        build("resnet50_deeplabv3plus", 5, trunk="timm:vit_tiny_patch16_224")


def as_trained(images: Tensor, network: Any) -> Tensor:
    """The same images, normalised as timm says that the network was trained."""
    ours, its = ((MEAN, STD), (network.pretrained_cfg["mean"], network.pretrained_cfg["std"]))
    (mean, std), (its_mean, its_std) = ([torch.tensor(v).view(3, 1, 1) for v in both] for both in (ours, its))
    return (images * std + mean - its_mean) / its_std


@pytest.mark.parametrize("name", STRIDES)
def test_it_trains_under_our_heads_and_every_parameter_gets_a_gradient(timm: Any, name: str, device: torch.device):
    model = narrow(f"timm:{name}").to(device)
    images, target = torch.randn(2, 3, 64, 128, device=device), torch.zeros(2, 64, 128, device=device).long()
    MultiScaleLoss()(model(images, (0.5, 1.0)), target).backward()
    assert not [entry for entry, value in model.backbone.named_parameters() if value.grad is None]


@pytest.mark.parametrize("name", STRIDES)
def test_images_of_any_size_are_padded_to_the_coarsest_stride(timm: Any, name: str):
    stride = STRIDES[name][0]
    with torch.no_grad():
        outputs = narrow(trunk_of(name)).eval()(torch.randn(1, 3, 43, 70), (1.0,))
    assert list(outputs.logits[0].shape[-2:]) == [-(-43 // stride), -(-70 // stride)]


def test_weights_are_drawn_as_timm_draws_them(timm: Any):
    torch.manual_seed(3)
    trunk = build_trunk("timm:convnext_atto")
    torch.manual_seed(3)
    state = narrow("timm:convnext_atto").backbone.state_dict()
    assert all(torch.equal(state[entry], value) for entry, value in trunk.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_synchronized_batch_norm_computes_the_same(timm: Any, name: str):
    model = narrow(trunk_of(name)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images, (1.0,)).logits[0]
        of_gpus = Process(torch.device("cuda"), rank=1, world_size=2)
        after = with_shared_statistics(model, of_gpus)(images, (1.0,)).logits[0]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    kinds = {type(layer) for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    assert all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)


@pytest.mark.parametrize("name", ["regnetx_002", "mobilenetv3_small_050"])
def test_layers_of_batch_norm_and_activation_keep_the_activation(name: str):
    installed_timm()
    trunk, images = trunk_of(name), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = trunk(images)
        torch.testing.assert_close(trunk.with_shared_statistics()(images), before, rtol=0, atol=0)


def test_a_network_of_one_size_says_so(timm: Any):
    trunk = trunk_of("beit_base_patch16_224")
    message = (
        r"trunk: timm:beit_base_patch16_224 failed on images of 64 x 96 pixels \(.*doesn't match.*\); timm runs it "
        "at 224 x 224: use crops and images of this size at the scale 1"
    )
    with torch.no_grad():
        with pytest.raises(InputError, match=message):
            trunk(torch.zeros(1, 3, 64, 96))
        assert list(trunk(torch.zeros(1, 3, 224, 224)).shape[-2:]) == [14, 14]


def test_a_network_that_asserts_something_of_its_images_says_so(timm: Any, monkeypatch: pytest.MonkeyPatch):
    def forward(images: Tensor) -> None:
        raise {1: AssertionError, 2: RuntimeError}[len(images)]("wrong")

    trunk = trunk_of("resnet18")
    monkeypatch.setattr(trunk.extractor, "forward", forward)
    with pytest.raises(InputError, match=r"timm:resnet18 failed on images of 64 x 96 pixels \(wrong\); timm runs it"):
        trunk(torch.zeros(1, 3, 64, 96))
    with pytest.raises(RuntimeError, match=r"^wrong$"):  # it takes any size, so that the size is no reason
        trunk(torch.zeros(2, 3, 64, 96))


def test_levels_are_the_last_of_each_stride_from_4_on():
    assert chosen_levels([1, 2, 4, 4, 8, 16, 16, 32]) == (3, 4, 6, 7)
    assert chosen_levels([16, 32, 64]) == (0, 1, 2)
    assert chosen_levels([8, 8, 8]) == (2,)
    assert chosen_levels([12, 17]) == (1,)
    assert chosen_levels([1, 2]) == (1,)


def test_unknown_names_list_near_ones(timm: Any):
    message = r"trunk: got 'timm:resnet19', expected timm: and the name of a network of timm; near ones: .*resnet18"
    with pytest.raises(SettingError, match=message):
        build_trunk("timm:resnet19")
    with pytest.raises(SettingError, match=r"trunk: got 'timm:', expected timm: and the name"):
        build_trunk("timm:")
    with pytest.raises(SettingError, match=r"got 'timm:hf-hub:somebody/something', .*list_models"):
        build_trunk("timm:hf-hub:somebody/something")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokens", "a network of feature maps, not of NLC"),
        ("no_extractor", "a network that timm makes an extractor of: features_only not implemented for Convolutional"),
    ],
)
def test_networks_without_feature_maps_are_named(monkeypatch: pytest.MonkeyPatch, name: str, expected: str):
    monkeypatch.setitem(sys.modules, "timm", timm_stand_in.stand_in())
    with pytest.raises(SettingError, match=rf"trunk: got 'timm:{name}', expected {expected}"):
        build_trunk(f"timm:{name}")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (None, "ModuleNotFoundError: import of timm halted"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "RuntimeError: operator torchvision::nms"),
    ],
)
def test_a_timm_that_cannot_be_imported_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str | None, said: str
):
    if module is None:
        monkeypatch.setitem(sys.modules, "timm", None)
    else:
        monkeypatch.delitem(sys.modules, "timm", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "timm.py").write_text(module)
    settings = ModelSettings(trunk="timm:resnet18")  # whether it can be built is asked before a run, not here
    message = rf"trunk: got 'timm:resnet18', expected the package timm, which cannot be imported \({said}.*\); install "
    with pytest.raises(SettingError, match=message):
        build_trunk("timm:resnet18")
    with pytest.raises(SettingError, match=message):
        parts.require_objects(settings)


def test_a_run_names_its_trunk_and_is_opened_again(timm: Any, tmp_path: Path):
    arguments = (
        *("--trunk", "timm:resnet18", "--output", str(tmp_path / "run"), "--iterations", "1", "--batch-size", "2"),
        *("--size", "64x128", "--crop", "64x64", "--length", "2", "--val-length", "1", "--eval-scales", "0.5,1.0"),
        *("--threads", "1", "--device", "cpu", "--pictures", "0"),
    )
    assert train.main(arguments) == 0
    trained = open_model(tmp_path / "run")
    assert trained.network.trunk == "timm:resnet18"
    assert trained.model.get_submodule("backbone").name == "resnet18"


def test_the_package_imports_neither_timm_nor_torchvision():
    code = "import sys; sys.modules.update(timm=None, torchvision=None); import hmsa_ext.train, hmsa_ext.predict"
    subprocess.run([sys.executable, "-c", code], check=True)
