"""The index of the label maps: what is in it, and that its cache is never wrong, half written or built twice."""

import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_ext import data
from hmsa_ext.data.index import cache_folder
from python_tests.data.picture_sets import Blocks

from .pictures import on_disk


def camvid(root: Path, count: int = 6) -> data.LabelledFiles:
    """CamVid in miniature, on disk; each label map has two classes."""
    (root / "train").mkdir(parents=True)
    (root / "trainannot").mkdir()
    for i in range(count):
        label = np.full((24, 40), i % 3, np.uint8)
        label[: 4 + i, :10] = 10
        cv2.imwrite(str(root / "train" / f"f{i}.png"), np.full((24, 40, 3), 5 * i, np.uint8))
        cv2.imwrite(str(root / "trainannot" / f"f{i}.png"), label)
    return on_disk("camvid", "train", root=root)


class Counting:
    """A data set that counts how many label maps were read."""

    def __init__(self, dataset: data.LabelledFiles) -> None:
        self.dataset, self.classes, self.identity, self.read = dataset, dataset.classes, dataset.identity, []
        self.files, self.label = dataset.files, dataset.label

    def __getitem__(self, index: int) -> data.Sample:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def inspect(self, index: int) -> tuple[np.ndarray | None, list[str]]:
        self.read.append(index)
        return self.dataset.inspect(index)


def build(dataset: data.LabelledFiles, cache: Path | None, *, tile: int = 16) -> tuple[data.ClassIndex, list[int]]:
    """The index and the images that were read for it."""
    counting = Counting(dataset)
    return data.build_index(counting, tile=tile, cache=cache, quiet=True), sorted(counting.read)


def assert_equal(first: data.ClassIndex, second: data.ClassIndex) -> None:
    for name in ("sizes", "pixels", "centroids"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
        assert getattr(first, name).dtype == getattr(second, name).dtype == np.int64


def test_an_index_says_where_the_classes_are():
    dataset = Blocks(10)
    index = data.build_index(dataset, tile=16, quiet=True)
    assert len(index) == 10
    for i in range(10):
        label = dataset.label(i)
        assert index.sizes[i].tolist() == list(label.shape)
        assert index.pixels[i].tolist() == np.bincount(label[label != 255], minlength=4).tolist()
    expected = []
    for number in range(4):
        for i in range(10):
            label = dataset.label(i)
            for y in range(0, label.shape[0], 16):
                for x in range(0, label.shape[1], 16):
                    rows, columns = np.nonzero(label[y : y + 16, x : x + 16] == number)
                    if len(rows):
                        expected.append([number, i, int(y + rows.mean()), int(x + columns.mean())])
    assert index.centroids.tolist() == expected
    np.testing.assert_allclose(index.frequencies, index.pixels.sum(0) / index.pixels.sum())


def test_an_index_comes_back_from_its_cache(tmp_path):
    dataset = camvid(tmp_path / "set")
    first, read = build(dataset, tmp_path / "cache")
    assert read == list(range(6))
    again, read = build(dataset, tmp_path / "cache")
    assert read == []
    assert_equal(first, again)
    (file,) = (tmp_path / "cache").glob("*.npz")
    assert file.stat().st_size < 10000


def test_other_tiles_and_other_images_have_an_index_of_their_own(tmp_path):
    dataset = camvid(tmp_path / "set")
    build(dataset, tmp_path / "cache")
    assert build(dataset, tmp_path / "cache", tile=8)[1] == list(range(6))
    fewer = on_disk("camvid", "train", root=tmp_path / "set", length=3)
    assert build(fewer, tmp_path / "cache")[1] == list(range(3))
    assert build(dataset, tmp_path / "cache")[1] == []


def test_only_what_changed_is_read_again(tmp_path):
    dataset = camvid(tmp_path / "set")
    build(dataset, tmp_path / "cache")
    label = np.full((24, 40), 5, np.uint8)
    cv2.imwrite(str(tmp_path / "set" / "trainannot" / "f2.png"), label)
    later = time.time() + 5
    os.utime(tmp_path / "set" / "train" / "f4.png", (later, later))
    index, read = build(dataset, tmp_path / "cache")
    assert read == [2, 4]
    assert index.pixels[2, 5] == 24 * 40
    assert_equal(index, build(dataset, None)[0])
    assert build(dataset, tmp_path / "cache")[1] == []


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half", None])
def test_a_damaged_cache_is_built_anew(tmp_path, damage):
    dataset = camvid(tmp_path / "set")
    first, _ = build(dataset, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.npz")
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    again, read = build(dataset, tmp_path / "cache")
    assert read == list(range(6))
    assert_equal(first, again)
    assert build(dataset, tmp_path / "cache")[1] == []


def test_a_build_that_is_killed_leaves_no_half_file(tmp_path):
    camvid(tmp_path / "set", 40)
    code = f"""
import os, pathlib
from hmsa_ext import data
dataset = data.build("camvid", "train", root={str(tmp_path / "set")!r})
read = dataset.inspect
def label(index):
    if index == 30:
        os._exit(9)
    return read(index)
dataset.inspect = label
data.build_index(dataset, tile=16, cache=pathlib.Path({str(tmp_path / "cache")!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 9
    assert not list((tmp_path / "cache").glob("*.npz"))
    index, read = build(on_disk("camvid", "train", root=tmp_path / "set"), tmp_path / "cache")
    assert len(index) == len(read) == 40


def test_of_processes_that_build_at_once_one_does(tmp_path):
    camvid(tmp_path / "set", 12)
    code = f"""
import sys, time, pathlib
from hmsa_ext import data
dataset = data.build("camvid", "train", root={str(tmp_path / "set")!r})
read, count = dataset.inspect, 0
def label(index):
    global count
    count += 1
    time.sleep(0.05)
    return read(index)
dataset.inspect = label
print("ready", flush=True)
sys.stdin.readline()
index = data.build_index(dataset, tile=16, cache=pathlib.Path({str(tmp_path / "cache")!r}), threads=1, quiet=True)
print(count, index.pixels.sum(), len(index.centroids))
"""
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(int(output[0]) for output in outputs) == [0, 0, 12]
    assert len({tuple(output[1:]) for output in outputs}) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    dataset = camvid(tmp_path / "set")
    index = data.build_index(dataset, tile=16, cache=tmp_path / "file" / "cache")
    assert "cannot be kept in" in capsys.readouterr().err
    assert_equal(index, build(dataset, None)[0])


def test_a_full_disk_costs_nothing_but_the_cache(tmp_path, capsys, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hmsa_ext.data.index.replacing", full)
    dataset = Counting(camvid(tmp_path / "set"))
    index = data.build_index(dataset, tile=16, cache=tmp_path / "cache")
    assert "No space left on device" in capsys.readouterr().err
    assert len(dataset.read) == len(index) == 6  # read once


def test_problems_are_listed_all_at_once(tmp_path):
    dataset = camvid(tmp_path / "set")
    cv2.imwrite(str(tmp_path / "set" / "trainannot" / "f1.png"), np.full((24, 40), 77, np.uint8))
    cv2.imwrite(str(tmp_path / "set" / "trainannot" / "f3.png"), np.full((24, 30), 1, np.uint8))
    (tmp_path / "set" / "train" / "f5.png").write_bytes(b"")
    for _ in range(2):  # with and without a cache that knows the good ones
        with pytest.raises(data.DataError) as caught:
            build(dataset, tmp_path / "cache")
        text = str(caught.value)
        assert "3 problems in 6 images" in text
        assert "f1.png: values that are no class: 77 in 960 pixels" in text
        assert "f3.png: the label map is 30x24 pixels, its image f3.png 40x24" in text
        assert "f5.png: the file is empty" in text
    index = data.build_index(dataset, tile=16, cache=tmp_path / "cache", skip_damaged=True, quiet=True)
    assert index.usable.tolist() == [0, 2, 4]
    assert sorted(index.problems) == [1, 3, 5]


def test_skipping_says_what_was_left_out_and_never_leaves_nothing(tmp_path, capsys):
    dataset = camvid(tmp_path / "set", 2)
    (tmp_path / "set" / "trainannot" / "f1.png").write_bytes(b"no picture")
    data.build_index(dataset, tile=16, skip_damaged=True)
    assert "left out 1 of 2 images" in capsys.readouterr().err
    (tmp_path / "set" / "trainannot" / "f0.png").write_bytes(b"no picture")
    with pytest.raises(data.DataError, match="2 problems in 2 images"):
        data.build_index(dataset, tile=16, skip_damaged=True, quiet=True)


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("HMSA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hmsa_ext"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "hmsa_ext"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="tile: expected at least 1 pixel, got 0"):
        data.build_index(Blocks(), tile=0)
    with pytest.raises(data.DataError, match="the data set is empty"):
        data.build_index(Blocks(0), tile=16)
