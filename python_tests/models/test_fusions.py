"""Fusions: each against a formulation of its own, at full resolution and in float64; which scales each takes."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hmsa_ext import settings
from hmsa_ext.engine.metrics import ways_of
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.live_bytes import LiveBytes
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import FUSIONS, Fusion, ModelSettings, MultiScale, ScaleOutputs, build, find_fusion, load_weights
from hmsa_ext.models.fusions import explicit_attention
from hmsa_ext.parts import object_name
from hmsa_ext.settings import SettingError

CLASSES = 4
SIZES = [(33, 46), (64, 48)]
CHAINS = [(1.0,), (2.0, 1.0, 0.5), (1.0, 0.5, 0.25), (2.0, 1.5, 1.0)]
WITHOUT_ATTENTION = ["mean", "max", "mean_probabilities", "max_probabilities"]


class Toy(nn.Module):
    """Features at stride 4 and logits of them, in any dtype."""

    feature_channels = 6

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, self.feature_channels, 5, stride=4, padding=2)
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.features(images))
        return 4 * self.logits(features), features


def network(fusion: str | Fusion, channels: int = 1, *, device: torch.device | str = "cpu", **options) -> MultiScale:
    torch.manual_seed(0)
    made = MultiScale(
        Toy(), Toy.feature_channels, bottleneck=5, fusion=fusion, attention_channels=channels, **options
    ).double()
    if made.scale_attn is not None:  # as drawn, every weight would be about the same
        nn.init.normal_(made.scale_attn.get_parameter("conv2.weight"), std=2.0)
    return made.to(device).eval()


def images_of(size: tuple[int, int], batch: int = 2, *, device: torch.device | str = "cpu") -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(device)


def alone(model: MultiScale, images: Tensor, scale: float) -> Tensor:
    """Logits of one scale at the size of the images: the two resizes, one after the other."""
    size = images.shape[-2:]
    grid = [int(side * scale) for side in size]
    logits, _ = model.network(F.interpolate(images, grid, mode="bilinear") if scale != 1 else images)
    return F.interpolate(F.interpolate(logits, grid, mode="bilinear"), size, mode="bilinear")


def expected(fusion: str, maps: Tensor) -> Tensor:
    """Probabilities [B, C, H, W] of the maps [S, B, C, H, W], by the definition of each combination."""
    if fusion == "mean":
        return maps.mean(0).softmax(1)
    if fusion == "max":
        return maps.amax(0).softmax(1)
    probabilities = maps.softmax(2)
    if fusion == "mean_probabilities":
        return probabilities.mean(0)
    best = probabilities.amax(0)
    return best / best.sum(1, keepdim=True)


@pytest.mark.parametrize("fusion", WITHOUT_ATTENTION)
@pytest.mark.parametrize(("scales", "size"), itertools.product(CHAINS, SIZES))
def test_combinations_are_what_their_names_say(
    device: torch.device, fusion: str, scales: tuple[float, ...], size: tuple[int, int]
) -> None:
    model, images = network(fusion, device=device), images_of(size, device=device)
    outputs = model(images, scales)
    assert outputs.attention == []
    probabilities = expected(fusion, torch.stack([alone(model, images, scale) for scale in scales]))
    torch.testing.assert_close(outputs.fuse().softmax(1), probabilities, rtol=0, atol=1e-12)
    labels, confidence = outputs.argmax()
    best, winners = probabilities.max(1)
    assert torch.equal(labels.long(), winners)
    torch.testing.assert_close(confidence, best, rtol=0, atol=1e-6, check_dtype=False)
    target = torch.randint(0, CLASSES, (2, *size), generator=torch.Generator().manual_seed(1)).to(device)
    wanted = -probabilities.gather(1, target[:, None]).log().mean()
    torch.testing.assert_close(MultiScaleLoss()(outputs, target), wanted)


@pytest.mark.parametrize("fusion", [*WITHOUT_ATTENTION, "explicit", "hierarchical"])
def test_mirrored_views_are_averaged_as_logits(device: torch.device, fusion: str) -> None:
    model, images = network(fusion, device=device), images_of((32, 48), batch=1, device=device)
    both = model(torch.cat([images, images.flip(-1)]), (2.0, 1.0, 0.5))
    mean = (model(images, (2, 1, 0.5)).fuse() + model(images.flip(-1), (2, 1, 0.5)).fuse().flip(-1)) / 2
    labels, confidence = both.argmax(views=2)
    best, winners = mean.softmax(1).max(1)
    assert torch.equal(labels.long(), winners)
    torch.testing.assert_close(confidence, best, rtol=0, atol=1e-6, check_dtype=False)


# ---- explicit attention


@pytest.mark.parametrize("channels", [1, CLASSES])
@pytest.mark.parametrize("size", SIZES)
def test_explicit_attention_is_a_softmax_over_the_scales(
    device: torch.device, channels: int, size: tuple[int, int]
) -> None:
    """Scores of one value per scale and class: then no resize matters, and the sum over scales is exact."""
    scales = (2.0, 1.0, 0.5)
    model, images = network("explicit", channels, device=device), images_of(size, device=device)
    head = torch.randn(3, channels, dtype=torch.float64).to(device)

    class Constant(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            assert features.shape[1] == 3 * Toy.feature_channels
            return head.reshape(1, -1, 1, 1).expand(features.shape[0], -1, *features.shape[2:])

    model.scale_attn = Constant()
    weights = head.softmax(0)[:, None, :, None, None]
    maps = torch.stack([alone(model, images, scale) for scale in scales])
    # The product with the attention comes before the resize to the image; of constants both orders are one.
    torch.testing.assert_close(model(images, scales).fuse(), (weights * maps).sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_explicit_attention_follows_its_definition(device: torch.device, size: tuple[int, int]) -> None:
    scales = (1.5, 1.0, 0.5)
    model, images = network("explicit", train_scales=scales, device=device), images_of(size, device=device)
    features, logits = [], []
    for scale in scales:
        grid = [int(side * scale) for side in size]
        z, f = model.network(F.interpolate(images, grid, mode="bilinear") if scale != 1 else images)
        logits.append(z)
        features.append(f)
    middle = features[1].shape[-2:]
    assert model.scale_attn is not None
    scores = model.scale_attn(torch.cat([F.interpolate(f, middle, mode="bilinear") for f in features], 1))
    outputs = model(images, scales)
    for index in (1, 2):
        grid = logits[index].shape[-2:]
        weights = F.interpolate(scores, grid, mode="bilinear").softmax(1)
        share = weights[:, index] / weights[:, : index + 1].sum(1)
        torch.testing.assert_close(outputs.attention[index - 1], share[:, None], rtol=0, atol=1e-12)
    shares = outputs.shares()
    assert shares is not None
    total = torch.stack(list(shares.values())).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_explicit_scores_of_any_size_give_attention_between_0_and_1() -> None:
    model, images = network("explicit"), images_of((32, 32))
    assert model.scale_attn is not None
    model.scale_attn.get_parameter("conv2.weight").data.mul_(1e4)
    for attention in model(images, (2, 1, 0.5)).attention:
        assert attention.isfinite().all()
        assert 0 <= attention.min() <= attention.max() <= 1
    maps = [torch.zeros(1, 3, 4, 4)] * 2
    with pytest.raises(ValueError, match="attention_head: expected scores of 2 scales"):
        explicit_attention(nn.Conv2d(6, 3, 1), maps, maps, (1.0, 0.5))


def test_explicit_attention_refuses_scales_that_it_never_saw() -> None:
    model, images = network("explicit"), images_of((32, 32))
    for scales in ((0.25, 0.5, 1, 2), (0.5, 1), (1, 2, 4)):
        with pytest.raises(SettingError, match=r"scales: got .*, expected 0.5,1,2, or one scale: explicit attention"):
            model(images, scales)
    assert model(images, (1.0,)).attention == []
    assert torch.equal(model(images, (1.0,)).fuse(), network("mean")(images, (1.0,)).fuse())


class NoScores(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)


def test_a_head_that_cannot_leave_its_sigmoid_out_is_named() -> None:
    with pytest.raises(SettingError, match="attention_head: got 'NoScores', expected a factory that takes sigmoid=Fal"):
        MultiScale(Toy(), 6, fusion="explicit", attention_head=NoScores)


# ---- training


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_gradients_are_right(fusion: str) -> None:
    model = network(fusion, CLASSES if FUSIONS[fusion].attention else 1).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # finite differences would change the statistics
    # With one scale a head has no gradient.
    scales = model.train_scales if fusion in ("hierarchical", "explicit", "single") else (2.0, 1.0, 0.5)
    target = torch.randint(0, CLASSES, (1, 12, 16), generator=torch.Generator().manual_seed(0))
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(images: Tensor, *parameters: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (images, scales))
        return MultiScaleLoss(scale_weight=0.3)(outputs, target)

    images = images_of((12, 16), batch=1).requires_grad_()
    inputs = (images, *(value.detach().requires_grad_() for value in values))
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_every_parameter_learns_at_the_scales_of_the_fusion(fusion: str) -> None:
    model = network(fusion).train()
    MultiScaleLoss()(model(images_of((32, 48))), torch.randint(0, CLASSES, (2, 32, 48))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_weights_of_networks_without_attention_are_the_same() -> None:
    single = build("hrnet_small_ocr", CLASSES, fusion="single").eval()
    assert not any(name.startswith("scale_attn") for name in single.state_dict())
    for fusion in WITHOUT_ATTENTION:
        other = build("hrnet_small_ocr", CLASSES, fusion=fusion).eval()
        assert load_weights(other, single.state_dict(), strict=True).complete
        images = images_of((64, 64), 1).float()
        assert torch.equal(other(images, (1.0,)).fuse(), single(images).fuse())


@pytest.mark.parametrize("fusion", ["mean", "hierarchical", "explicit"])
def test_labels_and_losses_build_no_logits_at_full_resolution(fusion: str) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 32, 128, 128), torch.randn(1, 32, 64, 64), torch.randn(1, 32, 32, 32)]
    chosen = FUSIONS[fusion]
    attention = [torch.rand(1, 1, *z.shape[2:]) for z in maps[1:]] if chosen.attention else []
    outputs = ScaleOutputs(maps, attention, None, (2.0, 1.0, 0.5), (256, 256), chosen.combination)
    target = torch.zeros(1, 256, 256, dtype=torch.uint8)
    with LiveBytes() as watch:
        outputs.argmax()
        MultiScaleLoss()(outputs, target)
    assert watch.peak < 4 * 32 * 256 * 256 / 2


def test_the_combination_survives_export_and_tree_maps() -> None:
    model = network("max").float()
    program = torch.export.export(model, (images_of((32, 48)).float(), (1.0, 0.5)))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    images = images_of((32, 48)).float()
    outputs = torch.export.load(file).module()(images, (1.0, 0.5))
    assert outputs.combination == "max"
    torch.testing.assert_close(outputs.fuse(), model(images, (1.0, 0.5)).fuse())
    doubled = pytree.tree_map(lambda x: 2 * x if isinstance(x, Tensor) else x, outputs)
    torch.testing.assert_close(doubled.fuse(), 2 * outputs.fuse())


# ---- fusions of others


def softest(maps) -> Tensor:
    """The smallest logit of each class."""
    return torch.stack(list(maps)).amin(0)


def test_a_function_is_a_fusion() -> None:
    images = images_of((32, 48))
    for fusion in ("python_tests.models.test_fusions:softest", softest):
        outputs = network(fusion)(images, (1.0, 0.5))  # type: ignore[arg-type]
        maps = torch.stack([alone(network("mean"), images, s) for s in (1.0, 0.5)])
        torch.testing.assert_close(outputs.fuse(), maps.amin(0), rtol=0, atol=1e-12)
    chosen = ModelSettings(fusion="python_tests.models.test_fusions:softest", name="hrnet_small_ocr")
    assert chosen.train_scales == (1.0,)
    assert chosen.eval_scales(None) == (0.5, 1.0, 2.0)
    assert settings.to_dict(chosen)["fusion"] == "python_tests.models.test_fusions:softest"


def test_what_is_no_fusion_is_named() -> None:
    for wrong in ("sum", "python_tests.models.test_fusions:CLASSES", "python_tests.models.test_fusions:Toy"):
        with pytest.raises(SettingError, match=r"fusion: got '.*', expected one of hierarchical, explicit, single"):
            find_fusion(wrong)
    with pytest.raises(SettingError, match=r"scales: got 0.5,1.0, expected one scale"):
        network("single")(images_of((32, 32)), (1.0, 0.5))
    outputs = network("mean")(images_of((32, 32)), (1.0, 0.5))
    with pytest.raises(ValueError, match="combination: the outputs have no attention; expected another"):
        outputs.argmax("attention")
    with pytest.raises(ValueError, match="no auxiliary logits"):
        outputs.fuse_aux()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "both"}, 'Fusion.attention: expected "own", "joint" or None, got \'both\''),
        ({"combination": "median"}, "Fusion.combination: expected one of attention, mean, .*, got 'median'"),
        ({"combination": 3}, "Fusion.combination: expected one of attention, mean, .*, got 3"),
        # At one scale, which a training may be at, neither of these shows.
        (
            {"combination": "attention"},
            "Fusion.combination: expected .attention. with .*attention=None",
        ),
        (
            {"attention": "own", "combination": "mean"},
            "Fusion.combination: expected .* got 'mean' with attention='own'",
        ),
        ({"train_scales": (0.5, 2.0)}, "Fusion.train_scales: 1.0 must be among several scales"),
        ({"eval_scales": (1.0, 1.0)}, "Fusion.eval_scales: each may be given once"),
        ({"attention": "joint", "combination": "attention"}, "Fusion.train_scales: expected several"),
    ],
)
def test_a_fusion_of_parts_that_do_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        Fusion("", **{"attention": None, "combination": "mean"} | fields)


@pytest.mark.parametrize(
    ("combine", "got"),
    [
        (lambda maps: next(iter(maps))[:, :2], r"torch.float64 \[2, 2, 32, 48\]"),
        (lambda maps: next(iter(maps))[..., ::2, ::2], r"torch.float64 \[2, 4, 16, 24\]"),
        (lambda maps: next(iter(maps)).repeat(2, 1, 1, 1), r"torch.float64 \[4, 4, 32, 48\]"),
        (lambda maps: next(iter(maps)).round().long(), r"torch.int64 \[2, 4, 32, 48\]"),
        (lambda maps: None, "NoneType"),
    ],
)
def test_a_function_that_returns_other_maps_is_named(combine: Callable[..., Tensor], got: str) -> None:
    outputs = network("mean")(images_of((32, 48)), (1.0, 0.5))
    expected = rf"fusion .*<lambda>: expected combined logits \[2, 4, 32, 48\] in floating point, got {got}"
    with pytest.raises(ArgumentValueError, match=expected):
        outputs.argmax(combine)


def test_maps_of_other_classes_are_not_broadcast() -> None:
    outputs = network("max")(images_of((32, 48)), (1.0, 0.5))
    outputs.logits[1] = outputs.logits[1][:, :1]
    with pytest.raises(ArgumentValueError, match=r"logits of one batch and as many classes, got \[2, 4, .*\[2, 1, "):
        outputs.fuse()


class NoMap(nn.Module):
    """An attention head that forgets to return."""

    def __init__(self, in_channels: int, out_channels: int, *, sigmoid: bool = True) -> None:
        super().__init__()

    def forward(self, features: Tensor) -> None:
        return None


@pytest.mark.parametrize("fusion", ["hierarchical", "explicit"])
def test_a_head_that_returns_no_map_is_named(fusion: str) -> None:
    model = MultiScale(Toy(), Toy.feature_channels, fusion=fusion, attention_head=NoMap)
    with pytest.raises(ArgumentValueError, match=r"attention_head: expected .*, got NoneType"):
        model(images_of((32, 48)).float())


@pytest.mark.parametrize("scales", [1, "1", (1.0, "a"), (1.0, None), (1.0, -0.5), (0.5, 2.0)])
def test_train_scales_that_are_none_are_named(scales: Any) -> None:
    with pytest.raises(ArgumentValueError, match=r"train_scales: "):
        build("hrnet_small_ocr", CLASSES, fusion="mean", train_scales=scales)


def test_settings_follow_the_fusion() -> None:
    for name, train, evaluated in (
        ("hierarchical", (0.5, 1.0), (0.5, 1.0, 2.0)),
        ("explicit", (0.5, 1.0, 2.0), (0.5, 1.0, 2.0)),
        ("single", (1.0,), (1.0,)),
        ("mean", (1.0,), (0.5, 1.0, 2.0)),
    ):
        chosen = ModelSettings(fusion=name)
        assert (chosen.train_scales, chosen.eval_scales(None)) == (train, evaluated)
    explicit = ModelSettings(fusion="explicit", scales=(0.5, 1.0))
    assert explicit.eval_scales(None) == (0.5, 1.0)
    assert not explicit.takes_eval_scales((0.5, 1.0, 2.0))
    with pytest.raises(SettingError, match=r"eval_scales: got 0.5,1.0,2.0, expected 0.5,1, or one scale"):
        explicit.eval_scales((0.5, 1.0, 2.0))


def test_an_object_that_is_called_is_a_fusion_too() -> None:
    smallest = functools.partial(softest)
    outputs = network(smallest)(images_of((32, 48)), (1.0, 0.5))  # type: ignore[arg-type]
    assert object_name(outputs.combination) == "functools:partial"
    assert ways_of((0.5, 1.0), outputs.combination)[-1] == "functools:partial"
