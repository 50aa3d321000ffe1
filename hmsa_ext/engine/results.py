"""The results of a model: scored, printed, written and drawn, for the end of a training and for ``evaluate`` alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmsa_ext import data
from hmsa_ext.data import Dataset
from hmsa_ext.engine import pictures
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.evaluation import EvaluationResult, EvaluationSettings, evaluate, table
from hmsa_ext.engine.logging import duration, progress_bar
from hmsa_ext.engine.metrics import Loss, build_metrics
from hmsa_ext.engine.run import versions
from hmsa_ext.files import Output
from hmsa_ext.models import ScaleOutputs


def score(
    model: nn.Module,
    dataset: Dataset,
    settings: EvaluationSettings,
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    long_edge: int = 0,
    criterion: Callable[[ScaleOutputs, Tensor], Tensor] | None = None,
) -> EvaluationResult:
    """Evaluates ``model`` on every image of ``dataset`` and prints the table; every process returns the same result.

    criterion: its mean over the images becomes ``loss`` of the result.
    Further arguments: see :func:`hmsa_ext.engine.evaluation.evaluate` and :func:`hmsa_ext.data.evaluation_loader`.
    """
    metrics = build_metrics(settings.metrics, dataset.classes)
    if criterion is not None:
        metrics.insert(0, Loss(criterion, dataset.classes))
    loader = data.evaluation_loader(
        dataset, rank=process.rank, world_size=process.world_size, workers=workers, long_edge=long_edge
    )
    batches = data.Cropped(loader, process.device)  # pyright: ignore[reportArgumentType] - a loader has a length
    result = evaluate(
        model, batches, dataset.classes, settings.scales, process,
        dtype=dtype, flip=settings.flip, metrics=metrics, progress=progress_bar(process, "evaluation"),
    )  # fmt: skip
    process.print(f"\n{table(result)}\n\n{result.headline()}")
    process.print(f"evaluated {result.images} images in {duration(result.seconds)}")
    return result


def produce(
    model: nn.Module,
    dataset: Dataset,
    settings: EvaluationSettings,
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    long_edge: int = 0,
    criterion: Callable[[ScaleOutputs, Tensor], Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
    training_seconds: float | None = None,
    output: Output | None = None,
    picture_folder: Path | None = None,
) -> EvaluationResult:
    """:func:`score`; then, in the main process, the JSON file and after it the pictures.

    Args:
        facts: further content of the file, such as ``config`` and ``checkpoint``.
        training_seconds: of the training before; ``seconds`` of the file is their sum with those of the evaluation.
        output: the file; None writes none.
        picture_folder: for ``settings.pictures`` pictures; None draws none.
    """
    result = score(
        model, dataset, settings, process,
        dtype=dtype, workers=workers, long_edge=long_edge, criterion=criterion,
    )  # fmt: skip
    if process.is_main and output is not None:
        content = result.to_dict() | dict(facts or {}) | {"versions": versions()}
        if training_seconds is not None:
            content["seconds"] = round(training_seconds + result.seconds, 1)
        output.write(to_json(content))
    if process.is_main and picture_folder is not None and settings.pictures:
        files = pictures.draw(
            model, dataset, settings.pictures, settings.scales, picture_folder, process.device,
            dtype=dtype, flip=settings.flip, long_edge=long_edge,
        )  # fmt: skip
        process.print(f"drew {len(files)} pictures in {picture_folder}")
    return result


def to_json(content: Mapping[str, Any]) -> str:
    """JSON that people can read: indented, but each list of numbers, such as a row of a matrix, on one line."""
    text = json.dumps(content, indent=2, allow_nan=False)
    # A line break is none of the text's own strings: those write it as an escape.
    number = r"(?:null|-?[0-9][0-9.eE+-]*)"
    rows = re.compile(rf"\[\n *({number}(?:,\n *{number})*)\n *\]")
    return rows.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"
