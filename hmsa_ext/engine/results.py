"""The results of a model: scored, printed, written and drawn, for the end of a training and for ``evaluate`` alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmsa_ext import settings as declared
from hmsa_ext.data import Batch, Dataset
from hmsa_ext.data.progress import duration
from hmsa_ext.engine import curve, loop, pictures
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.evaluation import EvaluationResult, EvaluationSettings, evaluate, table
from hmsa_ext.engine.logging import progress_bar
from hmsa_ext.engine.metrics import Loss, build_metrics
from hmsa_ext.engine.run import PICTURES, RESULTS, Run, versions
from hmsa_ext.files import Output
from hmsa_ext.models import ScaleOutputs


def report(
    model: nn.Module,
    batches: Iterable[Batch],
    dataset: Dataset,
    settings: EvaluationSettings,
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    long_edge: int = 0,
    criterion: Callable[[ScaleOutputs, Tensor], Tensor] | None = None,
    output: Output | None = None,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    training_seconds: float | None = None,
) -> EvaluationResult:
    """Evaluates and prints the table; then the main process writes the JSON file and, after it, the pictures.

    Every process returns the same result.

    Args:
        settings: with scales.
        batches: the images of ``dataset`` that are this process's share.
        long_edge: see :func:`hmsa_ext.data.evaluation_loader`; for the pictures, the batches already follow it.
        criterion: its mean over the labelled pixels becomes ``loss`` of the result.
        output: the JSON file; None writes none.
        folder: where ``settings.pictures`` pictures go; None draws none.
        about: further content of the file, such as ``config`` and ``checkpoint``; ``versions`` are added.
        training_seconds: of the training before; ``seconds`` of the file adds those of the evaluation.
    """
    assert settings.scales is not None, "the caller knows the fusion, which they follow from"
    metrics = build_metrics(settings.metrics, dataset.classes)
    if criterion is not None:
        metrics.insert(0, Loss(criterion, dataset.classes))
    result = evaluate(
        model, batches, dataset.classes, settings.scales, process,
        dtype=dtype, flip=settings.flip, tiles=settings.tiles, metrics=metrics,
        progress=progress_bar(process, "evaluation"),
    )  # fmt: skip
    process.print(f"\n{table(result)}\n\n{result.headline()}")
    in_tiles = f", {result.in_tiles} of them in tiles" if result.in_tiles else ""
    process.print(f"evaluated {result.images} images in {duration(result.seconds)}{in_tiles}")
    if process.is_main and output is not None:
        content = result.to_dict() | dict(about or {}) | {"versions": versions()}
        if training_seconds is not None:
            content["seconds"] = round(training_seconds + result.seconds, 1)
        output.write(to_json(content))
    if process.is_main and folder is not None and settings.pictures:
        files = pictures.draw(
            model, dataset, settings.pictures, settings.scales, folder, process.device,
            dtype=dtype, flip=settings.flip, long_edge=long_edge, tiles=settings.tiles,
        )  # fmt: skip
        process.print(f"drew {len(files)} picture{'' if len(files) == 1 else 's'} in {folder}")
    return result


def finish(run: Run) -> EvaluationResult:
    """:func:`report` of the final weights of a run, into its folder, and its curve."""
    settings, process = run.settings, run.process
    with run.averaged_weights():
        result = report(
            run.model, run.validation_batches(), run.val_set, settings.final_evaluation, process,
            dtype=run.dtype, long_edge=settings.crops.long_edge, criterion=loop.build_criterion(run),
            output=Output(run.folder / RESULTS, "output") if process.is_main else None, folder=run.folder / PICTURES,
            about={"config": declared.to_dict(settings), "steps": run.steps}, training_seconds=run.progress.seconds,
        )  # fmt: skip
    if process.is_main:
        curve.draw(run.folder)
    process.print(f"everything is in {run.folder}")
    return result


def to_json(content: Mapping[str, Any]) -> str:
    """JSON that people can read: indented, but each list of numbers, such as a row of a matrix, on one line."""
    text = json.dumps(content, indent=2, allow_nan=False)
    # A line break never is inside a string of JSON: there it is an escape.
    number = r"(?:null|-?[0-9][0-9.eE+-]*)"
    rows = re.compile(rf"\[\n *({number}(?:,\n *{number})*)\n *\]")
    return rows.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"
