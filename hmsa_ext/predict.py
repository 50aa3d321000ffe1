"""Predicts photos, folders of photos and videos with a trained model, and writes labels and pictures.

    hmsa predict photo.jpg --model runs/NAME --output OUT                          # OUT/photo.png: label numbers
    hmsa predict PHOTOS --model runs/NAME --output OUT --write labels,overlay      # a folder, the same tree out
    hmsa predict clip.mp4 --model runs/NAME --output OUT                           # OUT/clip.overlay.mp4
    hmsa predict "DAY*/*.jpg" @LIST.txt --model runs/NAME --output OUT             # globs, files with names
    find . -name "*.jpg" | hmsa predict - --model runs/NAME --output OUT           # names on standard input
    hmsa predict PHOTOS --model FILE.pth --network hrnet_w48_ocr --classes cityscapes --output OUT
    hmsa predict PHOTOS --model runs/NAME --output OUT --shard 3/8                 # the third of eight machines
    torchrun --nproc-per-node 8 -m hmsa_ext.predict PHOTOS --model runs/NAME --output OUT

A second call goes on where the first one was stopped: files that were made with this model and these settings are not
made again. OUT/classes.json says what the numbers mean.

Exit status: 0 when everything is predicted, 1 when some sources could not be read (they are named), 2 for an error that
stopped the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch

from hmsa_ext import command_line, settings
from hmsa_ext.data.progress import duration
from hmsa_ext.engine import allocator, distributed
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.evaluation import ScaleSettings
from hmsa_ext.engine.settings import Machine
from hmsa_ext.engine.trained import TrainedModel, open_model
from hmsa_ext.errors import HmsaError
from hmsa_ext.files import Output, writable_folder
from hmsa_ext.models import FUSIONS, NAMES
from hmsa_ext.models.settings import FUSION_HELP
from hmsa_ext.parts import Part, one_of, spelled
from hmsa_ext.prediction.batch import Files, Summary, merged, predict_all
from hmsa_ext.prediction.outputs import Outputs
from hmsa_ext.prediction.predictor import Predictor, run_defaults
from hmsa_ext.prediction.settings import PictureSettings, PredictionSettings
from hmsa_ext.prediction.sources import Item, Shard, find_sources, shard
from hmsa_ext.settings import POSITIVE, Flag, Metavar, Positional, require, validate

PATIENCE = timedelta(days=30)
"""That a process waits at the end for the others."""
WAITING = 0.25
"""Share of the memory for photos that were decoded ahead of the network, and for results on their way to the disk."""
MORE_SHOWN = 10
"""Sources that could not be read, in the last lines."""


@dataclass(frozen=True)
class Work:
    """What to predict, with which model, and where to."""

    sources: Annotated[tuple[str, ...], Positional("SOURCE ...", many=True)] = ()
    """Photos, folders, globs, @FILE (a file with one name a line), - (names on standard input), videos, camera:0, or
    the address of a stream."""
    trained: Annotated[str | None, Flag("model"), Metavar("RUN")] = None
    """Run folder (its last checkpoint), checkpoint or .safetensors file."""
    output: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder for the results."""
    network: Annotated[Part | None, one_of(NAMES)] = None
    """Network of a checkpoint that is not from a run."""
    num_classes: Annotated[int | None, POSITIVE] = None
    """Classes of such a checkpoint; default: as many as its weights have."""
    fusion: Annotated[Part | None, one_of(FUSIONS)] = field(default=None, metadata={"help": FUSION_HELP})
    classes: Annotated[str | None, Metavar("NAME")] = None
    """Data set whose classes such a checkpoint has, such as cityscapes: names, colours and numbers for the results."""
    shard: Shard = (1, 1)
    """Predict the K-th of N parts of the sources, for N machines that share the work."""
    redo: bool = False
    """Predict again what is there already."""
    json: Annotated[str | None, Metavar("FILE")] = None
    """Write what was done as JSON to this file; "-" is standard output, and the text then goes to standard error."""
    pictures: PictureSettings = field(default_factory=PictureSettings)
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    evaluation: ScaleSettings = field(default_factory=ScaleSettings)
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Predict(Work):
    """What to predict, with which model, and where to."""

    frames: Annotated[int | None, POSITIVE] = None
    """Predict the first so many frames of a video, camera or stream."""


Command = TypeVar("Command", bound=Work)

SHOWN = {"eval_scales", "flip", "device", "dtype", "threads"}
"""Options of evaluation and machine that a prediction has as well."""


def is_shown(option: settings.Option) -> bool:
    return option.path[0] not in ("evaluation", "machine") or option.name in SHOWN


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    with allocator.follow_live_tensors():
        return command_line.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    command, trained = parse(arguments)
    with saying_how_to_go_on(), distributed.start(command.machine.device, patience=PATIENCE) as process:
        summary = predict(command, trained, process)
        # Together: torchrun ends all processes as soon as one ends with a status other than 0.
        distributed.wait_for_all(process)
        return int(bool(summary.skipped))


@contextlib.contextmanager
def saying_how_to_go_on() -> Iterator[None]:
    """Adds a line where Ctrl-C or SIGTERM ends the work."""
    try:
        yield
    except (KeyboardInterrupt, command_line.Terminated):
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise


def parse(arguments: Sequence[str], *, prog: str = "hmsa predict") -> tuple[Predict, TrainedModel]:
    """The settings that a command line asks for, and the model; scales are those of the run unless given."""
    return parse_work(Predict(), arguments, prog=prog, description=__doc__ or "", shown=is_shown)


def parse_work(
    start: Command, arguments: Sequence[str], *, prog: str, description: str, shown: Callable[[settings.Option], bool]
) -> tuple[Command, TrainedModel]:
    """The same for any command that predicts; ``start`` has its defaults.

    Raises :class:`hmsa_ext.HmsaError` for values that do not fit.
    """
    name = command_line.peek(arguments, "model")
    trained = None
    if name is not None and not {"--help", "-h", "--version"} & set(arguments):
        classes = command_line.peek(arguments, "num-classes")
        number = None if classes is None else settings.read_number(classes, int) if classes.isdecimal() else -1
        require("num_classes", classes, number is None or number > 0, "a whole number above 0")
        trained = open_model(
            name, command_line.peek(arguments, "network"), number, command_line.peek(arguments, "classes"),
            fusion=command_line.peek(arguments, "fusion"),
        )  # fmt: skip
        scales, flip = run_defaults(trained)
        start = dataclasses.replace(start, evaluation=ScaleSettings(scales=scales, flip=flip))
    command = command_line.parse(start, arguments, prog=prog, description=description, shown=shown)
    for missing, expected in (
        (not command.sources, "SOURCE: photos, folders or videos"),
        (trained is None, f"--model RUN: {_runs_here()}"),
        (not command.output, "--output FOLDER: where the results go"),
    ):
        if missing:
            raise command_line.UsageError(f"{prog.rpartition(' ')[2]}: expected {expected}; got none")
    assert trained is not None
    trained.network.eval_scales(command.evaluation.scales)  # refuses scales by the name of their flag
    return command, trained


def _runs_here() -> str:
    """What --model takes, with the runs that lie in the usual place."""
    runs = sorted(Path("runs").glob("*/last.pt"), key=lambda path: path.stat().st_mtime)
    here = f"; the newest run here is {runs[-1].parent}" if runs else ""
    return f"a run folder, a checkpoint or a .safetensors file{here}"


def predict(command: Predict, trained: TrainedModel, process: Process) -> Summary:
    """Predicts as the settings say; this process takes its share of the sources. Returns what all of them did."""
    process, report = reporting(command, process)
    folder, items, predictor = prepare(command, trained, process)
    outputs = Outputs(folder, predictor, command.pictures, frames=command.frames)
    outputs.require_apart(items)
    if process.is_main and (warning := outputs.describe()):
        print(f"warning: {warning}", file=sys.stderr)
    own = share(command, items, process)
    announce(predictor, items, own, process)
    begin = time.perf_counter()
    part = predict_share(command, predictor, own, outputs, process)
    summary = merged(distributed.gather(process, part))
    conclude(command, summary, predictor, time.perf_counter() - begin, process, report)
    return summary


def reporting(command: Work, process: Process) -> tuple[Process, Output | None]:
    """The process, whose text goes to standard error where standard output is for JSON; and the file of the JSON."""
    process = dataclasses.replace(process, text_to_stderr=command.json == "-")
    return process, Output(command.json, "json", parents=True) if process.is_main and command.json else None


def prepare(command: Work, trained: TrainedModel, process: Process) -> tuple[Path, list[Item], Predictor]:
    """The folder of the results, all sources, and the predictor. Raises :class:`hmsa_ext.HmsaError`."""
    assert command.output is not None
    folder = writable_folder(command.output, "output")
    # One process looks: standard input is for one, and all take their shares of the same list.
    found = find_sources(command.sources, output=folder, stdin=sys.stdin) if process.is_main else None
    items: list[Item] = distributed.from_main(process, found)
    if command.machine.threads:
        torch.set_num_threads(command.machine.threads)
    predictor = Predictor(
        trained, process.device, dtype=command.machine.dtype, scales=command.evaluation.scales,
        flip=command.evaluation.flip, settings=command.prediction, waiting=WAITING if len(items) > 1 else 0.0,
    )  # fmt: skip
    return folder, items, predictor


def share(command: Work, items: Sequence[Item], process: Process) -> list[Item]:
    """What this process takes of the sources."""
    part, parts = command.shard
    return shard(list(items), (part - 1) * process.world_size + process.rank, parts * process.world_size)


def predict_share(
    command: Work, predictor: Predictor, own: Sequence[Item], outputs: Files, process: Process
) -> Summary:
    """Predicts the sources of this process. Raises :class:`hmsa_ext.HmsaError`."""
    try:
        return predict_all(
            predictor, own, outputs, redo=command.redo, quiet=not process.is_main, say=process.print
        )  # fmt: skip
    except HmsaError as error:
        error.local = True  # type: ignore[attr-defined]  # the others do not have it: this process says it
        raise


def announce(predictor: Predictor, items: Sequence[Item], own: Sequence[Item], process: Process) -> None:
    classes = predictor.classes
    scales = ", ".join(f"{scale:g}" for scale in predictor.scales)
    share = "" if len(own) == len(items) else f"; this process takes {len(own)}"
    process.print(
        f"device {process.reason or predictor.device_reason}\ndtype  {predictor.dtype_reason}\n"
        f"model  {predictor.trained.path}, {classes.num_classes} classes\n"
        f"fusion {spelled(predictor.trained.network.fusion)}\n"
        f"scales {scales}{', and mirrored' if predictor.flip else ''}\n"
        f"found  {len(items)} source{'s' * (len(items) != 1)}{share}"
    )


def conclude(
    command: Work, summary: Summary, predictor: Predictor, seconds: float, process: Process, report: Output | None
) -> None:
    """The last lines, and the JSON."""
    if process.is_main:
        _print_summary(summary, seconds, command.output, process)
    if report is not None:
        report.write(json.dumps(_as_json(summary, predictor, seconds), indent=2) + "\n")


def _print_summary(summary: Summary, seconds: float, output: str | None, process: Process) -> None:
    what = f"{summary.predicted} predicted"
    if summary.frames:
        what += f" ({summary.frames} video frames)"
    if summary.already:
        what += f", {summary.already} there already"
    if summary.pictures:
        spent = summary.seconds
        what += (
            f" in {duration(seconds)}, {summary.pictures / seconds:.3g} pictures a second; the network "
            f"waited {100 * spent.waited / seconds / process.world_size:.0f} % of the time"
        )
    process.print(f"{what}\nresults are in {output}")
    if summary.skipped:
        names = [path for path, _ in summary.skipped]
        part = ", or not to the end" if summary.videos else ""
        more = f" and {len(names) - MORE_SHOWN} more" if len(names) > MORE_SHOWN else ""
        print(f"{len(names)} could not be predicted{part}: {', '.join(names[:MORE_SHOWN])}{more}", file=sys.stderr)


def _as_json(summary: Summary, predictor: Predictor, seconds: float) -> dict[str, Any]:
    spent = dataclasses.asdict(summary.seconds)
    return {
        "predicted": summary.predicted,
        "frames": summary.frames,
        "already_done": summary.already,
        "skipped": [{"source": path, "reason": reason} for path, reason in summary.skipped],
        "seconds": round(seconds, 3),
        "seconds_by_part": {name: round(value, 3) for name, value in spent.items()},
        "peak_bytes": summary.peak,
        "waiting_bytes": summary.waiting,
        "model": str(predictor.trained.path),
    }


if __name__ == "__main__":
    sys.exit(main())
