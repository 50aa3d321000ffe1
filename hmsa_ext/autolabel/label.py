"""Labels images with a trained model, for training: the teacher's classes and how sure it is, pixel by pixel.

    hmsa autolabel PHOTOS --model runs/TEACHER --output AUTO --flip           # a folder, the same tree out
    hmsa train --data folder --root MINE --auto-labels AUTO --min-probability 0.9
    hmsa autolabel @LIST.txt --model runs/TEACHER --output AUTO --shard 3/8   # the third of eight machines
    torchrun --nproc-per-node 8 -m hmsa_ext.autolabel PHOTOS --model runs/TEACHER --output AUTO
    hmsa autolabel report AUTO                                                # also: export, import, merge

For the extra images of Cityscapes, which --data cityscapes --extra autolabelled reads:

    hmsa autolabel ROOT/leftImg8bit/train_extra --model runs/TEACHER --layout cityscapes \\
        --output ROOT/autolabelled/train_extra

AUTO gets labels/PLACE.png (class numbers, or the data set's own values), probabilities/PLACE.png (floor(255 p)) and
manifest.json. Thresholds apply in the training, not here. A second call goes on where the first one was stopped, and
labels nothing twice. Labels of another teacher in the folder are an error. Videos are refused, since a data set could
not read them again.

Exit status: 0 when everything is labelled, 1 when some images could not be read (they are named), 2 for an error that
stopped the work.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmsa_ext import command_line, predict, settings
from hmsa_ext.data.automatic.manifest import Manifest
from hmsa_ext.engine import allocator, distributed
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.trained import TrainedModel
from hmsa_ext.errors import HmsaError
from hmsa_ext.prediction.batch import Summary, merged
from hmsa_ext.prediction.label_pairs import LabelPairs

PROG = "hmsa autolabel"
SHOWN = {"ids", "white"}
"""Options of pictures that label files have as well."""


@dataclass(frozen=True)
class AutoLabel(predict.Work):
    """What to label, with which teacher, and where to."""

    layout: Literal["plain", "cityscapes"] = "plain"
    """Names of the files: labels/PLACE.png and probabilities/PLACE.png, or PLACE.png and PLACE_prob.png, as Cityscapes'
    automatic labels are called."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    with allocator.follow_live_tensors():
        return command_line.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    command, trained = parse(arguments)
    with (
        predict.saying_how_to_go_on(),
        distributed.start(command.machine.device, patience=predict.PATIENCE) as process,
    ):
        summary = label(command, trained, process)
        # Together: torchrun ends all processes as soon as one ends with a status other than 0.
        distributed.wait_for_all(process)
        return int(bool(summary.skipped))


def parse(arguments: Sequence[str]) -> tuple[AutoLabel, TrainedModel]:
    """The settings that a command line asks for, and the teacher."""
    return predict.parse_work(AutoLabel(), arguments, prog=PROG, description=__doc__ or "", shown=_is_shown)


def _is_shown(option: settings.Option) -> bool:
    return option.name in SHOWN if option.path[0] == "pictures" else predict.is_shown(option)


def label(command: AutoLabel, trained: TrainedModel, process: Process) -> Summary:
    """Labels as the settings say; this process takes its share of the images. Returns what all of them did.

    Raises :class:`hmsa_ext.HmsaError`.
    """
    process, report = predict.reporting(command, process)
    folder, items, predictor = predict.prepare(command, trained, process)
    pairs = LabelPairs(folder, predictor, command.pictures, command.layout)
    pairs.require_photos_apart(items)
    part, parts = command.shard
    of_part = items[part - 1 :: parts]
    if process.is_main:
        pairs.refuse_others(of_part)
        _warn_of_corrections(pairs.changed_under_corrections(of_part))
        pairs.begin_manifest(of_part, part, parts, redo=command.redo)  # killed at once, the folder says what it is
    distributed.wait_for_all(process)
    own = predict.share(command, items, process)
    predict.announce(predictor, items, own, process)
    begin = time.perf_counter()
    try:
        done = predict.predict_share(command, predictor, own, pairs, process)
    except BaseException:
        if process.world_size == 1:  # stopped: what is done is recorded, if that is possible
            with contextlib.suppress(HmsaError):
                pairs.update_manifest(of_part, pairs.labelled, part, parts)
        raise
    summary = merged(distributed.gather(process, done))
    labelled = functools.reduce(operator.or_, distributed.gather(process, pairs.labelled))
    if process.is_main:
        manifest = pairs.update_manifest(of_part, labelled, part, parts)
        process.print(_describe(manifest, folder))
    predict.conclude(command, summary, predictor, time.perf_counter() - begin, process, report)
    return summary


def _warn_of_corrections(files: Sequence[Path]) -> None:
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        print(
            f"warning: {files[0]}{more}: people corrected the labels of an image that is another one now, and their "
            "pixels still win; delete the corrections that no longer fit",
            file=sys.stderr,
        )


def _describe(manifest: Manifest, folder: Path) -> str:
    count, total = len(manifest.records), manifest.histogram.sum()
    sure = manifest.histogram[:, 230:].sum() / max(total, 1)  # 230 / 255 is the first above 0.9
    return (
        f"labels {count} image{'' if count == 1 else 's'}; {100 * sure:.0f} % of the pixels have a probability of 0.9 "
        f"and more (hmsa autolabel report {folder})"
    )
