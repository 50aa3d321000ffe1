"""The legend of a picture: which classes, in which order, how large, and that the picture stays as it is."""

import numpy as np
import pytest

from hmsa_ext.data import ClassTable
from hmsa_ext.engine.legend import IGNORED, MARGIN, PAPER, occurring, with_legend

CLASSES = ClassTable(("road", "sky", "car", "tree"), np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 0]]))


def labels_of(height: int = 100, width: int = 400) -> np.ndarray:
    """70 % sky, 25 % road, 5 % car, no tree."""
    labels = np.ones((height, width), np.uint8)
    labels[: height // 4] = 0
    labels[-height // 20 :] = 2
    return labels


def colours_in(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def ink_heights(strip: np.ndarray) -> int:
    """Rows of the first colour field of a strip."""
    return int((strip == CLASSES.colours[1]).all(2).any(1).sum())


def test_the_classes_that_occur_come_with_their_share_the_largest_first() -> None:
    found = [(entry.name, entry.note) for entry in occurring(CLASSES, labels_of())]
    assert found == [("sky", "70.0 %"), ("road", "25.0 %"), ("car", "5.0 %")]


def test_ignored_pixels_count_and_come_last() -> None:
    labels = labels_of().astype(np.int32)
    labels[:, :240] = -1
    found = [(entry.name, entry.note) for entry in occurring(CLASSES, labels)]
    assert found[-1] == ("ignored", "60.0 %")
    assert found[0] == ("sky", "28.0 %")


def test_a_class_of_few_pixels_is_not_said_to_have_none() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[0, 0] = 2
    assert [entry.note for entry in occurring(CLASSES, labels)] == ["100.0 %", "< 0.1 %"]


def test_the_picture_stays_and_the_strip_is_below_it() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (100, 400, 3), dtype=np.uint8)
    page = with_legend(picture, CLASSES, labels_of())
    assert page.dtype == np.uint8
    assert page.shape[1] == 400
    assert np.array_equal(page[:100], picture)
    strip = page[100:]
    assert tuple(strip[0, 0]) == PAPER
    assert {tuple(c) for c in CLASSES.colours[:3].tolist()} <= colours_in(strip)
    assert tuple(CLASSES.colours[3].tolist()) not in colours_in(strip)
    assert IGNORED not in colours_in(strip)


def test_a_larger_picture_has_larger_letters() -> None:
    heights = []
    for width in (320, 720, 1800, 4000):
        page = with_legend(np.zeros((8, width, 3), np.uint8), CLASSES, labels_of())
        heights.append(ink_heights(page[8:]))
    assert heights[0] == heights[1] == 16
    assert heights[2] == pytest.approx(16 * 1800 / 720, rel=0.1)  # the frame is thicker, too
    assert heights[3] == pytest.approx(16 * 4000 / 720, rel=0.1)


def test_a_picture_that_is_too_narrow_gets_paper_at_its_right() -> None:
    picture = np.full((48, 20, 3), 7, np.uint8)
    page = with_legend(picture, CLASSES, labels_of())
    assert np.array_equal(page[:48, :20], picture)
    assert (page[:48, 20:] == PAPER).all()
    assert 60 < page.shape[1] <= 200


def test_names_of_any_length_keep_to_the_width() -> None:
    long = ClassTable(("x" * 300, "short"), np.array([[1, 2, 3], [4, 5, 6]]))
    page = with_legend(np.zeros((50, 320, 3), np.uint8), long, np.arange(2, dtype=np.uint8).repeat(50).reshape(10, 10))
    assert page.shape[1] == 320
    assert (page[50:, 320 - MARGIN // 2 :] == PAPER).all()


def test_all_of_many_classes_are_named() -> None:
    many = ClassTable(tuple(map(str, range(255))), np.stack([np.arange(255)] * 3, 1))
    labels = np.arange(255, dtype=np.uint8).repeat(4).reshape(34, 30)
    page = with_legend(np.zeros((34, 500, 3), np.uint8), many, labels)
    assert {(k, k, k) for k in range(255)} <= colours_in(page[34:])


def test_labels_without_pixels_name_nothing() -> None:
    page = with_legend(np.zeros((0, 50, 3), np.uint8), CLASSES, np.zeros((0, 50), np.uint8))
    assert (page == PAPER).all()
