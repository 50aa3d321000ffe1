"""Overlays and maps of confidence: the colours, any dtype, bands of rows, bad input."""

import cv2
import numpy as np
import pytest

from hmsa_ext.data.palette import RESERVED
from hmsa_ext.engine import overlay as module
from hmsa_ext.engine.overlay import confidence_picture, count_labels, overlay
from hmsa_ext.errors import HmsaError

COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 4, (40, 30)).astype(np.uint8)  # 3 has no colour


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.5, 1.0])
def test_the_photo_and_the_colours_are_mixed(opacity: float) -> None:
    mixed = overlay(PHOTO, LABELS, COLOURS, opacity)
    assert mixed.dtype == np.uint8
    coloured = LABELS < 3
    expected = (1 - opacity) * PHOTO[coloured].astype(float) + opacity * COLOURS[LABELS[coloured]]
    assert np.abs(mixed[coloured] - expected).max() <= 0.5 + 1e-3
    assert np.array_equal(mixed[~coloured], PHOTO[~coloured])


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_labels_of_any_integer_dtype_give_the_same_picture(dtype: type) -> None:
    assert np.array_equal(overlay(PHOTO, LABELS.astype(dtype), COLOURS), overlay(PHOTO, LABELS, COLOURS))


@pytest.mark.parametrize("value", [-1, -256, 256, 257, 65536, 2**40])
def test_labels_beyond_a_byte_are_ignored_and_not_wrapped(value: int) -> None:
    labels = np.full(LABELS.shape, value, np.int64)
    assert np.array_equal(overlay(PHOTO, labels, COLOURS), PHOTO)
    assert count_labels(labels)[255] == labels.size


def test_bands_of_rows_give_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence = RNG.random(LABELS.shape)
    whole = overlay(PHOTO, LABELS, COLOURS), confidence_picture(confidence), count_labels(LABELS)
    monkeypatch.setattr(module, "_BAND", 90)
    banded = overlay(PHOTO, LABELS, COLOURS), confidence_picture(confidence), count_labels(LABELS)
    assert all(np.array_equal(a, b) for a, b in zip(whole, banded, strict=True))


def test_views_of_arrays_are_read_and_left_alone() -> None:
    photo, labels = PHOTO[::2, ::-1], LABELS[::2, ::-1]
    before = PHOTO.copy()
    copies = np.ascontiguousarray(photo), np.ascontiguousarray(labels)
    assert np.array_equal(overlay(photo, labels, COLOURS), overlay(*copies, COLOURS))
    assert np.array_equal(PHOTO, before)


def test_pictures_without_pixels_are_empty() -> None:
    empty = np.zeros((0, 5), np.uint8)
    assert overlay(np.zeros((0, 5, 3), np.uint8), empty, COLOURS).shape == (0, 5, 3)
    assert confidence_picture(np.zeros((0, 5), np.float32)).shape == (0, 5, 3)


def test_confidence_is_drawn_on_a_fixed_range() -> None:
    seen = confidence_picture(np.array([[0.0, 0.5, 1.0, -3.0, 7.0]], np.float16))[0]
    map_of_opencv = cv2.applyColorMap(np.array([[0, 128, 255]], np.uint8), cv2.COLORMAP_VIRIDIS)[0, :, ::-1]
    assert np.array_equal(seen[:3], map_of_opencv)
    assert np.array_equal(seen[3:], map_of_opencv[[0, 2]])
    assert seen[0].sum() < seen[1].sum() < seen[2].sum()


def test_undefined_confidence_is_seen() -> None:
    seen = confidence_picture(np.array([[0.5, np.nan]], np.float32))
    assert tuple(seen[0, 1]) == RESERVED["wrong"]
    assert np.array_equal(seen[0, 0], confidence_picture(np.full((1, 1), 0.5))[0, 0])


def test_labels_are_counted() -> None:
    assert count_labels(LABELS)[:4].tolist() == np.bincount(LABELS.ravel()).tolist()
    assert count_labels(LABELS).sum() == LABELS.size


@pytest.mark.parametrize(
    ("image", "labels", "colours", "opacity", "text"),
    [
        (PHOTO[..., 0], LABELS, COLOURS, 0.5, r"image: expected uint8 \[H, W, 3\], got uint8 \[40, 30\]"),
        (PHOTO / 255, LABELS, COLOURS, 0.5, "image: expected uint8 .* got float64"),
        (PHOTO, LABELS[1:], COLOURS, 0.5, r"labels: expected integers \[40, 30\].* got uint8 \[39, 30\]"),
        (PHOTO, LABELS / 2, COLOURS, 0.5, "labels: expected integers .* got float64"),
        (PHOTO, LABELS, COLOURS[:, :2], 0.5, "colours: expected uint8"),
        (PHOTO, LABELS, np.zeros((256, 3), np.uint8), 0.5, "colours: .* at most 255 rows"),
        (PHOTO, LABELS, COLOURS, 1.5, "opacity: expected a number from 0 to 1, got 1.5"),
        (PHOTO, LABELS, COLOURS, float("nan"), "opacity: expected a number from 0 to 1, got nan"),
    ],
)
def test_bad_input_is_named(image, labels, colours, opacity, text) -> None:
    with pytest.raises(HmsaError, match=text):
        overlay(image, labels, colours, opacity)
