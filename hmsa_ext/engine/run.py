"""A run: its folder, data, network and optimizer, and where it stands; begun anew or taken from a checkpoint."""

import contextlib
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hmsa_ext
from hmsa_ext import data, models
from hmsa_ext.data import Dataset, TrainingSet
from hmsa_ext.engine import checkpoint, distributed, schedule
from hmsa_ext.engine.checkpoint import CheckpointError
from hmsa_ext.engine.config import ConfigError, TrainConfig
from hmsa_ext.engine.device import choose_dtype, memory_format
from hmsa_ext.engine.distributed import Process

CONFIG, RESULTS, PICTURES = "config.yaml", "results.json", "pictures"


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

    config: TrainConfig
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

    def training_batches(self, *, epoch: int, first: int = 0, epochs: int = 1) -> Any:
        """This process's training batches, decoded, from batch number ``first`` of an epoch on, through ``epochs``."""
        config, process = self.config, self.process
        return data.training_loader(
            self.training, batch_size=config.batch_size, epoch=epoch, epochs=epochs, rank=process.rank,
            world_size=process.world_size, workers=config.workers, start_batch=first, damaged=config.damaged,
        )  # fmt: skip

    @property
    def batches_per_epoch(self) -> int:
        """How many training batches this process takes in an epoch."""
        return data.batches_per_epoch(self.training, self.config.batch_size, self.process.world_size)

    def validation_batches(self) -> Any:
        """This process's share of the validation images."""
        process = self.process
        loader = data.evaluation_loader(
            self.val_set, rank=process.rank, world_size=process.world_size, workers=self.config.workers,
            long_edge=self.config.long_edge,
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
        content = {
            "state_dict": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "rng": rng,
            "config": self.config.to_dict(),
            "class_names": list(self.val_set.classes.names),
            "versions": versions(),
        }
        checkpoint.save(self.folder / checkpoint.LAST, content)
        if best:
            checkpoint.save(self.folder / checkpoint.BEST, content)


def open_run(config: TrainConfig, process: Process) -> Run:
    """Everything a run needs, checked before training begins; with ``config.resume`` as its last checkpoint left it.

    Raises :class:`ConfigError`, :class:`CheckpointError`, :class:`hmsa_ext.data.DataError` or
    :class:`hmsa_ext.models.WeightError` for whatever does not fit.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Warn only: a kernel without a deterministic form is named, and the run goes on.
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = not config.deterministic
    dtype, reason = choose_dtype(config.dtype, process.device)
    process.print(f"device {process.reason}")
    process.print(f"dtype  {reason}")

    training, val_set = _build_data(config, process)
    classes = val_set.classes
    stored = None
    if config.resume:
        path = checkpoint.find(config.resume)
        stored = checkpoint.load(path)
        checkpoint.require_resumable(stored, config, classes.names, process, path)

    torch.manual_seed(config.seed)
    model = models.build(config.model, classes.num_classes)
    if config.weights and stored is None:
        # Whatever fits: a file with another head, or a trunk alone, is a good beginning. The rest is listed.
        process.print(models.load_weights(model, config.weights))
    model = distributed.with_shared_statistics(model, process)
    model = model.to(process.device, memory_format=memory_format(config.channels_last))
    optimizer = schedule.build_optimizer(model, config)
    average = {n: v.clone() for n, v in model.state_dict().items()} if config.ema else None
    torch.manual_seed(config.seed + 1 + process.rank)  # dropout: another stream in every process

    per_epoch = data.batches_per_epoch(training, config.batch_size, process.world_size)
    steps = config.iterations or config.epochs * per_epoch
    folder = distributed.from_main(process, _make_folder(config) if process.is_main else None)
    run = Run(config, process, dtype, folder, training, val_set, model, optimizer, average, steps)
    if stored is not None:
        _restore(run, stored)
        process.print(f"resumed {folder} after step {run.progress.step} of {steps}")
    else:
        run.save()  # a run that is killed at once can be resumed like any other
        process.print(f"run    {folder}")
    parameters = sum(p.numel() for p in model.parameters())
    process.print(
        f"model  {config.model}, {parameters / 1e6:.2f} M parameters, {classes.num_classes} classes\n"
        f"data   {config.data}, {len(training.index)} training and {len(val_set)} validation images\n"
        f"crops  {training.sampler.describe()}\n"
        f"steps  {steps}, {per_epoch} per epoch, {config.batch_size * process.world_size} crops of "
        f"{config.crop[0]}x{config.crop[1]} each"
    )
    return run


def versions() -> dict[str, str]:
    """What the run was computed with."""
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


def dataset_options(config: TrainConfig) -> dict[str, Any]:
    """What :func:`hmsa_ext.data.build` needs to know of the data set of a run, whatever the split."""
    own = {field.name for field in fields(data.source_type(config.data))}
    names = ("root", "size", "fold", "version", "description")
    given = {name: getattr(config, name) for name in names}
    return {name: value for name, value in given.items() if value not in (None, 0) or (name == "fold" and name in own)}


def _build_data(config: TrainConfig, process: Process) -> tuple[TrainingSet, Dataset]:
    """Both data sets, looked through. Every process does this, and finds the same; one per machine makes the index."""
    options = dataset_options(config)
    train_set = data.build(config.data, "train", length=config.length, **options)
    val_set = data.build(config.data, "val", length=config.val_length, **options)
    extra = None
    if config.extra != "none":
        own = {"extra": config.extra}
        if config.extra == "autolabelled":
            own |= {
                "min_probability": config.min_probability,
                "coarse_classes": config.coarse_classes,
                "region_of_interest": config.region_of_interest,
            }
        extra = data.build(config.data, "train_extra", **(options | own))
    augment = data.Augment(
        config.crop, config.scale_range, config.mirror, config.colour, config.blur, long_edge=config.long_edge
    )
    sampling = data.Sampling(
        config.sampling, config.sampling_share, config.sampling_weights, config.sampling_temperature,
        config.sampling_epochs, config.extra_classes,
    )  # fmt: skip
    cache = None if config.cache == "none" else Path(config.cache) if config.cache else data.cache_folder()
    quiet = not process.is_main
    with distributed.first_on_machine(process):
        training = data.prepare(
            train_set, augment, sampling, seed=config.seed, extra=extra, tile=config.sampling_tile, cache=cache,
            skip_damaged=config.damaged == "skip", quiet=quiet,
        )  # fmt: skip
        data.build_index(val_set, tile=training.index.tile, cache=cache, quiet=quiet)
    return training, val_set


def _make_folder(config: TrainConfig) -> Path:
    """A new folder for the run, or that of the run to resume; with the configuration in it."""
    if config.resume:
        folder = Path(config.resume)
        checkpoint.remove_leftovers(folder)
        return folder
    if config.output:
        folder = Path(config.output)
        if any((folder / name).exists() for name in (CONFIG, checkpoint.LAST)):
            raise ConfigError(f"output: {folder} already holds a run; expected a new folder, or --resume {folder}")
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = _new_folder(Path("runs"), f"{config.data}-{config.model}-{time.strftime('%Y%m%d-%H%M%S')}")
    config.save(folder / CONFIG)
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
    checkpoint.set_rng_state(stored["rng"][run.process.rank], run.process.device)
