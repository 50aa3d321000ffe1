"""DeepLabV3+: the published network against its golden files, and any trunk with levels under the decoder."""

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hmsa_ext.models.deeplab
import hmsa_ext.models.resnet
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import (
    DeepLabV3Plus,
    InputError,
    ResNetConfig,
    build,
    load_weights,
    resnet50_deeplabv3plus,
    resnet101_deeplabv3plus,
)
from hmsa_ext.models.deeplab import ASPP
from hmsa_ext.models.joined_maps import as_tensor
from hmsa_ext.settings import SettingError
from python_tests.models.golden import (
    check_gradient_norms,
    check_losses,
    check_predictions,
    entries_of,
    published_entries,
)
from python_tests.models.gradients import check_gradients

PUBLISHED = "mscale.DeepV3R50"
TINY = ResNetConfig(blocks=(1, 1, 1, 1), widths=(2, 2, 3, 4), stem_channels=2)


def tiny(trunk: Any = TINY, num_classes: int = 3, **options: Any) -> DeepLabV3Plus:
    narrow: dict[str, Any] = {"aspp_channels": 4, "fine_channels": 2, "head_channels": 4, "attention_bottleneck": 4}
    return DeepLabV3Plus(trunk, num_classes, **(narrow | options))


@pytest.fixture(scope="module")
def published(golden_fill) -> DeepLabV3Plus:
    model = resnet50_deeplabv3plus(num_classes=19)
    load_weights(model, golden_fill(model.state_dict()))
    return model


def test_r50_has_the_published_names_and_shapes_in_order(reference_dir: Path):
    with torch.device("meta"):
        got = entries_of(resnet50_deeplabv3plus(num_classes=19))
    expected = published_entries(reference_dir, PUBLISHED)
    assert len(expected) == 376
    assert list(got.items()) == list(expected.items())


@pytest.mark.parametrize("scales", [(0.5, 1.0), (0.5, 1.0, 2.0)])
def test_r50_reproduces_the_published_predictions(published, reference_dir: Path, device, scales):
    check_predictions(published.to(device), reference_dir, PUBLISHED, scales)


def test_r50_reproduces_the_published_training_losses(published, reference_dir: Path, device):
    check_losses(published.to(device), reference_dir, PUBLISHED)


def test_r50_reproduces_the_published_gradients(published, reference_dir: Path):
    check_gradient_norms(published, reference_dir, PUBLISHED)


def test_r101_is_r50_with_a_longer_third_stage():
    with torch.device("meta"):
        r50, r101 = (entries_of(f(num_classes=19)) for f in (resnet50_deeplabv3plus, resnet101_deeplabv3plus))
    more = set(r101) - set(r50)
    assert {name: shape for name, shape in r101.items() if name not in more} == r50
    assert {".".join(name.split(".")[:3]) for name in more} == {f"backbone.layer3.{n}" for n in range(6, 23)}


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47), (8, 8)])
@pytest.mark.parametrize("scales", [(0.5, 1.0), (2.0, 0.5, 1.0), (1.0,)])
def test_outputs_are_at_the_finest_stride(device, size: tuple[int, int], scales: tuple[float, ...]):
    model = tiny().to(device).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, *size, device=device), scales)
    for index, scale in enumerate(outputs.scales):
        head = [-(-int(side * scale) // 4) for side in size]
        assert list(outputs.logits[index].shape) == [1, 3, *head]
        if index > 0:
            assert list(outputs.attention[index - 1].shape) == [1, 1, *head]
    assert list(outputs.fuse().shape) == [1, 3, *size]


def test_every_parameter_gets_a_gradient(device):
    model = tiny().to(device)
    outputs = model(torch.randn(2, 3, 64, 64, device=device))
    MultiScaleLoss()(outputs, torch.randint(0, 3, (2, 64, 64), device=device)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


class AtOneScale(nn.Module):
    """Logits, and what the attention head makes of the features."""

    def __init__(self, model: DeepLabV3Plus) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, _, features = self.model.forward_one_scale(images)
        assert self.model.scale_attn is not None
        return logits, self.model.scale_attn(features)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_agree_with_finite_differences(training: bool):
    torch.manual_seed(0)  # finite differences must not cross the kink of a ReLU
    check_gradients(AtOneScale(tiny()).train(training), torch.randn(2, 3, 17, 22))


# ---- ASPP


@pytest.mark.parametrize(
    ("stride", "rates"), [(4, [24, 48, 72]), (8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])]
)
def test_rates_reach_equally_far_in_the_image(stride: int, rates: list[int]):
    convolutions = [m for m in ASPP(3, stride, channels=2).modules() if isinstance(m, nn.Conv2d)]
    assert [m.dilation[0] for m in convolutions if m.kernel_size == (3, 3)] == rates


def test_the_mean_of_the_image_comes_first():
    aspp = ASPP(3, 8, channels=4).eval()
    features = torch.randn(2, 3, 9, 7)
    with torch.no_grad():
        got, shuffled = aspp(features).tensor(), aspp(features.flip(2)).tensor()
    assert list(got.shape) == [2, 20, 9, 7]
    assert torch.equal(got[:, :4], got[:, :4, :1, :1].expand(2, 4, 9, 7))
    torch.testing.assert_close(shuffled[:, :4], got[:, :4])
    torch.testing.assert_close(shuffled[:, 4:8], got[:, 4:8].flip(2))  # the 1x1 convolution


def test_one_image_in_training_is_explained():
    message = "images: DeepLabV3.* pools an image to one value per channel.* got a batch of 1; use a batch size of 2"
    with pytest.raises(InputError, match=message):
        tiny()(torch.randn(1, 3, 64, 64))
    model = tiny()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()  # frozen statistics
    model(torch.randn(1, 3, 64, 64)).fuse().sum().backward()


def test_one_image_per_process_is_left_to_synchronised_batch_norm():
    class Synchronised(nn.SyncBatchNorm):
        """Stands for one that finds the images of other processes."""

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = tiny()
    model.aspp.img_conv[1] = Synchronised(4)
    model(torch.randn(1, 3, 64, 64)).fuse().sum().backward()


# ---- trunks


class Levels(nn.Module):
    """A trunk of somebody else, with features at three strides."""

    out_channels, stride = 7, 16
    level_channels, level_strides = (5, 6, 7), (4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = nn.Conv2d(3, 5, 4, 4), nn.Conv2d(5, 6, 2, 2), nn.Conv2d(6, 7, 2, 2)

    def levels(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images)
        middle = self.middle(fine)
        return [fine, middle, self.coarse(middle)]

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(images)[-1]


def test_the_coarsest_level_goes_through_aspp_and_joins_the_finest():
    model = tiny(Levels).eval()
    assert [part.get_submodule("0").dilation for part in model.aspp.features] == [(1, 1), (6, 6), (12, 12), (18, 18)]
    with torch.no_grad():
        images = torch.randn(1, 3, 48, 80)
        logits, aux, features = model.forward_one_scale(images)
        fine, _, coarse = model.backbone.get_submodule("").levels(images)  # type: ignore[operator]
        coarse = nn.functional.interpolate(model.bot_aspp(model.aspp(coarse).tensor()), (12, 20), mode="bilinear")
        expected = torch.cat([model.bot_fine(fine), coarse], dim=1)
        torch.testing.assert_close(as_tensor(features), expected)
        torch.testing.assert_close(logits, model.final(expected))
    assert aux is None


def test_a_trunk_that_needs_multiples_says_so():
    trunk = Levels()
    trunk.divisor = 16  # type: ignore[assignment]
    with torch.no_grad():
        outputs = tiny(trunk).eval()(torch.randn(1, 3, 43, 70), (0.5, 1.0))
    assert [list(z.shape) for z in outputs.logits] == [[1, 3, 11, 18], [1, 3, 6, 9]]


def test_weights_of_a_module_are_kept():
    trunk = Levels()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    model = tiny(trunk)
    assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("network", ["resnet50_deeplabv3plus", "resnet101_deeplabv3plus"])
def test_a_trunk_without_levels_is_named(network: str):
    with pytest.raises(SettingError, match="trunk: got 'HRNet', expected a trunk with features of 2 or more strides"):
        build(network, 5, trunk="hrnet_small")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"level_channels": None}, "trunk: got 'Levels', expected a module with a tuple of positive integers level_ch"),
        ({"level_strides": (4, 8, 16.0)}, r"tuple of positive integers level_strides, not \(4, 8, 16.0\)"),
        ({"level_strides": (16, 8, 4)}, r"level_strides, finest first, and .* not \(16, 8, 4\) and \(5, 6, 7\)"),
        ({"level_strides": (4, 8)}, r"level_channels for each, not \(4, 8\) and \(5, 6, 7\)"),
        ({"level_strides": (4,), "level_channels": (5,)}, r"with 2 or more level_strides, .* not \(4,\) and \(5,\)"),
    ],
)
def test_levels_that_are_stated_wrongly_are_named(stated: dict[str, Any], message: str):
    trunk = Levels()
    for name, value in stated.items():
        setattr(trunk, name, value)
    with pytest.raises(SettingError, match=message):
        tiny(trunk)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {"level_channels": (5, 6, 8)},
            r"level_channels=\(5, 6, 8\) .* made levels \[1, 5, 8, 8\], .*, \[1, 7, 2, 2\] ",
        ),
        ({"level_strides": (4, 8, 32)}, r"level_strides=\(4, 8, 32\), but made levels .* of images \[1, 3, 32, 32\]"),
        ({"levels": lambda images: images}, r"levels\(images\) to give 3 tensors \[B, \*, h, w\], got Tensor"),
        ({"levels": lambda images: [images]}, r"levels\(images\) to give 3 tensors \[B, \*, h, w\], got 1 values"),
    ],
)
def test_levels_other_than_stated_are_named(stated: dict[str, Any], message: str):
    trunk = Levels()
    for name, value in stated.items():
        setattr(trunk, name, value)
    if stated.get("level_channels"):
        model = tiny(Levels())
        model.backbone = trunk
    else:
        model = tiny(trunk)
    with pytest.raises(ValueError, match=message):
        model.eval()(torch.randn(1, 3, 32, 32), (1.0,))


# ---- options


def test_dropout_acts_in_training_and_has_no_entries():
    plain, dropping = tiny(), tiny(dropout=0.5)
    assert list(dropping.state_dict()) == list(plain.state_dict())
    dropping.load_state_dict(plain.state_dict())
    features = torch.randn(2, 6, 8, 8)
    assert torch.equal(plain.final(features), plain.final(features))
    assert not torch.equal(dropping.final(features), dropping.final(features))
    plain.eval()
    dropping.eval()
    assert torch.equal(plain.final(features), dropping.final(features))


@pytest.mark.parametrize("fusion", ["single", "mean", "max_probabilities"])
def test_weights_serve_fusions_without_attention(fusion: str):
    source = tiny().eval()
    model = tiny(fusion=fusion).eval()
    report = load_weights(model, source.state_dict())
    assert report.missing == []
    assert {name.partition(".")[0] for name in report.unexpected} == {"scale_attn"}
    images = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(model(images, (1.0,)).logits[0], source(images, (0.5, 1.0)).logits[0])


def test_explicit_attention_sees_the_features_of_all_scales():
    model = tiny(fusion="explicit")
    assert model.get_parameter("scale_attn.conv0.weight").shape == (4, 18, 3, 3)
    outputs = model(torch.randn(2, 3, 64, 64))
    assert outputs.scales == (2.0, 1.0, 0.5)
    outputs.fuse().sum().backward()


def test_training_starts_undecided():
    torch.manual_seed(0)
    model = resnet50_deeplabv3plus(8, trunk="resnet18")
    outputs = model(torch.randn(4, 3, 64, 96))
    loss = MultiScaleLoss()(outputs, torch.randint(0, 8, (4, 64, 96)))
    assert loss.item() == pytest.approx(torch.tensor(8.0).log().item(), rel=0.05)
    assert (outputs.attention[0] - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected a positive integer, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"attention_channels": 2}, "attention_channels: expected 1 or num_classes=3, got 2"),
        ({"attention_statistics": "no"}, 'attention_statistics: expected "all" or "used"'),
        ({"fusion": "median"}, "fusion: got 'median', expected one of hierarchical"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize("module", [hmsa_ext.models.deeplab, hmsa_ext.models.resnet])
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
