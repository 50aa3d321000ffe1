"""Trains a multi-scale model, evaluates it and draws what it does.

    python -m hmsa_ext.train                                              # the main job: CPU, two to six minutes
    python -m hmsa_ext.train --data camvid --root PATH                    # one GPU if there is one, else the CPU
    torchrun --nproc-per-node 8 -m hmsa_ext.train --data camvid --root PATH --batch-size 2
    python -m hmsa_ext.train --resume runs/NAME                           # continue exactly where it stopped
    python -m hmsa_ext.train --config runs/NAME/config.yaml --lr 0.005    # like that run, but for one setting
    python -m hmsa_ext.train --data cityscapes --dry-run                  # the memory that it takes; trains nothing

`hmsa train` is the same command. The flags below are for the data set of --data; each data set has its own:
`hmsa train --data cityscapes --help` shows them.

A run writes one folder: config.yaml, metrics.jsonl, TensorBoard files, last.pt, best.pt, results.json, curve.png and
pictures/. Steps and learning rates are for the batch over all processes; the trainer scales neither.

Exit status: 0 trained, stopped by --max-minutes, or --dry-run has printed; 2 wrong use; 130 and 143 stopped by Ctrl-C
and SIGTERM, after the step and its checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from hmsa_ext import command_line, parts, settings
from hmsa_ext.data.commands import flags_of_others, older_version
from hmsa_ext.engine import allocator, checkpoint, distributed, loop, results
from hmsa_ext.engine.device import choose_device
from hmsa_ext.engine.dry_run import dry_run
from hmsa_ext.engine.evaluation import EvaluationResult
from hmsa_ext.engine.memory import allowed
from hmsa_ext.engine.run import CONFIG, open_run
from hmsa_ext.engine.settings import TrainSettings, differences, read_file, read_recipe, recipe_names
from hmsa_ext.files import Output
from hmsa_ext.settings import FREE, Metavar, SettingError


@dataclass(frozen=True)
class Train:
    """Sources of settings besides the flags."""

    config: Annotated[str | None, FREE, Metavar("FILE")] = field(
        default=None,
        metadata={
            "help": "YAML file of settings, such as the config.yaml of a run, or the name of a recipe that comes "
            f"along: {', '.join(recipe_names())}; flags override it."
        },
    )
    resume: Annotated[str | None, FREE, Metavar("RUN")] = None
    """Run folder to continue exactly where its last checkpoint stands, with its own settings."""
    dry_run: Annotated[bool, FREE] = False
    """Print the memory that the training takes, by part, and what to change where it is too much; read no data, train
    nothing."""
    json: Annotated[str | None, FREE, Metavar("FILE")] = None
    """Write what --dry-run finds as JSON; - is standard output."""
    training: TrainSettings = field(default_factory=TrainSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    command = parse(arguments)
    if command.dry_run:
        return _dry_run(command)
    pace = allocator.SELDOM if command.training.machine.recompute == "none" else allocator.OFTEN
    with allocator.follow_live_tensors(pace), distributed.start(command.training.machine.device) as process:
        started = open_run(command.training, process, resume=command.resume)
        outcome = loop.train(started)
        if outcome.finished:
            results.finish(started)
    return 128 + outcome.signal if outcome.signal else 0


def _dry_run(command: Train) -> int:
    """Prints the memory of the training, or writes it as JSON; touches neither data nor run folder."""
    output = Output(command.json, "json") if command.json else None
    train = command.training
    device, reason = choose_device(train.machine.device, int(os.environ.get("LOCAL_RANK", 0)))
    parts.require_objects(train)
    processes, is_main = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("RANK", "0") == "0"
    if not is_main:
        return 0
    # For people the step that they asked for comes at once, what they may choose instead takes some seconds more.
    found = dry_run(
        train, device=device, limit=allowed(device, None), processes=processes, watch=command_line.progress_line(),
        tell=lambda step: None if output is not None else print(f"device {reason}\n{step.step_as_text()}", flush=True),
    )  # fmt: skip
    if output is not None:
        output.write(json.dumps(found.to_dict(), indent=2) + "\n")
    else:
        print(f"\n{found.choices_as_text()}")
    return 0


def run(train: TrainSettings, *, resume: str | Path | None = None) -> EvaluationResult | None:
    """Trains and evaluates, as the command does; the result, or None where the training was stopped before its end.

    Args:
        train: all settings. ``TrainSettings.of("camvid")`` has the defaults for a data set.
        resume: a run folder to continue; ``train`` are then the settings of that run.

    Raises :class:`hmsa_ext.HmsaError` for whatever does not fit.
    """
    with distributed.start(train.machine.device) as process:
        started = open_run(train, process, resume=resume)
        return results.finish(started) if loop.train(started).finished else None


def parse(arguments: Sequence[str], *, prog: str = "hmsa train") -> Train:
    """The settings that a command line asks for: defaults, resumed run, ``--config``, flags; later wins.

    Raises :class:`hmsa_ext.settings.SettingError` for values that do not fit, also for a resumed run that would compute
    something else.
    """
    config, resume = command_line.peek(arguments, "config"), command_line.peek(arguments, "resume")
    before: dict[str, Any] = {}
    if resume is not None:
        if resume == "":
            raise SettingError("resume", resume, "the folder of a run")
        folder = checkpoint.run_folder(resume)
        if not folder.is_dir():
            raise SettingError("resume", resume, "the folder of a run; there is no such folder")
        if Path(resume).is_file() and Path(resume).name != checkpoint.LAST:
            raise SettingError("resume", resume, f"the folder of a run, which goes on from its {checkpoint.LAST}")
        before = read_file(folder / CONFIG, "resume")
        output = command_line.peek(arguments, "output")
        if output is not None and Path(output).resolve() != folder.resolve():
            raise SettingError("output", output, f"no other folder than that of the run to resume, {folder}")
    if config == "":
        raise SettingError("config", config, "a YAML file of settings")
    values = before | (read_recipe(config, "config") if config else {})
    start = TrainSettings.read(values, data=command_line.peek(arguments, "data"))
    command = command_line.parse(
        Train(training=start), arguments, prog=prog, description=__doc__ or "", older=OLDER,
        elsewhere=flags_of_others(start.data.name),
    )  # fmt: skip
    if resume is not None:
        _require_same_computation(TrainSettings.read(before), command.training)
    if command.json is not None and not command.dry_run:
        raise SettingError("json", command.json, "no value without --dry-run")
    return command


OLDER: Mapping[str, Any] = {
    "version": older_version,
}
"""Flags of earlier versions, in today's spelling."""


def _require_same_computation(before: TrainSettings, now: TrainSettings) -> None:
    differing = differences(settings.to_dict(before), now)
    if differing:
        lines = "\n".join(f"  {name}: got {b!r}, the run has {a!r}" for name, (a, b) in differing.items())
        raise command_line.UsageError(
            f"resume: a run is continued exactly as it was begun, but these settings differ:\n{lines}\n"
            "Leave them out, or begin a new run from the weights with --weights RUN/last.pt."
        )


if __name__ == "__main__":
    sys.exit(main())
