"""From stored values to class numbers by one table."""

from pathlib import Path

import numpy as np
import pytest

from hmsa_ext.data import DataError
from hmsa_ext.data.label_table import LabelTable

PATH = Path("somewhere/a.png")


def test_every_entry_of_256_and_of_65536_is_looked_up():
    rng = np.random.default_rng(0)
    meaning = {value: int(rng.choice([*range(254), 255])) for value in range(65536)}
    table = LabelTable(meaning, expected="anything")
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.array([*meaning.values()]).reshape(256, 256)
    assert np.array_equal(table.apply(PATH, wide), expected)
    assert table.apply(PATH, wide).dtype == np.uint8
    narrow = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(table.apply(PATH, narrow).ravel(), expected[0])


def test_a_map_onto_itself_in_other_order_is_not_applied_twice():
    """Where classes swap places, a loop that assigns one class after the other would join them."""
    table = LabelTable({0: 1, 1: 2, 2: 0}, expected="0..2")
    assert table.apply(PATH, np.array([[0, 1, 2]], np.uint8)).tolist() == [[1, 2, 0]]


def test_colours_are_looked_up_exactly():
    table = LabelTable({0x804080: 0, 0x804081: 1, 0: 255, 0xFFFFFF: 2}, expected="these", colours=True)
    stored = np.array([[0x804080, 0x804081], [0, 0xFFFFFF]], np.uint32)
    assert table.apply(PATH, stored).tolist() == [[0, 1], [255, 2]]
    with pytest.raises(DataError, match="values that are no class: #804082 in 1 pixel"):
        table.apply(PATH, np.array([[0x804082]], np.uint32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_that_are_no_class_are_named_and_counted(dtype):
    table = LabelTable({0: 0, 255: 255}, expected="0, or 255 for ignored")
    stored = np.zeros((20, 20), dtype)
    stored[0, :3], stored[1, 1] = 7, 254
    text = r"somewhere/a\.png: values that are no class: 7 in 3 pixels, 254 in 1 pixel\. Expected 0, or 255 for ignored"
    with pytest.raises(DataError, match=text):
        table.apply(PATH, stored)


def test_of_many_wrong_values_the_most_frequent_are_named():
    stored = np.arange(1, 101, dtype=np.uint8)[None].repeat(2, 0)
    stored[1] = 50
    with pytest.raises(DataError, match=r"50 in 101 pixels.*, and 90 more values"):
        LabelTable({0: 0}, expected="0").apply(PATH, stored)


def test_the_identity_tells_tables_apart_and_not_their_order():
    one = LabelTable({0: 0, 7: 1}, expected="x")
    assert one.identity == LabelTable({7: 1, 0: 0}, expected="y").identity
    others = [LabelTable({0: 0, 7: 2}, expected="x"), LabelTable({0: 0, 7: 1}, expected="x", colours=True)]
    assert one.identity not in {other.identity for other in others}


@pytest.mark.parametrize("meaning", [{0: 254}, {0: -1}, {-1: 0}, {65536: 0}])
def test_tables_that_cannot_be_are_refused(meaning):
    with pytest.raises(ValueError, match="classes: expected"):
        LabelTable(meaning, expected="x")
