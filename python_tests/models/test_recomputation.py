"""Recomputed networks: the same gradients, statistics and dropout, in less memory."""

import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from hmsa_ext import HmsaError, models
from hmsa_ext.live_bytes import LiveBytes
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import MultiScale, RecomputeError, recompute
from hmsa_ext.models.recomputation import MODES, is_recomputed

NETWORKS = ("hrnet_small_ocr", "hrnet_small_fcn", "efficientnet_lite0_lraspp", "resnet50_deeplabv3plus")
SAVING = [mode for mode in MODES if mode != "none"]


def step(model: nn.Module, images: torch.Tensor, target: torch.Tensor, dtype: torch.dtype | None = None):
    """Loss, gradients and buffers of a training step."""
    torch.manual_seed(11)
    model.zero_grad()
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
        outputs = model(images)
    loss = MultiScaleLoss("ce", scale_weight=0.1)(outputs, target)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, {name: b.clone() for name, b in model.named_buffers()}


def batch(device, dtype=torch.float64, size=(72, 104), count=2):
    torch.manual_seed(12)
    images = torch.randn(count, 3, *size, dtype=dtype, device=device)
    return images, torch.randint(0, 5, (count, *size), dtype=torch.uint8, device=device)


def assert_same(found, expected, tolerance: float) -> None:
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=0, atol=tolerance * (gradient.abs().max().item() + 1e-3), msg=name
        )
    for name, buffer in expected[2].items():
        assert torch.equal(found[2][name], buffer), name


@pytest.mark.parametrize("mode", SAVING)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_statistics_and_dropout_are_those_of_the_plain_network(device, name, mode):
    model = models.build(name, 5, dropout=0.3).double().to(device)
    again = recompute(copy.deepcopy(model), mode)
    data = batch(device)
    expected = step(model, *data)
    assert any(is_recomputed(m) for m in again.modules())
    assert_same(step(again, *data), expected, 1e-12)
    assert_same(step(again, *data), step(model, *data), 1e-12)  # a second step, on the statistics of the first


@pytest.mark.parametrize("mode", SAVING)
@pytest.mark.parametrize("fusion", ["explicit", "mean"])
def test_other_fusions_too(device, fusion, mode):
    model = models.build("hrnet_small_ocr", 5, fusion=fusion).double().to(device)
    again = recompute(copy.deepcopy(model), mode)
    data = batch(device)
    assert_same(step(again, *data), step(model, *data), 1e-12)


@pytest.mark.parametrize("mode", SAVING)
def test_autocast_is_the_same_in_the_second_pass(device, mode):
    model = models.build("hrnet_small_ocr", 5).to(device)
    again = recompute(copy.deepcopy(model), mode)
    data = batch(device, torch.float32)
    expected, found = step(model, *data, torch.bfloat16), step(again, *data, torch.bfloat16)
    assert torch.equal(found[0], expected[0])
    for name, gradient in expected[1].items():
        # Of seven bits, in other orders of adding; another dtype in the second pass would be an error.
        assert (found[1][name] - gradient).norm() <= 0.03 * gradient.norm() + 1e-4, name


@pytest.mark.parametrize("mode", SAVING)
def test_frozen_norms_and_parameters_stay_so(device, mode):
    model = models.build("hrnet_small_ocr", 5).double().to(device)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model.backbone.requires_grad_(False)
    again = recompute(copy.deepcopy(model), mode)
    data = batch(device)
    expected, found = step(model, *data), step(again, *data)
    assert not any(name.startswith("backbone") for name in found[1])
    assert_same(found, expected, 1e-12)


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_statistics_of_a_cumulative_average_are_updated_once(device, momentum):
    model = models.build("hrnet_small_ocr", 5).double().to(device)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    again = recompute(copy.deepcopy(model), "all")
    data = batch(device)
    for _ in range(2):
        assert_same(step(again, *data), step(model, *data), 1e-12)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + torch.relu(self.norm(self.conv(nn.functional.dropout(x, 0.2, self.training))))


class Foreign(nn.Module):
    """A network of others: a stem, lists of blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.blocks = nn.ModuleList(Block(8) for _ in range(3))
        self.stage = nn.Sequential(nn.Sequential(Block(8), Block(8)), Block(8))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def forward(self, images):
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        x = self.stage(x)
        return self.head(x), x


@pytest.mark.parametrize("mode", SAVING)
def test_a_foreign_network_is_recomputed_by_its_children(device, mode):
    model = MultiScale(Foreign(), feature_channels=8, bottleneck=8).double().to(device)
    again = recompute(copy.deepcopy(model), mode)
    chosen = [name for name, module in again.named_modules() if is_recomputed(module)]
    blocks = [f"network.blocks.{i}" for i in range(3)] + [f"network.stage.{i}" for i in ("0.0", "0.1", "1")]
    assert chosen == [*blocks, "network.head", "scale_attn"]
    data = batch(device)
    assert_same(step(again, *data), step(model, *data), 1e-12)


class Counter(nn.Module):
    """A module whose output depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * self.calls


class Renewing(Counter):
    """The same, by a new buffer each time."""

    def forward(self, x):
        self.calls = self.calls + 1
        return self.conv(x) * self.calls


@pytest.mark.parametrize("kind", [Counter, Renewing])
def test_a_module_that_counts_its_calls_is_an_error(kind):
    network = Foreign()
    network.blocks[1] = kind()
    model = recompute(MultiScale(network, feature_channels=8, bottleneck=8), "modules")
    with pytest.raises(RecomputeError, match=rf"recompute: {kind.__name__} writes to its buffer calls in forward"):
        model(torch.randn(2, 3, 32, 32))
    recompute(model, "none")(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("mode", SAVING)
def test_less_memory_is_kept_the_more_is_recomputed(mode):
    peaks = {}
    images, target = batch("cpu", torch.float32, (256, 512), count=1)
    model = models.build("hrnet_w18_ocr", 5)
    for chosen in ("none", mode):
        recompute(model, chosen)
        with LiveBytes().ignore(*model.parameters(), *model.buffers(), images) as meter:
            MultiScaleLoss("ce")(model(images), target).backward()
        peaks[chosen] = meter.peak
        model.zero_grad()
    assert peaks[mode] < {"modules": 0.45, "all": 0.35}[mode] * peaks["none"]


def test_modes_can_be_changed_and_left(device):
    model = models.build("hrnet_small_ocr", 5).double().to(device)
    kinds = [type(m) for m in model.modules()]
    names = list(model.state_dict())
    data = batch(device)
    for mode in ("all", "modules", "none"):
        assert recompute(model, mode) is model
        assert list(model.state_dict()) == names
        assert all(isinstance(m, kind) for m, kind in zip(model.modules(), kinds, strict=True))
    assert [type(m) for m in model.modules()] == kinds
    step(model, *data)


@pytest.mark.parametrize("mode", SAVING)
def test_copies_and_pickles_keep_it(mode):
    model = recompute(models.build("hrnet_small_ocr", 5), mode)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert [is_recomputed(m) for m in other.modules()] == [is_recomputed(m) for m in model.modules()]
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
        assert not set(map(id, other.modules())) & set(map(id, model.modules()))
        other(torch.randn(2, 3, 64, 64)).logits[0].sum().backward()
        assert other.get_parameter("ocr.cls_head.weight").grad is not None
        assert model.get_parameter("ocr.cls_head.weight").grad is None


def test_an_unknown_mode_is_refused():
    with pytest.raises(HmsaError, match=r"recompute: .*'some'.* none, modules, all|recompute: got 'some'"):
        recompute(nn.Linear(2, 2), "some")
    with pytest.raises(HmsaError, match="recompute"):
        recompute(nn.Linear(2, 2), ["all"])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mode", SAVING)
def test_without_gradients_nothing_changes(mode):
    model = models.build("hrnet_small_ocr", 5).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images).fuse()
        assert torch.equal(recompute(model, mode)(images).fuse(), expected)


@pytest.mark.parametrize("mode", SAVING)
def test_a_compiled_network_gives_the_same_and_updates_once(mode):
    torch._dynamo.reset()
    model = MultiScale(Plain(), feature_channels=8, bottleneck=8)
    again = recompute(copy.deepcopy(model), mode)
    data = batch("cpu", torch.float32)
    expected = step(model, *data)
    compiled: Any = torch.compile(again, backend="aot_eager")
    found = step(compiled, *data)
    found = found[0], {n.removeprefix("_orig_mod."): g for n, g in found[1].items()}, dict(again.named_buffers())
    torch.testing.assert_close(found[0], expected[0])
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)
    for name, buffer in expected[2].items():
        torch.testing.assert_close(found[2][name], buffer)


class Plain(Foreign):
    """Without dropout, which a compiled graph draws otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3))
        self.stage = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), nn.ReLU())


def _train_in_group(rank: int, file: str, mode: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(13)
    model = recompute(models.build("hrnet_small_ocr", 5).double(), mode)
    for unused in (False, True):
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
        images, target = batch("cpu", size=(64, 64), count=4)
        found = step(wrapped, images[rank::2], target[rank::2])
        del wrapped
    if rank == 0:
        torch.save(found, results)
    dist.destroy_process_group()


def test_gradients_are_averaged_over_processes(tmp_path):
    found = {}
    for mode in MODES:
        files = [str(tmp_path / f"{mode}-{name}") for name in ("group", "results")]
        spawn(_train_in_group, (files[0], mode, files[1]), nprocs=2)
        found[mode] = torch.load(files[1])
    for mode in SAVING:
        assert_same(found[mode], found["none"], 1e-12)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(MODES, 2)))
def test_a_step_does_not_depend_on_the_mode_before(one, other):
    model = models.build("hrnet_small_fcn", 5).double()
    data = batch("cpu")
    expected = step(copy.deepcopy(model), *data)
    assert_same(step(recompute(recompute(model, one), other), *data), expected, 1e-12)


@pytest.mark.parametrize("mode", SAVING)
def test_a_graph_that_is_kept_goes_backward_again(mode):
    model = models.build("hrnet_small_ocr", 5).double()
    again = recompute(copy.deepcopy(model), mode)
    images, _ = batch("cpu")
    found = []
    for network in (model, again):
        torch.manual_seed(14)
        loss = network(images).logits[0].square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-11 * (gradient.abs().max().item() + 1e-3))
    for one, other in zip(again.buffers(), model.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_copy_refers_to_itself():
    model = recompute(models.build("hrnet_small_ocr", 5), "modules")
    block: Any = model.get_submodule("backbone.layer1.0")
    block.friends = [block]
    other: Any = copy.deepcopy(model).get_submodule("backbone.layer1.0")
    assert other.friends[0] is other
