"""Review by people: a round trip changes no pixel, an edit changes exactly its pixels, what does not fit is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from hmsa_ext.autolabel.__main__ import main
from hmsa_ext.data.automatic.corrections import corrected_file, label_table, read_corrections
from hmsa_ext.data.automatic.manifest import (
    Manifest,
    counts_by_probability,
    free_values,
    pair_of,
    read_manifest,
    record_of,
    write_manifest,
)
from hmsa_ext.data.automatic.review.cvat import mask_colours
from hmsa_ext.data.automatic.review.exchange import current_label
from hmsa_ext.data.automatic.review.outlines import regions
from hmsa_ext.data.types import ClassTable
from python_tests.data.pictures import decoded, turned_jpeg, write, write_image

NAMES = ("Road", "Sky", "Car", "Pole", "Bicycle")
COLOURS = np.array([[128, 64, 128], [0, 0, 0], [128, 64, 128], [64, 64, 64], [9, 8, 7]])  # black, and one twice
FORMATS = {"rle": ("--format", "coco"), "polygons": ("--shapes", "polygons"), "cvat": ("--format", "cvat")}
NONE = 255


@dataclass
class Files:
    """A folder of automatic labels, and the one for their review."""

    out: Path
    review: Path

    def run(self, command: str, *arguments: str) -> int:
        return main([command, str(self.out), "--review", str(self.review), *arguments])

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.out)

    def label(self, place: str) -> np.ndarray:
        return current_label(self.manifest, place)

    def corrected(self, place: str) -> np.ndarray:
        labels = self.manifest
        file = corrected_file(self.out, place)
        return read_corrections(file, label_table(labels), labels.untouched)[1]

    def annotations(self) -> dict[str, Any]:
        return json.loads((self.review / "annotations/instances_default.json").read_text())

    def annotate(self, content: Mapping[str, Any]) -> None:
        (self.review / "annotations/instances_default.json").write_text(json.dumps(content))

    def mask(self, name: str) -> Path:
        return self.review / "SegmentationClass" / f"{name}.png"

    def corrections(self) -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in (self.out / "corrected").rglob("*.png")}


def write_out(
    folder: Path,
    labels: Mapping[str, np.ndarray],
    ids: tuple[int, ...] = (0, 1, 2, 3, 4),
    names: tuple[str, ...] = NAMES,
) -> Files:
    """Labels of images that are as sure as their order says: the first is the least sure."""
    out, images = folder / "out", folder / "images"
    ignored, untouched = free_values(ids)
    records, histogram = {}, np.zeros((len(ids), 256), np.int64)
    for k, (place, label) in enumerate(labels.items()):
        probability = np.full(label.shape, 100 + k, np.uint8)
        write_image(images / f"{place}.png", label.shape, seed=k)
        for file, values in zip(pair_of(out, place, "plain"), (stored(label, ids), probability), strict=True):
            write(file, values)
        counts = counts_by_probability(label, probability, len(ids))
        histogram += counts
        records[place] = record_of(f"{place}.png", (label.shape[0], label.shape[1]), counts)
    classes = ClassTable(names, COLOURS[: len(names)], ids=ids)
    write_manifest(
        Manifest(
            classes, ignored, untouched, images, {"model": "m"}, dict(sorted(records.items())), histogram, folder=out
        )
    )
    return Files(out, folder / "review")


def stored(label: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    return np.array(ids, np.uint16 if max(ids) > 255 else np.uint8)[label]


def random_map(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Regions of one pixel, holes, holes in holes, and a class that is nowhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (size[0] // 3 + 1, size[1] // 3 + 1), dtype=np.uint8)
    label = np.kron(coarse, np.ones((3, 3), np.uint8))[: size[0], : size[1]]
    return np.where(rng.random(size) < 0.2, rng.integers(0, 4, size), label).astype(np.uint8)


def some_labels() -> dict[str, np.ndarray]:
    rings = np.zeros((11, 13), np.uint8)
    for k in range(5):
        rings[k : 11 - k, k : 13 - k] = k % 3
    return {
        "b/x": random_map(0, (23, 37)), "a/x": random_map(1, (16, 1)), "a_x": rings, "one": np.ones((1, 1), np.uint8),
        "dots": (np.indices((9, 8)).sum(0) % 2).astype(np.uint8),
    }  # fmt: skip


# ---- round trips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [(0, 1, 2, 3, 4), (7, 3000, 65535, 0, 12)])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_round_trip_without_edits_corrects_nothing(tmp_path: Path, kind: str, ids: tuple[int, ...]) -> None:
    labels = some_labels()
    files = write_out(tmp_path, labels, ids)
    assert files.run("export", *FORMATS[kind]) == 0
    for place, label in labels.items():
        assert np.array_equal(decoded(files.review / f"exported/{place}.png", cv2.IMREAD_UNCHANGED), label)
    assert files.run("import") == 0
    assert not (files.out / "corrected").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_earlier_corrections_go_out_and_come_back(tmp_path: Path, kind: str) -> None:
    label = random_map(3, (20, 21))
    files = write_out(tmp_path, {"x": label})
    edited = label.copy()
    edited[2:6, 3:9], edited[10:14, 10:14] = 4, NONE  # a class that was nowhere, and no class
    stored = np.full(label.shape, files.manifest.untouched, np.uint8)
    stored[edited != label] = edited[edited != label]
    write(corrected_file(files.out, "x"), stored)
    before = files.corrections()
    assert files.run("export", *FORMATS[kind]) == 0
    assert np.array_equal(decoded(files.review / "exported/x.png", cv2.IMREAD_UNCHANGED), edited)
    assert files.run("import") == 0
    assert files.corrections() == before


@pytest.mark.parametrize("shapes", ["rle", "polygons"])
def test_cocos_own_code_reads_the_label_maps(tmp_path: Path, shapes: str) -> None:
    labels = some_labels()
    files = write_out(tmp_path, labels)
    assert files.run("export", "--shapes", shapes) == 0
    coco = COCO(str(files.review / "annotations/instances_default.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(NAMES)
    images = {image["file_name"]: image for image in coco.imgs.values()}
    assert sorted(images) == ["a_x-2.png", "a_x.png", "b_x.png", "dots.png", "one.png"]
    for place, name in (("b/x", "b_x"), ("a/x", "a_x"), ("a_x", "a_x-2"), ("one", "one"), ("dots", "dots")):
        found, covered = np.full(labels[place].shape, NONE, np.uint8), np.zeros(labels[place].shape, int)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[images[f"{name}.png"]["id"]])):
            mask = coco.annToMask(annotation) > 0
            covered += mask
            found[mask] = annotation["category_id"] - 1
            rows, columns = np.nonzero(mask)
            assert annotation["area"] == mask.sum()
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box
        assert np.array_equal(found, labels[place])
        assert (covered == 1).all()


@pytest.mark.parametrize("seed", range(30))
def test_outlines_hold_exactly_the_pixels_of_their_regions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = random_map(seed, tuple(rng.integers(1, 24, 2)))
    label[label == 3] = NONE
    found = np.full(label.shape, NONE, np.uint8)
    for region in regions(label):
        # Even-odd filling of the centres of pixels, written down plainly.
        inside = np.zeros(label.shape, bool)
        for (x0, y0), (x1, y1) in zip(region.polygon, np.roll(region.polygon, -1, 0), strict=True):
            assert x0 == x1 or y0 == y1
            inside[min(y0, y1) : max(y0, y1), x0:] ^= True
        assert inside.sum() == region.pixels
        assert (found[inside] == NONE).all()
        found[inside] = region.label
    assert np.array_equal(found, label)


def test_masks_of_cvat_have_the_colours_of_its_label_map(tmp_path: Path) -> None:
    label = random_map(2, (12, 15))
    label[label == 3] = 4
    files = write_out(tmp_path, {"a/x": label})
    assert files.run("export", "--format", "cvat") == 0
    lines = (files.review / "labelmap.txt").read_text().splitlines()[1:]
    table = {line.split(":")[0]: tuple(map(int, line.split(":")[1].split(","))) for line in lines}
    assert list(table) == ["background", *NAMES]
    assert len(set(table.values())) == len(NAMES) + 1
    assert (table["background"], table["Road"], table["Pole"]) == ((0, 0, 0), (128, 64, 128), (64, 64, 64))
    mask = np.asarray(Image.open(files.mask("a_x")))
    for number, name in enumerate(NAMES):
        assert np.array_equal((mask == table[name]).all(-1), label == number)
    objects = np.asarray(Image.open(files.review / "SegmentationObject/a_x.png"))
    assert len(np.unique(objects.reshape(-1, 3), axis=0)) == len(np.unique(label))
    assert tuple(objects[label == 0][0]) == (128, 0, 0)  # Pascal VOC's colour of object 1
    assert tuple(objects[label == 4][0]) == (128, 0, 128)  # and of object 5
    assert (files.review / "ImageSets/Segmentation/default.txt").read_text() == "a_x\n"
    copied = files.review / "JPEGImages/a_x.png"
    assert copied.read_bytes() == (tmp_path / "images/a/x.png").read_bytes()


def test_many_classes_have_different_colours_and_none_is_black() -> None:
    for colours in (np.zeros((254, 3)), np.tile(mask_colours(ClassTable(tuple("ab"), np.zeros((2, 3)))), (127, 1))):
        table = mask_colours(ClassTable(tuple(map(str, range(254))), colours))
        assert len(np.unique(np.vstack([table, [[0, 0, 0]]]), axis=0)) == 255


# ---- edits ------------------------------------------------------------------------------------------------------


def paint_rle(files: Files, name: str, where: np.ndarray, number: int) -> None:
    """Lays one annotation more over those of an image, as an uncompressed RLE."""
    content = files.annotations()
    image = next(row for row in content["images"] if Path(row["file_name"]).stem == name)
    column = np.asfortranarray(where).ravel("F").astype(int)
    ends = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
    counts = np.diff(ends).tolist()
    shape = {"size": list(where.shape), "counts": [0, *counts] if column[0] else counts}
    row = {"id": 9999, "image_id": image["id"], "category_id": number + 1, "segmentation": shape, "iscrowd": 1}
    content["annotations"].append(row)
    files.annotate(content)


def paint_mask(files: Files, name: str, where: np.ndarray, number: int) -> None:
    mask = decoded(files.mask(name))
    mask[where] = mask_colours(files.manifest.classes)[number][::-1]
    write(files.mask(name), mask)


PAINT: dict[str, Callable[[Files, str, np.ndarray, int], None]] = {
    "rle": paint_rle, "polygons": paint_rle, "cvat": paint_mask,
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_an_edit_corrects_exactly_its_pixels(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    label = random_map(4, (19, 30))
    label[:2] = 0  # as the edit has it
    files = write_out(tmp_path, {"x": label, "y": label.copy()}, ids=(40, 10, 300, 5, 6))
    assert files.run("export", *FORMATS[kind]) == 0
    where = np.zeros(label.shape, bool)
    where[:8, 5:17] = True
    PAINT[kind](files, "x", where, 0)
    capsys.readouterr()
    assert files.run("import") == 0
    changed = where & (label != 0)
    assert np.array_equal(files.label("x"), np.where(where, 0, label))
    assert np.array_equal(files.corrected("x"), changed)
    assert not corrected_file(files.out, "y").exists()
    said = capsys.readouterr().out
    assert f"x: {changed.sum()} pixels changed: " in said
    for number in (1, 2, 3):
        assert f"{NAMES[number]} to Road {(changed & (label == number)).sum()}" in said
    assert "y: 0 pixels changed\n" in said
    assert f"{changed.sum()} pixels changed in 1 of 2 images" in said


@pytest.mark.parametrize("kind", FORMATS)
def test_a_second_import_is_as_one_and_an_edit_can_be_taken_back(tmp_path: Path, kind: str) -> None:
    label = np.zeros((9, 9), np.uint8)
    files = write_out(tmp_path, {"x": label})
    assert files.run("export", *FORMATS[kind]) == 0
    untouched = shutil.copytree(files.review, tmp_path / "untouched")
    where = np.zeros(label.shape, bool)
    where[2:4, 3:5] = True
    PAINT[kind](files, "x", where, 2)
    assert files.run("import") == 0
    once = files.corrections()
    assert np.array_equal(files.label("x"), np.where(where, 2, 0))
    assert files.run("import") == 0
    assert files.corrections() == once
    shutil.copytree(untouched, files.review, dirs_exist_ok=True)
    assert files.run("import") == 0
    assert np.array_equal(files.label("x"), label)
    assert np.array_equal(files.corrected("x"), where)


@pytest.mark.parametrize("kind", FORMATS)
def test_erased_pixels_are_of_no_class(tmp_path: Path, kind: str) -> None:
    label = np.ones((8, 9), np.uint8)
    label[2:5, 2:5] = 2
    files = write_out(tmp_path, {"x": label})
    assert files.run("export", *FORMATS[kind]) == 0
    if kind == "cvat":
        mask = decoded(files.mask("x"))
        mask[label == 2] = 0
        write(files.mask("x"), mask)
    else:
        content = files.annotations()
        content["annotations"] = [row for row in content["annotations"] if row["category_id"] != 3]
        files.annotate(content)
    assert files.run("import") == 0
    assert np.array_equal(files.label("x"), np.where(label == 2, NONE, label))


def test_what_was_corrected_on_another_image_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_out(tmp_path, {name: random_map(k, (6, 7)) for k, name in enumerate("xyz")})
    assert files.run("export") == 0
    write_image(tmp_path / "images/y.png", (6, 7), seed=9)
    assert files.run("import") == 0  # nothing was corrected
    capsys.readouterr()
    assert files.run("import", "--confirm") == 2
    assert "y was exported from another image than " in capsys.readouterr().err
    assert not files.corrections()
    (tmp_path / "images").rename(tmp_path / "moved")
    assert files.run("import", "--confirm") == 0


def test_confirmed_images_are_corrected_as_a_whole_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {name: random_map(k, (6, 7)) for k, name in enumerate("xyz")}
    files = write_out(tmp_path, labels)
    assert files.run("export", "--format", "cvat") == 0
    (files.review / "ImageSets/Segmentation/default.txt").write_text("x\nz\n")
    write(files.mask("z"), np.zeros((6, 7, 3), np.uint8))  # as of an image that nobody opened
    assert files.run("import", "--confirm") == 0
    assert files.corrected("x").all()
    assert np.array_equal(files.label("x"), labels["x"])
    assert {Path(name).stem for name in files.corrections()} == {"x"}
    said = capsys.readouterr().out
    assert "did not come back, left alone: y" in said
    assert "z: came back without any label; left alone" in said


def test_corrections_of_two_reviews_add_up(tmp_path: Path) -> None:
    label = np.zeros((6, 6), np.uint8)
    files = write_out(tmp_path, {"x": label})
    other = Files(files.out, tmp_path / "other")
    assert files.run("export") == other.run("export", "--format", "cvat") == 0
    first, second = np.zeros((2, 6, 6), bool)
    first[0], second[3] = True, True
    paint_rle(files, "x", first, 1)
    paint_mask(other, "x", second, 2)
    assert files.run("import") == other.run("import") == files.run("import") == 0
    assert np.array_equal(files.label("x"), np.where(first, 1, np.where(second, 2, 0)))


# ---- COCO files as tools write them -----------------------------------------------------------------------------


def test_tools_may_number_anew_add_folders_and_other_fields(tmp_path: Path) -> None:
    labels = {"a/x": random_map(5, (9, 12)), "y": random_map(6, (10, 8))}
    files = write_out(tmp_path, labels)
    assert files.run("export") == 0
    content = files.annotations()
    numbers = {row["id"]: 70 - row["id"] for row in content["categories"]}
    for row in content["categories"]:
        row["id"] = numbers[row["id"]]
    content["categories"] = [{"id": 3, "name": "unused"}, *content["categories"][::-1]]
    for row in content["images"]:
        row["id"], row["file_name"] = f"n{row['id']}", f"images/{row['file_name']}"
    for row in content["annotations"]:
        row |= {"image_id": f"n{row['image_id']}", "category_id": numbers[row["category_id"]], "score": 1}
        tight = coco_mask.decode(row["segmentation"]).ravel("F")
        ends = [0, *(np.flatnonzero(np.diff(tight.astype(int))) + 1).tolist(), tight.size]
        row["segmentation"]["counts"] = [0] * int(tight[0]) + np.diff(ends).tolist()
    content["annotations"].reverse()
    (tmp_path / "tool.json").write_text(json.dumps(content | {"info": {}}))
    (files.review / "annotations/instances_default.json").unlink()
    assert files.run("import", "--annotations", str(tmp_path / "tool.json")) == 0
    assert not (files.out / "corrected").exists()


def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((90, 120), np.uint8)
    files = write_out(tmp_path, {"x": label})
    assert files.run("export") == 0
    where = cv2.GaussianBlur(rng.random((90, 120)), (0, 0), 6) > 0.5  # runs of all lengths
    where[:, 40:80] = False  # and one of thousands of pixels
    code: Any = coco_mask.encode(np.asfortranarray(where, np.uint8))
    content = files.annotations()
    shape = {"size": [90, 120], "counts": code["counts"].decode()}
    content["annotations"].append({"image_id": 1, "category_id": 2, "segmentation": shape})
    files.annotate(content)
    assert files.run("import") == 0
    assert np.array_equal(files.label("x"), where)


def test_a_moved_corner_of_a_polygon_changes_the_map_there_alone(tmp_path: Path) -> None:
    label = np.zeros((20, 30), np.uint8)
    label[4:10, 5:15] = 1
    label[12:18, 3:28] = 2
    files = write_out(tmp_path, {"x": label})
    assert files.run("export", "--shapes", "polygons") == 0
    content = files.annotations()
    row = next(row for row in content["annotations"] if row["category_id"] == 2)
    assert row["segmentation"] == [[5, 4, 15, 4, 15, 10, 5, 10]]
    row["segmentation"] = [[5, 4, 20.0, 4, 20.0, 10, 5, 10]]
    content["annotations"].remove(row)
    content["annotations"].append(row)  # the one that lies on top
    files.annotate(content)
    assert files.run("import") == 0
    expected = label.copy()
    expected[4:10, 15:20] = 1
    assert np.array_equal(files.label("x"), expected)
    assert files.corrected("x").sum() == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=77), "category id 77 is no class; expected one of Road, Sky"),
        (lambda c: c["categories"][0].update(name="Raod"), "the category 'Raod' is no class"),
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 1: no image has the id 5"),
        (lambda c: c["images"][0].update(file_name="other.png"), "the image other.png was not exported"),
        (lambda c: c["images"][0].update(width=8), "x.png has 8x6 pixels, exported were 7x6"),
        (lambda c: c["images"].append(c["images"][0]), "x.png, id 1, is listed twice"),
        (lambda c: c["annotations"][0]["segmentation"].update(size=[7, 6]), r"RLE of size \[7, 6\], expected \[6, 7\]"),
        (lambda c: c["annotations"][0]["segmentation"].update(counts=[3, 4]), "counts do not give 42 pixels"),
        (lambda c: c["annotations"][0]["segmentation"].update(counts="0"), "counts do not give 42 pixels"),
        (lambda c: c["annotations"][0]["segmentation"].update(counts="\n"), "counts do not give 42 pixels"),
        (
            lambda c: c["annotations"][0].update(segmentation=[[1, 1, 3, 3]]),
            r"of polygons or RLE, got \[\[1, 1, 3, 3\]\]",
        ),
        (lambda c: c["annotations"][0].update(segmentation=[]), r"annotation 1 of x.png: .* got \[\]"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, float("nan")] * 4]), "of polygons or RLE"),
        (lambda c: c["annotations"][0]["segmentation"].update(size=6), r"RLE of size 6, expected"),
        (
            lambda c: c["annotations"][0].update(image_id=[1]),
            "annotations: expected image_id, category_id in each, got",
        ),
        (lambda c: c["categories"].append(7), "categories: expected id, name in each, got 7"),
        (lambda c: c.pop("images"), "expected COCO's instances, got no list images"),
    ],
)
def test_annotations_that_do_not_fit_are_named_and_nothing_is_imported(
    tmp_path: Path, change: Callable[[Any], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label = random_map(7, (6, 7))
    label[0] = 0
    files = write_out(tmp_path, {"w": label.copy(), "x": label})
    assert files.run("export", "--names", str(listing(tmp_path, "x", "w"))) == 0
    paint_rle(files, "w", np.ones((6, 7), bool), 3)  # would be a correction
    content = files.annotations()
    change(content)
    files.annotate(content)
    assert files.run("import") == 2
    assert_says(capsys, message)
    assert not (files.out / "corrected").exists()


# ---- masks as CVAT writes them ----------------------------------------------------------------------------------


def test_masks_come_back_with_other_colours_as_palettes_or_numbers(tmp_path: Path) -> None:
    labels = {name: random_map(k, (7, 9)) for k, name in enumerate(("rgb", "palette", "grey"))}
    files = write_out(tmp_path, labels)
    assert files.run("export", "--format", "cvat") == 0
    unpacked = tmp_path / "unpacked"
    order = ["background", "Pole", "Bicycle", "extra", "Car", "Sky", "Road"]
    colours = np.array([(0, 0, 0), *((10 * k, 200 - k, 3) for k in range(1, 7))], np.uint8)
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(order, colours.tolist(), strict=True)]
    unpacked.mkdir()
    (unpacked / "labelmap.txt").write_text("\n".join(["# comment", *lines]))
    line = np.array([order.index(name) for name in NAMES], np.uint8)
    for name, label in labels.items():
        picture = Image.fromarray(colours[line[label]] if name == "rgb" else line[label])
        if name == "palette":
            picture.putpalette(colours.ravel().tolist())
        file = unpacked / f"SegmentationClass/sub/{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    assert files.run("import", "--annotations", str(unpacked)) == 0
    assert not (files.out / "corrected").exists()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.full((6, 7, 3), 200, np.uint8),
            "x.png: values that are no class: #c8c8c8 in 42 pixels. Expected colours of",
        ),
        (
            np.full((6, 7), 77, np.uint8),
            "x.png: values that are no class: 77 in 42 pixels. Expected lines of labelmap.txt",
        ),
        (np.zeros((7, 6, 3), np.uint8), "x.png: 6x7 pixels, exported were 7x6"),
    ],
)
def test_masks_that_do_not_fit_are_named_and_nothing_is_imported(
    tmp_path: Path, mask: np.ndarray, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_out(tmp_path, {"w": random_map(1, (6, 7)), "x": random_map(2, (6, 7))})
    assert files.run("export", "--format", "cvat") == 0
    paint_mask(files, "w", np.ones((6, 7), bool), 4)
    write(files.mask("x"), mask)
    assert files.run("import") == 2
    assert_says(capsys, message)
    (files.review / "ImageSets/Segmentation/more.txt").write_text("w\nv\n")
    assert files.run("import") == 2
    assert_says(capsys, "more.txt: the image v was not exported")
    write(files.mask("x").with_name("y.png"), mask)
    assert files.run("import") == 2
    assert_says(capsys, "y.png: no image of this name was exported")
    assert not (files.out / "corrected").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Road:1,2::", "expected lines name:r,g,b:: with numbers 0..255, got 'Road:1,2::'"),
        ("Road:1,2,3::\nSky:1,2,3::", "each name and each colour once, got 'Sky:1,2,3::' again"),
        (None, "labelmap.txt: cannot be read"),
    ],
)
def test_a_label_map_that_cannot_be_read_is_an_error(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_out(tmp_path, {"x": random_map(2, (6, 7))})
    assert files.run("export", "--format", "cvat") == 0
    table = files.review / "labelmap.txt"
    table.unlink() if text is None else table.write_text(text)
    assert files.run("import") == 2
    assert_says(capsys, message)


def test_names_that_a_label_map_cannot_hold_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_out(tmp_path, {"x": np.zeros((3, 3), np.uint8)}, (0, 1), ("a:b", "c"))
    assert files.run("export", "--format", "cvat") == 2
    assert_says(capsys, "a class is called 'a:b'")


def test_a_class_called_background_is_a_class(tmp_path: Path) -> None:
    label = random_map(1, (8, 8)) % 2
    files = write_out(tmp_path, {"x": label}, (0, 1), ("background", "thing"))
    assert files.run("export", "--format", "cvat") == 0
    assert (files.review / "labelmap.txt").read_text().splitlines()[1] == "unlabelled:0,0,0::"
    where = np.zeros((8, 8), bool)
    where[:3] = True
    paint_mask(files, "x", where, 0)
    assert files.run("import") == 0
    assert np.array_equal(files.label("x"), np.where(where, 0, label))


# ---- which images, and the folder -------------------------------------------------------------------------------


def listing(folder: Path, *names: str) -> Path:
    file = folder / "list.txt"
    file.write_text("\n".join(names))
    return file


def exported(files: Files) -> list[str]:
    return list(json.loads((files.review / "review.json").read_text())["images"])


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (("--count", "2"), ["c", "a"]),
        (("--order", "sure", "--count", "3"), ["d", "b", "a"]),
        (("--order", "name"), ["a", "b", "c", "d"]),
    ],
)
def test_the_least_sure_images_come_first_unless_told_otherwise(
    tmp_path: Path, arguments: tuple[str, ...], places: list[str]
) -> None:
    files = write_out(tmp_path, {name: random_map(1, (4, 4)) for name in "cabd"})
    assert files.run("export", *arguments) == 0
    assert exported(files) == places


def test_a_random_order_depends_on_its_seed_alone(tmp_path: Path) -> None:
    files = write_out(tmp_path, {str(k): np.zeros((2, 2), np.uint8) for k in range(8)})
    orders = []
    for seed in ("0", "0", "1"):
        assert files.run("export", "--order", "random", "--seed", seed) == 0
        orders.append(exported(files))
        shutil.rmtree(files.review)
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(map(str, range(8)))


def test_images_that_people_corrected_come_after_the_others(tmp_path: Path) -> None:
    files = write_out(tmp_path, {name: np.zeros((4, 4), np.uint8) for name in "abc"})
    assert files.run("export", "--count", "1") == 0
    paint_rle(files, "a", np.ones((4, 4), bool), 1)
    assert files.run("import") == 0
    shutil.rmtree(files.review)
    assert files.run("export") == 0
    assert exported(files) == ["b", "c", "a"]


def test_a_list_names_places_or_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_out(tmp_path, {name: np.zeros((4, 4), np.uint8) for name in ("s/a", "s/b", "s/c")})
    assert files.run("export", "--names", str(listing(tmp_path, "s/c", "", " s/a.png", "s/c"))) == 0
    assert exported(files) == ["s/c", "s/a"]
    shutil.rmtree(files.review)
    assert files.run("export", "--names", str(listing(tmp_path, "s/d"))) == 2
    assert_says(capsys, "s/d is not among the labels in .*; did you mean s/")
    assert files.run("export", "--names", str(listing(tmp_path, ""))) == 2
    assert_says(capsys, "expected one name a line, got none")
    assert files.run("export", "--names", str(tmp_path / "absent")) == 2
    assert_says(capsys, "names: .*absent cannot be read")


def test_an_image_that_viewers_turn_is_exported_as_its_labels_lie(tmp_path: Path) -> None:
    label = random_map(1, (9, 14))
    files = write_out(tmp_path, {"x": label})
    turned_jpeg(tmp_path / "images/x.jpg", (9, 14), 6)
    text = (files.out / "manifest.json").read_text()
    (files.out / "manifest.json").write_text(text.replace("x.png", "x.jpg"))
    assert files.run("export") == 0
    picture = Image.open(files.review / "images/x.png")
    assert (picture.format, picture.size) == ("PNG", (14, 9))
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    assert np.array_equal(np.asarray(picture), decoded(tmp_path / "images/x.jpg", flags))
    assert files.run("import") == 0


def test_a_folder_that_is_in_use_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_out(tmp_path, {"x": np.zeros((4, 4), np.uint8)})
    assert files.run("export") == 0
    before = (files.review / "review.json").read_bytes()
    assert files.run("export", "--format", "cvat") == 2
    assert_says(capsys, "review: .* is an earlier export; hmsa autolabel import takes")
    assert (files.review / "review.json").read_bytes() == before
    assert not (files.review / "labelmap.txt").exists()
    assert main(["export", str(files.out), "--review", str(tmp_path / "images")]) == 2
    assert_says(capsys, "review: .*images has x.png in it; expected a folder that is new or empty")


def test_what_was_exported_has_to_be_there_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_out(tmp_path / "1", {"x": np.zeros((4, 4), np.uint8), "y": np.ones((4, 4), np.uint8)})
    assert files.run("import") == 2
    assert_says(capsys, "expected a folder that hmsa autolabel export finished, got no such folder")
    assert files.run("export") == 0
    others = write_out(tmp_path / "2", {"z": np.zeros((4, 4), np.uint8)})
    assert Files(others.out, files.review).run("import") == 2
    assert_says(capsys, "x is not among the labels in")
    others = write_out(tmp_path / "3", {"x": np.zeros((4, 4), np.uint8)}, (0, 1), ("Road", "Moon"))
    assert Files(others.out, files.review).run("import") == 2
    assert_says(capsys, "the review has the classes Road, Sky.*, the labels in .* have Road, Moon")
    write(files.review / "exported/x.png", np.ones((4, 4), np.uint8))
    assert files.run("import") == 2
    assert_says(capsys, "exported/x.png: is not what was exported")
    (files.review / "review.json").unlink()
    assert files.run("import") == 2
    assert_says(capsys, "got no review.json in it")
    assert not (files.out / "corrected").exists()


def test_earlier_corrections_that_cannot_be_used_stop_the_import_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {name: np.zeros((4, 4), np.uint8) for name in "ab"}
    files = write_out(tmp_path, labels)
    assert files.run("export") == 0
    for name in "ab":
        paint_rle(files, name, np.ones((4, 4), bool), 1)
    write(corrected_file(files.out, "b"), np.zeros((3, 4), np.uint8))
    before = files.corrections()
    assert files.run("import") == 2
    assert_says(capsys, "corrected/b.png: 4x3 pixels, its label map 4x4")
    assert files.corrections() == before


def test_a_missing_package_is_named_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_out(tmp_path, {"x": np.zeros((4, 4), np.uint8)})
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert files.run("export") == 2
    assert_says(capsys, r'pip install "hmsa_ext\[coco\]"')
    assert files.run("export", "--format", "cvat") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "OUT"), "export: expected --review FOLDER; got none"),
        (("import", "OUT"), "import: expected --review FOLDER; got none"),
        (
            ("export", "OUT", "--review", "R", "--format", "cvat", "--shapes", "polygons"),
            "shapes: got 'polygons', expected",
        ),
        (("export", "OUT", "--review", "R"), "OUT: expected a folder of automatic labels, got no such folder"),
    ],
)
def test_wrong_use_is_said_in_a_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(arguments)) == 2
    assert_says(capsys, message)


def assert_says(capsys: pytest.CaptureFixture[str], message: str) -> None:
    """The last error is one line that says this (a regular expression)."""
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert re.search(message, said[-1]), said[-1]
