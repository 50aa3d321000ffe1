"""Normalisation, colours, the class table, and what is said about a broken OpenCV."""

import runpy
import sys

import numpy as np
import pytest
import torch

from hmsa_ext import data
from hmsa_ext.data import opencv
from hmsa_ext.data.opencv import explain_import_failure, installed_wheels
from hmsa_ext.data.sets import camvid


def whole(image):
    """The picture as networks see it."""
    sample = data.Sample(image, np.zeros(image.shape[:2], np.uint8), "picture")
    return data.cut(data.collate([data.whole_piece(sample)])).images[0]


def test_networks_see_the_normalised_picture():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((torch.from_numpy(image).double() / 255 - mean) / std).permute(2, 0, 1)
    # Values are up to 2.7: a few float32 roundings.
    assert torch.allclose(whole(image).double(), expected, atol=2e-6)


def test_denormalise_gives_every_value_back(device):
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(data.denormalise(whole(image).to(device)), image)


def test_colourise_uses_the_table_and_black_for_ignored(device):
    classes = camvid.CLASSES
    label = torch.tensor([[0, 1, 10], [255, 3, 4]], device=device)
    picture = data.colourise(label, classes)
    assert picture.dtype == np.uint8
    assert picture[0, 1].tolist() == [128, 0, 0]
    assert picture[1].tolist() == [[0, 0, 0], [128, 64, 128], [60, 40, 222]]


@pytest.mark.parametrize(
    ("function", "argument", "text"),
    [
        (data.denormalise, torch.zeros(1, 3, 4, 4), r"image: expected \[3, H, W\], got \[1, 3, 4, 4\]"),
    ],
)
def test_wrong_pictures_are_refused(function, argument, text):
    with pytest.raises(ValueError, match=text):
        function(argument)


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (np.zeros((2, 2, 3), np.uint8), r"label: expected integers \[H, W\], got uint8 \[2, 2, 3\]"),
        (np.zeros((2, 2)), "label: expected integers"),
        (np.array([[0, 11], [-1, 255]]), r"label: expected 0\.\.10 or 255, got 11 and such in 2 pixels"),
    ],
)
def test_wrong_label_maps_are_refused(label, text):
    with pytest.raises(ValueError, match=text):
        data.colourise(label, camvid.CLASSES)


def test_a_class_table_is_compared_by_content_and_cannot_change():
    colours = np.array([(1, 2, 3), (4, 5, 6)])
    table = data.ClassTable(("a", "b"), colours)
    assert table.num_classes == 2
    assert table.ignore_label == 255
    assert table == data.ClassTable(tuple("ab"), colours.copy())
    assert table != data.ClassTable(("a", "c"), colours)
    colours[0] = 9
    assert table.colours[0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        table.colours[0] = 0


@pytest.mark.parametrize(
    ("names", "colours", "text"),
    [
        ((), np.zeros((0, 3)), "names: expected 1 to 255 classes, got 0"),
        (("a", "a"), np.zeros((2, 3)), "names: expected each class once"),
        (("a", "b"), np.zeros((3, 3)), r"colours: expected \[2, 3\] values of 0\.\.255, got shape \(3, 3\)"),
        (("a",), np.full((1, 3), 300), "colours: expected"),
    ],
)
def test_wrong_class_tables_are_refused(names, colours, text):
    with pytest.raises(ValueError, match=text):
        data.ClassTable(names, colours)


def test_the_datasets_follow_the_protocol():
    assert isinstance(data.build("synthetic", "val"), data.Dataset)


def test_a_clash_of_opencv_wheels_is_explained():
    both = explain_import_failure(["opencv-python", "opencv-python-headless"], "ImportError: x")
    assert "2 wheels that share the folder cv2 are installed, opencv-python, opencv-python-headless" in both
    assert "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless" in both
    assert "needs the libraries of a desktop" in explain_import_failure(["opencv-python"], "ImportError: libGL.so.1")
    assert "No OpenCV wheel is installed" in explain_import_failure([], "ModuleNotFoundError: cv2")
    assert "--force-reinstall" in explain_import_failure(["opencv-python-headless"], "ImportError: x")
    assert installed_wheels()


@pytest.mark.parametrize(
    ("content", "reason"),
    [("raise ImportError('libGL.so.1: cannot open')", "libGL.so.1"), ("", "imports but is empty")],
)
def test_a_broken_opencv_is_explained_on_import(tmp_path, monkeypatch, content, reason):
    """With a ``cv2`` that cannot be imported, and one that imports but is empty, as half an uninstall leaves it."""
    (tmp_path / "cv2.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2")
    with pytest.raises(ImportError) as caught:
        runpy.run_path(opencv.__file__)
    assert "OpenCV (cv2) does not work here" in str(caught.value)
    assert reason in str(caught.value)
    assert "pip install" in str(caught.value)
