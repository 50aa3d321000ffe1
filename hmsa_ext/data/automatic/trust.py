"""Which pixels of automatic labels are trusted: thresholds of the probability, margins, dropped classes, coarse labels.

Thresholds apply when labels are read, never when they are written: one set of labels serves any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.settings import (
    NOT_NEGATIVE,
    SHARE,
    Names,
    Rule,
    Spelling,
    read_by_name,
    require,
    show_by_name,
    validate,
)

MEDIAN = "median"
MEDIAN_CAP = 0.9
"""The highest threshold that the median gives."""
_LEVELS = 256


def _read_thresholds(value: Any) -> str | dict[str, float]:
    return MEDIAN if value == MEDIAN else read_by_name(value)


def _show_thresholds(value: str | Mapping[str, float]) -> str:
    return value if isinstance(value, str) else show_by_name(value)


_THRESHOLDS = Rule(
    lambda v: v == MEDIAN or (not isinstance(v, str) and all(0 <= x <= 1 for x in v.values())),
    "median, or NAME:X,NAME:X with numbers from 0 to 1",
)
Thresholds = Annotated[Any, Spelling("median|NAME:X,...", _read_thresholds, _show_thresholds), _THRESHOLDS]


@dataclass(frozen=True)
class Trust:
    """Which pixels of automatic labels count; the rest is ignored."""

    min_probability: Annotated[float, SHARE] = 0.5
    """Ignore pixels of automatic labels below this probability (in the paper 0.9)."""
    class_threshold: Thresholds = field(default_factory=dict)
    """Thresholds of single classes instead of --min-probability, such as Pole:0.4,Sky:0.95; "median": of each class the
    median probability of its pixels, at most 0.9."""
    boundary_margin: Annotated[int, NOT_NEGATIVE] = 0
    """Ignore automatic labels so many pixels on either side of a border between two classes."""
    drop_classes: Names = ()
    """Classes whose automatic labels are ignored, however sure."""
    coarse_use: Literal["none", "wins", "bounds"] = "none"
    """What coarse labels by people do to automatic ones: nothing; "wins": they replace them where they are; "bounds":
    they ignore automatic labels that contradict them, and those of classes that an image has no coarse label of."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop_classes", tuple(self.drop_classes))
        validate(self)

    def thresholds(self, classes: ClassTable, histogram: np.ndarray | None) -> np.ndarray:
        """The least stored probability of each class that counts: int64 [K], 0 to 256 (nothing passes).

        histogram: int64 [K, 256], pixels by class and stored probability; only the median needs it.

        A stored probability q, floor(255 p), passes a threshold t where q / 255 >= t. Raises DataError for classes that
        do not exist.
        """
        least = np.full(classes.num_classes, _least(self.min_probability))
        if isinstance(self.class_threshold, str):
            if histogram is None:
                raise ArgumentValueError("histogram: got none, expected pixels by class and probability for the median")
            least = median_thresholds(histogram)
        else:
            numbers = classes.numbers("class_threshold", tuple(self.class_threshold))
            least[numbers] = [_least(value) for value in self.class_threshold.values()]
        least[classes.numbers("drop_classes", self.drop_classes)] = _LEVELS
        return least

    def require_used(self, used: bool) -> None:
        """Raises :class:`hmsa_ext.settings.SettingError` where something is said and no automatic labels are in use."""
        if not used:
            for name, value in vars(Trust()).items():
                found = getattr(self, name)
                require(name, found, found == value, "no value without automatic labels")

    @property
    def needs_probabilities(self) -> bool:
        """Whether the probabilities of the pixels matter."""
        return self.min_probability > 0 or bool(self.class_threshold)


def median_thresholds(histogram: np.ndarray) -> np.ndarray:
    """The median stored probability of each class, at most 0.9 of 255: int64 [K]; 0 for classes without pixels.

    That is class-balanced self-training (Zou, Yu, Kumar, Wang, 2018) with half of each class kept, and the cap that its
    successors put on it.
    """
    return np.minimum(np.where(histogram.any(1), median_levels(histogram), 0), _least(MEDIAN_CAP))


def median_levels(histogram: np.ndarray) -> np.ndarray:
    """The first level at which at least half of the pixels are reached: int64 [K], of counts [K, 256] by level."""
    below = histogram.cumsum(1)
    return (below < (below[:, -1:] + 1) // 2).sum(1)


def _least(probability: float) -> int:
    """The least stored probability q with q / 255 >= the given one."""
    return int((np.arange(_LEVELS) / (_LEVELS - 1) < probability).sum())


def near_borders(label: np.ndarray, margin: int) -> np.ndarray:
    """Pixels at most ``margin`` pixels (along rows, columns and diagonals) from one of another class: bool [H, W]."""
    window = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    return cv2.dilate(label, window) != cv2.erode(label, window)


def trusted(label: np.ndarray, probability: np.ndarray | None, least: np.ndarray, margin: int) -> np.ndarray:
    """The label map, uint8 [H, W], with 255 where a pixel does not count.

    probability: uint8 [H, W] as stored; None: all pixels are as sure as can be.
    least: int64 [K], see :meth:`Trust.thresholds`.
    """
    table = np.full(_LEVELS, _LEVELS, np.int16)  # values that are no class never count
    table[: len(least)] = least
    if probability is None:
        doubtful = table[label] > _LEVELS - 1
    else:
        doubtful = probability < table[label]
    if margin:
        doubtful |= near_borders(label, margin)
    return np.where(doubtful, np.uint8(IGNORE_LABEL), label)


def with_coarse(label: np.ndarray, found: np.ndarray, coarse: np.ndarray, use: str) -> np.ndarray:
    """The label map after coarse labels, all uint8 [H, W] with 255 for ignored. found: before any threshold.

    "wins": a coarse label is taken where there is one. "bounds": a label is ignored where the coarse one is another
    class, and where the image has no coarse label of its class.
    """
    if use == "none":
        return label
    there = coarse != IGNORE_LABEL
    if use == "wins":
        return np.where(there, coarse, label)
    seen = np.zeros(_LEVELS, bool)
    seen[np.unique(coarse)] = True
    return np.where((there & (coarse != label)) | ~seen[label], np.uint8(IGNORE_LABEL), label)
