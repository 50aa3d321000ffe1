"""What a folder of automatic labels says of itself: the teacher, the classes, the images, and how sure the teacher was.

    OUT/labels/cityA/0001.png           label numbers, as ``manifest.json`` lists them by class
    OUT/probabilities/cityA/0001.png    the probability of that class, floor(255 p)
    OUT/corrected/cityA/0001.png        what people corrected (:mod:`hmsa_ext.data.automatic.corrections`)
    OUT/manifest.json                   and manifest.3-of-8.json of machines that shared the work

In the layout of Cityscapes the pairs are OUT/cityA/0001.png and OUT/cityA/0001_prob.png.

A manifest is made from the pairs; it can be made anew from them at any time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from hmsa_ext.data.types import ClassTable, DataError
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import write_text

MANIFEST = "manifest.json"
LEVELS = 256
"""Stored probabilities: 0 to 255."""
VERSION = 1
"""Of the file. A reader refuses newer ones."""
_SHARE = re.compile(r"manifest\.(\d+)-of-(\d+)\.json")

Layout = Literal["plain", "cityscapes"]


@dataclass(frozen=True, eq=False)
class Record:
    """One labelled image.

    image: its file, from the folder of the images (:attr:`Manifest.images`), with forward slashes.
    size: (height, width) in pixels.
    pixels: int64 [K], pixels of each class.
    probability: mean probability over the pixels, 0 to 1, from the stored ones.
    """

    image: str
    size: tuple[int, int]
    pixels: np.ndarray
    probability: float


@dataclass(frozen=True, eq=False)
class Manifest:
    """The content of a folder of automatic labels.

    classes: K classes; ``classes.ids`` are the values that the label files store for them.
    ignored, untouched: values that no class has: in corrected label files the first stands for no class, the second for
        pixels that nobody corrected.
    images: the folder that the images lie in.
    made: model, weights_sha256, fusion, scales, flip, dtype, settings and versions, as plain values.
    records: by place below the folder, without ending: ``cityA/0001``. Sorted.
    histogram: int64 [K, 256], pixels of all images by class and stored probability.
    layout: names of the files; see the top of this module.
    """

    classes: ClassTable
    ignored: int
    untouched: int
    images: Path
    made: Mapping[str, Any]
    records: Mapping[str, Record]
    histogram: np.ndarray
    layout: Layout = "plain"
    folder: Path = field(default=Path())

    def label_file(self, place: str) -> Path:
        """The label file of a place."""
        return pair_of(self.folder, place, self.layout)[0]

    def probability_file(self, place: str) -> Path:
        """The file of the probabilities of a place."""
        return pair_of(self.folder, place, self.layout)[1]

    def image_file(self, place: str) -> Path:
        """The image of a place."""
        return self.images / self.records[place].image


def pair_of(folder: Path, place: str | PurePosixPath, layout: Layout) -> tuple[Path, Path]:
    """Label file and file of the probabilities of a place below a folder of automatic labels."""
    if layout == "cityscapes":
        return folder / f"{place}.png", folder / f"{place}_prob.png"
    return folder / "labels" / f"{place}.png", folder / "probabilities" / f"{place}.png"


def free_values(ids: Sequence[int]) -> tuple[int, int]:
    """Two values that no class has: 255 and 254 where they are free, else the largest that are, of 8 bits if possible.

    >>> free_values(range(19)), free_values([0, 255])
    ((255, 254), (254, 253))
    """
    taken = set(ids)
    for most in (LEVELS, 65536):
        free = [value for value in range(most - 1, -1, -1) if value not in taken]
        if len(free) >= 2:
            return free[0], free[1]
    raise ArgumentValueError(f"ids: expected two values of 0..65535 that are free, got {len(ids)} classes")


def counts_by_probability(labels: np.ndarray, probabilities: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels by class and stored probability: int64 [K, 256], of class numbers [H, W] and uint8 [H, W].

    Pixels whose label is no class number do not count.
    """
    places = labels.astype(np.int64).ravel() * LEVELS + probabilities.ravel()
    counts = np.bincount(places, minlength=num_classes * LEVELS)
    return counts[: num_classes * LEVELS].reshape(num_classes, LEVELS)


def record_of(image: str, size: tuple[int, int], counts: np.ndarray) -> Record:
    """The record of an image of (height, width) pixels, from :func:`counts_by_probability`."""
    total = counts.sum()
    sure = float((counts.sum(0) * np.arange(LEVELS)).sum() / max(total, 1) / (LEVELS - 1))
    return Record(image, size, counts.sum(1), sure)


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder, the shares of several machines merged.

    Raises DataError where there is none, where one cannot be read, and where two are of different teachers.
    """
    folder = Path(folder).expanduser().absolute()
    files = manifest_files(folder)
    if not files:
        what = "no such folder" if not folder.is_dir() else f"no {MANIFEST} in it; hmsa autolabel writes one"
        raise DataError(f"{folder}: expected a folder of automatic labels, got {what}")
    return merged([read_one(file) for file in files])


def manifest_files(folder: Path) -> list[Path]:
    """The manifests in a folder: the one of all, then those of the shares by their numbers."""
    if not folder.is_dir():
        return []
    shares = sorted(
        (tuple(map(int, found.groups()))[::-1], folder / name)
        for name in os.listdir(folder)
        if (found := _SHARE.fullmatch(name))
    )
    whole = folder / MANIFEST
    return [*([whole] if whole.is_file() else []), *(path for _, path in shares)]


def share_name(part: int, parts: int) -> str:
    """The name of the manifest of the K-th of N parts, from 1."""
    return MANIFEST if parts == 1 else f"manifest.{part}-of-{parts}.json"


def merged(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest of several parts of one folder.

    Raises DataError where they are of different teachers, settings or classes, and where two have an image.
    """
    first = manifests[0]
    for other in manifests[1:]:
        require_same(first, other)
    if len(manifests) == 1:
        return first
    common = common_folder(
        manifest.images / record.image for manifest in manifests for record in manifest.records.values()
    )
    records: dict[str, Record] = {}
    histogram = np.zeros_like(first.histogram)
    for manifest in manifests:
        again = manifest.records.keys() & records.keys()
        if again:
            raise DataError(
                f"{manifest.folder}: {sorted(again)[0]} is in two manifests; hmsa autolabel merge {manifest.folder} "
                "counts anew and writes one"
            )
        for place, record in manifest.records.items():
            file = os.path.relpath(manifest.images / record.image, common)
            records[place] = replace(record, image=Path(file).as_posix())
        histogram += manifest.histogram
    return replace(first, images=common, records=dict(sorted(records.items())), histogram=histogram)


def require_same(one: Manifest, other: Manifest) -> None:
    """Raises DataError where two manifests of a folder are of different teachers, settings or classes."""
    differing = differences(one, other.made, other.classes, other.layout)
    if differing:
        raise DataError(
            f"{other.folder}: two manifests of labels that were made otherwise: {', '.join(differing)} differ; "
            "expected the labels of one teacher, made with the same settings, in a folder"
        )


def write_manifest(manifest: Manifest, name: str = MANIFEST) -> None:
    """Writes a manifest into its folder, whole or not at all. Raises OSError."""
    classes = manifest.classes
    ids = classes.ids or tuple(range(classes.num_classes))
    head = {
        "version": VERSION,
        "layout": manifest.layout,
        "images": str(manifest.images),
        "images_from_here": Path(os.path.relpath(manifest.images, manifest.folder)).as_posix(),
        "ignored": manifest.ignored,
        "untouched": manifest.untouched,
        "made": manifest.made,
        "pixels": [int(count) for count in manifest.histogram.sum(1)],
    }
    table = [
        {"id": number, "name": name, "colour": colour}
        for number, name, colour in zip(ids, classes.names, classes.colours.tolist(), strict=True)
    ]
    records = {
        place: {
            "image": record.image,
            "size": list(record.size),
            "probability": round(record.probability, 5),
            "pixels": record.pixels.tolist(),
        }
        for place, record in manifest.records.items()
    }
    lines = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    lines += ',\n "classes": [\n  ' + ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in table) + "\n ]"
    rows = ",\n  ".join(json.dumps(row) for row in manifest.histogram.tolist())
    lines += ',\n "histogram": [\n  ' + rows + "\n ]"
    rows = ",\n  ".join(f"{json.dumps(place, ensure_ascii=False)}: {json.dumps(row)}" for place, row in records.items())
    lines += ',\n "labelled": {\n  ' + rows + "\n }\n}\n"
    write_text(manifest.folder / name, lines)


def differences(one: Manifest, made: Mapping[str, Any], classes: ClassTable, layout: Layout) -> list[str]:
    """The facts in which labels that are made so differ from those of a manifest; none for the same teacher."""
    a, b = _deciding(one.made), _deciding(made)
    names = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    names += ["classes"] * (one.classes != classes or one.classes.ids != classes.ids)
    return names + ["layout"] * (one.layout != layout)


_NOT_DECIDING = ("model", "versions")
"""Facts on the making that do not decide the labels: where the weights lay, and what ran them."""


def _deciding(made: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in made.items() if name not in _NOT_DECIDING}


def common_folder(images: Iterable[Path]) -> Path:
    """The deepest folder that holds all images, the current one for none. Raises DataError for several drives."""
    folders = {str(image.parent) for image in images}
    try:
        return Path(os.path.commonpath(sorted(folders))) if folders else Path.cwd()
    except ValueError as error:
        raise DataError(
            f"sources: images on several drives: {sorted(folders)[0]}; label those of each apart"
        ) from error


def read_one(file: Path) -> Manifest:
    """The manifest in one file. Raises DataError where it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    try:
        version = content["version"]
        if version > VERSION:
            raise DataError(f"{file}: is of a later version of hmsa_ext ({version}); this one reads {VERSION}")
        table = content["classes"]
        classes = ClassTable(
            tuple(row["name"] for row in table),
            np.array([row["colour"] for row in table]),
            ids=tuple(row["id"] for row in table),
        )
        histogram = np.array(content["histogram"], np.int64)
        if histogram.shape != (classes.num_classes, LEVELS):
            raise DataError(f"{file}: histogram: got {histogram.shape}, expected {(classes.num_classes, LEVELS)}")
        records = {
            place: Record(
                str(PurePosixPath(row["image"])),
                (int(row["size"][0]), int(row["size"][1])),
                np.array(row["pixels"], np.int64),
                float(row["probability"]),
            )
            for place, row in content["labelled"].items()
        }
        if any(record.pixels.shape != (classes.num_classes,) for record in records.values()):
            raise DataError(f"{file}: labelled: expected pixels of {classes.num_classes} classes")
        images = Path(content["images"])
        if not images.is_dir():  # the folder of the labels was moved, and the images with it
            near = file.parent / content["images_from_here"]
            images = Path(os.path.normpath(near)) if near.is_dir() else images
        if content["layout"] not in ("plain", "cityscapes"):
            raise DataError(f"{file}: layout: got {content['layout']!r}, expected plain or cityscapes")
        made = content["made"]
        if not isinstance(made, dict):
            raise DataError(f"{file}: made: got {made!r:.80}, expected names and values")
        free = int(content["ignored"]), int(content["untouched"])
        if free[0] == free[1] or {*free} & {*(classes.ids or ())}:
            raise DataError(f"{file}: ignored, untouched: got {free}, expected two values that no class has")
        return Manifest(
            classes, *free, images, made, records, histogram,
            content["layout"], file.parent,
        )  # fmt: skip
    except DataError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: is no manifest of automatic labels: {error!r}") from error
