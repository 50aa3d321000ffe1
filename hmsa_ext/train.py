"""Trains a hierarchical multi-scale model, evaluates it and draws what it does.

    python -m hmsa_ext.train                                              # the main job: CPU, two to six minutes
    python -m hmsa_ext.train --data camvid --root PATH --crop 360x480     # one GPU if there is one, else the CPU
    torchrun --nproc-per-node 8 -m hmsa_ext.train --data camvid --root PATH --batch-size 2
    python -m hmsa_ext.train --resume runs/NAME                           # continue exactly where it stopped
    python -m hmsa_ext.train --config runs/NAME/config.yaml --lr 0.005    # like that run, but for one setting

A run writes one folder: config.yaml, metrics.jsonl, TensorBoard files, last.pt, best.pt, results.json, curve.png and
pictures/.
Steps and learning rates are for the batch over all processes; nothing is scaled behind your back.
"""

import json
import os
import sys
from collections.abc import Sequence

from hmsa_ext import data, models
from hmsa_ext.engine import curve, distributed, evaluation, loop, pictures
from hmsa_ext.engine.checkpoint import CheckpointError
from hmsa_ext.engine.config import ConfigError, parse_command_line
from hmsa_ext.engine.evaluation import EvaluationError, EvaluationResult
from hmsa_ext.engine.guards import TrainingError
from hmsa_ext.engine.logging import duration, progress_bar
from hmsa_ext.engine.run import PICTURES, RESULTS, Run, open_run, versions
from hmsa_ext.files import write_text

USER_ERRORS = (
    ConfigError,
    CheckpointError,
    TrainingError,
    EvaluationError,
    data.DataError,
    models.WeightError,
    FileNotFoundError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        config = parse_command_line(arguments, prog="python -m hmsa_ext.train", description=__doc__)
        with distributed.start(config.device) as process:
            run = open_run(config, process)
            if loop.train(run):
                finish(run)
    except USER_ERRORS as error:
        return complain(error)
    return 0


def complain(error: Exception) -> int:
    """Prints what the user has to know, once: most errors come in all processes alike. Returns the exit status."""
    if isinstance(error, TrainingError) or os.environ.get("RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr)
    return 2


def finish(run: Run) -> EvaluationResult:
    """Evaluates the final weights at the evaluation scales; writes the results and the pictures."""
    process, scales = run.process, run.config.eval_scales
    with run.averaged_weights():
        result = evaluation.evaluate(
            run.model, run.validation_batches(), run.val_set.classes, scales, process,
            dtype=run.dtype, progress=progress_bar(process, "evaluation"),
        )  # fmt: skip
        if process.is_main and run.config.pictures:
            folder, count = run.folder / PICTURES, run.config.pictures
            pictures.draw(
                run.model, run.val_set, count, scales, folder, process.device, dtype=run.dtype,
                long_edge=run.config.long_edge,
            )  # fmt: skip
    if process.is_main:
        content = result.to_dict() | {
            "config": run.config.to_dict(),
            "versions": versions(),
            "steps": run.steps,
            "seconds": round(run.progress.seconds + result.seconds, 1),
        }
        write_text(run.folder / RESULTS, json.dumps(content, indent=2) + "\n")
        curve.draw(run.folder)
    process.print(f"\n{evaluation.table(result)}\n")
    process.print(f"evaluated {result.images} images in {duration(result.seconds)}; everything is in {run.folder}")
    return result


if __name__ == "__main__":
    sys.exit(main())
