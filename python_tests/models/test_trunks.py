"""Any trunk under the OCR head and the scale attention."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hmsa_ext.models
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import TRUNKS, HRNet, OCRNetwork, build, build_trunk, hrnet_small_ocr
from hmsa_ext.models.hrnet import SMALL
from hmsa_ext.models.trunks import stated
from hmsa_ext.settings import SettingError


class Stride8(nn.Module):
    """A trunk of somebody else."""

    out_channels, stride = 12, 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 12, 9, stride=8, padding=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


class Halves(nn.Module):
    """A trunk that brings two strides together, so that it needs even sides; it floors where others round up."""

    out_channels, stride, divisor = 12, 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 12, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fine(images) + self.coarse(images).repeat_interleave(2, 2).repeat_interleave(2, 3)


def narrow(trunk, **options) -> OCRNetwork:
    return OCRNetwork(trunk, 5, mid_channels=16, key_channels=8, attention_bottleneck=8, **options)


@pytest.mark.parametrize("trunk", [Stride8, Stride8()])
def test_a_foreign_trunk_trains_under_our_heads(trunk):
    model = narrow(trunk)
    outputs = model(torch.randn(2, 3, 43, 64), (0.5, 1.0))
    assert [list(z.shape) for z in outputs.logits] == [[2, 5, 6, 8], [2, 5, 3, 4]]
    MultiScaleLoss()(outputs, torch.zeros(2, 43, 64).long()).backward()
    assert model.get_parameter("backbone.layer.weight").grad is not None
    assert {name.partition(".")[0] for name in model.state_dict()} == {"backbone", "ocr", "scale_attn"}


def test_a_trunk_comes_by_the_name_of_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("my_trunk.py").write_text(
        "from torch import nn\n"
        "def stride4():\n"
        "    trunk = nn.Conv2d(3, 10, 5, stride=4, padding=2)\n"
        "    trunk.stride_of_conv, trunk.out_channels = trunk.stride, 10\n"
        "    module = nn.Sequential(trunk)\n"
        "    module.out_channels, module.stride = 10, 4\n"
        "    return module\n"
    )
    model = build("hrnet_small_ocr", 5, trunk="my_trunk:stride4")
    assert list(model(torch.randn(2, 3, 32, 32), (1.0,)).logits[0].shape) == [2, 5, 8, 8]


def test_a_network_takes_the_trunk_of_another():
    with torch.device("meta"):
        state = build("hrnet_small_ocr", 5, trunk="hrnet_w18").state_dict()
    assert state["ocr.conv3x3_ocr.0.weight"].shape == (64, 15 * 18, 3, 3)


def test_every_trunk_by_name_states_what_it_makes():
    images = torch.empty(1, 3, 64, 96, device="meta")
    for name in TRUNKS:
        with torch.device("meta"):
            trunk = build_trunk(name).eval()
        channels, stride, _ = stated(trunk)
        assert list(trunk(images).shape) == [1, channels, 64 // stride, 96 // stride], name


def test_a_trunk_that_needs_multiples_says_so():
    model = narrow(Halves).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 11, 14), (0.5, 1.0))
    assert [list(z.shape) for z in outputs.logits] == [[1, 5, 11, 14], [1, 5, 5, 7]]


def test_weights_of_a_module_or_a_factory_are_kept():
    trunk = HRNet(SMALL)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    for model in (narrow(trunk), narrow(lambda: trunk)):
        assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in before.items())


def test_a_trunk_by_name_begins_as_the_networks_do():
    torch.manual_seed(0)
    weight = hrnet_small_ocr(4).get_parameter("backbone.stage4.0.branches.3.1.conv2.weight")
    # He normal, fan-out: what PyTorch draws by itself is narrower by a factor of 2.4.
    assert weight.std().item() == pytest.approx((2 / (96 * 9)) ** 0.5, rel=0.05)


def test_widths_and_depths_make_a_trunk_that_begins_as_the_networks_do():
    config = dataclasses.replace(SMALL, widths=(16, 32, 64, 128))
    torch.manual_seed(0)
    weight = narrow(config).get_parameter("backbone.stage4.0.branches.3.1.conv2.weight")
    assert weight.shape[:2] == (128, 128)
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)


def test_the_older_name_of_the_network_still_works():
    with pytest.warns(DeprecationWarning, match="HRNetOCR is now OCRNetwork"):
        older = hmsa_ext.models.HRNetOCR
    assert older is OCRNetwork
    assert older(SMALL, 4, mid_channels=16, key_channels=8, attention_bottleneck=8).num_classes == 4


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ("resnet", "trunk: got 'resnet', expected one of hrnet_small, .* or package.module:object"),
        ("hmsa_ext:nothing", "trunk: got 'hmsa_ext:nothing', expected a name in hmsa_ext"),
        ("hmsa_ext:__version__", "trunk: got 'hmsa_ext:__version__', expected a factory without arguments"),
        (lambda: 3, "trunk: got 'int', expected a factory that returns a torch.nn.Module"),
        (nn.Identity(), "trunk: got 'Identity', expected a module with a positive integer out_channels, not None"),
        (nn.Conv2d(3, 8, 3), r"trunk: got 'Conv2d', expected .* integer stride, not \(1, 1\)"),
    ],
)
def test_what_is_no_trunk_is_named(trunk, message: str):
    with pytest.raises(SettingError, match=message):
        narrow(trunk)


@pytest.mark.parametrize(("channels", "stride"), [(13, 8), (12, 4), (12, 16)])
def test_features_other_than_stated_are_named(channels: int, stride: int):
    trunk = Stride8()
    trunk.out_channels, trunk.stride = channels, stride
    message = rf"trunk: it states out_channels={channels} and stride={stride}, but made features \[2, 12, 4, 4\] of"
    with pytest.raises(ValueError, match=message):
        narrow(trunk)(torch.randn(2, 3, 32, 32), (1.0,))


def test_one_pixel_in_training_is_explained():
    model = hrnet_small_ocr(4)
    message = "a batch of 1 with 32 x 32 pixels ends in a map of one pixel.*use a larger crop, scale or batch size"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, 64, 64), (0.5, 1.0))
    model(torch.randn(2, 3, 64, 64), (0.5, 1.0))
    model.eval()(torch.randn(1, 3, 64, 64), (0.5, 1.0))
