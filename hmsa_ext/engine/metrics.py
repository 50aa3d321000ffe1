"""What is computed from a confusion matrix."""

from dataclasses import dataclass

from torch import Tensor


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
