"""Networks that need images of certain sizes."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.errors import HmsaError
from hmsa_ext.models import InputError, MultiScale


class Pyramid(nn.Module):
    """Five halvings and a way back up to ``stride``; each sum needs two maps of one size, as in an FPN."""

    def __init__(self, stride: int = 4) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(8 if i else 3, 8, 2, stride=2) for i in range(5))
        self.logits, self.aux = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)
        self.stride = stride

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = [images]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        features = maps.pop()
        while 2 ** len(maps) > self.stride:
            features = F.interpolate(features, scale_factor=2.0) + maps.pop()
        return self.logits(features), self.aux(features), features


def wrap(network: nn.Module, **options) -> MultiScale:
    return MultiScale(network, feature_channels=8, bottleneck=8, **options)


@pytest.mark.parametrize("size", [(45, 70), (31, 96), (64, 33), (1, 65)])
@pytest.mark.parametrize("stride", [4, 8, 32])
def test_padding_is_what_one_does_by_hand(device, size: tuple[int, int], stride: int):
    network = Pyramid(stride).to(device)
    model = wrap(network, divisor=32).to(device).eval()
    images = torch.randn(2, 3, *size, device=device)
    scales = (2.0, 1.0) if min(size) == 1 else (1.5, 1.0, 0.5)
    with torch.no_grad():
        outputs = model(images, scales)
        for index, scale in enumerate(scales):
            height, width = int(size[0] * scale), int(size[1] * scale)
            image = F.interpolate(images, (height, width), mode="bilinear") if scale != 1 else images
            padded = torch.zeros(2, 3, -(-height // 32) * 32, -(-width // 32) * 32, device=device)
            padded[..., :height, :width] = image
            rows, columns = -(-height // stride), -(-width // stride)
            logits, aux, features = (x[..., :rows, :columns] for x in network(padded))
            assert torch.equal(outputs.logits[index], logits)
            assert outputs.aux is not None
            assert torch.equal(outputs.aux[index], aux)
            if index > 0:
                assert model.scale_attn is not None
                torch.testing.assert_close(outputs.attention[index - 1], model.scale_attn(features))


def test_multiples_are_not_padded(device):
    network = Pyramid().to(device)
    plain, padding = wrap(network).to(device).eval(), wrap(network, divisor=32).to(device).eval()
    padding.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 128, 64, device=device)
    with torch.no_grad():
        assert torch.equal(plain(images).fuse(), padding(images).fuse())


def test_padded_networks_train():
    model = wrap(Pyramid(), divisor=32).train()
    model(torch.randn(2, 3, 45, 70)).fuse().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "aux" not in name)


def test_a_size_that_the_network_fails_on_names_the_divisor():
    message = (
        re.escape("network: failed on images of 240 x 320 pixels: ") + r".*must match.*MultiScale\(\.\.\., divisor"
    )
    with pytest.raises(InputError, match=message) as caught:
        wrap(Pyramid()).eval()(torch.randn(1, 3, 480, 640), (0.5, 1.0))
    assert isinstance(caught.value, HmsaError | ValueError)
    assert isinstance(caught.value.__cause__, RuntimeError)


class Fails(nn.Module):
    def forward(self, images: Tensor) -> None:
        raise RuntimeError("the network's own trouble")


def test_errors_of_another_kind_stay_as_they_are():
    with pytest.raises(RuntimeError, match=r"^the network's own trouble$"):
        wrap(Fails()).eval()(torch.randn(1, 3, 33, 33))


class Resizes(nn.Module):
    """Logits of one size, whatever the images."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.new_zeros(1, 5, self.side, self.side), images.new_zeros(1, 8, self.side, self.side)


@pytest.mark.parametrize("side", [15, 1, 128])
def test_a_stride_that_does_not_divide_the_divisor_is_named(side: int):
    message = (
        rf"divisor: expected logits at a stride that divides 32, got \[1, 5, {side}, {side}\] for images of 64 x 64"
    )
    with pytest.raises(InputError, match=message):
        wrap(Resizes(side), divisor=32).eval()(torch.randn(1, 3, 60, 60), (1.0,))


@pytest.mark.parametrize("divisor", [0, -32, 1.5, True, "32"])
def test_bad_divisors_are_named(divisor):
    with pytest.raises(ValueError, match=re.escape(f"divisor: expected a positive integer, got {divisor!r}")):
        wrap(Pyramid(), divisor=divisor)


def test_padding_compiles_whole():
    model = wrap(Pyramid(), divisor=32).eval()
    images = torch.randn(1, 3, 45, 70)

    def fused(images: Tensor) -> Tensor:
        return model(images).fuse()

    with torch.no_grad():
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), fused(images))
