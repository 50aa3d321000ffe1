"""Labels made by a network: pixels of low probability are ignored, coarse labels made by people are added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hmsa_ext.data.files import read_label
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import IGNORE_LABEL, DataError


class AutoLabels:
    """Reads a label map, its map of probabilities (0..255 for 0..1), and a coarse label map.

    table: the meaning of the stored values of both label maps.
    min_probability: pixels with a lower probability are ignored; at 0 there is no map of probabilities.
    coarse_classes: class numbers. When the label map holds such a class, with any probability, all pixels that have the
        class in the coarse label map get it. Without coarse classes there is no coarse label map.
    region: rows and columns to keep; the rest is ignored. None keeps all.
    """

    def __init__(
        self,
        table: LabelTable,
        *,
        min_probability: float = 0.5,
        coarse_classes: Sequence[int] = (),
        region: tuple[slice, slice] | None = None,
    ) -> None:
        self.table, self.min_probability, self.region = table, min_probability, region
        self.coarse_classes = np.array(sorted(coarse_classes), np.uint8)
        # A class number or-ed with 255 becomes 255, the ignored value; or-ed with 0 it stays.
        self._doubtful = np.where(np.arange(256) / 255 < min_probability, IGNORE_LABEL, 0).astype(np.uint8)
        kept = "all" if region is None else " ".join(f"{part.start}:{part.stop}" for part in region)
        self.identity = (
            f"{table.identity}; probability {min_probability}; coarse {self.coarse_classes.tolist()}; region {kept}"
        )

    def read(self, files: tuple[Path, ...]) -> np.ndarray:
        """The label map, uint8 [H, W]; the files are label map, probabilities, coarse label map, as far as in use.

        Raises DataError for a file that cannot be read, sizes that differ, and values that are no class.
        """
        others = iter(files[1:])
        found = self.table.read(files[:1])
        label = found
        if self.min_probability > 0:
            path = next(others)
            probability = read_label(path)
            if probability.dtype != np.uint8:
                raise DataError(f"{path}: expected probabilities 0..255 in 8 bits, got {probability.dtype}")
            _check_size(path, probability, files[0], label)
            label = label | cv2.LUT(probability, self._doubtful)
        if len(self.coarse_classes):
            path = next(others)
            coarse = self.table.read((path,))
            _check_size(path, coarse, files[0], label)
            there = np.bincount(found.ravel(), minlength=256)[self.coarse_classes] > 0
            added = np.zeros(256, np.uint8)
            added[self.coarse_classes[there]] = 1
            label = np.where(cv2.LUT(coarse, added) > 0, coarse, label)
        if self.region is not None:
            whole, label = label, np.full_like(label, IGNORE_LABEL)
            label[self.region] = whole[self.region]
        return label


def _check_size(path: Path, array: np.ndarray, label_path: Path, label: np.ndarray) -> None:
    if array.shape != label.shape:
        raise DataError(
            f"{path}: {array.shape[1]}x{array.shape[0]} pixels, its label map {label_path.name} "
            f"{label.shape[1]}x{label.shape[0]}"
        )
