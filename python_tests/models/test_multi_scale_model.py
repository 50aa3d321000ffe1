"""Running any network at several scales."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.models import MultiScale, ScaleAttentionHead, ScaleOutputs, hrnet_small_ocr


class Toy(nn.Module):
    """A network of somebody else: stride 8, with or without auxiliary logits; notes the images it was given."""

    def __init__(self, aux: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 9, stride=8, padding=4)
        self.norm = nn.BatchNorm2d(12)
        self.logits = nn.Conv2d(12, 5, 1)
        self.aux = nn.Conv2d(12, 5, 1) if aux else None
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self.seen.append(images)
        features = F.relu(self.norm(self.stem(images)))
        if self.aux is None:
            return self.logits(features), features
        return self.logits(features), self.aux(features), features


class Returns(nn.Module):
    """A network that returns what it was told to."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> object:
        return self.value


def wrap(network: nn.Module, **options) -> MultiScale:
    return MultiScale(network, feature_channels=12, bottleneck=8, **options)


@pytest.mark.parametrize("aux", [False, True])
def test_a_foreign_network_becomes_multi_scale(device, aux: bool):
    model = wrap(Toy(aux)).to(device).eval()
    outputs = model(torch.randn(2, 3, 40, 64, device=device), scales=(1.0, 0.5, 2.0))
    assert isinstance(outputs, ScaleOutputs)
    assert [list(z.shape) for z in outputs.logits] == [[2, 5, 10, 16], [2, 5, 5, 8], [2, 5, 3, 4]]
    assert [list(a.shape) for a in outputs.attention] == [[2, 1, 5, 8], [2, 1, 3, 4]]
    assert (outputs.aux is not None) == aux
    assert {name.split(".")[0] for name in model.state_dict()} == {"network", "scale_attn"}
    outputs.fuse().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "aux" not in n)


def test_order_of_the_scales_does_not_matter():
    model = hrnet_small_ocr(num_classes=4).eval()
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        first, second = model(images, (0.5, 1.0, 2.0)), model(images, [2, 0.5, 1])
    assert first.scales == second.scales == (2.0, 1.0, 0.5)
    assert torch.equal(first.fuse(), second.fuse())


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47), (375, 123)])
@pytest.mark.parametrize("scale", [0.25, 0.3, 0.5, 1.0, 1.5, 1.7, 2.0])
def test_images_are_resized_as_published(size, scale):
    toy = Toy()
    model = wrap(toy).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        model(images, (scale,))
    expected = F.interpolate(
        images, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=True
    )
    assert torch.equal(toy.seen[0], expected)


def test_smallest_scale_goes_first():
    toy = Toy()
    wrap(toy).train()(torch.randn(2, 3, 32, 48), (2.0, 0.5, 1.0))
    assert [list(x.shape[-2:]) for x in toy.seen] == [[16, 24], [32, 48], [64, 96]]


def test_evaluation_does_not_compute_the_largest_scales_attention():
    model = wrap(Toy()).eval()
    calls = []
    assert model.scale_attn is not None
    model.scale_attn.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32), (0.5, 1.0, 2.0))
        assert len(calls) == 2
        model(torch.randn(1, 3, 32, 32), (1.0,))
        assert len(calls) == 2


@pytest.mark.parametrize("statistics", ["all", "used"])
def test_training_updates_attention_statistics_as_the_option_says(statistics: str):
    torch.manual_seed(0)
    model = wrap(Toy(), attention_statistics=statistics).train()
    features = []
    assert model.scale_attn is not None
    model.scale_attn.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    outputs = model(torch.randn(2, 3, 64, 64), (0.5, 1.0))

    assert len(features) == (2 if statistics == "all" else 1)
    assert [x.shape[-1] for x in features] == [4, 8][: len(features)]  # the smaller scale first
    head = model.scale_attn
    assert isinstance(head, ScaleAttentionHead)
    mean = torch.zeros(8)
    for x in features:
        with torch.no_grad():
            mean = 0.9 * mean + 0.1 * head.conv0(x).mean(dim=(0, 2, 3))
    torch.testing.assert_close(head.bn0.running_mean, mean)
    assert head.bn0.num_batches_tracked == len(features)
    assert len(outputs.attention) == 1


def test_unused_attention_leaves_the_gradients_alone():
    images, gradients = torch.randn(2, 3, 64, 64), []
    for statistics in ("all", "used"):
        torch.manual_seed(0)
        model = wrap(Toy(), attention_statistics=statistics).train()
        model(images).fuse().square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_one_scale_trains_without_touching_the_attention_head():
    model = wrap(Toy()).train()
    model(torch.randn(2, 3, 64, 64), (1.0,)).fuse().sum().backward()
    assert model.get_buffer("scale_attn.bn0.num_batches_tracked") == 0
    assert model.scale_attn is not None
    assert all(p.grad is None for p in model.scale_attn.parameters())


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((), "scales: expected 1 to 8 of them, got 0"),
        ((0.5, 2.0), "1.0 must be among several scales"),
        ((1.0, 1.0, 0.5), "each may be given once"),
        ((1.0, 0.0), "finite numbers above 0"),
        ((1.0, -2.0), "finite numbers above 0"),
        ((1.0, float("nan")), "finite numbers above 0"),
        ((1.0, float("inf")), "finite numbers above 0"),
        (tuple(1.0 + i / 4 for i in range(9)), "expected 1 to 8 of them, got 9"),
        (1.0, "expected a sequence of numbers"),
        ("0.5,1.0", "expected a sequence of numbers"),
        ((0.01, 1.0), "0.01 leaves nothing of images of 32 x 32"),
    ],
)
def test_bad_scales_are_named(scales, message: str):
    model = wrap(Toy()).eval()
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, 32, 32), scales)


def test_bad_images_are_named():
    model = wrap(Toy()).eval()
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, H, W\], got a tensor of shape \[3, 32, 32\]"):
        model(torch.rand(3, 32, 32))
    with pytest.raises(TypeError, match=r"images: expected normalised floating point, got torch.uint8"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(1, 5, 8, 8), TypeError, r"\(logits, features\) or \(logits, aux, features\), got Tensor"),
        ({"out": 1}, TypeError, "got dict"),
        ((torch.zeros(1, 5, 8, 8),), TypeError, "got 1 values"),
        ((torch.zeros(1, 5, 8, 8), None), TypeError, r"tensors \[B, \*, h, w\], got NoneType"),
        ((torch.zeros(1, 5, 8, 8), torch.zeros(1, 12)), TypeError, r"got shape \[1, 12\]"),
        ((torch.zeros(1, 5, 8, 8), torch.zeros(1, 9, 8, 8)), ValueError, "built for feature_channels=12"),
        ((torch.zeros(1, 5, 8, 8), torch.zeros(1, 12, 4, 4)), ValueError, "must be of one height and width"),
        (
            (torch.zeros(1, 5, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 12, 8, 8)),
            ValueError,
            r"aux \[1, 4, 8, 8\] differs from logits \[1, 5, 8, 8\]",
        ),
    ],
)
def test_networks_that_return_something_else_are_told(value, error, message: str):
    with pytest.raises(error, match=message):
        wrap(Returns(value)).eval()(torch.randn(1, 3, 32, 32))


def test_attention_channels_must_fit_the_classes():
    model = MultiScale(Toy(), feature_channels=12, bottleneck=8, attention_channels=3).eval()
    with pytest.raises(ValueError, match="attention_channels: expected 1 or the 5 classes of the network, got 3"):
        model(torch.randn(1, 3, 32, 32))


def test_data_parallel_finds_the_outputs_tensors():
    # DistributedDataParallel looks for the tensors of the output to know which parameters were used.
    from torch.nn.parallel.distributed import _find_tensors

    outputs = wrap(Toy(aux=True)).train()(torch.randn(2, 3, 32, 32))
    found = {id(t) for t in _find_tensors(outputs)}
    assert {id(t) for t in outputs.logits + outputs.attention + outputs.aux} <= found
