"""Confusion matrix and what is computed from it, all counts in int64."""

from dataclasses import dataclass

import torch
from torch import Tensor


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, *, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Counts of (truth, prediction) pairs, and the number of pixels that are neither counted nor ignored.

    ``prediction`` and ``target``: integer tensors of one shape. Returns counts int64 [K, K], rows = truth, and an
    int64 scalar: pixels whose truth is neither a class nor ``ignore_index``, or whose prediction is no class where
    the truth is one. Nothing is raised here, since that would make a GPU wait: look at the scalar once, at the end.
    """
    prediction, target = prediction.flatten().long(), target.flatten().long()
    is_class = (target >= 0) & (target < num_classes) & (target != ignore_index)
    counted = is_class & (prediction >= 0) & (prediction < num_classes)
    # What is not counted goes to one bin past the end: no tensor whose size depends on the values.
    bins = torch.where(counted, target * num_classes + prediction, num_classes**2)
    counts = torch.bincount(bins, minlength=num_classes**2 + 1)[:-1].reshape(num_classes, num_classes)
    invalid = ((target != ignore_index) & ~counted).sum()
    return counts, invalid


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says. ``counts`` int64 [K, K] on the CPU, rows = truth."""

    counts: Tensor

    @property
    def iou(self) -> list[float]:
        """Intersection over union per class; NaN for a class that is neither in the truth nor predicted."""
        counts = self.counts.double()
        hits = counts.diagonal()
        return (hits / (counts.sum(0) + counts.sum(1) - hits)).tolist()

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are in the truth or predicted; NaN when there is none."""
        present = [x for x in self.iou if x == x]
        return sum(present) / len(present) if present else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are predicted right; NaN when there is none."""
        counts = self.counts.double()
        return (counts.diagonal().sum() / counts.sum()).item()
