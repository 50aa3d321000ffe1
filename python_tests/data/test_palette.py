"""Colours of classes that have none of their own: they tell apart in every vision, and from what pictures reserve."""

import numpy as np
import pytest

from hmsa_ext.data.palette import CLEARANCE, RESERVED, VISIONS, distinct_colours, perceived


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """OKLab distances in each vision: [vision, first, second]."""
    return np.linalg.norm(perceived(first)[:, :, None] - perceived(second)[:, None], axis=-1)


def test_perceived_colours_are_those_of_oklab() -> None:
    white, grey, red = perceived(np.array([[255, 255, 255], [119, 119, 119], [255, 0, 0]]))[0]
    assert white == pytest.approx([1, 0, 0], abs=1e-3)
    assert grey[1:] == pytest.approx([0, 0], abs=1e-3)
    assert red == pytest.approx([0.62796, 0.22486, 0.12585], abs=1e-4)  # as published


def test_a_colour_blind_eye_takes_red_for_green() -> None:
    pair = np.array([[196, 62, 40], [120, 122, 30]])
    normal, _, deuteranopia, tritanopia = distances(pair, pair)[:, 0, 1]
    assert deuteranopia < 0.5 * normal
    assert tritanopia > deuteranopia


def test_greys_look_the_same_to_every_eye() -> None:
    seen = perceived(np.array([[30, 30, 30], [128, 128, 128]]))
    assert np.allclose(seen, seen[0], atol=1e-3)


@pytest.mark.parametrize(("count", "normal", "colour_blind"), [(2, 0.5, 0.3), (8, 0.15, 0.1), (20, 0.1, 0.07)])
def test_classes_tell_apart_in_every_vision(count: int, normal: float, colour_blind: float) -> None:
    colours = distinct_colours(count)
    for name, distance in zip(VISIONS, distances(colours, colours), strict=True):
        assert distance[~np.eye(count, dtype=bool)].min() >= (normal if name == "normal" else colour_blind), name


@pytest.mark.parametrize("count", [8, 254])
def test_no_class_looks_like_paper_ignored_or_wrong(count: int) -> None:
    for name, colour in RESERVED.items():
        assert distances(distinct_colours(count), np.array([colour]))[0].min() >= CLEARANCE[name], name


def test_no_class_of_a_small_table_looks_like_these_to_a_colour_blind_eye() -> None:
    assert distances(distinct_colours(20), np.array(list(RESERVED.values()))).min() >= 0.07


def test_colours_are_neither_black_nor_white_nor_grey() -> None:
    lightness, a, b = perceived(distinct_colours(254))[0].T
    assert lightness.min() > 0.35
    assert lightness.max() < 0.98
    assert np.hypot(a, b).min() > 0.06


def test_longer_tables_begin_alike_and_do_not_repeat() -> None:
    colours = distinct_colours(254)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == 254
    for count in (0, 1, 5, 253):
        assert np.array_equal(distinct_colours(count), colours[:count])
    assert np.array_equal(distinct_colours(300)[:254], colours)


def test_a_table_belongs_to_its_caller() -> None:
    distinct_colours(3)[:] = 0
    assert distinct_colours(3).any()
