"""COCO's instances: what most annotators' tools read and write.

    FOLDER/images/NAME.jpg
    FOLDER/annotations/instances_default.json

A category is a class; its id is the class number plus one, since tools take 0 for nothing. A class is one annotation in
an image, the run lengths of its pixels (RLE, ``iscrowd`` 1), or one polygon for each region of connected pixels. Both
hold the pixels exactly: see :mod:`hmsa_ext.data.automatic.review.outlines`. Pixels of no class are not annotated.

The file has the name that CVAT ("COCO 1.0", as a zip of the folder or the file alone) and Datumaro look for: they want
``instances_`` and the name of a subset.

A tool may number images and categories anew, and write other fields: images are found again by the names of their
files, categories by their names. Annotations are laid over one another in the order of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from hmsa_ext.data.automatic.review.exchange import Review, Shapes
from hmsa_ext.data.automatic.review.outlines import regions
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError
from hmsa_ext.errors import HmsaError
from hmsa_ext.files import write_text

IMAGES = "images"
ANNOTATIONS = Path("annotations") / "instances_default.json"
_FIELDS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id"),
}
_LEAST_NUMBERS = 6  # of a polygon: x and y of three corners


class MissingPackageError(HmsaError, ImportError):
    """A package that a format needs is not installed."""


def rle_tools() -> ModuleType:
    """The module ``pycocotools.mask``. Raises :class:`MissingPackageError` that says how to install it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingPackageError(
            f"format: coco needs the package pycocotools, which cannot be imported ({error}): "
            'pip install "hmsa_ext[coco]"'
        ) from error
    return mask


# ---- export -----------------------------------------------------------------------------------------------------


class Writer:
    """Collects the annotations of images; :meth:`finish` writes them.

    Raises :class:`MissingPackageError` without pycocotools.
    """

    def __init__(self, folder: Path, classes: ClassTable, shapes: Shapes) -> None:
        self.folder, self.classes, self.shapes, self.images = folder, classes, shapes, folder / IMAGES
        self._tools = rle_tools()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, file: str, label: np.ndarray) -> None:
        """The label map of an image, class numbers and 255 for no class, uint8 [H, W]."""
        height, width = label.shape
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": file, "height": height, "width": width})
        shapes = _runs(self._tools, label) if self.shapes == "rle" else _polygons(label)
        for shape in shapes:
            self._annotations.append({"id": len(self._annotations) + 1, "image_id": number, **shape})

    def finish(self) -> None:
        """Writes the file. Raises OSError."""
        categories = [
            {"id": number + 1, "name": name, "supercategory": ""} for number, name in enumerate(self.classes.names)
        ]
        content = {"images": self._images, "categories": categories, "annotations": self._annotations}
        parts = [
            f" {json.dumps(name)}: [\n  " + ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n ]"
            for name, rows in content.items()
        ]
        (self.folder / ANNOTATIONS).parent.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / ANNOTATIONS, "{\n" + ",\n".join(parts) + "\n}\n")


def _runs(tools: ModuleType, label: np.ndarray) -> list[dict[str, Any]]:
    shapes = []
    for number in np.unique(label[label != IGNORE_LABEL]).tolist():
        code = tools.encode(np.asfortranarray(label == number, np.uint8))
        shapes.append(
            {
                "category_id": number + 1,
                "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
                "area": int(tools.area(code)),
                "bbox": [int(value) for value in tools.toBbox(code)],
                "iscrowd": 1,
            }
        )
    return shapes


def _polygons(label: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "category_id": region.label + 1,
            "segmentation": [region.polygon.ravel().tolist()],
            "area": region.pixels,
            "bbox": list(region.box),
            "iscrowd": 0,
        }
        for region in regions(label)
    ]


# ---- import -----------------------------------------------------------------------------------------------------


class Annotations:
    """What came back in a JSON file.

    places: those of the images in the file, in the order of the review.

    Raises DataError for a file that is none of COCO's, images that were not exported or have another size, categories
    that are no class, and annotations without a shape.
    """

    def __init__(self, file: Path, review: Review) -> None:
        self.file, self._review = file, review
        content = _load(file)
        by_file = {image.file: place for place, image in review.images.items()}
        known: dict[Any, str] = {}
        for row in content["images"]:
            name = PurePosixPath(str(row["file_name"]).replace("\\", "/")).name
            place = by_file.get(name)
            if place is None:
                raise DataError(
                    f"{file}: the image {row['file_name']} was not exported; expected one of those in {IMAGES}"
                )
            if place in known.values() or row["id"] in known:
                raise DataError(f"{file}: the image {row['file_name']}, id {row['id']}, is listed twice")
            size = review.images[place].size
            if (row.get("height", size[0]), row.get("width", size[1])) != size:
                got = f"{row.get('width')}x{row.get('height')}"
                raise DataError(f"{file}: {row['file_name']} has {got} pixels, exported were {size[1]}x{size[0]}")
            known[row["id"]] = place
        self.places = [place for place in review.images if place in known.values()]
        self._shapes: dict[str, list[Mapping[str, Any]]] = {place: [] for place in self.places}
        self._numbers = _class_numbers(content, review.classes)
        for row in content["annotations"]:
            if row["image_id"] not in known:
                raise DataError(f"{file}: annotation {row.get('id')}: no image has the id {row['image_id']}")
            if row["category_id"] not in self._numbers:
                raise DataError(f"{file}: annotation {row.get('id')}: {self._unknown(content, row['category_id'])}")
            self._shapes[known[row["image_id"]]].append(row)

    def _unknown(self, content: Mapping[str, Any], category: Any) -> str:
        names = [row["name"] for row in content["categories"] if row["id"] == category]
        what = f"the category {names[0]!r}" if names else f"the category id {category}"
        return f"{what} is no class; expected one of {', '.join(self._review.classes)}"

    def read(self, place: str) -> np.ndarray:
        """The label map of a place: class numbers, 255 for no class, uint8 [H, W]. Raises DataError."""
        size = self._review.images[place].size
        label = np.full(size[0] * size[1], IGNORE_LABEL, np.uint8)
        for row in self._shapes[place]:
            where = f"{self.file}: annotation {row.get('id')} of {self._review.images[place].file}"
            label[_pixels(row.get("segmentation"), size, where)] = self._numbers[row["category_id"]]
        return np.ascontiguousarray(label.reshape(size[1], size[0]).T)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected COCO's instances, got {_brief(content)}")
    content.setdefault("categories", [])
    for name, needed in _FIELDS.items():
        rows = content.get(name)
        if not isinstance(rows, list):
            raise DataError(f"{file}: expected COCO's instances, got no list {name}")
        for row in rows:
            # A tool may number by texts, but not by lists, which are no keys.
            if not isinstance(row, dict) or not all(isinstance(row.get(field), int | str) for field in needed):
                raise DataError(f"{file}: {name}: expected {', '.join(needed)} in each, got {_brief(row)}")
    return content


def _class_numbers(content: Mapping[str, Any], classes: tuple[str, ...]) -> dict[Any, int]:
    """Class numbers by the ids of categories. Without a list of categories the ids are those that were exported."""
    if not content["categories"]:
        return {number + 1: number for number in range(len(classes))}
    return {row["id"]: classes.index(row["name"]) for row in content["categories"] if row["name"] in classes}


def _pixels(shape: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The numbers of the pixels of a shape, counted down the columns, int64 [N]. Raises DataError."""
    if isinstance(shape, dict) and {"size", "counts"} <= shape.keys():
        if shape["size"] != list(size):
            raise DataError(f"{where}: RLE of size {shape['size']}, expected {list(size)} (height, width)")
        return _of_runs(shape["counts"], size[0] * size[1], where)
    if isinstance(shape, list) and shape and all(_is_polygon(polygon) for polygon in shape):
        tools = rle_tools()
        codes = tools.frPyObjects([[float(value) for value in polygon] for polygon in shape], *size)
        return _of_runs(tools.merge(codes)["counts"].decode(), size[0] * size[1], where)
    raise DataError(f"{where}: expected a segmentation of polygons or RLE, got {_brief(shape)}")


def _of_runs(counts: Any, pixels: int, where: str) -> np.ndarray:
    """The same of run lengths, a list or a compressed string: of pixels outside and inside in turn.

    The work grows with the pixels inside, not with those of the picture, which may have thousands of polygons.
    """
    found = _decompressed(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(found, list)
        or not all(isinstance(run, int) and run >= 0 for run in found)
        or sum(found) != pixels
    ):
        raise DataError(f"{where}: RLE whose counts do not give {pixels} pixels")
    runs = np.array(found, np.int64)
    begins, inside = (runs.cumsum() - runs)[1::2], runs[1::2]
    before = inside.cumsum() - inside
    return np.arange(inside.sum()) + np.repeat(begins - before, inside)


def _is_polygon(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) >= _LEAST_NUMBERS
        and len(polygon) % 2 == 0
        and all(isinstance(value, int | float) and abs(value) < 1e6 for value in polygon)
    )


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _decompressed(text: str) -> list[int] | None:
    """The run lengths in a compressed string; None where it is none.

    pycocotools does not check that they fit the picture, and gives what lies in the memory where they do not. A
    character has five bits of a number, the lowest first, and a sixth where more follow; from the fourth number on it
    is the difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return None if shift else runs
