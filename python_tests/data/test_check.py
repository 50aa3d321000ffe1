"""Problems of an item that the check before training and the readers of label maps report, and their progress."""

import re
import sys

import numpy as np
import pytest

from hmsa_ext import data
from hmsa_ext.data import progress
from hmsa_ext.data.check import inspect_item, problem_report

from .pictures import on_disk, write, write_image


class Plain:
    """A data set without any of the optional methods."""

    classes = data.ClassTable(("a", "b"), np.zeros((2, 3)))

    def __init__(self, label: np.ndarray) -> None:
        self.stored = label

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> data.Sample:
        return data.Sample(np.zeros((2, 3, 3), np.uint8), self.stored, "item")

    def label(self, index: int) -> np.ndarray:
        return self.stored


def test_an_item_of_any_data_set_is_its_label_map_or_its_problems():
    label = np.array([[0, 1, 255]] * 2, np.uint8)
    found, problems = inspect_item(Plain(label), 0)
    assert found is label
    assert problems == []
    found, problems = inspect_item(Plain(label + 1), 0)
    assert found is None
    assert problems == ["item: values that are no class: 2 in 2 pixels. Expected 0..1, or 255 for ignored"]
    found, problems = inspect_item(data.build("synthetic", "val"), 3)
    assert found is not None
    assert found.shape == (128, 256)
    assert problems == []


def test_an_item_on_disk_is_inspected_without_decoding_its_image(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"train/{name}.png", (2, 3))
        write(tmp_path / f"trainannot/{name}.png", np.array([[0, 1, 11]] * 2, np.uint8))
    dataset = on_disk("camvid", "train", root=tmp_path)
    found, problems = inspect_item(dataset, 0)
    assert found is not None
    assert found.tolist() == [[0, 1, 255]] * 2
    assert problems == []
    write_image(tmp_path / "train/b.png", (5, 3))
    write(tmp_path / "trainannot/b.png", np.full((2, 3), 12, np.uint8))
    assert len(dataset.inspect(1)[1]) == 1  # a label map that cannot be used has no size to compare
    write(tmp_path / "trainannot/b.png", np.full((2, 3), 1, np.uint8))
    found, problems = inspect_item(dataset, 1)
    assert found is None
    assert "is 3x2 pixels, its image b.png 3x5" in problems[0]


def test_the_report_is_cut_after_ten():
    text = problem_report([f"p{k}" for k in range(12)], 30)
    assert text.startswith("12 problems in 30 images:\n  p0\n")
    assert text.endswith("p9\n  ... and 2 more")
    assert problem_report(["p"], 1) == "1 problem in 1 image:\n  p"


def test_progress_passes_results_on_and_writes_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(progress.report(iter("abc"), 3, what="looking")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"looking: 2 of 3 images, [\d.e+]+ a second, \ds left", lines[1])
    assert list(progress.report(iter("abc"), 3, what="looking", quiet=True)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_progress_without_an_end_shows_no_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.Progress(None, what="clip", unit="frame") as shown:
        shown.step()
        shown.print("a line")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"clip: 1 frames, [\d.e+]+ a second", first)
    assert second == "a line"


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.report(iter("abc"), 3, what="looking")) == ["a", "b", "c"]
    assert "looking" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in data.NAMES if hasattr(data.source_type(name), "find")])
def test_every_data_set_on_disk_says_what_it_needs(name, tmp_path):
    with pytest.raises(data.DataError, match=f"root: {name} needs the folder that holds"):
        data.build(name, "train")
    with pytest.raises(data.DataError, match=f"size: {name} has no such option"):
        data.build(name, "train", root=tmp_path, size=(64, 64))
    with pytest.raises(data.DataError, match=r"no such folder.*Expected images"):
        data.build(name, "train", root=tmp_path)
    with pytest.raises(data.DataError, match="split: expected one of"):
        data.build(name, "everything", root=tmp_path)
