"""Mapillary Vistas, KITTI, BDD100K and ADE20K: tiny files in the published folders."""

import json
from pathlib import Path

import numpy as np
import pytest

from hmsa_ext import data
from hmsa_ext.data.sets import ade20k, cityscapes

from .pictures import on_disk, png, write, write_image

SIZE = (2, 4)
PALETTE = bytes(value % 256 for value in range(0, 7 * 768, 7))


def error(name: str, root: Path, split: str = "train", **options) -> str:
    with pytest.raises(data.DataError) as caught:
        data.build(name, split, root=root, **options)
    return str(caught.value)


# ---- Mapillary Vistas


def config(version: str) -> dict:
    """A configuration in the form of the published ones: five labels in 1.2, six in 2.0, two of them void."""
    rows = [("Bird", "animal--bird", (165, 42, 42), True), ("Road", "construction--flat--road", (128, 64, 128), True)]
    if version == "2.0":
        rows.append(("Dynamic", "void--dynamic", (111, 74, 0), False))
    rows += [("Sky", "nature--sky", (70, 130, 180), True), ("Ego Vehicle", "void--ego-vehicle", (120, 10, 10), True)]
    rows.append(("Unlabeled", "void--unlabeled", (0, 0, 0), False))
    keys = ("readable", "name", "color", "evaluate")
    labels = [{**dict(zip(keys, row, strict=True)), "instances": False} for row in rows]
    return {"version": version, "labels": labels}


def make_mapillary(root: Path, *, flat: bool, versions: tuple[str, ...] = ("1.2",)) -> Path:
    root.mkdir(exist_ok=True)
    for version in versions:
        name = "config.json" if flat else f"config_v{version}.json"
        (root / name).write_text(json.dumps(config(version)))
        stored = np.arange(8, dtype=np.uint8).reshape(SIZE) % (6 if version == "2.0" else 5)
        for split in ("training", "validation"):
            write_image(root / split / "images" / "x_1.jpg", SIZE)
            folder = root / split / ("labels" if flat else f"v{version}/labels")
            folder.mkdir(parents=True)
            (folder / "x_1.png").write_bytes(png(stored, colour=3, palette=PALETTE))
    return root


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("flat", [True, False])
def test_mapillary_version_one(tmp_path, flat, split):
    dataset = on_disk("mapillary", split, root=make_mapillary(tmp_path, flat=flat))
    assert dataset.classes.names == ("Bird", "Road", "Sky", "Ego Vehicle")
    assert dataset.classes.colours[1].tolist() == [128, 64, 128]
    assert dataset[0].label.tolist() == [[0, 1, 2, 3], [255, 0, 1, 2]]
    assert dataset[0].name == "x_1"
    data.check(dataset, quiet=True)


@pytest.mark.parametrize("flat", [True, False])
def test_mapillary_version_two_numbers_the_evaluated_labels_anew(tmp_path, flat):
    root = make_mapillary(tmp_path, flat=flat, versions=("2.0",) if flat else ("1.2", "2.0"))
    dataset = on_disk("mapillary", "train", root=root, version="2.0")
    assert dataset.classes.names == ("Bird", "Road", "Sky", "Ego Vehicle")
    assert dataset[0].label.tolist() == [[0, 1, 255, 2], [3, 255, 0, 1]]
    if not flat:
        one = on_disk("mapillary", "train", root=root)
        assert one[0].label.tolist() == [[0, 1, 2, 3], [255, 0, 1, 2]]
        assert one.files(0)[1] != dataset.files(0)[1]
        assert one.identity != dataset.identity


def test_mapillary_labels_that_read_the_same_are_told_apart(tmp_path):
    root = make_mapillary(tmp_path, flat=True)
    content = config("1.2")
    content["labels"][1]["readable"] = "Bird"
    (root / "config.json").write_text(json.dumps(content))
    names = on_disk("mapillary", "train", root=root).classes.names
    assert names[:2] == ("Bird (animal--bird)", "Bird (construction--flat--road)")


def test_mapillary_has_65_classes_where_its_file_has_66_labels(tmp_path):
    root = make_mapillary(tmp_path, flat=True)
    row = config("1.2")["labels"][0]
    labels = [{**row, "readable": f"c{k}"} for k in range(65)] + [config("1.2")["labels"][-1]]
    (root / "config.json").write_text(json.dumps({"labels": labels}))
    dataset = on_disk("mapillary", "train", root=root)
    assert dataset.classes.num_classes == 65
    (root / "training/labels/x_1.png").write_bytes(png(np.array([[64, 65, 0, 0]] * 2), colour=3, palette=PALETTE))
    assert dataset.label(0).tolist() == [[64, 255, 0, 0]] * 2


def test_mapillary_errors(tmp_path):
    assert f"{tmp_path}/config_v1.2.json: cannot be read" in error("mapillary", tmp_path)
    root = make_mapillary(tmp_path, flat=True)
    assert "version: got '3', expected one of 1.2, 2.0" in error("mapillary", root, version="3")
    content = config("1.2")
    (root / "config.json").write_text(json.dumps({"labels": content["labels"][:-1]}))
    assert "expected the last label to be Unlabeled, as in version 1.2, got 'Ego Vehicle'" in error("mapillary", root)
    (root / "config.json").write_text('{"labels": [{"name": "x"}]}')
    assert "labels with name, readable, color and evaluate; got KeyError" in error("mapillary", root)
    (root / "config.json").write_text("[")
    assert "config.json: expected a configuration of Mapillary Vistas" in error("mapillary", root)
    (root / "config.json").write_text(json.dumps(content))
    (root / "training/labels/x_1.png").write_bytes(png(np.full(SIZE, 5), colour=3, palette=PALETTE))
    with pytest.raises(data.DataError, match=r"5 in 8 pixels\. Expected 0\.\.4, the labels of config\.json"):
        on_disk("mapillary", "train", root=root).label(0)
    (root / "training/labels/x_1.png").unlink()
    assert "1 image without a label: x_1.jpg" in error("mapillary", root)


# ---- KITTI


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 200 pairs, each a few pixels."""
    root = tmp_path_factory.mktemp("kitti")
    for number in range(200):
        write_image(root / f"training/image_2/{number:06d}_10.png", SIZE)
        write(root / f"training/semantic/{number:06d}_10.png", np.full(SIZE, 7 + number % 2, np.uint8))
    return root


def numbers(dataset: data.LabelledFiles) -> list[int]:
    return [int(item.name.partition("_")[0]) for item in dataset.items]


def test_kitti_fold_zero_is_the_published_one(kitti):
    val, train = (on_disk("kitti", split, root=kitti) for split in ("val", "train"))
    assert numbers(val) == [
        *(1, 5, 11, 29, 35, 49, 57, 68, 72, 82, 93, 115, 119, 130, 145, 154, 156, 167, 169, 189, 198),
    ]
    assert len(train) == 179
    assert not set(numbers(train)) & set(numbers(val))
    assert val[0].label.tolist() == [[1] * 4] * 2
    assert val.classes is cityscapes.CLASSES


@pytest.mark.parametrize("fold", range(1, 10))
def test_kitti_other_folds_take_every_tenth_image(kitti, fold):
    val, train = (numbers(on_disk("kitti", split, root=kitti, fold=fold)) for split in ("val", "train"))
    assert val == list(range(fold, 200, 10))
    assert sorted(val + train) == list(range(200))


def test_kitti_errors(tmp_path, kitti):
    assert "fold: got 10, expected a whole number from 0 to 9" in error("kitti", kitti, fold=10)
    assert "training/image_2: no such folder" in error("kitti", tmp_path)
    for folder in ("image_2", "semantic"):
        write_image(tmp_path / f"training/{folder}/000000_10.png", SIZE)
    assert "no image in val of fold 0" in error("kitti", tmp_path, "val")
    for folder in ("image_2", "semantic"):
        write_image(tmp_path / f"training/{folder}/frame.png", SIZE)
    assert "frame.png: expected a name that begins with a number" in error("kitti", tmp_path, "val")


# ---- BDD100K


@pytest.mark.parametrize("split", ["train", "val"])
def test_bdd100k(tmp_path, split):
    for name in ("a-1", "b-2"):
        write_image(tmp_path / f"images/10k/{split}/{name}.jpg", SIZE)
        write(tmp_path / f"labels/sem_seg/masks/{split}/{name}.png", np.array([[0, 18, 255, 7]] * 2, np.uint8))
    dataset = on_disk("bdd100k", split, root=tmp_path)
    assert [dataset[k].name for k in range(2)] == ["a-1", "b-2"]
    assert dataset[0].label.tolist() == [[0, 18, 255, 7]] * 2
    assert dataset.classes == cityscapes.CLASSES
    write(tmp_path / f"labels/sem_seg/masks/{split}/a-1.png", np.full(SIZE, 19, np.uint8))
    with pytest.raises(data.DataError, match=r"19 in 8 pixels\. Expected train ids 0\.\.18, or 255 for ignored"):
        dataset.label(0)
    other = "val" if split == "train" else "train"
    assert f"labels/sem_seg/masks/{other}: no such folder" in error("bdd100k", tmp_path, other)


# ---- ADE20K


@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("val", "validation")])
def test_ade20k(tmp_path, split, folder):
    write_image(tmp_path / f"images/{folder}/ADE_1.jpg", SIZE)
    stored = np.array([[0, 1, 2, 150], [13, 0, 1, 1]], np.uint8)
    write(tmp_path / f"annotations/{folder}/ADE_1.png", stored)
    dataset = on_disk("ade20k", split, root=tmp_path)
    assert dataset[0].label.tolist() == [[255, 0, 1, 149], [12, 255, 0, 0]]
    write(tmp_path / f"annotations/{folder}/ADE_1.png", np.full(SIZE, 151, np.uint8))
    with pytest.raises(data.DataError, match=r"151 in 8 pixels\. Expected 1\.\.150, or 0 for ignored"):
        dataset.label(0)
    assert f"annotations/{folder}/NAME.png" in error("ade20k", tmp_path / "none", split)


def test_ade20k_has_150_classes_of_different_colours():
    names = ade20k.CLASSES.names
    assert len(names) == 150
    assert (names[0], names[12], names[149]) == ("wall", "person", "flag")
    assert len(np.unique(ade20k.CLASSES.colours, axis=0)) == 150
