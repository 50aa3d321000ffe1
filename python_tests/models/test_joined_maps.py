"""Convolutions of joined maps are those of their concatenation, forward and backward, and never build it."""

import pytest
import torch
from torch import Tensor, nn

from hmsa_ext.live_bytes import LiveBytes
from hmsa_ext.models import joined_maps
from hmsa_ext.models.joined_maps import JoinedMaps, StripConvolution, convolve
from hmsa_ext.models.trunks import build_trunk, features_of

CHANNELS = (3, 4, 5, 6)
SIZES = [
    [(16, 24), (8, 12), (4, 6), (2, 3)],
    [(17, 23), (9, 12), (5, 6), (3, 3)],
    [(1, 1), (1, 1)],
    [(5, 33), (3, 17), (2, 9)],
    [(9, 7), (9, 7), (13, 5)],
]


def maps_of(sizes, device, *, last: bool = False) -> list[Tensor]:
    order = torch.channels_last if last else torch.contiguous_format
    made = [torch.randn(2, c, *s, dtype=torch.float64) for c, s in zip(CHANNELS, sizes, strict=False)]
    return [x.to(device, memory_format=order).requires_grad_() for x in made]


@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_convolution_equals_that_of_the_concatenation(monkeypatch, device, sizes, kernel, last, rows):
    if rows is not None:
        monkeypatch.setattr(StripConvolution, "strips", lambda self: joined_maps.strip_ranges(self._first, rows))
        monkeypatch.setattr(joined_maps, "COLUMNS", {"cpu": 5})
        monkeypatch.setattr(joined_maps, "OTHER_COLUMNS", 5)
    torch.manual_seed(1)
    maps = maps_of(sizes, device, last=last)
    joined = JoinedMaps(tuple(maps))
    conv = nn.Conv2d(joined.shape[1], 7, kernel, padding=kernel // 2).to(device, torch.float64)
    expected, got = conv(joined.tensor()), convolve(conv, joined)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    if last:
        assert got.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [*maps, *conv.parameters()], grad)
    for one, other in zip(torch.autograd.grad(got, [*maps, *conv.parameters()], grad), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_gradcheck_passes(device):
    conv = nn.Conv2d(7, 2, 3, padding=1, bias=False).to(device, torch.float64)
    first, second = maps_of([(5, 4), (3, 2)], device)
    torch.autograd.gradcheck(
        lambda a, b, w: torch.func.functional_call(_Convolve(conv), {"conv.weight": w}, (a, b)),
        (first, second, conv.weight.detach().requires_grad_()),
    )


class _Convolve(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, *maps: Tensor) -> Tensor:
        return convolve(self.conv, JoinedMaps(maps))


def test_bfloat16_autocast_is_as_exact_as_the_plain_convolution(device):
    torch.manual_seed(2)
    maps = [x.detach().float() for x in maps_of(SIZES[0], device)]
    joined = JoinedMaps(tuple(maps))
    conv = nn.Conv2d(18, 16, 3, padding=1).to(device)
    exact = conv(joined.tensor())
    with torch.autocast(device.type, dtype=torch.bfloat16):
        plain, ours = conv(joined.tensor()), convolve(conv, joined)
    assert ours.dtype == plain.dtype == torch.bfloat16
    error, ours_error = ((x.float() - exact).abs().max() for x in (plain, ours))
    assert ours_error < 2 * error  # the products of the taps are rounded before they are added


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(18, 4, 3, padding=0),
        nn.Conv2d(18, 4, 3, padding=1, stride=2),
        nn.Conv2d(18, 4, 3, padding=2, dilation=2),
        nn.Conv2d(18, 6, 3, padding=1, groups=2),
        nn.Conv2d(18, 4, 3, padding=1, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(18, 4, 1)),
    ],
    ids=lambda conv: type(conv).__name__,
)
def test_other_convolutions_are_those_of_the_concatenation(conv):
    joined = JoinedMaps(tuple(x.detach().float() for x in maps_of(SIZES[0], "cpu")))
    assert torch.equal(convolve(conv, joined), conv(joined.tensor()))


def test_hooks_of_a_convolution_see_the_concatenation():
    joined = JoinedMaps(tuple(x.detach().float() for x in maps_of(SIZES[0], "cpu")))
    conv, seen = nn.Conv2d(18, 4, 1), []
    conv.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    convolve(conv, joined)
    assert torch.equal(seen[0], joined.tensor())


def test_nothing_of_the_size_of_the_concatenation_exists(monkeypatch, device):
    monkeypatch.setattr(joined_maps, "STRIP_BYTES", {"cpu": 2**14})
    monkeypatch.setattr(joined_maps, "OTHER_STRIP_BYTES", 2**14)
    maps = [torch.randn(1, 64, 64 >> i, 64 >> i, device=device, requires_grad=True) for i in range(4)]
    conv = nn.Conv2d(256, 8, 3, padding=1).to(device)
    with LiveBytes().ignore(*maps, *conv.parameters()) as meter:
        made = convolve(conv, JoinedMaps(tuple(maps)))
        forward = meter.peak
        made.sum().backward()
    concatenated = 256 * 64 * 64 * 4
    assert forward < concatenated / 2
    assert meter.peak < concatenated  # gradients of the maps included, which are a third of it


def test_a_second_derivative_is_refused(device):
    maps = maps_of(SIZES[0], device)
    conv = nn.Conv2d(18, 2, 1).to(device, torch.float64)
    (first,) = torch.autograd.grad(convolve(conv, JoinedMaps(tuple(maps))).square().sum(), maps[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_maps_of_two_batches_are_refused():
    with pytest.raises(ValueError, match=r"maps: expected maps \[B, C, h, w\] of one batch, got \[1, 2, 4, 4\], \[2,"):
        JoinedMaps((torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 2, 2)))


@pytest.mark.parametrize("name", ["hrnet_small", "efficientnet_lite0"])
def test_a_trunk_gives_its_maps_as_they_are(name):
    trunk, images = build_trunk(name).eval(), torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        joined = features_of(trunk, images)
        assert isinstance(joined, JoinedMaps)
        assert torch.equal(joined.tensor(), trunk(images))
