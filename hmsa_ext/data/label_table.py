"""From the values that label files store to class numbers: one look-up per pixel for any number of classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hmsa_ext.data.files import read_colours, read_label
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import IGNORE_LABEL, DataError
from hmsa_ext.errors import ArgumentValueError

NO_CLASS = 254  # the entry of values that are no class
# More colours than this in label maps are no classes, of which there are at most 254: they come from a photograph, from
# lossy compression or from smoothed borders.
MANY_COLOURS = 256
SHOWN = 10


class LabelTable:
    """A table of class numbers by stored value: 65,536 entries (8 and 16 bits), or 2^24 for colours.

    classes: class number, or 255 for ignored, of each stored value; for colours the value is
        red * 65536 + green * 256 + blue. Values that are not in it are errors.
    expected: the values that fit, in words, for error messages.
    colours: the files are colour pictures whose colours stand for classes.

    Raises ValueError for class numbers other than 0..253 and 255, and for values that no file can store.
    """

    def __init__(self, classes: Mapping[int, int], *, expected: str, colours: bool = False) -> None:
        values, numbers = (np.array(list(part), np.int64) for part in (classes.keys(), classes.values()))
        size = 1 << (24 if colours else 16)
        if ((values < 0) | (values >= size)).any():
            raise ArgumentValueError(f"classes: expected stored values of 0..{size - 1}, got {sorted(classes)}")
        if (((numbers < 0) | (numbers >= NO_CLASS)) & (numbers != IGNORE_LABEL)).any():
            raise ArgumentValueError(
                f"classes: expected class numbers 0..{NO_CLASS - 1} or {IGNORE_LABEL}, got {numbers}"
            )
        self.entries = np.full(size, NO_CLASS, np.uint8)
        self.entries[values] = numbers
        self.expected, self.colours = expected, colours
        pairs = " ".join(f"{value}>{number}" for value, number in sorted(classes.items()))
        self.identity = f"{'colours' if colours else 'values'} {pairs}"

    def ids(self, num_classes: int) -> tuple[int, ...] | None:
        """The smallest stored value of each class; None for colours, and where a class has no value."""
        if self.colours:
            return None
        numbers, values = np.unique(self.entries, return_index=True)
        smallest = dict(zip(numbers.tolist(), values.tolist(), strict=True))
        ids = [smallest.get(number) for number in range(num_classes)]
        return None if None in ids else tuple(value for value in ids if value is not None)

    @property
    def table(self) -> LabelTable:
        """Itself: the table is its own reader of label files."""
        return self

    def read(self, files: tuple[Path, ...]) -> np.ndarray:
        """The label map in the first of the files: uint8 [H, W], class numbers and 255.

        Raises DataError for a file that cannot be read and for values that are no class.
        """
        return self.apply(files[0], self.load(files[0]))

    def load(self, path: Path) -> np.ndarray:
        """What a file stores: uint8 or uint16 [H, W], colours uint32 [H, W]. Raises DataError."""
        return read_colours(path) if self.colours else read_label(path)

    def apply(self, path: Path, stored: np.ndarray) -> np.ndarray:
        """Class numbers of stored values. Raises DataError that names the file, the values and their pixels."""
        label = cv2.LUT(stored, self.entries[:256]) if stored.dtype == np.uint8 else self.entries.take(stored)
        if (label == NO_CLASS).any():
            values, counts = np.unique(stored[label == NO_CLASS], return_counts=True)
            raise DataError(
                f"{path}: values that are no class: {describe_values(values, counts, colours=self.colours)}. "
                f"Expected {self.expected}"
            )
        return label


def describe_values(values: np.ndarray, counts: np.ndarray, *, colours: bool = False) -> str:
    """Stored values and how many pixels have them, in words; the most frequent ones of many."""
    most = np.sort(np.argsort(-counts, kind="stable")[:SHOWN])
    parts = [
        f"{show_value(int(values[k]), colours=colours)} in {counts[k]} pixel{'' if counts[k] == 1 else 's'}"
        for k in most
    ]
    return ", ".join(parts) + (f", and {len(values) - SHOWN} more values" if len(values) > SHOWN else "")


def show_value(value: int, *, colours: bool = False) -> str:
    """A stored value as a user writes it: a number, or a colour as "#rrggbb"."""
    return f"#{value:06x}" if colours else str(value)
