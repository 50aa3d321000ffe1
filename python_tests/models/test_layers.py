"""Evaluation without gradients: the same outputs in less memory, and nothing that anybody holds is overwritten."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from hmsa_ext import models
from hmsa_ext.live_bytes import LiveBytes
from hmsa_ext.models import hrnet, layers
from hmsa_ext.models.joined_maps import JoinedMaps, as_tensor
from hmsa_ext.models.layers import Layers, StripLayers, add_conv_norm, conv_norm, folded
from hmsa_ext.models.ocr import OCRHead
from hmsa_ext.models.residual_blocks import BasicBlock, Bottleneck

NETWORKS = {
    "hrnet_small_ocr": {},
    "hrnet_small_fcn": {},
    "efficientnet_lite0_lraspp": {},
    "resnet50_deeplabv3plus": {},
    "hrnet_small_ocr, explicit": {"fusion": "explicit"},
    "hrnet_small_fcn, explicit": {"fusion": "explicit"},
    "hrnet_small_ocr, mean": {"fusion": "mean"},
}


def shaken(module: nn.Module) -> nn.Module:
    """The module in evaluation, with batch norms as a training leaves them."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 2.0)
    return module.eval()


def plainly(module: nn.Module, *inputs, **options) -> Any:
    """What the module gives in evaluation where gradients are asked for: the plain way."""
    with torch.enable_grad():
        return module(*inputs, **options)


@pytest.mark.parametrize("size", [(96, 160), (65, 97)])
@pytest.mark.parametrize("strip_bytes", [None, 2**12])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_what_they_give_with_gradients(monkeypatch, device, name, strip_bytes, size):
    if strip_bytes is not None:
        monkeypatch.setattr(layers, "STRIP_BYTES", strip_bytes)
        monkeypatch.setattr("hmsa_ext.models.joined_maps.STRIP_BYTES", {"cpu": strip_bytes})
        monkeypatch.setattr("hmsa_ext.models.ocr.KEPT_BYTES", 0)
    torch.manual_seed(3)
    model = shaken(models.build(name.partition(",")[0], 5, **NETWORKS[name])).double().to(device)
    images = torch.randn(2, 3, *size, dtype=torch.float64, device=device)
    expected = plainly(model, images, (0.5, 1.0, 2.0))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            got = model(images, (0.5, 1.0, 2.0))
        for one, other in zip(
            [*got.logits, *got.attention, *(got.aux or [])],
            [*expected.logits, *expected.attention, *(expected.aux or [])],
            strict=True,
        ):
            assert isinstance(other, torch.Tensor)
            scale = max(other.abs().max().item(), 1.0)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("name", ["hrnet_small_ocr", "hrnet_small_fcn", "efficientnet_lite0_lraspp"])
def test_float32_logits_agree_to_rounding(device, name):
    torch.manual_seed(4)
    model = shaken(models.build(name, 19)).to(device)
    images = torch.randn(1, 3, 128, 192, device=device)
    expected = plainly(model, images, (0.5, 1.0, 2.0))
    with torch.inference_mode():
        got = model(images, (0.5, 1.0, 2.0))
        exact = model.double()(images.double(), (0.5, 1.0, 2.0))
    for ours, plain, truth in zip(got.logits, expected.logits, exact.logits, strict=True):
        scale = truth.abs().max()
        # The plain network's own rounding, which weights drawn at random make larger than 1e-6.
        of_plain, of_ours = ((x - truth).abs().max() / scale for x in (plain, ours))
        assert of_ours < max(4 * of_plain, 1e-5)


def test_bfloat16_errors_are_no_larger_than_before(device):
    torch.manual_seed(5)
    model = shaken(models.build("hrnet_small_ocr", 19)).to(device)
    images = torch.randn(1, 3, 128, 192, device=device)
    exact = plainly(model, images, (1.0,)).logits[0]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        plain = plainly(model, images, (1.0,)).logits[0]
        with torch.inference_mode():
            ours = model(images, (1.0,)).logits[0]
    assert (ours - exact).abs().mean() < 1.5 * (plain - exact).abs().mean()


def test_the_features_of_a_scale_go_before_the_next_one_runs(device):
    model = shaken(models.build("hrnet_small_ocr", 5)).to(device)
    images = torch.randn(1, 3, 128, 192, device=device)
    with torch.inference_mode():
        peaks = {}
        for scales in ((2.0,), (0.5, 1.0, 2.0)):
            with LiveBytes().ignore(*model.parameters(), *model.buffers(), images) as meter:
                kept = model(images, scales)
            small = sum(x.nbytes for x in [*kept.logits[1:], *kept.attention, *(kept.aux or [])[1:]])
            peaks[len(scales)] = meter.peak - small
    assert peaks[3] <= 1.01 * peaks[1]


@pytest.mark.parametrize("name", ["hrnet_small_ocr", "hrnet_small_fcn", "resnet50_deeplabv3plus"])
def test_evaluation_takes_a_fraction_of_the_plain_memory(name):
    model = shaken(models.build(name, 5))
    images = torch.randn(1, 3, 256, 512)
    peaks = []
    for save in (True, False):
        handle = None if save else nn.modules.module.register_module_forward_hook(lambda *_: None)
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "STRIP_BYTES", 2**18)
            patch.setattr("hmsa_ext.models.joined_maps.STRIP_BYTES", {"cpu": 2**18})
            patch.setattr("hmsa_ext.models.ocr.KEPT_BYTES", 0)
            if not save:
                for module in ("layers", "hrnet", "ocr", "scale_attention", "residual_blocks", "efficientnet"):
                    if hasattr(getattr(models, module), "saves_memory"):
                        patch.setattr(f"hmsa_ext.models.{module}.saves_memory", lambda module: False)
            with LiveBytes().ignore(*model.parameters(), *model.buffers(), images) as meter:
                model(images, (1.0,))
        peaks.append(meter.peak)
        if handle is not None:
            handle.remove()
    assert peaks[0] < 0.75 * peaks[1]


@pytest.mark.parametrize("block", [BasicBlock(8, 8), Bottleneck(16, 4), BasicBlock(4, 8, stride=2), Bottleneck(4, 4)])
def test_a_block_overwrites_no_input_that_somebody_holds(block):
    shaken(block)
    x = torch.randn(1, next(block.parameters()).shape[1], 8, 8)
    before = x.clone()
    with torch.no_grad():
        block(x)
        Layers(block)(x)
    assert torch.equal(x, before)


def test_outputs_that_hooks_keep_are_not_overwritten():
    stage = Layers(*(BasicBlock(6, 6) for _ in range(3)))
    shaken(stage)
    kept: list[Any] = []
    stage[0].register_forward_hook(lambda module, inputs, output: kept.append(output))
    x = torch.randn(1, 6, 9, 9)
    with torch.no_grad():
        expected = stage[0](x).clone()
        kept.clear()
        stage(x)
    assert torch.equal(kept[0], expected)


def test_hooks_of_inner_layers_are_called():
    head, seen = shaken(OCRHead(12, 3, mid_channels=8, key_channels=4)), []
    for module in head.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    with torch.no_grad():
        head(torch.randn(1, 12, 8, 8))
    inner = [m for m in head.modules() if not any(m.children())]
    assert {id(m) for m in inner} <= {id(m) for m in seen}


def test_a_network_that_was_evaluated_trains_as_before(device):
    torch.manual_seed(6)
    model = models.build("hrnet_small_ocr", 4).to(device)
    other = copy.deepcopy(model)
    images = torch.randn(2, 3, 64, 96, device=device)
    with torch.no_grad():
        model.eval()(images)
    model.train()
    torch.manual_seed(7)
    one = model(images).logits[0]
    torch.manual_seed(7)
    assert torch.equal(one, other(images).logits[0])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_folding_is_exact(kind, bias, affine):
    conv, norm = nn.Conv2d(4, 6, 3, bias=bias, stride=2, groups=2).double(), kind(6, affine=affine).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    weight, offset = folded(conv, norm)
    plain = nn.BatchNorm2d(6, affine=affine).double().eval()  # synchronised batch norm runs on GPUs alone
    plain.load_state_dict(norm.state_dict())
    with torch.no_grad():
        expected = plain(conv(x))
        torch.testing.assert_close(nn.functional.conv2d(x, weight, offset, 2, groups=2), expected, rtol=0, atol=1e-12)


def test_norms_in_training_mode_are_not_folded():
    conv, norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    x = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        got = conv_norm(x, conv, norm, save=True)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(got.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [2**8, 2**30])
def test_a_sum_in_place_is_the_sum(monkeypatch, rows):
    monkeypatch.setattr(layers, "STRIP_BYTES", rows)
    conv, norm = nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False).double(), nn.BatchNorm2d(6).double()
    shaken(norm)
    x, total = torch.randn(1, 4, 21, 9).double(), torch.randn(1, 6, 21, 9).double()
    with torch.no_grad():
        expected = torch.relu(total + norm(conv(x)))
        got = add_conv_norm(total, x, conv, norm)
    assert got is total
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.AvgPool2d(3, 1, 1), nn.Identity()], ids=lambda m: type(m).__name__)
def test_strips_of_layers_are_the_layers(monkeypatch, joined, last):
    monkeypatch.setattr(layers, "STRIP_BYTES", 2**8)
    head = StripLayers(
        nn.Conv2d(7, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 3, padding=3, dilation=3), last,
        nn.Conv2d(5, 2, 1),
    ).double()  # fmt: skip
    shaken(head)
    maps = (torch.randn(2, 3, 41, 11).double(), torch.randn(2, 4, 21, 6).double())
    x = JoinedMaps(maps) if joined else JoinedMaps(maps).tensor()
    with torch.no_grad():
        torch.testing.assert_close(head(x), nn.Sequential(*head)(as_tensor(x)), rtol=0, atol=1e-12)


def test_inference_tensors_leave_parameters_that_train(device):
    model = models.build("hrnet_small_ocr", 4).to(device).eval()
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64, device=device))
    model(torch.randn(1, 3, 64, 64, device=device)).logits[0].sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("strip_bytes", [2**4, 2**40])
def test_resized_maps_are_added_in_place(monkeypatch, strip_bytes, order):
    monkeypatch.setattr(layers, "STRIP_BYTES", strip_bytes)
    total, x = torch.randn(2, 20, 9, 7).contiguous(memory_format=order), torch.randn(2, 20, 5, 4)
    expected = total + nn.functional.interpolate(x, (9, 7), mode="bilinear")
    assert layers.add_resized(total, x) is total
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("size", [(256, 96), (333, 77), (250, 64), (141, 65)])
@pytest.mark.parametrize("name", ["hrnet_small", "hrnet_w18"])
def test_the_first_stage_runs_in_strips(monkeypatch, name, size):
    monkeypatch.setattr(hrnet, "LARGE_STAGE", 1)
    torch.manual_seed(8)
    trunk, images = shaken(models.build_trunk(name)).double(), torch.randn(2, 3, *size).double()
    expected = plainly(trunk, images)
    calls = []
    stem: Any = trunk._stem
    monkeypatch.setattr(trunk, "_stem", lambda rows: calls.append(rows.shape) or stem(rows))
    with torch.no_grad():
        got = trunk(images)
    assert len(calls) > 1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


class Doubled(nn.Conv2d):
    def forward(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x) * 2 + 1


def _dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.train()
            module.p = 0.5


def _batch_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = module.num_batches_tracked = None


def _norms_train(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()


def _group_norms(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                parent.add_module(name, nn.GroupNorm(1, child.num_features).double())


def _derived(model: nn.Module) -> None:
    model.get_submodule("ocr.conv3x3_ocr.0").__class__ = Doubled
    model.get_submodule("backbone.layer1.0.conv2").__class__ = Doubled


def _replaced(model: nn.Module) -> None:
    for name in ("backbone.conv1", "ocr.conv3x3_ocr.0", "backbone.stage2.0.branches.0.0.conv2"):
        conv: Any = model.get_submodule(name)
        conv.forward = lambda x, plain=conv.forward: plain(x) * 2


def _without_bias(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_parameter("bias", None)


@pytest.mark.parametrize(
    "change",
    [_dropout, _batch_statistics, _norms_train, _group_norms, _derived, _replaced, _without_bias],
    ids=lambda change: change.__name__.strip("_"),
)
def test_networks_that_people_changed_give_what_they_give_with_gradients(monkeypatch, change):
    monkeypatch.setattr(layers, "STRIP_BYTES", 2**12)
    monkeypatch.setattr("hmsa_ext.models.joined_maps.STRIP_BYTES", {"cpu": 2**12})
    monkeypatch.setattr("hmsa_ext.models.ocr.KEPT_BYTES", 0)
    monkeypatch.setattr(hrnet, "LARGE_STAGE", 1)
    torch.manual_seed(9)
    model = shaken(models.build("hrnet_small_ocr", 5, dropout=0.5)).double()
    other = copy.deepcopy(model)
    change(model)
    change(other)
    images = torch.randn(2, 3, 161, 130).double()
    torch.manual_seed(10)
    expected = plainly(model, images, (0.5, 1.0)).logits
    torch.manual_seed(10)
    with torch.no_grad():
        got = other(images, (0.5, 1.0)).logits
    for one, truth in zip(got, expected, strict=True):
        torch.testing.assert_close(one, truth, rtol=0, atol=1e-10 * truth.abs().max().item())
    for one, truth in zip(other.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(one, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["backbone.layer1.0.downsample", "backbone.stage2.0.branches.0.0.bn2", "backbone.stage2.0.fuse_layers.1.0"],
)
def test_no_map_that_a_hook_keeps_is_overwritten(name):
    model, kept = shaken(models.build("hrnet_small_ocr", 5)), []
    model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: kept.append((output, output.clone()))
    )
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 96), (1.0,))
    assert kept
    assert all(torch.equal(output, before) for output, before in kept)


def test_convolutions_in_half_precision_beside_norms_in_float32():
    model = models.build("hrnet_small_ocr", 5).eval().bfloat16()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    images = torch.randn(1, 3, 64, 96).bfloat16()
    with torch.no_grad():
        assert torch.isfinite(model(images, (1.0,)).logits[0]).all()


def test_a_trace_serves_other_sizes():
    trunk = shaken(models.build_trunk("hrnet_small"))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are numbers
        traced: Any = torch.jit.trace(trunk, torch.randn(1, 3, 64, 96), check_trace=False)
        images = torch.randn(1, 3, 96, 64)
        torch.testing.assert_close(traced(images), trunk(images), rtol=1e-3, atol=1e-3)
