"""How far the probabilities of automatic labels can be believed: counts beside the truth, and figures from counts.

Everything here is counted by stored probability, 0 to 255 (``level``): a pixel of level q has the probability q / 255,
which is at most 1/255 below the one that the network gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hmsa_ext.data.automatic.corrections import label_table
from hmsa_ext.data.automatic.manifest import LEVELS, Manifest, counts_by_probability
from hmsa_ext.data.automatic.reader import read_probability
from hmsa_ext.data.automatic.trust import median_levels
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.progress import reader_threads, report
from hmsa_ext.data.types import IGNORE_LABEL, DataError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Probabilities that tables are made for."""
BINS = 10
"""Equal parts of the probabilities from 0 to 1."""
CALIBRATED = 0.02
"""An expected calibration error up to this is called calibrated."""
_STARTS = [-(-(LEVELS - 1) * part // BINS) for part in range(BINS)]  # the least level of each bin


# ---- counting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Agreement:
    """Automatic labels beside true ones, counted over the pixels that have a true class.

    labelled: int64 [K, 256], pixels by automatic class and level.
    right: int64 [K, 256], those of them whose true class is the automatic one.
    confusion: int64 [K, K], pixels by automatic class and true class.
    unlabelled: int64 [K], pixels of each true class without an automatic label.
    images: how many images were compared.
    """

    labelled: np.ndarray
    right: np.ndarray
    confusion: np.ndarray
    unlabelled: np.ndarray
    images: int

    def precision(self) -> np.ndarray:
        """The share of the pixels of each automatic class that is right: float64 [K], NaN without pixels."""
        return ratio(self.right.sum(1), self.labelled.sum(1))

    def recall(self) -> np.ndarray:
        """The share of the pixels of each true class that the automatic labels have: float64 [K]."""
        return ratio(self.right.sum(1), self._true())

    def iou(self) -> np.ndarray:
        """Intersection over union of each class: float64 [K], NaN for classes that neither side has."""
        right = self.right.sum(1)
        return ratio(right, self.labelled.sum(1) + self._true() - right)

    def _true(self) -> np.ndarray:
        return self.confusion.sum(0) + self.unlabelled


def compare(
    manifest: Manifest, files: Mapping[str, Path], table: LabelTable, *, threads: int | None = None, quiet: bool = False
) -> Agreement:
    """Compares automatic labels with true ones, as the network made them: without corrections.

    Args:
        manifest: of the automatic labels.
        files: the true label file of each place that has one.
        table: the meaning of the values in these files.
        threads: files that are read at a time; one per core, at most 16, unless given.
        quiet: show no progress.

    Raises DataError for files that cannot be read, sizes that differ, values that are no class, and automatic labels
    that are not those that the manifest counted.
    """
    number, own = manifest.classes.num_classes, label_table(manifest)

    def count(place: str) -> tuple[np.ndarray, ...]:
        label, probability = read_pair(manifest, place, own)
        truth = table.read((files[place],))
        if truth.shape != label.shape:
            raise DataError(
                f"{files[place]}: {_size(truth)} pixels, the automatic labels {manifest.label_file(place)} have "
                f"{_size(label)}"
            )
        there = truth != IGNORE_LABEL
        label, probability, truth = label[there], probability[there], truth[there]
        some = label != IGNORE_LABEL
        unlabelled = np.bincount(truth[~some], minlength=number)
        label, probability, truth = label[some], probability[some], truth[some]
        pairs = np.bincount(label.astype(np.int64) * number + truth, minlength=number * number)
        same = label == truth
        right = counts_by_probability(label[same], probability[same], number)
        return counts_by_probability(label, probability, number), right, pairs.reshape(number, number), unlabelled

    sums = [np.zeros(shape, np.int64) for shape in ((number, LEVELS), (number, LEVELS), (number, number), number)]
    with ThreadPoolExecutor(reader_threads(threads)) as pool:
        for found in report(pool.map(count, files), len(files), what="comparing with the truth", quiet=quiet):
            for total, counts in zip(sums, found, strict=True):
                total += counts
    labelled, right, confusion, unlabelled = sums
    return Agreement(labelled, right, confusion, unlabelled, len(files))


def read_pair(manifest: Manifest, place: str, table: LabelTable) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers, 255 for none, and levels of a place, both uint8 [H, W].

    table: :func:`hmsa_ext.data.automatic.corrections.label_table` of the manifest.

    Raises DataError for files that cannot be read and for those that the manifest did not count.
    """
    file, record = manifest.label_file(place), manifest.records[place]
    label = table.read((file,))
    if label.shape != record.size:
        height, width = record.size
        raise DataError(f"{file}: {_size(label)} pixels, the manifest says {width}x{height}")
    probability = read_probability(manifest.probability_file(place), file, label)
    counts = np.bincount(label.ravel(), minlength=LEVELS)[: len(record.pixels)]
    if not np.array_equal(counts, record.pixels):
        number = int((counts != record.pixels).argmax())
        raise DataError(
            f"{file}: {counts[number]} pixels of {manifest.classes.names[number]}, the manifest counted "
            f"{record.pixels[number]}: the file was changed since, or another one took its place"
        )
    return label, probability


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


# ---- figures from counts ----------------------------------------------------------------------------------------


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64; NaN where the whole is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, np.true_divide(part, whole), np.nan)


def at_or_above(counts: np.ndarray) -> np.ndarray:
    """Pixels of each level and all higher ones, of counts [..., 256] by level: the same shape."""
    return counts[..., ::-1].cumsum(-1)[..., ::-1]


def images_with(manifest: Manifest) -> np.ndarray:
    """How many images have each class: int64 [K]."""
    count = np.zeros(manifest.classes.num_classes, np.int64)
    for record in manifest.records.values():
        count += record.pixels > 0
    return count


def medians(histogram: np.ndarray) -> np.ndarray:
    """The median probability of each class: float64 [K], NaN without pixels, of counts [K, 256]."""
    return np.where(histogram.any(1), median_levels(histogram) / (LEVELS - 1), np.nan)


def in_bins(counts: np.ndarray) -> np.ndarray:
    """Sums over ten equal parts of the probabilities, [..., 10], of counts [..., 256]; probability 1 is in the last."""
    return np.add.reduceat(counts, _STARTS, -1)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Precision beside probability, in ten bins of probability; the leading axes are those of the counts.

    pixels: int64 [..., 10].
    precision, probability: float64 [..., 10], of the pixels of a bin; NaN without pixels.
    error: float64 [...], the expected calibration error: the sum over bins of their share of the pixels times
        \\|precision - probability\\| (Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", 2017).
    excess: float64 [...], mean probability less precision over all pixels; above 0 the network is over-confident.
    """

    pixels: np.ndarray
    precision: np.ndarray
    probability: np.ndarray
    error: np.ndarray
    excess: np.ndarray


def calibration(labelled: np.ndarray, right: np.ndarray) -> Calibration:
    """The calibration of pixels by level, int64 [..., 256], of which those of ``right`` are right."""
    pixels, correct = in_bins(labelled), in_bins(right)
    sure = in_bins(labelled * np.arange(LEVELS) / (LEVELS - 1))
    total = pixels.sum(-1)
    return Calibration(
        pixels, ratio(correct, pixels), ratio(sure, pixels),
        ratio(np.abs(correct - sure).sum(-1), total), ratio((sure - correct).sum(-1), total),
    )  # fmt: skip


def verdict(error: float, excess: float) -> str:
    """Calibrated, over-confident, under-confident or uneven, of the figures of :class:`Calibration`.

    Uneven: the error is not small, but most of it cancels, since some probabilities are too high and others too low.
    """
    if error <= CALIBRATED:
        return "calibrated"
    if abs(excess) < error / 2:
        return "uneven"
    return "over-confident" if excess > 0 else "under-confident"


def lowest_levels(labelled: np.ndarray, right: np.ndarray, precision: float, least_pixels: int) -> np.ndarray:
    """The least level of each class from which on the labels are as precise as asked for: int64 [K], 256 for never.

    At that level, and at every higher one that still has ``least_pixels`` pixels at or above it, the share of right
    pixels among those at or above it is at least ``precision``. So a higher threshold keeps the precision, too, and no
    lucky dip of the curve is taken for an answer. A level without a pixel of its own is never the answer: nothing is
    known of the pixels there.

    labelled, right: int64 [K, 256], as in :class:`Agreement`.
    """
    count = at_or_above(labelled)
    enough = count >= max(least_pixels, 1)
    holds = (ratio(at_or_above(right), count) >= precision) | ~enough
    for_all_higher = np.logical_and.accumulate(holds[:, ::-1], 1)[:, ::-1]
    fits = for_all_higher & enough & (labelled > 0)
    return np.where(fits.any(1), fits.argmax(1), LEVELS)
