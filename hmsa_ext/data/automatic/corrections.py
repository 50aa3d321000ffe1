"""What people corrected in automatic labels: a file beside each pair that somebody looked at.

``OUT/corrected/PLACE.png`` has the size of the label map. A pixel stores the value of its right class, the value
``ignored`` of the manifest where it is of no class, or ``untouched`` where nobody said anything. Corrected pixels win
over automatic and coarse labels, whatever the thresholds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hmsa_ext.data.automatic.manifest import Manifest
from hmsa_ext.data.files import read_label
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import IGNORE_LABEL, DataError
from hmsa_ext.files import replacing

FOLDER = "corrected"


def corrected_file(folder: Path, place: str) -> Path:
    """The file of the corrections of a place; it need not exist."""
    return folder / FOLDER / f"{place}.png"


def label_table(manifest: Manifest) -> LabelTable:
    """The meaning of the values in label files and corrections: class numbers, 255 for ``ignored``."""
    ids = manifest.classes.ids
    assert ids is not None  # manifests always have them
    values = {value: number for number, value in enumerate(ids)}
    expected = f"the values of {len(ids)} classes that the manifest lists, or {manifest.ignored} for no class"
    return LabelTable({**values, manifest.ignored: IGNORE_LABEL}, expected=expected)


def read_corrections(file: Path, table: LabelTable, untouched: int) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers, 255 for no class, uint8 [H, W], and where somebody corrected, bool [H, W].

    Class numbers are only meant where somebody corrected. Raises DataError for files that cannot be read and for values
    that are no class.
    """
    stored = read_label(file)
    touched = stored != untouched
    some = stored[touched]
    label = np.full(stored.shape, IGNORE_LABEL, np.uint8)
    if some.size:
        label[touched] = table.apply(file, some.reshape(1, -1)).ravel()
    return label, touched


def write_corrections(manifest: Manifest, place: str, label: np.ndarray, touched: np.ndarray) -> Path:
    """Writes corrections over those that are there; pixels that are not touched keep what they had. Returns the file.

    label: class numbers, 255 for no class, uint8 [H, W]. touched: bool [H, W].

    Raises DataError where the sizes differ from the image's, for labels that are no class, and where the corrections
    that are there cannot be used; OSError where the file cannot be written.
    """
    size = manifest.records[place].size
    if label.shape != size or touched.shape != size:
        got = f"{label.shape[1]}x{label.shape[0]}"
        raise DataError(f"{place}: a correction of {got} pixels, the image has {size[1]}x{size[0]}")
    ids = manifest.classes.ids
    assert ids is not None
    wrong = np.setdiff1d(label[touched], [*range(len(ids)), IGNORE_LABEL])
    if len(wrong):
        raise DataError(
            f"{place}: a correction to {wrong[0]}; expected 0..{len(ids) - 1}, or {IGNORE_LABEL} for no class"
        )
    largest = max(*ids, manifest.ignored, manifest.untouched)
    values = np.full(256, manifest.ignored, np.uint8 if largest < 256 else np.uint16)
    values[: len(ids)] = ids
    file = corrected_file(manifest.folder, place)
    stored = np.full(size, manifest.untouched, values.dtype)
    if file.is_file():
        earlier, there = read_corrections(file, label_table(manifest), manifest.untouched)
        _check_size(file, earlier, size)
        stored[there] = values[earlier[there]]
    stored = np.where(touched, values[label], stored)
    file.parent.mkdir(parents=True, exist_ok=True)
    written, data = cv2.imencode(".png", stored)
    assert written
    with replacing(file) as out:
        out.write(data.tobytes())
    return file


def with_corrections(label: np.ndarray, file: Path, table: LabelTable, untouched: int) -> np.ndarray:
    """The label map, class numbers and 255, uint8 [H, W], after the corrections in a file. Raises DataError."""
    corrected, touched = read_corrections(file, table, untouched)
    _check_size(file, corrected, label.shape)
    return np.where(touched, corrected, label)


def _check_size(file: Path, corrected: np.ndarray, size: tuple[int, ...]) -> None:
    if corrected.shape != size:
        got = f"{corrected.shape[1]}x{corrected.shape[0]}"
        raise DataError(f"{file}: {got} pixels, its label map {size[1]}x{size[0]}")
