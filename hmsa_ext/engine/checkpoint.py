"""Checkpoints: written so that a crash never leaves half a file, read without running code from the file.

A checkpoint is one dict. ``state_dict`` holds the weights under the published names. The rest is what a run needs to
continue exactly: ``average`` (moving average or None), ``optimizer``, ``progress`` (step, epoch, batches done in that
epoch, best result, seconds), ``log`` (counts since the last record), ``rng`` (PyTorch's generators, per
process; every other random number is a function of seed, epoch and index), ``config`` (the settings by flat name),
``class_names``, ``classes`` (names, colours and ids), ``image_size`` (typical height and width of the training images
in pixels, at the size that ``long_edge`` gives), ``training_data`` (its fingerprint) and ``versions``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmsa_ext import settings
from hmsa_ext.data.automatic.trust import Trust
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.settings import TrainSettings, differences
from hmsa_ext.errors import HmsaError
from hmsa_ext.files import replacing
from hmsa_ext.models import WeightError, read_checkpoint

LAST, BEST = "last.pt", "best.pt"
RUNS_SHOWN = 5
IMPLIED = {"fusion": "hierarchical", "extra_crops": "by_class", **settings.to_dict(Trust())}
"""Settings that came later, each with what earlier versions did."""


class CheckpointError(HmsaError, ValueError):
    """A checkpoint that cannot be used; the message names the file, what it holds and what was expected."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that is either the old one or the new one, whatever happens meanwhile."""
    with replacing(path) as file:
        torch.save(content, file)


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files of a run that was killed while it wrote."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def find(run_or_file: str | Path) -> Path:
    """The checkpoint file that a run folder (its last one) or a file name means."""
    path = Path(run_or_file).expanduser()
    if path.is_file():
        return path
    file = path / LAST if path.is_dir() else path
    if not file.is_file():
        inside = sorted(str(found.parent) for found in path.glob(f"*/{LAST}"))
        hint = f"; these are runs: {', '.join(inside[:RUNS_SHOWN])}" if inside else ""
        raise CheckpointError(f"checkpoint: no file {file}; expected a checkpoint, or a run folder with a {LAST}{hint}")
    return file


def run_folder(run_or_file: str | Path) -> Path:
    """The folder of a run, given itself or a checkpoint in it."""
    path = Path(run_or_file).expanduser()
    return path.parent if path.is_file() else path


def load(run_or_file: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Only tensors and plain values are read (``weights_only``), never code."""
    path = find(run_or_file)
    try:
        content = read_checkpoint(path)
    except WeightError as error:
        raise CheckpointError(f"checkpoint: cannot read {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint: {path} holds a {type(content).__name__}, expected a dict of weights")
    return content


def require_classes(content: dict[str, Any], class_names: Sequence[str], path: Path) -> None:
    """Raises when the checkpoint was trained for other classes than the data has."""
    stored = content.get("class_names")
    if stored is not None and list(stored) != list(class_names):
        raise CheckpointError(
            f"checkpoint: {path} was trained for {len(stored)} classes ({', '.join(stored)}), "
            f"but the data has {len(class_names)} ({', '.join(class_names)}); expected the same names in the same "
            "order: name the classes of the data so, or take a model of these classes"
        )


def require_resumable(
    content: dict[str, Any], train: TrainSettings, class_names: Sequence[str], process: Process, path: Path
) -> None:
    """Raises unless the run in the checkpoint can continue exactly under these settings."""
    missing = {"state_dict", "optimizer", "progress", "rng", "config", "class_names"} - content.keys()
    if missing:
        raise CheckpointError(
            f"checkpoint: {path} has no {', '.join(sorted(missing))}, so it is not the checkpoint of a run, and no run "
            f"can be resumed from it; begin a new run with its weights (setting weights: {path})"
        )
    require_classes(content, class_names, path)
    stored = IMPLIED | content["config"]
    unknown = [o.name for o in settings.options(train) if not ({o.name, *o.was} & stored.keys()) and not o.free]
    if unknown:
        raise CheckpointError(
            f"checkpoint: {path} was written by a version without the settings {', '.join(unknown)}, so it would not "
            f"go on as it began; begin a new run with its weights (setting weights: {path})"
        )
    differing = differences(stored, train)
    if differing:
        lines = "\n".join(f"  {name}: the checkpoint has {a!r}, now {b!r}" for name, (a, b) in differing.items())
        raise CheckpointError(f"checkpoint: {path} was written under other settings:\n{lines}")
    if len(content["rng"]) != process.world_size:
        raise CheckpointError(
            f"checkpoint: {path} was written by {len(content['rng'])} processes, now there are {process.world_size}; "
            f"resume with as many, or begin a new run with its weights (setting weights: {path})"
        )


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of PyTorch's generators that this process uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Puts PyTorch's generators where :func:`rng_state` found them."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
