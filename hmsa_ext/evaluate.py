"""Evaluates a model at several scales: IoU per class, mIoU and pixel accuracy, for its fusion and its rivals.

    python -m hmsa_ext.evaluate runs/NAME                                 # its last checkpoint, on its own data
    python -m hmsa_ext.evaluate runs/NAME/best.pt --eval-scales 0.5,1,2 --flip --picture-folder pictures
    python -m hmsa_ext.evaluate FILE.pth --model hrnet_w48_ocr --num-classes 11 --data camvid --root PATH
    python -m hmsa_ext.evaluate runs/NAME --memory 4GB                    # large images in tiles that fit
    torchrun --nproc-per-node 8 -m hmsa_ext.evaluate runs/NAME            # every image once, over all GPUs

`hmsa evaluate` is the same command. Options that are not given are those of the run. The columns: each scale alone, the
mean of the logits of all scales, the fusion of the model or of --fusion; all from the same pass.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from hmsa_ext import command_line, data, settings
from hmsa_ext.data import NAMES, Dataset, source_type
from hmsa_ext.data.commands import flags_of_others, older_length, older_version
from hmsa_ext.engine import allocator, checkpoint, distributed, results
from hmsa_ext.engine.checkpoint import CheckpointError
from hmsa_ext.engine.device import choose_dtype, place
from hmsa_ext.engine.evaluation import EvaluationResult
from hmsa_ext.engine.settings import Machine, TrainSettings
from hmsa_ext.engine.trained import TrainedModel, default_scales, open_model
from hmsa_ext.files import Output, writable_folder
from hmsa_ext.settings import POSITIVE, Metavar, Positional, SettingError, validate


@dataclass(frozen=True)
class Evaluate:
    """The model and data to evaluate, and files for the results."""

    checkpoint: Annotated[str | None, Positional("RUN_OR_CHECKPOINT")] = None
    """Run folder (its last checkpoint), or a checkpoint file."""
    split: Annotated[str, Metavar("NAME")] = "val"
    """Part of the data set."""
    num_classes: Annotated[int | None, POSITIVE] = None
    """Classes of a checkpoint that is not from a run; such a file also needs --model and --data."""
    json: Annotated[str | None, Metavar("FILE")] = None
    """Write the result as JSON to this file; "-" is standard output, and the text then goes to standard error."""
    picture_folder: Annotated[str | None, Metavar("FOLDER")] = None
    """Draw --pictures images into this folder."""
    run: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        validate(self)


SHOWN = {"model", "fusion", "channels_last", "long_edge"}
"""Options of a training that an evaluation has as well, beside those of data, evaluation and machine."""


def _is_shown(option: settings.Option) -> bool:
    parts = option.path
    if parts[0] != "run":
        return True
    hidden = {"damaged", "cache", "seed", "deterministic", "auto_labels", "auto_images", "coarse_labels"}
    return option.name in SHOWN or (parts[1] in ("data", "evaluation", "machine") and option.name not in hidden)


OLDER: Mapping[str, Any] = {
    "scales": ["--eval-scales"],
    "version": older_version,
    "output": ["--json"],
    "picture-count": ["--pictures"],
    "pictures": lambda value: ["--picture-folder", value] if value and not _is_count_or_flag(value) else None,
}
"""Flags of earlier versions, in today's spelling."""


def _is_count_or_flag(value: str) -> bool:
    return value.removeprefix("-").isdecimal() or value.startswith("--")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    with allocator.follow_live_tensors():
        return command_line.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    command, trained = parse(arguments)
    with distributed.start(command.run.machine.device) as process:
        evaluate(command, trained, process)
    return 0


def parse(arguments: Sequence[str], *, prog: str = "hmsa evaluate") -> tuple[Evaluate, TrainedModel | None]:
    """The settings that a command line asks for, and the model; that of the run where the options are silent."""
    declared = [Evaluate(), *(source_type(name)() for name in NAMES)]
    switches = {o.flag for part in declared for o in settings.options(part) if o.kind is bool} | {"help", "version"}
    name = command_line.peek_positional(arguments, switches)
    foreign, classes = command_line.peek(arguments, "model"), command_line.peek(arguments, "num-classes")
    wanted, fusion = command_line.peek(arguments, "data"), command_line.peek(arguments, "fusion")
    start, trained = Evaluate(run=TrainSettings.of(wanted or "synthetic")), None
    asks = {"--help", "-h", "--version"} & set(arguments)
    if name is not None and not asks:
        trained = _open(name, foreign, None if classes is None else _positive("num_classes", classes), fusion)
        run = TrainSettings.read(trained.settings, data=wanted) if trained.settings else start.run
        run = dataclasses.replace(
            run,
            machine=Machine(dtype=run.machine.dtype),
            model=trained.network,
            evaluation=dataclasses.replace(run.evaluation, scales=default_scales(trained)),
        )
        start = Evaluate(run=run)
    command = command_line.parse(
        start, arguments, prog=prog, description=__doc__ or "", older={**OLDER, **older_length(arguments, "val")},
        shown=_is_shown,
        elsewhere=flags_of_others(start.run.data.name),
    )  # fmt: skip
    return command, trained


def _open(name: str, network: str | None, num_classes: int | None, fusion: str | None) -> TrainedModel:
    """The model; with ``network`` (of --model) the file is asked for its weights alone."""
    if network is None:
        return open_model(name, num_classes=num_classes, fusion=fusion)
    if num_classes is None:
        raise SettingError("num_classes", None, "the number of the checkpoint's classes beside --model")
    try:
        trained = open_model(name, network, num_classes, fusion=fusion)
    except SettingError as error:
        error.name = "model" if error.name == "network" else error.name
        raise
    return dataclasses.replace(trained, settings=None, classes_known=False)


def _positive(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise SettingError(name, text, "a whole number above 0")
    return int(text)


def evaluate(command: Evaluate, trained: TrainedModel | None, process: distributed.Process) -> EvaluationResult:
    """Evaluates as the settings say. Every process returns the same result."""
    assert trained is not None, "the parser asks for a checkpoint"
    run, machine = command.run, command.run.machine
    process = dataclasses.replace(process, text_to_stderr=command.json == "-")
    output = Output(command.json, "json", parents=True) if process.is_main and command.json else None
    folder = None
    if process.is_main and command.picture_folder:
        folder = writable_folder(command.picture_folder, "picture_folder")
    if machine.threads:
        torch.set_num_threads(machine.threads)
    dtype, reason = choose_dtype(machine.dtype, process.device)
    process.print(f"device {process.reason}\ndtype  {reason}")
    model = place(trained.model, process.device, channels_last=run.model.channels_last)
    dataset = open_data(command, trained)
    loader = data.evaluation_loader(
        dataset, rank=process.rank, world_size=process.world_size, workers=machine.workers,
        long_edge=run.crops.long_edge,
    )  # fmt: skip
    return results.report(
        model, data.Cropped(loader, process.device), dataset, run.final_evaluation, process, dtype=dtype,
        long_edge=run.crops.long_edge, output=output, folder=folder, about={"checkpoint": str(trained.path)},
    )  # fmt: skip


def open_data(command: Evaluate, trained: TrainedModel) -> Dataset:
    """The data set to evaluate on; raises when its classes are not those of the model."""
    dataset = command.run.data.open(command.split)
    if trained.classes_known:
        checkpoint.require_classes({"class_names": trained.class_names}, dataset.classes.names, trained.path)
    if trained.num_classes != dataset.classes.num_classes:
        raise CheckpointError(
            f"checkpoint: {trained.path} has {trained.num_classes} classes, but the data has "
            f"{dataset.classes.num_classes} ({', '.join(dataset.classes.names)})"
        )
    data.check(dataset)
    return dataset


if __name__ == "__main__":
    sys.exit(main())
