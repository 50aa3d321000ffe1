"""Several processes: they agree, and together do what one would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import hmsa_ext
from hmsa_ext import evaluate
from hmsa_ext.engine import distributed
from hmsa_ext.engine.device import choose_device, choose_dtype
from hmsa_ext.engine.distributed import Process
from hmsa_ext.settings import SettingError


def torchrun(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What the two processes of a run have to say."""
    worker = Path(__file__).with_name("ddp_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
    # The processes import the package that is tested here, installed or not.
    environment = os.environ | {"PYTHONPATH": str(Path(hmsa_ext.__file__).parents[1])}
    done = subprocess.run(
        [*command, str(folder), *arguments], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.distributed
def test_two_processes_train_one_model_and_score_every_image_once(tmp_path: Path, miniature: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", "1", "--val-length", "3", "--batch-size", "1", "--crop", "64x128", "--output", str(run))
    ranks = torchrun(tmp_path, *miniature, *flags)
    assert [r["world_size"] for r in ranks] == [2, 2]
    # Stopped after its first step and resumed: the generators of both processes go on.
    assert [r["finished"] for r in ranks] == [[False, True]] * 2
    assert [r["steps"] for r in ranks] == [[1, 4]] * 2
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["result"] == ranks[1]["result"]
    assert ranks[0]["result"]["images"] == 3  # an odd number over two processes
    # One process evaluating the checkpoint counts the same pixels.
    file = tmp_path / "alone.json"
    assert evaluate.main([str(run), "--device", "cpu", "--threads", "1", "--output", str(file)]) == 0
    alone = json.loads(file.read_text())
    assert alone["miou"] == pytest.approx(ranks[0]["result"]["miou"], abs=1e-6)
    assert alone["pixel_accuracy"] == pytest.approx(ranks[0]["result"]["pixel_accuracy"], abs=1e-6)


def train_with_two(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Two processes of the command itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = os.environ | {"PYTHONPATH": str(Path(hmsa_ext.__file__).parents[1])}
    flags = ["--device", "cpu", "--threads", "1", "--crop", "64x96", "--batch-size", "1", "--max-minutes", "1e-9"]
    return subprocess.run(
        [*command, "hmsa_ext.train", *flags, "--output", str(folder / "run"), *arguments],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip


@pytest.mark.distributed
def test_of_two_processes_one_reads_the_labels_and_both_hear_of_problems(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            for folder, picture in ((split, np.zeros((64, 64, 3))), (f"{split}annot", np.eye(64))):
                (tmp_path / folder).mkdir(exist_ok=True)
                assert cv2.imwrite(str(tmp_path / folder / f"{name}.png"), picture.astype(np.uint8))
    data = ("--data", "camvid", "--root", str(tmp_path), "--cache", str(tmp_path / "cache"))
    done = train_with_two(tmp_path, *data)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("read 2 label maps") == 2  # of train and of val, each once
    assert cv2.imwrite(str(tmp_path / "trainannot" / "b.png"), np.full((64, 64), 99, np.uint8))
    done = train_with_two(tmp_path / "again", *data)
    assert done.returncode != 0
    assert done.stderr.count("error: 1 problem in 2 images") == 1
    assert "b.png: values that are no class: 99 in 4096 pixels" in done.stderr


def test_one_process_passes_everything_through() -> None:
    process, model = Process(torch.device("cpu")), nn.BatchNorm2d(3)
    values = torch.tensor([2**40 + 1])
    assert distributed.wrap(model, process, all_used=True) is model
    assert distributed.with_shared_statistics(model, process) is model
    assert distributed.total(process, values) is values
    assert distributed.any_process(process, True, False) == (True, False)
    assert distributed.gather(process, "x") == ["x"]
    assert distributed.from_main(process, "x") == "x"
    distributed.wait_for_all(process)
    with distributed.first_on_machine(process):
        pass


def test_batch_norm_is_synchronised_only_between_gpus() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    on_cpu = distributed.with_shared_statistics(model, Process(torch.device("cpu"), rank=1, world_size=2))
    assert [type(layer) for layer in on_cpu.children()] == [nn.BatchNorm2d]
    on_gpu = distributed.with_shared_statistics(model, Process(torch.device("cuda"), rank=1, world_size=2))
    assert [type(layer) for layer in on_gpu.children()] == [nn.SyncBatchNorm]


class WithActivation(nn.BatchNorm2d):
    """A layer that PyTorch would convert, and lose the ReLU of."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


class ConvertsItself(nn.Sequential):
    """A module that knows how its layers are synchronised."""

    def with_shared_statistics(self) -> nn.Module:
        return nn.Sequential(nn.SyncBatchNorm(3), nn.ReLU())


def test_batch_norm_that_does_more_is_kept_or_converts_itself(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(WithActivation(3), nn.Sequential(nn.BatchNorm2d(3)), ConvertsItself(WithActivation(3)))
    process = Process(torch.device("cuda"), world_size=2)
    first, second, third = distributed.with_shared_statistics(model, process).children()
    assert type(first) is WithActivation
    assert [type(layer) for layer in second.children()] == [nn.SyncBatchNorm]
    assert [type(layer) for layer in third.children()] == [nn.SyncBatchNorm, nn.ReLU]
    assert "statistics per process in 1 layers WithActivation" in capsys.readouterr().out


def test_the_choice_of_device_and_arithmetic_gives_its_reason() -> None:
    device, reason = choose_device("cpu")
    assert (device.type, reason) == ("cpu", "cpu: asked for")
    assert choose_dtype("auto", device) == (torch.float32, "float32 (default on the CPU)")
    assert choose_dtype("bfloat16", device) == (torch.bfloat16, "bfloat16: asked for")


@pytest.mark.parametrize("wanted", ["tpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(wanted: str) -> None:
    with pytest.raises(SettingError, match=f"device: got '{wanted}'"):
        choose_device(wanted)
