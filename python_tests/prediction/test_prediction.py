"""A prediction: its numbers, its pictures and its files."""

from __future__ import annotations

import dataclasses
import errno
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from hmsa_ext import HmsaError
from hmsa_ext.data import ClassTable
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import OutputError
from hmsa_ext.prediction import prediction as module
from hmsa_ext.prediction.prediction import Prediction
from hmsa_ext.prediction.settings import KINDS

COLOURS = np.array([(255, 0, 0), (0, 200, 0), (0, 0, 150)])
TABLE = ClassTable(("road", "tree", "sky"), COLOURS, ids=(7, 21, 255))


def prediction_of(height: int = 6, width: int = 9, *, classes: ClassTable = TABLE, **given: Any) -> Prediction:
    """Labels 0, 1, 2 over 3/6, 2/6 and 1/6 of the rows of 6."""
    rows = np.minimum(np.arange(height)[:, None] * 6 // height, 5)
    labels = np.broadcast_to(np.array([0, 0, 0, 1, 1, 2], np.uint8)[rows], (height, width)).copy()
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    confidence = np.random.default_rng(1).random((height, width), dtype=np.float32)
    fields: dict[str, Any] = {"scales": (0.5, 1.0), "flip": False, "name": "street.jpg"} | given
    return Prediction(labels, confidence, classes, image, **fields)


def with_shares(found: Prediction) -> Prediction:
    share = found.confidence
    return dataclasses.replace(
        found,
        shares={0.5: share, 1.0: 1 - share},
        scale_labels={0.5: found.labels, 1.0: found.labels[:, ::-1]},
        logits=np.stack([share * k for k in range(3)]),
    )


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# ---- numbers ----------------------------------------------------------------------------------------------------


def test_areas_are_shares_by_name_the_largest_first() -> None:
    assert list(prediction_of().areas().items()) == [
        ("road", pytest.approx(3 / 6)), ("tree", pytest.approx(2 / 6)), ("sky", pytest.approx(1 / 6))
    ]  # fmt: skip
    assert prediction_of(1, 1).areas() == {"road": 1.0}


def test_it_says_what_it_is() -> None:
    assert repr(prediction_of()) == "Prediction(street.jpg, 6x9, road 50%, tree 33%, sky 17%)"
    assert repr(prediction_of(1, 1, name="")) == "Prediction(array, 1x1, road 100%)"


def test_ids_are_those_of_the_data_set() -> None:
    found = prediction_of()
    assert found.ids().dtype == np.uint8
    np.testing.assert_array_equal(found.ids(), np.array([7, 21, 255])[found.labels])
    deep = dataclasses.replace(found, classes=dataclasses.replace(TABLE, ids=(7, 21, 26001)))
    assert deep.ids().dtype == np.uint16
    assert deep.ids().max() == 26001
    bare = dataclasses.replace(found, classes=dataclasses.replace(TABLE, ids=None))
    np.testing.assert_array_equal(bare.ids(), found.labels)


def test_probabilities_are_bytes_and_never_wrap() -> None:
    found = dataclasses.replace(prediction_of(1, 4), confidence=np.array([[0, 0.5, 1, np.nan]], np.float32))
    assert found.probabilities().dtype == np.uint8
    assert found.probabilities().tolist() == [[0, 127, 255, 0]]


# ---- pictures ---------------------------------------------------------------------------------------------------


def test_colours_are_those_of_the_classes() -> None:
    found = prediction_of()
    np.testing.assert_array_equal(found.colours(), COLOURS[found.labels])


def test_an_overlay_mixes_photo_and_colours() -> None:
    found = prediction_of()
    np.testing.assert_array_equal(found.overlay(0), found.image)
    np.testing.assert_array_equal(found.overlay(1), found.colours())
    mixed = 0.7 * found.image + 0.3 * found.colours()
    np.testing.assert_allclose(found.overlay(0.3), mixed, atol=1)


def test_a_legend_lies_below_the_overlay() -> None:
    found = prediction_of(60, 400)
    with_legend = found.overlay(legend=True)
    np.testing.assert_array_equal(with_legend[:60, :400], found.overlay())
    assert with_legend.shape[0] > 60
    below = with_legend[60:].reshape(-1, 3)
    for colour in COLOURS:
        assert (below == colour).all(axis=1).any()


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_an_opacity_is_a_share(opacity: float) -> None:
    with pytest.raises(ArgumentValueError, match="opacity: expected a number from 0 to 1, got"):
        prediction_of().overlay(opacity)


def test_a_page_of_the_attention_needs_the_shares() -> None:
    with pytest.raises(ArgumentValueError, match=r"attention: .*predict\(image, per_scale=True\)"):
        prediction_of().attention()
    page = with_shares(prediction_of()).attention()
    assert page.dtype == np.uint8
    assert page.ndim == 3


@pytest.mark.parametrize("size", [(2000, 3000), (1, 1), (1, 5000), (3000, 1)])
def test_notebooks_show_an_overlay_of_bounded_size(size: tuple[int, int]) -> None:
    picture = Image.open(io.BytesIO(prediction_of(*size)._repr_png_()))
    assert picture.mode == "RGB"
    assert picture.width <= 1100
    assert picture.height <= 1200


def test_notebooks_see_the_shares_of_the_whole_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    found = prediction_of(3000, 3000)
    found.labels[1, 1] = 2  # falls between the pixels of the smaller picture
    found.labels[2500:] = 1  # nowhere else
    seen: list[np.ndarray] = []
    monkeypatch.setattr(module, "with_legend", lambda picture, classes, labels: seen.append(labels) or picture)
    found._repr_png_()
    assert (seen[0] == 2).any()


# ---- files ------------------------------------------------------------------------------------------------------


def test_every_kind_is_saved_as_what_it_is(tmp_path: Path) -> None:
    found = with_shares(prediction_of(40, 60))
    expected = {
        "labels": found.labels, "colours": found.colours(), "overlay": found.overlay(),
        "confidence": found.probabilities(), "attention": found.attention(),
    }  # fmt: skip
    assert set(expected) == set(KINDS)
    for kind, picture in expected.items():
        path = found.save(tmp_path / "deep" / f"{kind}.png", kind)  # type: ignore[arg-type]
        np.testing.assert_array_equal(read(path), picture)
    for kind in ("colours", "overlay", "attention"):
        for ending in (".jpg", ".JPEG"):
            path = found.save(tmp_path / f"{kind}{ending}", kind)  # type: ignore[arg-type]
            assert Image.open(path).format == "JPEG"
            assert read(path).shape == expected[kind].shape


def test_options_of_the_pictures_arrive_in_the_file(tmp_path: Path) -> None:
    found = prediction_of(60, 400)
    np.testing.assert_array_equal(read(found.save(tmp_path / "a.png", ids=True)), found.ids())
    overlay = found.save(tmp_path / "b.png", "overlay", opacity=0.9, legend=True)
    np.testing.assert_array_equal(read(overlay), found.overlay(0.9, legend=True))
    deep = dataclasses.replace(found, classes=dataclasses.replace(TABLE, ids=(7, 21, 26001)))
    np.testing.assert_array_equal(read(deep.save(str(tmp_path / "c.PNG"), ids=True)), deep.ids())


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a.jpg", "labels", "path: expected labels as .png, got '.jpg'"),
        ("a.jpeg", "confidence", "path: expected confidence as .png, got '.jpeg'"),
        ("a.tif", "overlay", "path: expected overlay as .png or .jpg or .jpeg, got '.tif'"),
        ("a", "labels", "path: expected labels as .png, got 'no ending'"),
        ("a.png", "label", "kind: expected one of labels, colours, overlay, confidence, attention, got 'label'"),
        ("a.jpg", "masks", "kind: expected one of labels,"),
        ("a.png", "attention", "attention: this prediction has no shares"),
    ],
)
def test_what_cannot_be_saved_is_an_error(tmp_path: Path, name: str, kind: Any, message: str) -> None:
    with pytest.raises(HmsaError, match=message):
        prediction_of().save(tmp_path / name, kind)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prediction_of()
    path = found.save(tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"path: .*a.png/b.png cannot be written: "):
        found.save(path / "b.png")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"path: .*a.png cannot be written: No space left on device"):
        found.save(path, ids=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# ---- orientation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_is_what_the_file_has(orientation: int) -> None:
    upright = with_shares(prediction_of(6, 9, orientation=orientation))
    stored = upright.stored()
    assert stored.orientation == 1
    shape = (6, 9) if orientation < 5 else (9, 6)
    assert stored.labels.shape == stored.confidence.shape == stored.image.shape[:2] == shape
    assert stored.logits is not None
    assert stored.shares is not None
    assert stored.scale_labels is not None

    def turned(array: np.ndarray) -> np.ndarray:
        """As Pillow turns a file of this orientation."""
        image = Image.fromarray(array)
        image.getexif()[274] = orientation
        return np.asarray(ImageOps.exif_transpose(image))

    pairs: list[tuple[np.ndarray, np.ndarray]] = [
        (stored.labels, upright.labels), (stored.confidence, upright.confidence), (stored.image, upright.image)
    ]  # fmt: skip
    assert upright.logits is not None
    assert upright.shares is not None
    assert upright.scale_labels is not None
    pairs += zip(stored.logits, upright.logits, strict=True)
    pairs += [(stored.shares[scale], upright.shares[scale]) for scale in (0.5, 1.0)]
    pairs += [(stored.scale_labels[scale], np.ascontiguousarray(upright.scale_labels[scale])) for scale in (0.5, 1.0)]
    for before, after in pairs:
        np.testing.assert_array_equal(turned(before), after)
    assert stored.areas() == upright.areas()
    assert stored.attention().dtype == np.uint8


def test_what_was_upright_stays_the_same() -> None:
    found = prediction_of()
    assert found.stored() is found
