"""Metrics of an evaluation.

A metric is an object with three methods, which :func:`hmsa_ext.engine.evaluation.evaluate` calls in this order:

- ``update(predictions)``, once for each batch, with :class:`Predictions`: the outputs of the model, the target labels,
  and the labels of each way to read the outputs (each scale alone, the mean, the attention), each computed once;
- ``reduce(process)``, once in every process: adds up what the processes saw, so that all have the same sums;
- ``result()``: a dictionary of the results. Its keys stand in the result of the evaluation, beside ``miou``. A
  value is one number, or a dictionary with a number for each way, or one with a dictionary by class for each way.

The object belongs to one evaluation: the next one takes a new object. :class:`Sums` does the adding up. A whole metric,
in a file of its own, for ``metrics=[NearBorder(classes)]`` or ``--metrics package.module:NearBorder``::

    class NearBorder:
        '''Share of wrong pixels among those next to a pixel of another class.'''

        def __init__(self, classes: ClassTable) -> None:
            self.ignored, self.sums = classes.ignore_label, Sums()

        def update(self, predictions: Predictions) -> None:
            target = predictions.target
            border = torch.zeros_like(target, dtype=torch.bool)
            border[:, 1:] |= target[:, 1:] != target[:, :-1]
            border[:, :, 1:] |= target[:, :, 1:] != target[:, :, :-1]
            border &= target != self.ignored
            for way in predictions.ways:
                wrong = border & (predictions.labels(way) != target)
                self.sums.add(way, torch.stack([wrong.sum(), border.sum()]))

        def reduce(self, process: Process) -> None:
            self.sums.reduce(process)

        def result(self) -> dict[str, Any]:
            return {"border_errors": {way: (w / n).item() for way, (w, n) in self.sums.items()}}

Everything that follows from the confusion matrix needs no such object: one matrix is counted for each way, and
:class:`Scores` computes IoU, Dice, precision and the like from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hmsa_ext import parts
from hmsa_ext.data import ClassTable
from hmsa_ext.engine import distributed
from hmsa_ext.engine.distributed import Process
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.models.combinations import ATTENTION, COMBINATIONS, MEAN, Combination
from hmsa_ext.ops import confusion_matrix
from hmsa_ext.settings import SettingError, load_object


class Metric(Protocol):
    """What :func:`hmsa_ext.engine.evaluation.evaluate` asks of a metric: see the text of this module."""

    def update(self, predictions: Predictions) -> None:
        """Takes one batch in."""
        ...

    def reduce(self, process: Process) -> None:
        """Adds up over the processes; every process calls this once, after its last batch."""
        ...

    def result(self) -> Mapping[str, Any]:
        """Results by name; NaN where no pixel was labelled."""
        ...


def ways_of(scales: Sequence[float], combination: str | Combination = ATTENTION) -> tuple[str, ...]:
    """The ways to read outputs at these scales: each scale alone, ascending, then the mean and the combination.

    The last one is that of the network: "attention", or the name of another combination.
    """
    combined = parts.object_name(combination)
    return (*(f"{float(s)}" for s in sorted(scales)), *([] if combined == MEAN else [MEAN]), combined)


def title_of(way: str) -> str:
    """A way in words, for pictures: ``"mean of probabilities"``; a function of others is called by its own name."""
    return way.replace("_", " of ") if way in COMBINATIONS else way.rpartition(":")[2]


class Predictions:
    """One batch of an evaluation, as a metric sees it.

    outputs: of the model; with ``flip`` for 2B images, the second half of them mirrored.
    target: the true labels [B, H, W], on the device of the outputs.
    names: of the images.
    ways: the names that ``labels`` and ``confidence`` take: ``"0.5"``, ``"1.0"``, ..., ``"mean"``, and last the
        network's own combination, such as ``"attention"``, which is also what they take unless told.
    with_confidence: whether labels are computed together with their confidence. Without it labels take less time, and
        a confidence that is asked for nevertheless takes a second computation.

    Labels and confidence are computed when they are first asked for, and kept. Full-resolution logits exist only where
    :class:`hmsa_ext.models.ScaleOutputs` says so.
    """

    def __init__(
        self,
        outputs: ScaleOutputs,
        target: Tensor,
        names: Sequence[str],
        *,
        flip: bool = False,
        with_confidence: bool = True,
    ) -> None:
        self.outputs, self.target, self.names, self.flip = outputs, target, list(names), flip
        self.with_confidence = with_confidence
        self.ways = ways_of(outputs.scales, outputs.combination)
        self._labels: dict[str, Tensor] = {}
        self._confidence: dict[str, Tensor] = {}

    def labels(self, way: str | None = None) -> Tensor:
        """The predicted labels [B, H, W]: uint8, int32 above 256 classes. With ``flip`` both views are averaged."""
        way = self.ways[-1] if way is None else way
        if way not in self._labels:
            if self.with_confidence:
                self._read_both(way)
            else:
                argmax, arguments = self._argmax(way)
                self._labels[way] = argmax(*arguments, views=self._views, confidence=False)
        return self._labels[way]

    def confidence(self, way: str | None = None) -> Tensor:
        """The softmax probability of each predicted label, [B, H, W]."""
        way = self.ways[-1] if way is None else way
        if way not in self._confidence:
            self._read_both(way)
        return self._confidence[way]

    @property
    def straight(self) -> ScaleOutputs:
        """The outputs for the B images themselves: with ``flip``, without those for their mirror images."""
        if not self.flip:
            return self.outputs
        out = self.outputs

        def first(maps: list[Tensor]) -> list[Tensor]:
            return [m[: m.shape[0] // 2] for m in maps]

        aux = None if out.aux is None else first(out.aux)
        return ScaleOutputs(first(out.logits), first(out.attention), aux, out.scales, out.size, out.combination)

    @property
    def _views(self) -> int:
        return 2 if self.flip else 1

    def _read_both(self, way: str) -> None:
        argmax, arguments = self._argmax(way)
        self._labels[way], self._confidence[way] = argmax(*arguments, views=self._views)

    def _argmax(self, way: str) -> tuple[Callable[..., Any], tuple[str | int, ...]]:
        """The method of the outputs that reads the labels of a way, and its arguments."""
        if way == self.ways[-1]:
            return self.outputs.argmax, ()
        if way == MEAN:
            return self.outputs.argmax, (MEAN,)
        return self.outputs.single_scale_argmax, ([f"{float(s)}" for s in self.outputs.scales].index(way),)


class Sums:
    """Tensors by name that add up over batches, then over processes. int64 stays exact; float becomes float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Adds ``value`` to what was added under ``name`` before, on the device of ``value``."""
        value = value.double() if value.is_floating_point() else value.long()
        before = self._sums.get(name)
        self._sums[name] = value.clone() if before is None else before + value

    def reduce(self, process: Process) -> None:
        """Adds up over the processes, also where some of them have added nothing; the sums are on the CPU then."""
        parts = distributed.gather(process, {name: value.cpu() for name, value in self._sums.items()})
        self._sums = {}
        for part in parts:
            for name, value in part.items():
                self.add(name, value)

    def get(self, name: str, default: Tensor) -> Tensor:
        """The sum, or ``default`` where nothing was added."""
        return self._sums.get(name, default)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and sums, in the order in which names first came."""
        return iter(self._sums.items())


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says. ``counts`` int64 [K, K] on the CPU, rows = truth.

    A class that is neither in the truth nor predicted has no IoU and no Dice: they are NaN, and means leave it out.
    A class that is not in the truth but is predicted anywhere, in one pixel even, has an IoU of 0, which counts in the
    mean. Precision is NaN for a class that is never predicted, recall for one that is not in the truth.
    """

    counts: Tensor

    @property
    def iou(self) -> list[float]:
        """Intersection over union per class; NaN for a class that is neither in the truth nor predicted."""
        hits, truth, predicted = self._parts
        return (hits / (truth + predicted - hits)).tolist()

    @property
    def dice(self) -> list[float]:
        """Dice coefficient (F1) per class, ``2 hits / (truth + predicted)``; NaN where the IoU is."""
        hits, truth, predicted = self._parts
        return (2 * hits / (truth + predicted)).tolist()

    @property
    def precision(self) -> list[float]:
        """Share of right pixels among those predicted as each class; NaN for a class that is never predicted."""
        hits, _, predicted = self._parts
        return (hits / predicted).tolist()

    @property
    def recall(self) -> list[float]:
        """Share of each class's pixels that are predicted right; NaN for a class that is not in the truth."""
        hits, truth, _ = self._parts
        return (hits / truth).tolist()

    @property
    def pixels(self) -> list[int]:
        """Labelled pixels of each class."""
        return self.counts.sum(1).tolist()

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are in the truth or predicted; NaN when there is none."""
        return _mean(self.iou)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the classes that are in the truth or predicted; NaN when there is none."""
        return _mean(self.dice)

    @property
    def mean_accuracy(self) -> float:
        """Mean recall over the classes that are in the truth; NaN when there is none."""
        return _mean(self.recall)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are predicted right; NaN when there is none."""
        counts = self.counts.double()
        return (counts.diagonal().sum() / counts.sum()).item()

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of the IoU, weighted by the pixels of each class in the truth; NaN when there is no labelled pixel."""
        total = sum(self.pixels)
        if not total:
            return float("nan")
        return sum(n / total * x for n, x in zip(self.pixels, self.iou, strict=True) if n)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """float64 [K] each: pixels predicted right, pixels of the class in the truth, pixels predicted as it."""
        counts = self.counts.double()
        return counts.diagonal(), counts.sum(1), counts.sum(0)


def _mean(values: Sequence[float]) -> float:
    present = [x for x in values if x == x]
    return sum(present) / len(present) if present else float("nan")


class ConfusionMatrices:
    """A metric that every evaluation has: one confusion matrix for each way. Its result are the :class:`Scores`.

    ``scales``: of the evaluation, for the ways of a result without any image.
    ``invalid``: pixels whose label is neither a class nor ignored, known once ``reduce`` was called.
    """

    _INVALID = "pixels of no class"

    def __init__(self, classes: ClassTable, scales: Sequence[float]) -> None:
        self._classes, self._scales, self._sums = classes, tuple(scales), Sums()

    def update(self, predictions: Predictions) -> None:
        k, ignored = self._classes.num_classes, self._classes.ignore_label
        for way in predictions.ways:
            labels = predictions.labels(way)
            counts, invalid = confusion_matrix(labels, predictions.target, k, ignore_index=ignored)
            self._sums.add(way, counts)
            self._sums.add(self._INVALID, invalid)

    def reduce(self, process: Process) -> None:
        self._sums.reduce(process)

    @property
    def invalid(self) -> int:
        counted = len(dict(self._sums.items())) - 1
        return int(self._sums.get(self._INVALID, torch.tensor(0))) // max(counted, 1)

    def result(self) -> dict[str, Scores]:
        k = self._classes.num_classes
        nothing = torch.zeros(k, k, dtype=torch.int64)
        ways = [name for name, _ in self._sums.items() if name != self._INVALID] or ways_of(self._scales)
        # The last way is the network's own. A process that saw no images gets the names in the order of the others.
        return {way: Scores(self._sums.get(way, nothing)) for way in ways}


class Loss:
    """A metric: the mean of a criterion over the labelled pixels, as ``loss``.

    Each batch counts with its number of labelled pixels. Mirrored images take no part. NaN where nothing is labelled.

    Args:
        criterion: ``criterion(outputs, target) -> scalar``, such as :class:`hmsa_ext.losses.MultiScaleLoss`.
        classes: says which label is ignored.
    """

    def __init__(self, criterion: Callable[[ScaleOutputs, Tensor], Tensor], classes: ClassTable) -> None:
        self._criterion, self._ignored, self._sums = criterion, classes.ignore_label, Sums()

    def update(self, predictions: Predictions) -> None:
        pixels = (predictions.target != self._ignored).sum()
        loss = self._criterion(predictions.straight, predictions.target).detach().double() * pixels
        # A criterion may say anything, NaN as well, of a target without labels.
        self._sums.add("loss", torch.where(pixels > 0, loss, 0.0))
        self._sums.add("pixels", pixels)

    def reduce(self, process: Process) -> None:
        self._sums.reduce(process)

    def result(self) -> dict[str, float]:
        nothing = torch.tensor(0)
        return {"loss": (self._sums.get("loss", nothing) / self._sums.get("pixels", nothing)).item()}


class CalibrationError:
    """A metric: expected calibration error of each way, as ``calibration_error``, 0 (best) to 1.

    The labelled pixels are sorted into 15 bins by confidence. The error is the mean, weighted by pixels, of the
    difference between a bin's accuracy and its mean confidence (Guo et al. 2017).
    """

    BINS = 15

    def __init__(self, classes: ClassTable) -> None:
        self._ignored, self._sums = classes.ignore_label, Sums()

    def update(self, predictions: Predictions) -> None:
        valid = predictions.target != self._ignored
        target = predictions.target[valid]
        for way in predictions.ways:
            confidence = predictions.confidence(way)[valid].double().nan_to_num(0.0)
            right = (predictions.labels(way)[valid] == target).double()
            bins = (confidence * self.BINS).long().clamp(0, self.BINS - 1)
            gaps = torch.bincount(bins, confidence - right, minlength=self.BINS)
            self._sums.add(way, torch.cat([gaps, torch.full_like(gaps[:1], len(target))]))

    def reduce(self, process: Process) -> None:
        self._sums.reduce(process)

    def result(self) -> dict[str, dict[str, float]]:
        errors = {way: (sums[:-1].abs().sum() / sums[-1]).item() for way, sums in self._sums.items()}
        return {"calibration_error": errors}


METRICS: dict[str, Callable[[ClassTable], Metric]] = {"calibration": CalibrationError}
"""Metrics that settings can name, beside ``package.module:factory``; each is made as ``factory(classes)``."""
METRIC_NAMES = f"some of {', '.join(METRICS)}, or package.module:factory"
"""What names of metrics may be, in words."""


def build_metrics(names: Sequence[str], classes: ClassTable) -> list[Metric]:
    """New metrics by their names, for one evaluation.

    Raises :class:`hmsa_ext.settings.SettingError` for a name that is neither one of ``METRICS`` nor
    ``package.module:factory``, and for a factory whose object is no metric.
    """
    found = []
    for name in names:
        if name not in METRICS and ":" not in name:
            raise SettingError("metrics", name, METRIC_NAMES)
        factory: Any = METRICS[name] if name in METRICS else load_object(name, "metrics")
        if not callable(factory):
            raise SettingError("metrics", name, f"a factory (classes) of an object, not {factory!r:.60}")
        metric: Any = factory(classes)
        missing = [method for method in ("update", "reduce", "result") if not callable(getattr(metric, method, None))]
        if missing:
            raise SettingError("metrics", name, f"a factory of an object that has {', '.join(missing)}")
        found.append(metric)
    return found
