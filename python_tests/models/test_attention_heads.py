"""The scale attention: how many channels, and heads of somebody else."""

import pytest
import torch
from torch import Tensor, nn

from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import ATTENTION_HEADS, MultiScale, build, build_attention_head, hrnet_small_ocr
from hmsa_ext.settings import SettingError


class OneLayer(nn.Module):
    """A head of somebody else."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.constant_(self.layer.weight, 7)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(features))


class Network(nn.Module):
    """Logits and features at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.logits = nn.Conv2d(3, 12, 4, stride=4), nn.Conv2d(12, 5, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stem(images)
        return self.logits(features), features


@pytest.mark.parametrize(("channels", "width"), [("one", 1), (1, 1), ("classes", 6), (6, 6)])
def test_attention_is_one_weight_or_one_for_each_class(channels, width: int):
    model = build("hrnet_small_ocr", 6, attention_channels=channels)
    outputs = model(torch.randn(2, 3, 64, 64))
    assert outputs.attention[0].shape[1] == width
    MultiScaleLoss()(outputs, torch.randint(0, 6, (2, 64, 64))).backward()
    gradient = model.get_parameter("scale_attn.conv2.weight").grad
    assert gradient is not None
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_other_channels_are_refused():
    for channels in ("two", 3):
        with pytest.raises(ValueError, match="attention_channels: expected 1 or num_classes=5, got"):
            hrnet_small_ocr(5, attention_channels=channels)


def test_a_foreign_head_replaces_ours_and_keeps_its_weights():
    networks = (
        hrnet_small_ocr(5, attention_channels="classes", attention_head=OneLayer),
        MultiScale(Network(), 12, attention_channels=5, attention_head=OneLayer),
    )
    for model in networks:
        assert isinstance(model.scale_attn, OneLayer)
        assert (model.scale_attn.layer.weight == 7).all()
        outputs = model(torch.randn(2, 3, 64, 64))
        assert outputs.attention[0].shape[1] == 5
        outputs.fuse().sum().backward()
        assert model.scale_attn.layer.weight.grad is not None


def test_a_factory_gets_the_bottleneck_where_it_takes_one():
    seen = {}

    def head(in_channels: int, out_channels: int, bottleneck: int = 3) -> nn.Module:
        seen.update(bottleneck=bottleneck)
        return OneLayer(in_channels, out_channels)

    build_attention_head(head, 4, 1, bottleneck=9)
    assert seen == {"bottleneck": 9}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            "other",
            f"attention_head: got 'other', expected one of {', '.join(ATTENTION_HEADS)}, or package.module:object",
        ),
        ("hmsa_ext:__version__", r"attention_head: got 'hmsa_ext:__version__', expected a factory \(in_channels, out"),
        (lambda a, b: 3, "attention_head: got 'int', expected a factory that returns a torch.nn.Module"),
    ],
)
def test_what_is_no_head_is_named(head, message: str):
    with pytest.raises(SettingError, match=message):
        MultiScale(Network(), 12, attention_head=head)


def test_attention_of_another_size_is_named():
    model = MultiScale(Network(), 12, attention_head=lambda i, o: nn.Conv2d(i, o, 3))
    with pytest.raises(ValueError, match=r"attention_head: expected \[B, 1 or C, h, w\] at the size of the logits"):
        model(torch.randn(1, 3, 64, 64))
