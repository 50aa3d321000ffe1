"""Networks without OCR or decoder, and the published networks of one scale."""

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hmsa_ext.models.fcn
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import (
    FCN,
    HRNetConfig,
    ResNetConfig,
    build,
    hrnet_small_fcn,
    hrnet_w48_fcn,
    hrnet_w48_ocr,
    load_weights,
)
from hmsa_ext.models.joined_maps import as_tensor
from python_tests.models.golden import entries_of, golden_inputs, published_entries
from python_tests.models.gradients import check_gradients

TINY = HRNetConfig(
    widths=(2, 3, 4, 5), modules=(1, 1, 1), blocks=1, stem_channels=2, bottleneck_channels=2, bottleneck_blocks=1
)


def tiny(trunk: Any = TINY, num_classes: int = 3, **options: Any) -> FCN:
    narrow: dict[str, Any] = {"head_channels": 4, "attention_bottleneck": 4}
    return FCN(trunk, num_classes, **(narrow | options))


@pytest.mark.parametrize(
    ("network", "factory", "fusion", "entries"),
    [
        ("mscale.HRNet", hrnet_w48_fcn, "hierarchical", 1856),
        ("basic.HRNet", hrnet_w48_fcn, "single", 1843),
        ("basic.HRNet", hrnet_w48_fcn, "mean", 1843),
        ("ocrnet.HRNet", hrnet_w48_ocr, "single", 1890),
    ],
)
def test_names_and_shapes_are_the_published_ones_in_order(reference_dir: Path, network, factory, fusion, entries):
    with torch.device("meta"):
        got = entries_of(factory(num_classes=19, fusion=fusion))
    expected = published_entries(reference_dir, network)
    assert len(expected) == entries
    assert list(got.items()) == list(expected.items())


@pytest.mark.parametrize(("factory", "renamed"), [(hrnet_w48_fcn, {"cls_head": "seg_head"}), (hrnet_w48_ocr, {})])
def test_published_weights_give_the_same_logits_at_one_scale(golden_fill, device, factory, renamed: dict[str, str]):
    several, single = (
        factory(num_classes=19, fusion=fusion).to(device).eval() for fusion in ("hierarchical", "single")
    )
    weights = golden_fill(several.state_dict())
    load_weights(several, weights)
    report = load_weights(single, weights)
    heads = {name.partition(".")[0] for name in single.state_dict()}
    assert heads == {renamed.get(name.partition(".")[0], name.partition(".")[0]) for name in weights} - {"scale_attn"}
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    assert all(name.startswith("scale_attn.") for name in report.unexpected)
    images = golden_inputs()[0].to(device)
    with torch.no_grad():
        outputs, alone = several(images, (0.5, 1.0)), single(images)
    assert alone.scales == (1.0,)
    assert torch.equal(alone.logits[0], outputs.logits[0])
    torch.testing.assert_close(alone.fuse(), outputs.single_scale(0), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("source", "target"), [("single", "hierarchical"), ("hierarchical", "max"), ("mean", "single")]
)
def test_weights_load_across_fusions(source: str, target: str):
    file = {name: torch.full_like(value, 3) for name, value in tiny(fusion=source).state_dict().items()}
    model = tiny(fusion=target)
    report = load_weights(model, {f"module.{name}": value for name, value in file.items()})
    assert [name for name in report.missing if not name.startswith("scale_attn.")] == []
    assert [name for name in report.unexpected if "scale_attn." not in name] == []
    assert all((model.state_dict()[name] == 3).all() for name in report.loaded)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47)])
@pytest.mark.parametrize(("trunk", "stride"), [(TINY, 4), (ResNetConfig((1, 1, 1, 1), (2, 2, 3, 4)), 8)])
@pytest.mark.parametrize("fusion", ["hierarchical", "mean"])
def test_outputs_have_the_stride_of_the_trunk(device, trunk, stride: int, size: tuple[int, int], fusion: str):
    model = tiny(trunk, fusion=fusion).to(device).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, *size, device=device), (0.5, 1.0))
    assert [list(z.shape) for z in outputs.logits] == [
        [1, 3, *(-(-int(side * scale) // stride) for side in size)] for scale in (1.0, 0.5)
    ]
    assert len(outputs.attention) == (1 if fusion == "hierarchical" else 0)
    assert list(outputs.fuse().shape) == [1, 3, *size]


def test_both_heads_see_the_features_of_the_trunk():
    model = tiny().eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        logits, aux, features = model.forward_one_scale(images)
        assert torch.equal(as_tensor(features), model.backbone(images))
        assert torch.equal(logits, model.get_submodule("cls_head")(features))
    assert aux is None


@pytest.mark.parametrize("fusion", ["hierarchical", "single"])
def test_every_parameter_gets_a_gradient(device, fusion: str):
    model = tiny(fusion=fusion).to(device)
    outputs = model(torch.randn(2, 3, 64, 64, device=device))
    MultiScaleLoss()(outputs, torch.randint(0, 3, (2, 64, 64), device=device)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


class Logits(nn.Module):
    def __init__(self, model: FCN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model.forward_one_scale(images)[0],)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_agree_with_finite_differences(training: bool):
    torch.manual_seed(0)  # finite differences must not cross the kink of a ReLU
    check_gradients(Logits(tiny(fusion="single")).train(training), torch.randn(2, 3, 38, 45))


def test_a_new_network_begins_undecided():
    torch.manual_seed(0)
    outputs = hrnet_small_fcn(8)(torch.randn(4, 3, 64, 96))
    loss = MultiScaleLoss()(outputs, torch.randint(0, 8, (4, 64, 96)))
    assert loss.item() == pytest.approx(torch.tensor(8.0).log().item(), rel=0.05)


def test_the_names_build():
    with torch.device("meta"):
        for name, width in (("hrnet_small_fcn", 32), ("hrnet_w48_fcn", 256)):
            model = build(name, 5, dropout=0.1, attention_channels="classes")
            assert model.get_parameter("cls_head.6.weight").shape == (5, width, 1, 1)
            assert model.get_parameter("scale_attn.conv2.weight").shape == (5, width, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": True}, "num_classes: expected a positive integer, got True"),
        ({"dropout": -0.1}, r"dropout: expected a probability in \[0, 1\), got -0.1"),
        ({"attention_channels": 2}, "attention_channels: expected 1 or num_classes=3, got 2"),
        ({"trunk": "resnet"}, "trunk: got 'resnet', expected one of hrnet_small, "),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_examples_in_docstrings_run():
    result = doctest.testmod(hmsa_ext.models.fcn)
    assert result.attempted > 0
    assert result.failed == 0
