"""A run: its folder, data, network and optimizer, and where it stands; begun anew or taken from a checkpoint."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hmsa_ext
from hmsa_ext import data, models, parts, settings
from hmsa_ext.data import Dataset, TrainingSet
from hmsa_ext.engine import checkpoint, distributed, schedule
from hmsa_ext.engine.checkpoint import CheckpointError
from hmsa_ext.engine.device import choose_dtype, place
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.metrics import build_metrics
from hmsa_ext.engine.settings import TrainSettings, unnamed_parts, with_fitted
from hmsa_ext.files import writable_folder
from hmsa_ext.settings import SettingError

CONFIG, RESULTS, PICTURES = "config.yaml", "results.json", "pictures"
MOST_VALIDATIONS = 20
"""In a run that does not say how often to validate."""


@dataclass
class Progress:
    """Where a run stands. ``batch``: batches done in ``epoch``; ``best``: the best validation mIoU so far."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    seconds: float = 0.0


@dataclass
class Run:
    """What the loop works on. ``average``: moving average of the weights, or None; ``steps``: length of the run."""

    settings: TrainSettings
    process: Process
    dtype: torch.dtype
    folder: Path
    training: TrainingSet
    val_set: Dataset
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] | None
    steps: int
    progress: Progress = field(default_factory=Progress)
    log: dict[str, Any] = field(default_factory=dict)
    """What the log had counted since its last record, for a resumed run."""

    def training_batches(self, *, epoch: int, first: int = 0, epochs: int = 1) -> Any:
        """This process's training batches, decoded, from batch number ``first`` of an epoch on, through ``epochs``."""
        process = self.process
        return data.training_loader(
            self.training, batch_size=self.settings.optimisation.batch_size, epoch=epoch, epochs=epochs,
            rank=process.rank, world_size=process.world_size, workers=self.settings.machine.workers, start_batch=first,
            damaged=self.settings.data.damaged,
        )  # fmt: skip

    @property
    def batches_per_epoch(self) -> int:
        """How many training batches this process takes in an epoch."""
        return data.batches_per_epoch(self.training, self.settings.optimisation.batch_size, self.process.world_size)

    @property
    def eval_every(self) -> int:
        """Epochs from one validation to the next; 0: only the last one is validated."""
        wanted = self.settings.records.eval_every
        epochs = math.ceil(self.steps / self.batches_per_epoch)
        return math.ceil(epochs / MOST_VALIDATIONS) if wanted is None else wanted

    def validation_batches(self) -> Any:
        """This process's share of the validation images."""
        process = self.process
        loader = data.evaluation_loader(
            self.val_set, rank=process.rank, world_size=process.world_size, workers=self.settings.machine.workers,
            long_edge=self.settings.crops.long_edge,
        )  # fmt: skip
        return data.Cropped(loader, process.device)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model has the moving average of its weights, where the run keeps one."""
        if self.average is None:
            yield
            return
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def agree_on_statistics(self) -> None:
        """Gives every process the main one's batch-norm statistics, as each training step does before it begins.

        Without synchronized batch norm the last step leaves them different, and with them what is evaluated.
        """
        tensors = [*self.model.buffers(), *(self.average or {}).values()]
        distributed.copy_from_main(self.process, tensors)

    def save(self, *, best: bool = False) -> None:
        """Writes the last checkpoint, and with ``best`` the best one too. Every process must call this; when it returns
        the files are there, whichever process looks."""
        rng = distributed.gather(self.process, checkpoint.rng_state(self.process.device))
        if self.process.is_main:
            self._write(rng, best)
        distributed.wait_for_all(self.process)

    def _write(self, rng: list[dict[str, Tensor]], best: bool) -> None:
        classes = self.val_set.classes
        content = {
            "state_dict": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "log": self.log,
            "rng": rng,
            "config": settings.to_dict(self.settings),
            "class_names": list(classes.names),
            "classes": classes.to_dict(),
            "image_size": list(self.training.image_size),
            "training_data": self.training.fingerprint,
            "versions": versions(),
        }
        # The best one first: a run that is killed between the two then writes it again.
        if best:
            checkpoint.save(self.folder / checkpoint.BEST, content)
        checkpoint.save(self.folder / checkpoint.LAST, content)


def open_run(train: TrainSettings, process: Process, *, resume: str | Path | None = None) -> Run:
    """Everything a run needs, checked before training begins.

    ``resume``: the folder of a run, or a checkpoint in it, which goes on exactly as its last checkpoint left it.

    Raises :class:`hmsa_ext.HmsaError` for whatever does not fit.
    """
    machine = train.machine
    if machine.threads:
        torch.set_num_threads(machine.threads)
    if machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Warn only: a kernel without a deterministic form is named, and the run goes on.
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = not machine.deterministic
    dtype, reason = choose_dtype(machine.dtype, process.device)
    process.print(f"device {process.reason}")
    process.print(f"dtype  {reason}")
    old = None if resume is None else checkpoint.run_folder(resume)
    if process.is_main:
        _check_output(train, old)
    parts.require_objects(train)  # an error now, not after minutes of reading
    train.model.eval_scales(train.evaluation.scales)  # likewise for a fusion that is such an object
    for option, part in unnamed_parts(train).items():
        process.print(
            f"note   {option}: {part} cannot be imported by this name, so that no command can resume or evaluate this "
            "run; a function or class at the top of a module can"
        )

    train, training, val_set = _build_data(train, process)
    classes, optimisation = val_set.classes, train.optimisation
    build_metrics(train.final_evaluation.metrics, classes)  # an error now, not after the training
    stored = None
    if old is not None:
        path = checkpoint.find(old)
        stored = checkpoint.load(path)
        checkpoint.require_resumable(stored, train, classes.names, process, path)

    torch.manual_seed(machine.seed)
    model = models.build(train.model, classes.num_classes)
    if train.model.weights and stored is None:
        # Whatever fits: a file with another head, or a trunk alone, is a good beginning. The rest is listed.
        process.print(models.load_weights(model, train.model.weights))
    model = distributed.with_shared_statistics(model, process)
    model = place(model, process.device, channels_last=train.model.channels_last)
    model = models.recompute(model, machine.recompute)
    optimizer = schedule.build_optimizer(model, optimisation)
    average = {n: v.clone() for n, v in model.state_dict().items()} if optimisation.ema else None
    torch.manual_seed(machine.seed + 1 + process.rank)  # dropout: another stream in every process

    per_epoch = data.batches_per_epoch(training, optimisation.batch_size, process.world_size)
    steps = optimisation.iterations or (optimisation.epochs or 1) * per_epoch
    folder = distributed.from_main(process, _make_folder(train, old) if process.is_main else None)
    run = Run(train, process, dtype, folder, training, val_set, model, optimizer, average, steps)
    if stored is not None:
        _restore(run, stored)
        process.print(f"resumed {folder} after step {run.progress.step} of {steps}")
        if stored.get("training_data", training.fingerprint) != training.fingerprint:
            process.print(
                "note   the training images or their labels changed since the last checkpoint: the run goes on with "
                "what is there now, not as it would have"
            )
    else:
        run.save()  # a run that is killed at once can be resumed like any other
        process.print(f"run    {folder}")
    parameters = sum(p.numel() for p in model.parameters())
    scales = ", ".join(f"{scale:g}" for scale in train.model.train_scales)
    height, width = training.sampler.crop
    extra = f"extra  {training.describe_extra()}\n" if training.extra is not None else ""
    process.print(
        f"model  {_name(train.model.name)}, {parameters / 1e6:.2f} M parameters, {classes.num_classes} classes\n"
        f"fusion {_name(train.model.fusion)}, trained at scale{'s' * (',' in scales)} {scales}\n"
        f"data   {_name(train.data.name)}, {len(training.index)} training and {len(val_set)} validation images\n"
        f"crops  {training.sampler.describe()}\n"
        f"{extra}steps  {steps}, {per_epoch} per epoch, {optimisation.batch_size * process.world_size} crops of "
        f"{height}x{width} each"
    )
    return run


def versions() -> dict[str, str]:
    """Versions of the package, its dependencies and the platform."""
    found = {
        "hmsa_ext": hmsa_ext.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()}
    return {name: str(version) for name, version in found.items()}


def _name(chosen: object) -> str:
    return str(settings.to_plain(chosen))


def _build_data(train: TrainSettings, process: Process) -> tuple[TrainSettings, TrainingSet, Dataset]:
    """Both data sets, looked through, and the settings with what follows from them.

    Every process does this, and finds the same; one per machine makes the index.
    """
    quiet = not process.is_main
    val_set = train.data.open("val")
    with distributed.first_on_machine(process):
        training, reason = data.open_training(
            train.data, train.sampling, train.crops, seed=train.machine.seed, quiet=quiet
        )
        index = data.build_index(val_set, tile=training.index.tile, cache=train.data.cache_path, quiet=quiet)
        data.require_labels(index, "val")
    if train.crops.crop is None:
        height, width = training.sampler.crop
        process.print(f"crop   {height}x{width}: {reason}")
    epochs = train.optimisation.epochs
    if epochs is None and train.optimisation.iterations is None:
        epochs, reason = data.fit_epochs(len(training.index))
        process.print(f"epochs {epochs}: {reason}")
    return with_fitted(train, crops=training.augment, epochs=epochs), training, val_set


def _check_output(train: TrainSettings, old: Path | None) -> None:
    """That the run can write, before hours are spent; nothing is left behind of a folder that is new."""
    if old is not None:
        writable_folder(old, "resume")
        return
    folder = Path(train.records.output or "runs").expanduser()
    if train.records.output and any((folder / name).exists() for name in (CONFIG, checkpoint.LAST)):
        raise SettingError("output", str(folder), "a new folder: this one already holds a run, which can be resumed")
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        writable_folder(folder, "output")
    finally:
        for part in made:
            with contextlib.suppress(OSError):
                part.rmdir()


def _make_folder(train: TrainSettings, old: Path | None) -> Path:
    """A new folder for the run, or that of the run to resume; with the configuration in it."""
    if old is not None:
        checkpoint.remove_leftovers(old)
        return old
    if train.records.output:
        folder = writable_folder(train.records.output, "output")
    else:
        names = [_name(part).rpartition(":")[2] for part in (train.data.name, train.model.name)]
        folder = _new_folder(Path("runs"), f"{names[0]}-{names[1]}-{time.strftime('%Y%m%d-%H%M%S')}")
    train.save(folder / CONFIG)
    return folder


def _new_folder(parent: Path, name: str) -> Path:
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run began in the same second
            number += 1


def _restore(run: Run, stored: dict[str, Any]) -> None:
    try:
        run.model.load_state_dict(stored["state_dict"])
        run.optimizer.load_state_dict(stored["optimizer"])
        if run.average is not None:
            run.average = {n: v.to(run.process.device) for n, v in stored["average"].items()}
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {run.folder / checkpoint.LAST} does not fit the model: {error}") from error
    run.progress = Progress(**stored["progress"])
    run.log = stored.get("log") or {}
    checkpoint.set_rng_state(stored["rng"][run.process.rank], run.process.device)
