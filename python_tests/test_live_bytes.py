"""The meter of live bytes: what lives at once is counted once, and each storage has the part that made it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from hmsa_ext.fake_tensors import RememberingFakes
from hmsa_ext.live_bytes import LiveBytes, LiveParts, Origin

pytestmark = pytest.mark.memory


class Network(nn.Module):
    """Two layers, of which the second one can be computed again in backward; what they keep is known."""

    def __init__(self, *, again: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.again = nn.Linear(8, 64), nn.Sequential(nn.Linear(64, 48), nn.Tanh()), again

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).exp()
        return checkpoint(self.second, y, use_reentrant=False) if self.again else self.second(y)


def test_what_existed_before_is_not_counted(device: torch.device) -> None:
    before = torch.zeros(1000, device=device)
    with LiveBytes() as meter:
        before.add_(1)
        view = before.view(10, 100)
        assert meter.live == 0
        after = view + 1
    assert (meter.live, meter.peak) == (4000, 4000)
    del after
    assert meter.live == 0


def test_ignored_storages_are_not_counted(device: torch.device) -> None:
    with LiveBytes() as outer:
        given = torch.zeros(1000, device=device)
        with LiveBytes().ignore(given) as meter:
            given.view(10, 100).mul_(2)
    assert meter.peak == 0
    assert outer.peak == 4000


def by_part(meter: LiveParts) -> Counter[Origin]:
    found: Counter[Origin] = Counter()
    for origin, size in meter.at_peak():
        found[origin] += size
    assert found.total() == meter.peak
    return found


def test_every_storage_at_the_peak_has_the_module_that_made_it(device: torch.device) -> None:
    network = Network().to(device)
    with LiveParts(network) as meter:
        meter.count("parameters", network.parameters())
        with meter.part("inputs"):
            x = torch.zeros(128, 8, device=device)
        y = network(x)
    assert y.shape == (128, 48)
    found = by_part(meter)
    assert found[Origin("parameters")] == 4 * (8 * 64 + 64 + 64 * 48 + 48)
    assert found[Origin("inputs")] == 4 * 128 * 8
    # The output of the first layer goes when its exponential is there; the peak comes later, with the last output.
    assert found[Origin("")] == 4 * 128 * 64
    assert found[Origin("first")] == 0
    assert found[Origin("second.0")] == found[Origin("second.1")] == 4 * 128 * 48
    assert meter.peak_origin == Origin("second.1")


def test_backward_belongs_to_the_module_whose_forward_pass_it_undoes(device: torch.device) -> None:
    network = Network().to(device)
    x = torch.zeros(128, 8, device=device)
    with LiveParts(network) as meter:
        with meter.part("loss"):
            loss = network(x).square().sum()
        live = {meter.live}
        network.second[1].register_full_backward_hook(lambda *_: live.add(meter.live))
        loss.backward()
        meter.count("gradients", (p.grad for p in network.parameters() if p.grad is not None))
    found = by_part(meter)
    assert {origin.phase for origin in found} <= {"", "gradients"}
    assert meter.peak_origin.phase == "gradients"
    assert meter.peak_origin.part in ("second.0", "second.1", "", "loss")
    assert found[Origin("gradients")] in (0, 4 * (64 * 48 + 48), 4 * (64 * 48 + 48 + 64 * 8 + 64))


def test_what_is_computed_again_says_so(device: torch.device) -> None:
    network = Network(again=True).to(device)
    network.second[1] = nn.Softmax(1)  # wide enough that the peak comes in backward
    network.second[0] = nn.Linear(64, 4096, device=device)
    x = torch.zeros(128, 8, device=device)
    with LiveParts(network) as meter:
        loss = network(x).sum()
        loss.backward()
    found = by_part(meter)
    assert found[Origin("second.1", "recomputed")] == 4 * 128 * 4096


def test_a_network_that_fails_leaves_no_hooks_and_no_part(device: torch.device) -> None:
    network = Network().to(device)
    with LiveParts(network) as meter:
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 9, device=device))
        with meter.part("after"):
            later = torch.zeros(4096, device=device)
    assert by_part(meter)[Origin("after")] == later.nbytes
    modules = torch.nn.modules.module
    assert not modules._global_forward_hooks
    assert not modules._global_forward_pre_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("fakes", [FakeTensorMode, RememberingFakes])
@pytest.mark.parametrize("again", [False, True])
def test_fake_tensors_count_like_real_ones(device: torch.device, fakes: type[FakeTensorMode], again: bool) -> None:
    def measured() -> tuple[int, Counter[Origin]]:
        with device:
            network, x = Network(again=again), torch.zeros(128, 8)
        with LiveParts(network) as meter:
            network(x).square().sum().backward()
        return meter.peak, by_part(meter)

    real = measured()
    with fakes():
        for _ in range(2):  # the second time by what was remembered
            assert measured() == real
