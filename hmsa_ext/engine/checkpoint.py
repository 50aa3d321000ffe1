"""Checkpoints: written so that a crash never leaves half a file, read without running code from the file.

A checkpoint is one dict. ``state_dict`` holds the weights under the published names; the rest is what a run needs to
continue exactly: ``average`` (moving average or None), ``optimizer``, ``progress`` (step, epoch, batches done in that
epoch, best result, seconds), ``rng`` (PyTorch's generators, per process; all other randomness is a function of seed,
epoch and index), ``config``, ``class_names``, ``versions``.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmsa_ext.engine.config import FREE_ON_RESUME, TrainConfig
from hmsa_ext.engine.distributed import Process
from hmsa_ext.files import replacing

LAST, BEST = "last.pt", "best.pt"


class CheckpointError(ValueError):
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
    path = Path(run_or_file)
    if path.is_dir():
        path = path / LAST
    if not path.is_file():
        raise CheckpointError(f"checkpoint: no file {path}; expected a checkpoint, or a run folder with a {LAST}")
    return path


def load(run_or_file: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Only tensors and plain values are read (``weights_only``), never code."""
    path = find(run_or_file)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"checkpoint: cannot read {path}: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint: {path} holds a {type(content).__name__}, expected a dict of weights")
    return content


def require_classes(content: dict[str, Any], class_names: Sequence[str], path: Path) -> None:
    """Raises when the checkpoint was trained for other classes than the data has."""
    stored = content.get("class_names")
    if stored is not None and list(stored) != list(class_names):
        raise CheckpointError(
            f"checkpoint: {path} was trained for {len(stored)} classes ({', '.join(stored)}), "
            f"but the data has {len(class_names)} ({', '.join(class_names)})"
        )


def require_resumable(
    content: dict[str, Any], config: TrainConfig, class_names: Sequence[str], process: Process, path: Path
) -> None:
    """Raises unless the run in the checkpoint can continue exactly under this configuration."""
    missing = {"state_dict", "optimizer", "progress", "rng", "config", "class_names"} - content.keys()
    if missing:
        raise CheckpointError(
            f"checkpoint: {path} has no {', '.join(sorted(missing))}: it is not a run's checkpoint, so that nothing "
            f"can be resumed from it; use it as initial weights with --weights {path}"
        )
    require_classes(content, class_names, path)
    now = config.to_dict()
    unknown = [k for k in now if k not in content["config"] and k not in FREE_ON_RESUME]
    if unknown:
        raise CheckpointError(
            f"checkpoint: {path} was written by a version without the settings {', '.join(unknown)}: it would not go "
            f"on as it began; begin a new run with --weights {path}"
        )
    stored = {k: v for k, v in content["config"].items() if k in now and k not in FREE_ON_RESUME}
    differing = [f"  {k}: the checkpoint has {v!r}, now {now[k]!r}" for k, v in stored.items() if v != now[k]]
    if differing:
        raise CheckpointError(f"checkpoint: {path} was written under other settings:\n" + "\n".join(differing))
    if len(content["rng"]) != process.world_size:
        raise CheckpointError(
            f"checkpoint: {path} was written by {len(content['rng'])} processes, now there are {process.world_size}; "
            f"resume with as many, or begin a new run with --weights {path}"
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
