"""Learning rate, optimizer, moving average."""

import pytest
import torch
from torch import nn

from hmsa_ext.engine.schedule import build_optimizer, learning_rate, set_learning_rate, update_average
from hmsa_ext.engine.settings import Optimisation


def test_learning_rate_decays_as_a_power_per_step() -> None:
    rates = [learning_rate(i, steps=4, base=0.8, exponent=2.0) for i in range(4)]
    assert rates == pytest.approx([0.8, 0.8 * 0.75**2, 0.8 * 0.5**2, 0.8 * 0.25**2])


def test_warmup_is_linear_and_ends_at_the_decay() -> None:
    plain = [learning_rate(i, steps=100, base=1.0) for i in range(10)]
    warm = [learning_rate(i, steps=100, base=1.0, warmup=4) for i in range(10)]
    assert warm[:4] == pytest.approx([p * f for p, f in zip(plain, (0.25, 0.5, 0.75, 1.0), strict=False)])
    assert warm[4:] == plain[4:]


def test_learning_rate_is_never_negative_past_the_end() -> None:
    assert learning_rate(12, steps=10, base=1.0, exponent=0.9) == 0.0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_holds_all_parameters_and_takes_the_rate(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = build_optimizer(model, Optimisation(optimizer=name, weight_decay=0.03))
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 4
    assert group["weight_decay"] == 0.03
    set_learning_rate(optimizer, 0.123)
    assert group["lr"] == 0.123


def test_average_moves_weights_and_statistics_and_copies_counters() -> None:
    model = nn.BatchNorm2d(2)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(1.0)
        model.num_batches_tracked.fill_(7)
    update_average(average, model, 0.75)
    assert average["weight"].tolist() == [1.5, 1.5]
    assert average["running_mean"].tolist() == [0.25, 0.25]
    assert average["num_batches_tracked"].item() == 7
