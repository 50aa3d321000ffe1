"""Checkpoint files: whole or absent, read without code, refused with a reason."""

from pathlib import Path

import pytest
import torch

from hmsa_ext import settings
from hmsa_ext.engine import checkpoint
from hmsa_ext.engine.checkpoint import CheckpointError
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.settings import TrainSettings

PROCESS = Process(torch.device("cpu"))
TRAIN = TrainSettings.of("synthetic")


def config(**changes: object) -> dict[str, object]:
    return settings.to_dict(settings.replace(TRAIN, changes))


class Unwritable:
    """Something whose pickling fails half-way through the file."""

    def __reduce__(self):
        raise RuntimeError("disk on fire")


def content(**changes: object) -> dict[str, object]:
    return {
        "state_dict": {},
        "average": None,
        "optimizer": {},
        "progress": {},
        "rng": [checkpoint.rng_state(PROCESS.device)],
        "config": config(),
        "class_names": ["road", "sky"],
    } | changes


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", content(weights=torch.arange(3)))
    loaded = checkpoint.load(tmp_path)
    assert loaded["weights"].tolist() == [0, 1, 2]
    assert loaded["config"] == config()
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", {"step": 1})
    with pytest.raises(RuntimeError, match="disk on fire"):
        checkpoint.save(tmp_path / "last.pt", {"step": 2, "bad": Unwritable()})
    assert checkpoint.load(tmp_path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.123.tmp").write_bytes(b"half")
    (tmp_path / "last.pt").write_bytes(b"whole")
    checkpoint.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"x": Path("evil")}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a checkpoint at all"])
def test_a_broken_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"cannot read .*last\.pt"):
        checkpoint.load(tmp_path)


def test_a_missing_file_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*last\.pt; expected"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["road", "car"]}, r"trained for 2 classes \(road, car\), but the data has 2 \(road, sky\)"),
        ({"config": config(lr=0.5)}, r"lr: the checkpoint has 0\.5, now"),
        ({"config": config(model="hrnet_w18_ocr")}, "model: the checkpoint has 'hrnet_w18_ocr'"),
        ({"rng": [{}, {}]}, "written by 2 processes, now there are 1"),
        (
            {"config": {"lr": TRAIN.optimisation.lr}},
            "written by a version without the settings .*sampling.*weights: ",
        ),
    ],
)
def test_a_run_of_other_settings_is_not_resumed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.require_resumable(content(**changes), TRAIN, ["road", "sky"], PROCESS, Path("last.pt"))


def test_a_run_of_before_the_fusions_goes_on_as_the_hierarchy_that_it_was() -> None:
    older = config()
    del older["fusion"]
    older["scales"] = [0.5, 1.0]
    del older["train_scales"]
    now = settings.replace(TRAIN, {"train_scales": "0.5,1"})
    checkpoint.require_resumable(content(config=older), now, ["road", "sky"], PROCESS, Path("last.pt"))
    for change, message in (
        ({"train_scales": "0.25,1"}, "train_scales: the checkpoint has"),
        ({"fusion": "mean"}, "fusion: the checkpoint has 'hierarchical', now 'mean'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.require_resumable(
                content(config=older), settings.replace(now, change), ["road", "sky"], PROCESS, Path("last.pt")
            )


def test_bare_weights_are_not_resumed() -> None:
    with pytest.raises(CheckpointError, match=r"has no class_names, config, optimizer, progress, rng, .*weights: "):
        checkpoint.require_resumable({"state_dict": {}}, TRAIN, ["road"], PROCESS, Path("x.pt"))


def test_settings_outside_the_computation_may_change() -> None:
    stored = content(config=config(workers=3, log_every=1))
    checkpoint.require_resumable(stored, TRAIN, ["road", "sky"], PROCESS, Path("last.pt"))


def test_generators_continue_where_they_were(device: torch.device) -> None:
    state = checkpoint.rng_state(device)
    first = torch.rand(3), torch.rand(3, device=device)
    checkpoint.set_rng_state(state, device)
    second = torch.rand(3), torch.rand(3, device=device)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
