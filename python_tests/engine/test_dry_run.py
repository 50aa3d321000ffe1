"""A dry run tells the memory of a training without its data, and advice that holds when it is followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hmsa_ext import settings, train
from hmsa_ext.data import DataSettings
from hmsa_ext.engine.dry_run import DTYPES, GPUS, RECOMPUTE, SHARE_OF_GPU, DryRun, Step, dry_run, known_classes
from hmsa_ext.engine.peak import TrainingTrial
from hmsa_ext.engine.settings import TrainSettings
from hmsa_ext.errors import HmsaError

CPU = torch.device("cpu")
MODEL = {"model": "efficientnet_lite0_lraspp", "crop": (128, 256), "batch_size": 4, "optimizer": "sgd"}


@pytest.fixture(scope="module")
def found() -> DryRun:
    return dry_run(settings.replace(TrainSettings(), MODEL), device=CPU, limit=2**40)


@pytest.fixture(scope="module")
def trial(found: DryRun) -> TrainingTrial:
    """Another network for the same training."""
    return TrainingTrial(found.train, found.num_classes, CPU)


def followed(trial: TrainingTrial, found: DryRun, changes: dict[str, Any]) -> int:
    """The peak of a step with the changes that were advised."""
    changed = settings.replace(found.train, changes)
    return trial.peak(
        changed.crops.crop_size, batch_size=changed.optimisation.batch_size,
        dtype=getattr(torch, changes.get("dtype", found.dtype)), recomputed=changed.machine.recompute,
    ).total  # fmt: skip


def test_all_settings_are_told_and_the_chosen_one_by_part(found: DryRun) -> None:
    assert found.options.keys() == {(mode, dtype) for mode in RECOMPUTE for dtype in DTYPES}
    assert found.peak.total == found.options["none", "float32"] == sum(found.peak.parts.values())
    assert found.options["none", "bfloat16"] < found.options["none", "float32"]
    assert found.options["all", "float32"] < found.options["none", "float32"]


def test_what_fits_needs_no_remedy(found: DryRun) -> None:
    remedy = found.remedy(found.peak.total)
    assert remedy is not None
    assert (remedy.changes, remedy.peak, remedy.flags) == ({}, found.peak.total, "")
    assert any("fit this machine" in text for text in found.advice())


def test_remedies_hold_when_they_are_followed(found: DryRun, trial: TrainingTrial) -> None:
    """From just too little memory down to what is there without any crop, each remedy fits, and asks for more."""
    least = min(found.options.values())
    limits = [found.peak.total - 1, least, least - 1]
    limits += [int(found.peak.standing + share * (least - found.peak.standing)) for share in (0.8, 0.4, 0.2)]
    kinds = []
    for limit in limits:
        remedy = found.remedy(limit)
        assert remedy is not None
        peak = followed(trial, found, dict(remedy.changes))
        assert peak <= remedy.peak <= limit
        kinds.append(frozenset(remedy.changes))
    assert kinds[0] == {"recompute"}
    assert any("batch_size" in kind for kind in kinds)
    assert "crop" in kinds[-1]


def test_no_remedy_brings_a_step_below_its_parameters(found: DryRun) -> None:
    assert found.remedy(found.peak.standing) is None
    too_small = DryRun(**{**vars(found), "limit": found.peak.standing})
    assert "take a smaller network" in too_small.advice()[0]


def test_advice_for_too_little_memory_names_the_flags_that_help(found: DryRun) -> None:
    limit = found.peak.total - 1
    advice = DryRun(**{**vars(found), "limit": limit}).advice()
    remedy = found.remedy(limit)
    assert remedy is not None
    assert f"{remedy.flags} brings them to {remedy.peak / 1e9:.2f} GB" in advice[0]
    assert any(text.startswith("--dtype bfloat16 brings this to") for text in advice)
    assert sum(remedy.flags in text for text in advice) == 1


def test_every_gpu_has_a_row_and_what_fits_it(found: DryRun) -> None:
    facts, text = found.to_dict(), found.as_text()
    assert [row["gigabytes"] for row in facts["gpus"]] == list(GPUS)
    for row in facts["gpus"]:
        assert row["remedy"]["bytes"] <= SHARE_OF_GPU * 1e9 * row["gigabytes"]
        assert f"{row['gigabytes']} GB" in text
    assert json.loads(json.dumps(facts))["peak"]["bytes"] == found.peak.total


@pytest.mark.parametrize(
    ("data", "number"), [("cityscapes", 19), ("camvid", 11), ("ade20k", 150), ("synthetic", 11), ("kitti", 19)]
)
def test_classes_of_known_data_sets_are_known(data: str, number: int) -> None:
    assert known_classes(DataSettings.of(data)) == (number, None)


def test_classes_that_only_files_say_are_assumed_and_that_is_said() -> None:
    number, reason = known_classes(DataSettings.of("folder"))
    assert number == 19
    assert reason is not None
    assert "folder" in reason


def test_the_command_reads_no_data_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [
        "--data",
        "folder",
        "--root",
        str(tmp_path / "absent"),
        "--model",
        "efficientnet_lite0_lraspp",
        "--dry-run",
    ]
    assert train.main(flags) == 0
    text = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for part in ("parameters and buffers", "optimizer state", "--recompute", "GPU of", "19 are assumed", "512x512"):
        assert part in text


def test_the_step_that_was_asked_for_is_told_first() -> None:
    chosen = settings.replace(TrainSettings(), {**MODEL, "recompute": "all"})
    told: list[str | Step] = []
    found = dry_run(chosen, device=CPU, limit=2**40, watch=told.append, tell=told.append)
    assert told[:2] == ["--recompute all, float32", ""]
    (step,) = (one for one in told if isinstance(one, Step))
    assert told.index(step) == 2
    assert step.peak == found.peak
    assert found.as_text() == f"{step.step_as_text()}\n\n{found.choices_as_text()}"


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--data",
        "camvid",
        "--model",
        "efficientnet_lite0_lraspp",
        "--crop",
        "96x128",
        "--batch-size",
        "2",
        "--recompute",
        "all",
        "--ema",
        "0.9",
    ]
    file = tmp_path / "dry.json"
    assert train.main([*flags, "--dry-run", "--json", str(file)]) == 0
    assert capsys.readouterr().out == ""
    facts = json.loads(file.read_text())
    assert (facts["classes"], facts["crop"], facts["recompute"], facts["assumed"]) == (11, [96, 128], "all", {})
    assert facts["peak"]["bytes"] == sum(facts["peak"]["parts"].values())
    assert "moving average" in facts["peak"]["parts"]
    assert facts["evaluation"]["scales"] == [0.5, 1.0, 2.0]


def test_json_is_for_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--json", "-"]) == 2
    assert "json: got '-', expected no value without --dry-run" in capsys.readouterr().err


def test_a_batch_that_the_network_refuses_is_the_same_error_as_in_training() -> None:
    chosen = settings.replace(TrainSettings(), {"model": "resnet50_deeplabv3plus", "crop": (64, 64), "batch_size": 1})
    with pytest.raises(HmsaError, match="batch norm in training needs more than one"):
        dry_run(chosen, device=CPU, limit=2**40)
