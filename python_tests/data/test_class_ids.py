"""Ids of the classes: what the label files of each data set store for them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hmsa_ext import data
from hmsa_ext.data.by_name import class_table
from hmsa_ext.data.labelled_files import Listing
from hmsa_ext.data.sets import cityscapes

from .pictures import write

VISTAS = [("Bird", True), ("Ego Vehicle", False), ("Sky", True), ("Unlabeled", False)]


def listing(name: str, root: Path, **options: object) -> Listing:
    """The classes and the label table of a data set; there are no images."""
    return data.DataSettings.of(name, root=str(root), **options).find("train")


def folder(root: Path, text: str) -> Listing:
    (root / "dataset.yaml").write_text(text)
    return listing("folder", root)


def ids_of(found: Listing) -> tuple[int, ...] | None:
    assert found.classes is not None
    return found.classes.ids


def vistas(root: Path) -> None:
    labels = [
        {"readable": name, "name": name.lower(), "color": [k, k, k], "evaluate": evaluate}
        for k, (name, evaluate) in enumerate(VISTAS)
    ]
    for version in ("1.2", "2.0"):
        (root / f"config_v{version}.json").write_text(json.dumps({"labels": labels}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cityscapes", {}),
        ("cityscapes", {"labels": "autolabelled"}),
        ("kitti", {}),
        ("bdd100k", {}),
        ("camvid", {}),
        ("ade20k", {}),
        ("mapillary", {}),
        ("mapillary", {"version": "2.0"}),
        ("folder", {}),
    ],
)
def test_ids_are_read_back_as_the_class_numbers(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    vistas(tmp_path)
    (tmp_path / "dataset.yaml").write_text("names: {2: road, 700: car, 9: sky}")
    found = listing(name, tmp_path, **options)
    assert found.classes is not None
    assert found.labels is not None
    ids = found.classes.ids
    assert ids is not None
    stored = np.array([ids], np.uint16 if max(ids) > 255 else np.uint8)
    label = found.labels.table.read((write(tmp_path / "label.png", stored),))
    assert label.tolist() == [list(range(found.classes.num_classes))]


def test_every_data_set_with_label_files_has_ids_and_scenes_have_none(tmp_path: Path) -> None:
    vistas(tmp_path)
    (tmp_path / "dataset.yaml").write_text("names: [road]")
    with_files = [name for name in data.NAMES if name != "synthetic"]
    assert all(ids_of(listing(name, tmp_path)) is not None for name in with_files)
    assert data.Synthetic.classes.ids is None


def test_ids_of_the_published_sets(tmp_path: Path) -> None:
    vistas(tmp_path)
    assert cityscapes.CLASSES.ids is not None
    assert cityscapes.CLASSES.ids[:4] == (7, 8, 11, 12)
    assert ids_of(listing("kitti", tmp_path)) == cityscapes.CLASSES.ids
    assert ids_of(listing("bdd100k", tmp_path)) == tuple(range(19))
    assert ids_of(listing("ade20k", tmp_path)) == tuple(range(1, 151))
    assert ids_of(listing("camvid", tmp_path)) == tuple(range(11))
    assert ids_of(listing("mapillary", tmp_path)) == (0, 1, 2)
    assert ids_of(listing("mapillary", tmp_path, version="2.0")) == (0, 2)


def test_cityscapes_with_train_ids_alone_has_these_as_ids(tmp_path: Path) -> None:
    write(tmp_path / "leftImg8bit/train/a/a_0_0_leftImg8bit.png", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / "gtFine/train/a/a_0_0_gtFine_labelTrainIds.png", np.array([[0, 18, 255]], np.uint8))
    found = listing("cityscapes", tmp_path)
    assert ids_of(found) == tuple(range(19))
    assert found.classes == cityscapes.CLASSES


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("names: [background, object]\nids: {0: background, 255: object}\n", (0, 255)),
        ("names: [a, b, c]", (0, 1, 2)),
        ("names: {7: a, 300: b}", (7, 300)),
        ("names: [a, b]\nids: {9: a, 4: a, 2: b}", (4, 2)),
        ('masks: colours\nnames: [a, b]\ncolours: ["#000000", "#0000ff"]', None),
        ("names: [a, b]\nids: {3: a}", None),
    ],
)
def test_ids_of_a_folder_are_those_of_its_description(tmp_path: Path, text: str, ids: tuple[int, ...] | None) -> None:
    assert ids_of(folder(tmp_path, text)) == ids


def test_tables_that_differ_in_ids_alone_are_equal_and_go_through_plain_values() -> None:
    table = data.ClassTable(("a", "b"), np.zeros((2, 3)), ids=(4, 300))
    again = data.ClassTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again.ids == (4, 300)
    assert again == replace(table, ids=None)
    older = {name: value for name, value in table.to_dict().items() if name != "ids"}
    assert data.ClassTable.from_dict(older).ids is None


@pytest.mark.parametrize("ids", [(1,), (1, 1), (0, 65536), (-1, 2)])
def test_ids_that_no_file_can_store_are_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ids: expected a value of 0\.\.65535 of its own for each of 2 classes"):
        data.ClassTable(("a", "b"), np.zeros((2, 3)), ids=ids)


def test_ids_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="ids: expected a list of whole numbers, got 'ab'"):
        data.ClassTable.from_dict({"names": ["a"], "colours": [[0, 0, 0]], "ids": "ab"})


def test_classes_by_the_name_of_a_data_set() -> None:
    assert class_table("cityscapes") is cityscapes.CLASSES
    assert class_table("synthetic") is data.Synthetic.classes
    tables = {name: class_table(name) for name in data.NAMES}
    assert {name for name, table in tables.items() if table is None} == {"folder", "mapillary"}
    assert class_table("my_package:factory") is None
