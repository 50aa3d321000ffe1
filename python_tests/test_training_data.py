"""``python -m hmsa_ext.train`` on every data set, in its published layout: tiny files, one short epoch."""

import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_ext import data, evaluate, train
from hmsa_ext.engine.settings import TrainSettings
from python_tests.data.pictures import chunk, png

SIZE = (64, 96)
FLAGS = (
    *("--crop", "64x96", "--batch-size", "1", "--epochs", "1", "--pictures", "1", "--threads", "1", "--device", "cpu"),
    *("--eval-scales", "0.5,1"),
)


def write(path: Path, *values: int, palette: bool = False) -> None:
    """An image, or a label map with the values in vertical stripes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not values:
        picture = np.random.default_rng(len(str(path))).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    else:
        picture = np.resize(np.repeat(np.array(values, np.uint8), 8), SIZE)
    if palette:
        path.write_bytes(png(picture, colour=3, palette=bytes(768)))
    else:
        assert cv2.imwrite(str(path), picture)


def camvid(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(root / split / f"{name}.png")
            write(root / f"{split}annot" / f"{name}.png", 0, 3, 11, 8)


def cityscapes(root: Path) -> None:
    for split, kind in (("train", "gtFine"), ("val", "gtFine"), ("train_extra", "gtCoarse")):
        for frame in range(4):
            name = f"ulm_000000_{frame:06d}"
            write(root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png")
            ids = (7, 28) if split == "train_extra" else (7, 11, 0, 26)
            write(root / kind / split / "ulm" / f"{name}_{kind}_labelIds.png", *ids)


def mapillary(root: Path) -> None:
    names = ("Bird", "Road", "Unlabeled")
    rows = [{"readable": n, "name": f"x--{n}", "color": [9 * i, 0, 0], "evaluate": True} for i, n in enumerate(names)]
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps({"labels": rows}))
    for split in ("training", "validation"):
        for name in ("a", "b"):
            write(root / split / "images" / f"{name}.jpg")
            (root / split / "labels").mkdir(parents=True, exist_ok=True)
            write(root / split / "labels" / f"{name}.png", 0, 1, 2, palette=True)


def kitti(root: Path) -> None:
    for number in range(6):
        write(root / "training" / "image_2" / f"{number:06d}_10.png")
        write(root / "training" / "semantic" / f"{number:06d}_10.png", 7, 8, 21, 0)


def bdd100k(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(root / "images" / "10k" / split / f"{name}.jpg")
            write(root / "labels" / "sem_seg" / "masks" / split / f"{name}.png", 0, 18, 255)


def ade20k(root: Path) -> None:
    for split in ("training", "validation"):
        for name in ("a", "b"):
            write(root / "images" / split / f"{name}.jpg")
            write(root / "annotations" / split / f"{name}.png", 0, 1, 150)


def folder(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            write(root / "images" / split / f"{name}.jpg")
            write(root / "masks" / split / f"{name}.png", 0, 255)
    (root / "dataset.yaml").write_text("names: [background, thing]\nids: {0: background, 255: thing}\n")


def cityscapes_with_automatic_labels(root: Path) -> None:
    """Half of the pixels are a bus that the teacher was not sure of."""
    cityscapes(root)
    for frame in range(4):
        stem = root / "autolabelled" / "train_extra" / "ulm" / f"ulm_000000_{frame:06d}_leftImg8bit"
        write(stem.with_suffix(".png"), 28, 26, 26, 26)
        write(stem.with_name(f"{stem.name}_prob.png"), 100, 100, 250, 250)


EXTRA = ("--extra", "coarse", "--extra-classes", "bus", "--sampling-weights", "bus:3")
# The function that writes the files, flags, and the labels of the first image of val.
SETS = {
    "camvid": (camvid, (), [0, 3, 8, 255]),
    "cityscapes": (cityscapes, EXTRA, [0, 2, 13, 255]),
    "mapillary": (mapillary, ("--long-edge", "96", "--blur", "0.15,1.3"), [0, 1, 255]),
    "kitti": (kitti, ("--fold", "1", "--sampling", "rare_class", "--sampling-temperature", "1"), [0, 1, 8, 255]),
    "bdd100k": (bdd100k, ("--sampling", "uniform"), [0, 18, 255]),
    "ade20k": (ade20k, ("--sampling-epochs", "0"), [0, 149, 255]),
    "folder": (folder, ("--workers", "1"), [0, 1]),
}


def test_every_data_set_is_here():
    assert {*SETS, "synthetic"} == set(data.NAMES)


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_trained_on_and_evaluated(name, tmp_path, capsys):
    make, options, labels = SETS[name]
    make(tmp_path / "set")
    run, cache = tmp_path / "run", tmp_path / "cache"
    arguments = ["--data", name, "--root", str(tmp_path / "set"), "--output", str(run), "--cache", str(cache)]
    assert train.main([*arguments, *FLAGS, *options]) == 0, capsys.readouterr().err
    results = json.loads((run / "results.json").read_text())
    dataset = TrainSettings.read(results["config"]).data.open("val")
    assert np.unique(dataset[0].label).tolist() == labels
    assert results["classes"] == list(dataset.classes.names)
    assert results["images"] == len(dataset)
    assert list(cache.glob("*.index.npz"))
    output = capsys.readouterr().out
    if name == "cityscapes":
        assert "4 more images for bus" in output
    file = tmp_path / "again.json"
    assert evaluate.main([str(run), "--device", "cpu", "--threads", "1", "--output", str(file)]) == 0
    assert json.loads(file.read_text())["miou"] == results["miou"]


def test_automatic_labels_count_from_their_probability_on(tmp_path, capsys):
    cityscapes_with_automatic_labels(tmp_path / "set")
    automatic = ("--data", "cityscapes", "--root", str(tmp_path / "set"), "--extra", "autolabelled", "--cache", "none")
    stop = ("--extra-classes", "bus,car", "--sampling-share", "1", "--max-minutes", "1e-9", *FLAGS)
    seen = {}
    for limit in ("0.3", "0.9"):
        run = tmp_path / limit
        assert train.main([*automatic, "--min-probability", limit, *stop, "--output", str(run)]) == 0
        seen[limit] = capsys.readouterr().out
    # The only bus in all of these files is the one that the teacher was not sure of.
    assert "bus" not in seen["0.3"].split("(none: ")[1].split(")")[0]
    assert "bus" in seen["0.9"].split("(none: ")[1].split(")")[0]
    assert train.main([*automatic, "--coarse-classes", "buss", *stop, "--output", str(tmp_path / "x")]) == 2
    expected = "coarse_classes: got 'buss', expected classes or train ids 0..18; the classes are road"
    assert expected in capsys.readouterr().err


def damage(path: Path) -> None:
    """A PNG that is whole by its checksums, but whose compressed pixels are not: only decoding shows it."""
    whole = path.read_bytes()
    start = whole.index(b"IDAT") - 4
    path.write_bytes(whole[:start] + chunk(b"IDAT", zlib.compress(b"\x07" * 9)) + chunk(b"IEND", b""))


def test_an_image_that_cannot_be_decoded_stops_training_or_is_skipped(tmp_path, capsys):
    camvid(tmp_path / "set")
    for name in ("c", "d", "e"):
        write(tmp_path / "set" / "train" / f"{name}.png")
        write(tmp_path / "set" / "trainannot" / f"{name}.png", 1, 2)
    damage(tmp_path / "set" / "train" / "b.png")
    flags = ["--data", "camvid", "--root", str(tmp_path / "set"), "--cache", "none", "--sampling", "uniform", *FLAGS]
    assert train.main([*flags, "--output", str(tmp_path / "stopped")]) == 2
    assert "b.png: cannot be decoded; the file is damaged" in capsys.readouterr().err
    assert train.main([*flags, "--output", str(tmp_path / "skipped"), "--damaged", "skip"]) == 0
    assert "skipped: " in (error := capsys.readouterr().err)
    assert "b.png: cannot be decoded" in error
    assert (tmp_path / "skipped" / "results.json").exists()


def test_two_runs_share_one_index(tmp_path, capsys):
    folder(tmp_path / "set")
    arguments = ["--data", "folder", "--root", str(tmp_path / "set"), "--cache", str(tmp_path / "cache"), *FLAGS]
    for run in ("first", "second"):
        assert train.main([*arguments, "--output", str(tmp_path / run), "--max-minutes", "1e-9"]) == 0
        assert ("read 3 label maps" in capsys.readouterr().err) == (run == "first")
