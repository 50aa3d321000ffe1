"""LR-ASPP, the decoder for a CPU."""

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hmsa_ext.models.lraspp
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import LRASPP, build, efficientnet_lite0_lraspp, load_weights
from hmsa_ext.models.efficientnet import EfficientNetLiteConfig, Stage
from hmsa_ext.models.lraspp import LRASPPDecoder
from hmsa_ext.settings import SettingError

TINY = EfficientNetLiteConfig((Stage(1, 2, 1, 3, 1), Stage(2, 3, 1, 3, 2), Stage(2, 4, 1, 5, 2)), stem_channels=2)


class Halves(nn.Module):
    """A trunk of somebody else, that needs even sides."""

    out_channels, stride, divisor = 4, 2, 4
    level_channels, level_strides = (3, 4), (2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 3, 2, stride=2), nn.Conv2d(3, 4, 2, stride=2)

    def levels(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images)
        return [fine, self.coarse(fine)]

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(images)[0]


def tiny(num_classes: int = 3, **options) -> LRASPP:
    return LRASPP(TINY, num_classes, stride=4, channels=4, context_channels=8, attention_bottleneck=2, **options)


def test_docstrings_run():
    assert doctest.testmod(hmsa_ext.models.lraspp).failed == 0


def test_its_parts_are_named():
    with torch.device("meta"):
        state = efficientnet_lite0_lraspp(11).state_dict()
    assert {name.partition(".")[0] for name in state} == {"backbone", "decoder", "classifier", "scale_attn"}
    assert list(state["classifier.weight"].shape) == [11, 64, 1, 1]
    assert list(state["scale_attn.conv0.weight"].shape) == [32, 64, 3, 3]


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (63, 33), (33, 32)])
def test_outputs_have_stride_8(device, size: tuple[int, int]):
    model = build("efficientnet_lite0_lraspp", 5).to(device).eval()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, *size, device=device), (0.5, 1.0, 2.0))
    for logits, scale in zip(outputs.logits, (2.0, 1.0, 0.5), strict=True):
        assert list(logits.shape) == [2, 5, *(-(-int(side * scale) // 8) for side in size)]
    assert list(outputs.fuse().shape) == [2, 5, *size]


@pytest.mark.parametrize("is_training", [False, True])
def test_gradients_in_float64(is_training: bool):
    torch.manual_seed(0)
    decoder = LRASPPDecoder((3, 4, 5), 4, context_channels=6).double().train(is_training)
    levels = [
        torch.randn(2, c, h, w, dtype=torch.float64, requires_grad=True)
        for c, h, w in ((3, 7, 5), (4, 4, 3), (5, 2, 2))
    ]
    assert torch.autograd.gradcheck(lambda *x: decoder(x), levels, fast_mode=True)


def test_it_is_one_layer_of_the_concatenated_levels():
    torch.manual_seed(0)
    decoder = LRASPPDecoder((3, 4), 4, context_channels=6).double().eval()
    fine, coarse = torch.randn(2, 3, 7, 5).double(), torch.randn(2, 4, 4, 3).double()
    context = nn.functional.interpolate(decoder.context(coarse), (7, 5), mode="bilinear", align_corners=False)
    weight = torch.cat([layer.get_parameter("weight") for layer in decoder.project], dim=1)
    expected = nn.functional.conv2d(torch.cat([fine, context], dim=1), weight)
    torch.testing.assert_close(decoder([fine, coarse]), decoder.norm(expected).relu())


@pytest.mark.parametrize(("stride", "widths"), [(4, [24, 40, 128]), (8, [40, 128])])
def test_a_larger_stride_leaves_finer_levels_out(stride: int, widths: list[int]):
    model = efficientnet_lite0_lraspp(5, stride=stride).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 64, 96), (0.5, 1.0))
    sizes = [[1, 5, int(64 * scale) // stride, int(96 * scale) // stride] for scale in (1.0, 0.5)]
    assert [list(x.shape) for x in outputs.logits] == sizes
    assert [layer.in_channels for layer in model.decoder.project.children()] == widths


def test_every_level_reaches_every_feature():
    torch.manual_seed(0)
    decoder = LRASPPDecoder((3, 4, 5), 4, context_channels=6).double().eval()
    levels = [torch.randn(1, c, n, n, dtype=torch.float64, requires_grad=True) for c, n in ((3, 8), (4, 4), (5, 2))]
    decoder(levels).square().sum().backward()
    for level in levels:
        assert level.grad is not None
        assert level.grad.abs().amax(dim=(0, 2, 3)).gt(0).all()


def test_training_learns_a_picture(device):
    torch.manual_seed(0)
    model = tiny().to(device)
    images = torch.randn(2, 3, 32, 32, device=device)
    target = (images.mean(1) > 0).long().to(device)
    target[:, :, 16:] = 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = MultiScaleLoss()(model(images, (0.5, 1.0)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < 0.8 * losses[0]


def test_one_image_can_be_trained_on():
    model = efficientnet_lite0_lraspp(5)
    outputs = model(torch.randn(1, 3, 64, 64), (0.5, 1.0))
    MultiScaleLoss()(outputs, torch.zeros(1, 64, 64).long()).backward()


def test_imagenet_weights_fill_the_trunk():
    model = efficientnet_lite0_lraspp(5)
    classifier = model.classifier.weight.clone()
    report = load_weights(model, "imagenet")
    assert report.loaded == [name for name in model.state_dict() if name.startswith("backbone.")]
    assert torch.equal(model.classifier.weight, classifier)


@pytest.mark.parametrize("size", [(32, 32), (19, 22)])
def test_a_foreign_trunk_of_levels_trains(size: tuple[int, int]):
    model = LRASPP(Halves, 3, stride=2, channels=4, context_channels=8, attention_bottleneck=2)
    outputs = model(torch.randn(2, 3, *size), (0.5, 1.0))
    assert list(outputs.logits[0].shape) == [2, 3, *(-(-side // 2) for side in size)]
    MultiScaleLoss()(outputs, torch.zeros(2, *size).long()).backward()
    assert model.get_parameter("backbone.coarse.weight").grad is not None


@pytest.mark.parametrize("fusion", ["hierarchical", "explicit", "single", "mean", "max_probabilities"])
def test_every_fusion_takes_its_features(fusion: str):
    model = tiny(fusion=fusion)
    outputs = model(torch.randn(2, 3, 32, 40))
    assert list(outputs.fuse().shape) == [2, 3, 32, 40]
    assert len(outputs.logits) == len(model.train_scales)


def test_classes_may_have_their_own_attention():
    model = build("efficientnet_lite0_lraspp", 5, attention_channels="classes").eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 32, 32), (0.5, 1.0))
    assert list(outputs.attention[0].shape) == [1, 5, 2, 2]


def test_a_trunk_without_levels_is_refused():
    trunk = nn.Conv2d(3, 8, 4)
    trunk.stride, trunk.out_channels = 4, 8  # type: ignore[assignment]
    with pytest.raises(SettingError, match=r"trunk: got 'Conv2d', expected a trunk with .*level_channels"):
        LRASPP(trunk, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected a positive integer, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"channels": 0}, "channels: expected a positive integer, got 0"),
        ({"context_channels": 0}, "context_channels: expected a positive integer, got 0"),
        ({"stride": 16}, r"stride: got 16, expected one of the strides of the trunk but for its largest, \(4, 8\)"),
        ({"attention_channels": 2}, "attention_channels: expected 1 or num_classes=3, got 2"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options: dict[str, Any], message: str):
    arguments: dict[str, Any] = {"num_classes": 3} | options
    with pytest.raises(ValueError, match=message):
        efficientnet_lite0_lraspp(**arguments)
