"""The watch on the loss, and stop signals."""

import os
import signal
from pathlib import Path

import pytest
import torch

from hmsa_ext.data import Batch
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.guards import LossWatch, TrainingError, stop_signals


def batch(*names: str) -> Batch:
    return Batch(torch.zeros(len(names), 3, 4, 4), torch.ones(len(names), 4, 4, dtype=torch.uint8), list(names))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_names_its_files_and_keeps_its_batch(
    tmp_path: Path, device: torch.device, value: float
) -> None:
    watch = LossWatch(tmp_path, Process(device))
    watch.see(torch.tensor(1.0, device=device), batch("fine"))

    def see_a_bad_one() -> None:
        watch.see(torch.tensor(value, device=device), batch("left", "right"))
        watch.check()  # a GPU's losses are looked at one step later

    with pytest.raises(TrainingError, match="for the batch of left, right"):
        see_a_bad_one()
    kept = torch.load(tmp_path / "bad_batch_rank0.pt", weights_only=True)
    assert kept["names"] == ["left", "right"]
    assert kept["images"].shape == (2, 3, 4, 4)


def test_a_finite_loss_leaves_nothing(tmp_path: Path, device: torch.device) -> None:
    watch = LossWatch(tmp_path, Process(device))
    for _ in range(3):
        watch.see(torch.tensor(0.5, device=device), batch("a"))
    watch.check()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_acts(number: int) -> None:
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        assert stop.number == number
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before
