"""A run that was stopped or killed and continued has the weights of one that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hmsa_ext import train
from hmsa_ext.engine import checkpoint

LENGTH = ("--epochs", "2", "--eval-every", "1")


def states(folder: Path) -> dict[str, Any]:
    content = checkpoint.load(folder)
    return {k: content[k] for k in ("state_dict", "average", "optimizer", "rng")} | {
        k: content["progress"][k] for k in ("step", "epoch", "batch", "best")
    }


def assert_equal(a: Any, b: Any, name: str = "") -> None:
    """Equality to the last bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), name
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{name}[{i}]")
    else:
        assert a == b, name


@pytest.mark.parametrize("options", [("--ema", "0.9"), ("--optimizer", "adamw", "--lr", "1e-3", "--workers", "1")])
def test_a_run_in_pieces_equals_a_run_in_one(
    tmp_path: Path, miniature: tuple[str, ...], options: tuple[str, ...]
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    begin = (*miniature, *LENGTH, "--length", "4", *options)  # two epochs of two steps
    assert train.main([*begin, "--output", str(whole)]) == 0
    # Stopped after the first step of a piece: in the middle of an epoch, and at its end.
    assert train.main([*begin, "--output", str(pieces), "--max-minutes", "1e-9"]) == 0
    for step in (1, 2):
        assert states(pieces)["step"] == step
        assert train.main(["--resume", str(pieces), "--max-minutes", "1e-9"]) == 0
    assert states(pieces)["step"] == 3
    assert not (pieces / "results.json").exists()
    assert train.main(["--resume", str(pieces), "--max-minutes", "0"]) == 0
    assert_equal(states(pieces), states(whole))
    results = [json.loads((run / "results.json").read_text()) for run in (pieces, whole)]
    assert results[0]["miou"] == results[1]["miou"]


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, miniature: tuple[str, ...]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begin = (*miniature, *LENGTH, "--checkpoint-seconds", "0")
    assert train.main([*begin, "--output", str(whole)]) == 0
    command = [sys.executable, "-m", "hmsa_ext.train", *begin, "--output", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_step(killed / "metrics.jsonl", 2, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 1 <= states(killed)["step"] < 8
    (killed / ".last.pt.1.tmp").write_bytes(b"half a checkpoint")
    assert train.main(["--resume", str(killed)]) == 0
    assert_equal(states(killed), states(whole))
    assert not list(killed.glob(".*.tmp"))
    steps = [r["step"] for r in records(killed) if r["kind"] == "train"]
    assert steps == list(range(1, 9))  # what the killed run wrote after its last checkpoint is there once


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_and_the_run_can_be_continued(
    tmp_path: Path, miniature: tuple[str, ...], number: int
) -> None:
    command = [sys.executable, "-m", "hmsa_ext.train", *miniature, "--epochs", "500", "--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for_step(tmp_path / "run" / "metrics.jsonl", 1, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "continue with --resume" in output
    assert states(tmp_path / "run")["step"] == records(tmp_path / "run")[-1]["step"]


def test_resume_of_other_settings_is_refused_before_training(
    tmp_path: Path, miniature: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*miniature, "--output", str(tmp_path / "run"), "--max-minutes", "1e-9"]) == 0
    before = checkpoint.load(tmp_path / "run")
    assert train.main(["--resume", str(tmp_path / "run"), "--batch-size", "4"]) == 2
    assert "batch_size: got 4, the run has 2" in capsys.readouterr().err
    changed = before | {"class_names": ["cat", "dog"]}
    checkpoint.save(tmp_path / "run" / "last.pt", changed)
    assert train.main(["--resume", str(tmp_path / "run")]) == 2
    assert "was trained for 2 classes (cat, dog)" in capsys.readouterr().err


def test_a_run_on_images_that_changed_says_so(
    tmp_path: Path, miniature: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*miniature, "--output", str(tmp_path / "run"), "--max-minutes", "1e-9"]) == 0
    content = checkpoint.load(tmp_path / "run")
    for data, said in ((content["training_data"], False), ("other", True), (None, False)):
        changed = {k: v for k, v in (content | {"training_data": data}).items() if v is not None or k == "average"}
        checkpoint.save(tmp_path / "run" / "last.pt", changed)
        capsys.readouterr()
        assert train.main(["--resume", str(tmp_path / "run"), "--max-minutes", "1e-9"]) == 0
        assert ("training images or their labels changed" in capsys.readouterr().out) == said


def test_a_run_of_the_version_before_automatic_labels_goes_on(tmp_path: Path, miniature: tuple[str, ...]) -> None:
    assert train.main([*miniature, "--output", str(tmp_path / "run"), "--max-minutes", "1e-9"]) == 0
    content = checkpoint.load(tmp_path / "run")
    for name in (
        "auto_labels", "auto_images", "coarse_labels", "min_probability", "class_threshold", "boundary_margin",
        "drop_classes", "coarse_use", "extra_crops",
    ):  # fmt: skip
        del content["config"][name]
    checkpoint.save(tmp_path / "run" / "last.pt", content | {"config": content["config"] | {"extra_classes": []}})
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(content["config"] | {"extra_classes": []}))
    assert train.main(["--resume", str(tmp_path / "run"), "--max-minutes", "1e-9"]) == 0
    assert states(tmp_path / "run")["step"] == 2


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(file: Path, step: int, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and f'"step": {step},' in file.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in {file}, exit status {process.poll()}, {os.listdir(file.parent)}")
