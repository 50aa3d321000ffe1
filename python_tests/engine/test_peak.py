"""The peak that is told without computing a step is that of the step when it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmsa_ext import settings
from hmsa_ext.engine import dry_run, peak, schedule
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.loop import train as train_loop
from hmsa_ext.engine.peak import (
    AVERAGE,
    GRADIENTS,
    INPUTS,
    OPTIMIZER,
    OTHERS,
    PARAMETERS,
    FakeStepError,
    TrainingTrial,
    evaluation_pass_peak,
    evaluation_peak,
    training_peak,
    training_step_peak,
)
from hmsa_ext.engine.run import open_run
from hmsa_ext.engine.settings import TrainSettings
from hmsa_ext.live_bytes import LiveBytes
from hmsa_ext.models.recomputation import recompute

CROP, CLASSES = (96, 160), 7
pytestmark = pytest.mark.memory


def training(**changes: Any) -> TrainSettings:
    return settings.replace(TrainSettings(), {"model": "hrnet_small_ocr", "batch_size": 2, **changes})


def measured(train: TrainSettings, device: torch.device, dtype: torch.dtype, crop: tuple[int, int] = CROP) -> peak.Peak:
    """The peak of the second step of a network, computed."""
    model = recompute(peak._build(train, CLASSES, device), train.machine.recompute)
    criterion = peak._criterion(train, CLASSES, device)
    optimizer = schedule.build_optimizer(model, train.optimisation)
    average = {n: v.clone() for n, v in model.state_dict().items()} if train.optimisation.ema else None
    for _ in range(2):
        found = training_step_peak(
            model, criterion, optimizer, train, crop, batch_size=train.optimisation.batch_size, dtype=dtype,
            device=device, average=average,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("recomputed", dry_run.RECOMPUTE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_of_a_step_is_the_measured_one(device: torch.device, dtype: torch.dtype, recomputed: str) -> None:
    chosen = training(recompute=recomputed, ema=0.99)
    told, real = training_peak(chosen, CLASSES, CROP, device=device, dtype=dtype), measured(chosen, device, dtype)
    assert told.total == pytest.approx(real.total, rel=0.01)
    for name in (PARAMETERS, OPTIMIZER, AVERAGE):
        assert told.parts[name] == real.parts[name]
    assert told.standing == real.standing


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("rmi", {"channels_last": False, "optimizer": "sgd"}),
        ("rmi", {"fusion": "explicit", "dtype": "bfloat16"}),
        ("bootstrapped", {"fusion": "max", "scales": (0.5, 1.0), "batch_size": 1}),
    ],
)
def test_every_loss_and_fusion_is_told_as_measured(device: torch.device, loss: str, changes: dict[str, Any]) -> None:
    renamed = {"train_scales" if name == "scales" else name: value for name, value in changes.items()}
    chosen = training(loss=loss, **renamed)
    dtype = torch.bfloat16 if chosen.machine.dtype == "bfloat16" else torch.float32
    told = training_peak(chosen, CLASSES, CROP, device=device, dtype=dtype)
    assert told.total == pytest.approx(measured(chosen, device, dtype).total, rel=0.01)


@pytest.mark.parametrize("model", ["resnet50_deeplabv3plus", "efficientnet_lite0_lraspp"])
def test_other_networks_are_told_as_measured(device: torch.device, model: str) -> None:
    chosen, small = training(model=model), (64, 96)
    told = training_peak(chosen, CLASSES, small, device=device, dtype=torch.float32)
    assert told.total == pytest.approx(measured(chosen, device, torch.float32, small).total, rel=0.01)


@pytest.mark.parametrize(("ema", "recomputed"), [(0.0, "none"), (0.9, "all")])
def test_the_training_loop_takes_what_was_told(
    tmp_path: Any, device: torch.device, ema: float, recomputed: str
) -> None:
    """The loop itself, from decoded images to the update, under a meter that knows nothing of parts."""
    chosen = settings.replace(
        TrainSettings.of("synthetic"),
        {"output": str(tmp_path / "run"), "iterations": 3, "length": 8, "val_length": 1, "ema": ema, "eval_every": 0,
         "recompute": recomputed, "pictures": 0, "device": str(device), "dtype": "float32"},
    )  # fmt: skip
    run = open_run(chosen, Process(device))
    held = sum(t.nbytes for t in (*run.model.state_dict().values(), *(run.average or {}).values()))
    with LiveBytes() as meter:
        assert train_loop(run).finished
    classes, crop = run.val_set.classes.num_classes, run.training.sampler.crop
    told = training_peak(run.settings, classes, crop, device=device, dtype=torch.float32)
    assert told.total == pytest.approx(meter.peak + held, rel=0.05)


@pytest.mark.parametrize(("dtype", "flip"), [(torch.float32, False), (torch.bfloat16, True)])
def test_the_peak_of_an_evaluation_is_the_measured_one(device: torch.device, dtype: torch.dtype, flip: bool) -> None:
    chosen, scales = training(), (0.5, 1.0, 2.0)
    told = evaluation_peak(chosen, CLASSES, CROP, scales, device=device, dtype=dtype, flip=flip)
    model = peak._build(chosen, CLASSES, device)
    real = evaluation_pass_peak(model, CLASSES, CROP, scales, device=device, dtype=dtype, flip=flip)
    assert told.total == pytest.approx(real.total, rel=0.02)
    assert OPTIMIZER not in told.parts


def test_the_parts_name_modules_and_add_up() -> None:
    trial = TrainingTrial(training(optimizer="adamw", ema=0.5), CLASSES, torch.device("cpu"))
    found = trial.peak(CROP, batch_size=2, dtype=torch.float32, recomputed="none")
    paths = {name for name, _ in trial.model.named_modules()}
    for name, size in found.parts.items():
        path = name.removeprefix("gradients of ").removesuffix(", recomputed")
        assert size > 0
        assert path in paths or name in (PARAMETERS, GRADIENTS, OPTIMIZER, AVERAGE, INPUTS, OTHERS, "loss", "network")
    parameters = sum(p.nbytes for p in trial.model.parameters())
    assert found.parts[PARAMETERS] == pytest.approx(parameters, rel=0.05)  # and batch norm's statistics
    assert found.parts[OPTIMIZER] == pytest.approx(2 * parameters, rel=0.01)
    assert found.total == sum(found.parts.values()) == found.to_dict()["bytes"]
    assert found.without_optimizer == found.total - found.parts[OPTIMIZER] - found.parts[AVERAGE]
    assert found.standing >= 5 * parameters


def test_crops_so_small_that_the_update_takes_most(device: torch.device) -> None:
    chosen, small = training(model="efficientnet_lite0_lraspp", optimizer="sgd", ema=0.9), (32, 32)
    told = training_peak(chosen, CLASSES, small, device=device, dtype=torch.float32)
    assert told.total == pytest.approx(measured(chosen, device, torch.float32, small).total, rel=0.01)
    assert told.standing <= told.total < 1.5 * told.standing


def test_several_processes_hold_their_gradients_twice() -> None:
    chosen, cpu = training(model="efficientnet_lite0_lraspp"), torch.device("cpu")
    alone, together = (
        training_peak(chosen, CLASSES, CROP, device=cpu, dtype=torch.float32, processes=processes)
        for processes in (1, 4)
    )
    gradients = together.parts[peak.BUCKETS]
    assert together.total == alone.total + gradients
    assert together.standing == alone.standing + gradients


class Looking(nn.Module):
    """A network of somebody else that looks at values."""

    feature_channels = 4

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, num_classes, 1)

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        if images.mean().item() > 1e9:
            raise AssertionError
        features = self.features(images)
        return self.head(features), features


def test_a_network_that_looks_at_values_is_an_error_that_says_so() -> None:
    with pytest.raises(FakeStepError, match=r"memory: a training step of Looking failed .* looks at the values"):
        training_peak(training(model=Looking), CLASSES, CROP, device=torch.device("cpu"), dtype=torch.float32)


def test_a_network_of_somebody_else_is_told_as_measured(device: torch.device) -> None:
    class Plain(Looking):
        def forward(self, images: Tensor) -> Sequence[Tensor]:
            features = self.features(images)
            return self.head(features), features

    chosen = training(model=Plain)
    told = training_peak(chosen, CLASSES, CROP, device=device, dtype=torch.float32)
    assert told.total == pytest.approx(measured(chosen, device, torch.float32).total, rel=0.01)


def test_weights_are_not_read() -> None:
    plain = training(model="efficientnet_lite0_lraspp")
    told = [
        training_peak(chosen, CLASSES, CROP, device=torch.device("cpu"), dtype=torch.float32).total
        for chosen in (plain, settings.replace(plain, {"weights": "/nowhere/weights.pt"}))
    ]
    assert told[0] == told[1]
