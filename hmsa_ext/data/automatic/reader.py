"""Makes one label map of an automatic one, its probabilities, a coarse one by people, and people's corrections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hmsa_ext.data.automatic.corrections import with_corrections
from hmsa_ext.data.automatic.manifest import counts_by_probability
from hmsa_ext.data.automatic.trust import Trust, trusted, with_coarse
from hmsa_ext.data.files import read_label
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.progress import reader_threads, report
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError


@dataclass(frozen=True)
class Coarse:
    """Coarse labels of the images.

    table: the meaning of their values.
    classes: class numbers. When the automatic label map holds such a class, with any probability, all pixels that have
        the class in the coarse label map get it (published).
    optional: images may have no coarse label map; they are then as the automatic labels say.
    """

    table: LabelTable
    classes: tuple[int, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Corrected:
    """Corrections by people: the meaning of their values, and the value of pixels that nobody corrected.

    The file of an image need not exist.
    """

    table: LabelTable
    untouched: int


class AutoLabels:
    """Reads the files of an image: its label map, then as far as in use its map of probabilities, coarse label map and
    corrections.

    table: the meaning of the values of the label map.
    classes: the class table.
    trust: which pixels count.
    histogram: int64 [K, 256], pixels of all images by class and stored probability; for thresholds that follow from it.
    region: rows and columns to keep of automatic and coarse labels; the rest is ignored. None keeps all.

    Raises DataError for names of the trust that are no classes.
    """

    def __init__(
        self,
        table: LabelTable,
        classes: ClassTable,
        trust: Trust,
        *,
        histogram: np.ndarray | None = None,
        coarse: Coarse | None = None,
        corrected: Corrected | None = None,
        region: tuple[slice, slice] | None = None,
    ) -> None:
        self.table, self.trust, self.region = table, trust, region
        self.coarse, self.corrected = coarse, corrected
        self.least = trust.thresholds(classes, histogram)
        kept = "all" if region is None else " ".join(f"{part.start}:{part.stop}" for part in region)
        parts = [
            table.identity,
            f"probability from {self.least.tolist()}",
            f"margin {trust.boundary_margin}",
            f"region {kept}",
        ]
        if coarse is not None:
            parts.append(f"coarse {trust.coarse_use} {list(coarse.classes)} {coarse.table.identity}")
        if corrected is not None:
            parts.append(f"corrected but {corrected.untouched} {corrected.table.identity}")
        self.identity = "; ".join(parts)

    def read(self, files: tuple[Path, ...]) -> np.ndarray:
        """The label map, uint8 [H, W]. Corrections win over coarse labels, and these over automatic ones.

        Raises DataError for a file that cannot be read, sizes that differ, and values that are no class.
        """
        others = iter(files[1:])
        found = self.table.read(files[:1])
        probability = self._probability(others, files[0], found)
        label = trusted(found, probability, self.least, self.trust.boundary_margin)
        if self.coarse is not None:
            label = self._with_coarse(label, found, next(others), files[0])
        if self.region is not None:
            whole, label = label, np.full_like(label, IGNORE_LABEL)
            label[self.region] = whole[self.region]
        if self.corrected is not None:
            file = next(others)
            if file.is_file():
                label = with_corrections(label, file, self.corrected.table, self.corrected.untouched)
        return label

    def _probability(self, others: Iterator[Path], label_file: Path, found: np.ndarray) -> np.ndarray | None:
        if not self.trust.needs_probabilities:
            return None
        return read_probability(next(others), label_file, found)

    def _with_coarse(self, label: np.ndarray, found: np.ndarray, file: Path, label_file: Path) -> np.ndarray:
        assert self.coarse is not None
        if self.coarse.optional and not file.is_file():
            return label
        coarse = self.coarse.table.read((file,))
        _check_size(file, coarse, label_file, label)
        label = with_coarse(label, found, coarse, self.trust.coarse_use)
        if self.coarse.classes:
            numbers = np.array(self.coarse.classes, np.uint8)
            there = np.bincount(found.ravel(), minlength=256)[numbers] > 0
            added = np.zeros(256, np.uint8)
            added[numbers[there]] = 1
            label = np.where(cv2.LUT(coarse, added) > 0, coarse, label)
        return label


def count_pairs(
    pairs: Sequence[tuple[Path, Path]], table: LabelTable, num_classes: int, *, quiet: bool = False
) -> Iterator[np.ndarray]:
    """Pixels by class and stored probability of pairs of label file and file of the probabilities: int64 [K, 256] each.

    Reads them in parallel, a few ahead of what was taken: the counts of all would fill the memory. Raises DataError for
    files that cannot be read, and for sizes that differ.
    """

    def count(pair: tuple[Path, Path]) -> np.ndarray:
        label = table.read(pair[:1])
        return counts_by_probability(label, read_probability(pair[1], pair[0], label), num_classes)

    threads = reader_threads()
    with ThreadPoolExecutor(threads) as pool:
        pieces = (pairs[first : first + 4 * threads] for first in range(0, len(pairs), 4 * threads))
        counts = (counted for piece in pieces for counted in pool.map(count, piece))
        yield from report(counts, len(pairs), what="counting probabilities", quiet=quiet)


def read_probability(file: Path, label_file: Path, label: np.ndarray) -> np.ndarray:
    """The stored probabilities of a label map, which came from ``label_file``: uint8 [H, W].

    Raises DataError for a file that cannot be read, of another size, or of other than 8 bits.
    """
    probability = read_label(file)
    if probability.dtype != np.uint8:
        raise DataError(f"{file}: expected probabilities 0..255 in 8 bits, got {probability.dtype}")
    _check_size(file, probability, label_file, label)
    return probability


def _check_size(path: Path, array: np.ndarray, label_path: Path, label: np.ndarray) -> None:
    if array.shape != label.shape:
        raise DataError(
            f"{path}: {array.shape[1]}x{array.shape[0]} pixels, its label map {label_path.name} "
            f"{label.shape[1]}x{label.shape[0]}"
        )
