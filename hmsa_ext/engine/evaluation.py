"""Evaluates a model at several scales: its fusion, the mean of the logits and each scale alone, from one pass."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeGuard

import torch
from torch import Tensor, nn

from hmsa_ext.data import Batch, ClassTable
from hmsa_ext.engine import distributed
from hmsa_ext.engine.device import evaluation_mode
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.metrics import (
    METRIC_NAMES,
    METRICS,
    ConfusionMatrices,
    Metric,
    Predictions,
    Scores,
)
from hmsa_ext.engine.out_of_memory import LESS_TO_EVALUATE, explained, shown_images, shown_scales
from hmsa_ext.engine.tiling import TileSettings, Tiling, scored
from hmsa_ext.errors import HmsaError
from hmsa_ext.settings import FREE, NOT_NEGATIVE, Flag, Names, Scales, require, validate
from hmsa_ext.tables import text_table


class EvaluationError(HmsaError, ValueError):
    """Data or predictions that cannot be scored."""


@dataclass(frozen=True)
class ScaleSettings:
    """The scales of an evaluation or prediction."""

    scales: Annotated[Scales | None, Flag("eval-scales"), FREE] = None
    """Scales that are combined; default: 0.5,1,2; those of the training for explicit fusion, 1 for a single scale."""
    flip: Annotated[bool, FREE] = False
    """Average with the logits of the mirrored image."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class EvaluationSettings(ScaleSettings):
    """How a trained model is evaluated."""

    pictures: Annotated[int, NOT_NEGATIVE, FREE] = 4
    """How many images to draw; 0 draws none."""
    metrics: Annotated[Names, FREE] = field(
        default=(), metadata={"help": f"Metrics beside those of the confusion matrix: {METRIC_NAMES}."}
    )
    tiles: TileSettings = field(default_factory=TileSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.metrics:
            require("metrics", name, name in METRICS or ":" in name, METRIC_NAMES)


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of every way to read one pass of a model: ``"0.5"``, ``"1.0"``, ..., ``"mean"``, ``"attention"``.

    The last way is that of the model's fusion, which may be another one: see :attr:`way`.

    more: results of further metrics, by name: a number, or ``{way: number}``, or ``{way: {class: number}}``.
    in_tiles: how many of the images were taken in tiles.
    """

    scores: dict[str, Scores]
    class_names: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    images: int
    seconds: float
    more: Mapping[str, Any] = field(default_factory=dict)
    in_tiles: int = 0

    @property
    def way(self) -> str:
        """The way of the model's fusion: ``"attention"``, ``"mean"``, ``"max"`` ..."""
        return list(self.scores)[-1]

    @property
    def miou(self) -> dict[str, float]:
        """Mean IoU of each way."""
        return {way: scores.miou for way, scores in self.scores.items()}

    @property
    def iou(self) -> dict[str, float]:
        """IoU of each class by its name, of the model's fusion; NaN where a class is absent."""
        return dict(zip(self.class_names, self.scores[self.way].iou, strict=True))

    def scalars(self) -> dict[str, float]:
        """The numbers of the model's fusion in one flat dictionary, for logs: ``iou/<class>``, ``pixel_accuracy`` ...

        A metric by class has a name like ``iou/<class>``. mIoU is not among them: see ``miou``.
        """
        scores = self.scores[self.way]
        found = {f"iou/{name}": x for name, x in self.iou.items()}
        found |= {name: getattr(scores, name) for name in _MEANS if name != "miou"}
        for name, value in self.more.items():
            of_fusion = value.get(self.way) if isinstance(value, Mapping) else value
            if isinstance(of_fusion, Mapping):
                found |= {f"{name}/{key}": x for key, x in of_fusion.items() if _is_number(x)}
            elif _is_number(of_fusion):
                found[name] = of_fusion
        return found

    def headline(self) -> str:
        """One line: mIoU of the model's fusion, and the IoU of the classes behind it, of the lowest ones where many."""
        present = sorted((x, name) for name, x in self.iou.items() if x == x)
        if len(self.class_names) == 2:
            shown = ", ".join(f"{name} {_percent(x)}" for name, x in self.iou.items())
            detail = f"IoU {shown}"
        else:
            detail = "lowest IoU " + (", ".join(f"{name} {_percent(x)}" for x, name in present[:3]) or "none")
        return f"{self.way}: mIoU {_percent(self.scores[self.way].miou)} ({detail})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for what is not finite, such as the IoU of an absent class."""
        scores = self.scores

        def by_class(name: str) -> dict[str, dict[str, float]]:
            return {way: dict(zip(self.class_names, getattr(s, name), strict=True)) for way, s in scores.items()}

        content = {
            **{name: {way: getattr(s, name) for way, s in scores.items()} for name in _MEANS},
            **{name: by_class(name) for name in _BY_CLASS},
            **self.more,
            "confusion_matrix": {way: s.counts.tolist() for way, s in scores.items()},
            "classes": list(self.class_names),
            "combination": self.way,
            "scales": list(self.scales),
            "flip": self.flip,
            "images": self.images,
            "images_in_tiles": self.in_tiles,
            "evaluation_seconds": round(self.seconds, 3),
        }
        return {name: _plain(value) for name, value in content.items()}


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    classes: ClassTable,
    scales: Sequence[float],
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    flip: bool = False,
    tiles: TileSettings | None = None,
    metrics: Sequence[Metric] = (),
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> EvaluationResult:
    """Scores ``model`` at ``scales`` on ``batches``, which together, over all processes, are every image once.

    The confusion matrices are summed over the processes in int64: every process returns the same result. With
    ``flip`` the logits of the mirrored image, mirrored back, are averaged in.

    tiles: takes large images in overlapping tiles, where it asks for them (``tile``) or for little memory (``memory``).
        Their outputs are blended, and every image is scored whole. The default takes images whole.
    metrics: what to measure besides, new objects (see :mod:`hmsa_ext.engine.metrics`); their results are the result's
        ``more``. The confusion matrices are always there.

    Raises :class:`EvaluationError` at the end when there were labels that are neither a class nor ignored, when the
    results of two metrics have one name, and when a result is no number. Raises
    :class:`hmsa_ext.settings.SettingError` for tiles that do not fit the network, and for too little ``memory``;
    :class:`hmsa_ext.engine.out_of_memory.NotEnoughMemoryError` where there was not enough.
    """
    begin, images = time.perf_counter(), 0
    scales = tuple(sorted(float(s) for s in scales))
    confusion = ConfusionMatrices(classes, scales)
    tiling = Tiling(model, process.device, tiles, dtype=dtype)
    around = scored(classes.num_classes, len(scales), flip=flip, metrics=bool(metrics))
    with evaluation_mode(model):
        for batch in progress(batches):
            shown = shown_images(batch.images.shape[0], batch.images.shape[-2:])
            with explained(f"evaluating {shown} at {shown_scales(scales, flip=flip)}", LESS_TO_EVALUATE):
                target = batch.labels.to(process.device, non_blocking=True)
                outputs = tiling.outputs(batch.images, scales, around, flip=flip)
                predictions = Predictions(outputs, target, batch.names, flip=flip, with_confidence=bool(metrics))
                for metric in (confusion, *metrics):
                    metric.update(predictions)
                del outputs, predictions, target  # they need not stay while the next image runs
            images += len(batch.names)
    images, in_tiles = distributed.total(process, torch.tensor([images, tiling.in_tiles])).tolist()
    for metric in (confusion, *metrics):
        metric.reduce(process)
    if confusion.invalid:
        raise EvaluationError(
            f"labels: {confusion.invalid} pixels of {images} images are neither one of {classes.num_classes} classes "
            f"nor the ignored {classes.ignore_label}; python -m hmsa_ext.data scan names the files"
        )
    names, seconds = tuple(classes.names), time.perf_counter() - begin
    result = EvaluationResult(confusion.result(), names, scales, flip, images, seconds, in_tiles=in_tiles)
    more: dict[str, Any] = {}
    taken = set(result.to_dict())
    for metric in metrics:
        found = _checked(metric)
        if twice := taken & set(found):
            raise EvaluationError(f"metrics: the result already has {', '.join(sorted(twice))}; expected other names")
        taken |= set(found)
        more |= found
    return dataclasses.replace(result, more=more)


def table(result: EvaluationResult) -> str:
    """The result as text, in two parts.

    The first has a column for each way: IoU of each class in percent, then the means, then further metrics as they are.
    The second has the scores of the model's fusion by class. There "-" stands for a share of nothing: the precision of
    a class that is never predicted, the recall of a class that is not in the truth.
    """
    ways = list(result.scores)
    alone = {f"{scale}" for scale in result.scales}
    heads = [f"scale {way}" if way in alone else way for way in ways]
    columns = list(result.scores.values())
    rows: list[Sequence[str]] = [
        (name, *(_percent(s.iou[c]) for s in columns)) for c, name in enumerate(result.class_names)
    ]
    rules = [len(rows)]
    rows += [(title, *(_percent(getattr(s, name)) for s in columns)) for name, title in _MEANS.items()]
    more = [(name, value) for name, value in result.more.items() if _is_number(value) or _has_ways(value, ways)]
    if more:
        rules.append(len(rows))
    for name, value in more:
        # One number is that of the model's fusion.
        cells = [value[way] for way in ways] if isinstance(value, Mapping) else [None] * (len(ways) - 1) + [value]
        rows.append((name.replace("_", " "), *("" if x is None else f"{x:.4f}" for x in cells)))
    first = text_table(["IoU in %", *heads], rows, rules=rules)
    scores = result.scores[result.way]
    names = ["IoU", "Dice", "precision", "recall"]
    by_class = [getattr(scores, name) for name in _BY_CLASS]
    pixels, total = scores.pixels, sum(scores.pixels)
    second = text_table(
        [f"{result.way}, in %", *names, "of pixels"],
        [
            (
                name,
                *(_percent(values[c], "-") for values in by_class),
                _percent(pixels[c] / total if total else float("nan"), "-"),
            )
            for c, name in enumerate(result.class_names)
        ],
    )
    # The IoU of a class that is not predicted either is NaN, not 0.
    invented = [name for c, name in enumerate(result.class_names) if not pixels[c] and scores.iou[c] == 0]
    note = f"\n\nnot in the truth, but predicted, hence IoU 0: {', '.join(invented)}" if invented else ""
    return f"{first}\n\n{second}{note}"


_MEANS = {
    "miou": "mIoU",
    "mean_dice": "mean Dice",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
}
_BY_CLASS = ("iou", "dice", "precision", "recall")


def _percent(share: float, absent: str = "absent") -> str:
    return f"{100 * share:.2f}" if share == share else absent


def _has_ways(value: Any, ways: Sequence[str]) -> bool:
    return isinstance(value, Mapping) and all(_is_number(value.get(way)) for way in ways)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked(metric: Metric) -> dict[str, Any]:
    """The result of a metric; tensors of one number become that number. Anything else could not be written."""
    found, kind = metric.result(), type(metric).__qualname__
    if not isinstance(found, Mapping):
        raise EvaluationError(f"metrics: {kind}.result() gave {found!r:.60}; expected a dictionary")

    def number(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {str(key): number(x, f"{name}/{key}") for key, x in value.items()}
        if isinstance(value, list | tuple):
            return [number(x, name) for x in value]
        if getattr(value, "size", None) == 1 or (isinstance(value, Tensor) and value.numel() == 1):
            value = value.item()
        if value is not None and not _is_number(value):
            raise EvaluationError(f"metrics: {kind} gave {value!r:.60} as {name}; expected a number, or several")
        return value

    return {str(name): number(value, str(name)) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
