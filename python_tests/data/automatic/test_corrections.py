"""Corrections: written over earlier ones, read back by class, refused where they do not fit."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_ext.data.automatic.corrections import (
    corrected_file,
    label_table,
    read_corrections,
    with_corrections,
    write_corrections,
)
from hmsa_ext.data.automatic.manifest import Manifest, Record, free_values
from hmsa_ext.data.types import ClassTable, DataError
from python_tests.data.pictures import decoded

PLACE, SIZE = "a/0001", (5, 7)


def manifest(folder: Path, ids: tuple[int, ...] = (0, 1, 2)) -> Manifest:
    """Labels of one image, without the files."""
    count = len(ids)
    classes = ClassTable(tuple(f"c{k}" for k in range(count)), np.zeros((count, 3)), ids=ids)
    record = Record(f"{PLACE}.jpg", SIZE, np.zeros(count, np.int64), 0.5)
    ignored, untouched = free_values(ids)
    return Manifest(
        classes, ignored, untouched, folder, {}, {PLACE: record}, np.zeros((count, 256), np.int64), folder=folder
    )


def at(*pixels: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[tuple(np.transpose(pixels))] = True
    return mask


@pytest.mark.parametrize("ids", [(0, 1, 2), (255, 254, 7), (300, 5, 65535), (65535, 65534, 65533)])
def test_corrections_come_back_by_class_whatever_the_files_store(tmp_path: Path, ids: tuple[int, ...]) -> None:
    labels = manifest(tmp_path, ids)
    label = np.full(SIZE, 9, np.uint8)  # no class, where nobody touched it
    label[0, :4] = 0, 1, 2, 255
    file = write_corrections(labels, PLACE, label, at((0, 0), (0, 1), (0, 2), (0, 3)))
    assert file == corrected_file(tmp_path, PLACE)
    assert decoded(file, cv2.IMREAD_UNCHANGED).dtype == (np.uint16 if max(ids) > 255 else np.uint8)
    corrected, touched = read_corrections(file, label_table(labels), labels.untouched)
    assert np.array_equal(touched, at((0, 0), (0, 1), (0, 2), (0, 3)))
    assert corrected[touched].tolist() == [0, 1, 2, 255]
    automatic = np.ones(SIZE, np.uint8)
    expected = automatic.copy()
    expected[0, :4] = 0, 1, 2, 255
    assert np.array_equal(with_corrections(automatic, file, label_table(labels), labels.untouched), expected)


def test_later_corrections_win_and_earlier_ones_stay(tmp_path: Path) -> None:
    labels = manifest(tmp_path)
    write_corrections(labels, PLACE, np.full(SIZE, 1, np.uint8), at((1, 1), (2, 2)))
    file = write_corrections(labels, PLACE, np.full(SIZE, 2, np.uint8), at((2, 2), (3, 3)))
    corrected, touched = read_corrections(file, label_table(labels), labels.untouched)
    assert np.array_equal(touched, at((1, 1), (2, 2), (3, 3)))
    assert (corrected[1, 1], corrected[2, 2], corrected[3, 3]) == (1, 2, 2)


def test_corrections_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    labels = manifest(tmp_path)
    with pytest.raises(DataError, match="7x4 pixels, the image has 7x5"):
        write_corrections(labels, PLACE, np.zeros((4, 7), np.uint8), np.ones((4, 7), bool))
    with pytest.raises(DataError, match=r"correction to 3; expected 0\.\.2, or 255"):
        write_corrections(labels, PLACE, np.full(SIZE, 3, np.uint8), at((0, 0)))
    assert not corrected_file(tmp_path, PLACE).exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.full((4, 7), 254, np.uint8), "7x4 pixels, its label map 7x5"),
        (np.full(SIZE, 77, np.uint8), "no class: 77 in 35 pixels"),
        (np.full(SIZE, 256, np.uint16), "no class: 256 in 35 pixels"),  # would be class 0 in 8 bits
    ],
)
def test_a_file_that_cannot_be_one_of_corrections_is_an_error(tmp_path: Path, stored: np.ndarray, message: str) -> None:
    labels = manifest(tmp_path)
    file = corrected_file(tmp_path, PLACE)
    file.parent.mkdir(parents=True)
    cv2.imwrite(str(file), stored)
    before = file.read_bytes()
    with pytest.raises(DataError, match=message):
        write_corrections(labels, PLACE, np.zeros(SIZE, np.uint8), at((0, 0)))
    with pytest.raises(DataError, match=message):
        with_corrections(np.zeros(SIZE, np.uint8), file, label_table(labels), labels.untouched)
    assert file.read_bytes() == before
