"""What a folder for review holds, whichever tool it is for, and what came back in it.

    FOLDER/review.json            format, classes, and place, file, size and checksum of each image; written last
    FOLDER/exported/PLACE.png     what was exported: class numbers, 255 for no class
    FOLDER/imported/PLACE.png     what came back the last time

All else is in the layout of a tool: :mod:`hmsa_ext.data.automatic.review.coco` and
:mod:`hmsa_ext.data.automatic.review.cvat`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from hmsa_ext.data.automatic.corrections import corrected_file, label_table, with_corrections
from hmsa_ext.data.automatic.manifest import Manifest
from hmsa_ext.data.files import check_whole, read_bytes, read_image, read_label
from hmsa_ext.data.headers import read_header
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import DataError
from hmsa_ext.files import replacing, write_text

REVIEW = "review.json"
EXPORTED, IMPORTED = "exported", "imported"
VERSION = 1
"""Of the file. A reader refuses newer ones."""

Format = Literal["coco", "cvat"]
Shapes = Literal["rle", "polygons"]


@dataclass(frozen=True)
class Exported:
    """One image of a review.

    file: the name of its copy, which no other image has, also without its ending and in other case.
    size: (height, width) in pixels.
    sha256: of the label map that was exported, see :func:`checksum`.
    image_sha256: of the file of the image; empty in reviews of earlier versions.
    """

    file: str
    size: tuple[int, int]
    sha256: str = ""
    image_sha256: str = ""

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return Path(self.file).stem


@dataclass(frozen=True)
class Review:
    """A folder that images and their labels were exported to.

    classes: the names of the classes by number.
    images: by place, see :class:`hmsa_ext.data.automatic.manifest.Manifest`.
    """

    folder: Path
    format: Format
    shapes: Shapes
    classes: tuple[str, ...]
    images: Mapping[str, Exported]

    def by_stem(self) -> dict[str, str]:
        """The places by the name of the copy of the image without its ending."""
        return {image.stem: place for place, image in self.images.items()}


class Returned(Protocol):
    """What came back in a review: :class:`coco.Annotations` or :class:`cvat.Masks`.

    places: those of the images that came back, in the order of the review.
    """

    places: list[str]

    def read(self, place: str) -> np.ndarray:
        """The label map of a place as it is now: class numbers, 255 for no class, uint8 [H, W]. Raises DataError."""
        ...


# ---- what is exported -------------------------------------------------------------------------------------------


def current_label(manifest: Manifest, place: str) -> np.ndarray:
    """The label map of a place: the automatic one, whatever its probabilities, with the corrections over it.

    Class numbers, 255 for no class, uint8 [H, W]. Raises DataError.
    """
    table = label_table(manifest)
    label = table.read((manifest.label_file(place),))
    size = manifest.records[place].size
    if label.shape != size:
        got = f"{label.shape[1]}x{label.shape[0]}"
        raise DataError(f"{manifest.label_file(place)}: {got} pixels, the manifest says {size[1]}x{size[0]}")
    file = corrected_file(manifest.folder, place)
    return with_corrections(label, file, table, manifest.untouched) if file.is_file() else label


def copy_image(source: Path, folder: Path, name: str, size: tuple[int, int]) -> None:
    """Copies an image as it is. One that viewers turn is stored as a PNG that they do not turn.

    Label maps belong to the pixels as they are stored. A tool that follows an EXIF orientation would show them beside
    the image. Raises DataError where the size is not that of the label map.
    """
    data = read_bytes(source)
    header = check_whole(source, data)
    if header.size != size:
        got = f"{header.width}x{header.height}"
        raise DataError(f"{source}: {got} pixels, its label map {size[1]}x{size[0]}")
    if header.orientation != 1:
        data = _png(cv2.cvtColor(read_image(source), cv2.COLOR_RGB2BGR))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / name) as file:
        file.write(data)


def file_names(manifest: Manifest, places: Iterable[str]) -> dict[str, str]:
    """A name for the copy of each image: its place, without folders; letters, digits, dots, dashes and underscores.

    No two are the same, also without their endings and in other case.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for place in places:
        start = re.sub(r"[^\w.-]", "_", place).lstrip(".-") or "image"
        stem, number = start, 1
        while stem.lower() in taken:
            number += 1
            stem = f"{start}-{number}"
        taken.add(stem.lower())
        source = manifest.image_file(place)
        turned = read_header(source).orientation != 1
        names[place] = stem + (".png" if turned else source.suffix)
    return names


# ---- the folder -------------------------------------------------------------------------------------------------


def write_review(review: Review) -> None:
    """Writes ``review.json``. Raises OSError."""
    images = {
        place: {
            "file": image.file,
            "size": list(image.size),
            "sha256": image.sha256,
            "image_sha256": image.image_sha256,
        }
        for place, image in review.images.items()
    }
    content = {
        "version": VERSION, "format": review.format, "shapes": review.shapes, "classes": list(review.classes),
        "images": images,
    }  # fmt: skip
    write_text(review.folder / REVIEW, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_review(folder: Path, manifest: Manifest) -> Review:
    """The review in a folder. Raises DataError where there is none, and where it is not of these labels."""
    file = folder / REVIEW
    if not file.is_file():
        what = f"no {REVIEW} in it" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: expected a folder that hmsa autolabel export finished, got {what}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] > VERSION:
            raise DataError(
                f"{file}: is of a later version of hmsa_ext ({content['version']}); this one reads {VERSION}"
            )
        images = {
            place: Exported(row["file"], (row["size"][0], row["size"][1]), row["sha256"], row.get("image_sha256", ""))
            for place, row in content["images"].items()
        }
        review = Review(folder, content["format"], content["shapes"], tuple(content["classes"]), images)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be read: {error!r}") from error
    if review.format not in get_args(Format):
        raise DataError(f"{file}: format: got {review.format!r}, expected one of {', '.join(get_args(Format))}")
    if review.classes != manifest.classes.names:
        raise DataError(
            f"{file}: the review has the classes {', '.join(review.classes)}, the labels in {manifest.folder} have "
            f"{', '.join(manifest.classes.names)}; expected the labels that were exported"
        )
    for place, image in images.items():
        record = manifest.records.get(place)
        if record is None:
            raise DataError(f"{file}: {place} is not among the labels in {manifest.folder}")
        if record.size != image.size:
            sizes = f"{image.size[1]}x{image.size[0]} pixels in the review, {record.size[1]}x{record.size[0]}"
            raise DataError(f"{file}: {place} has {sizes} in {manifest.folder}")
    return review


def require_same_image(manifest: Manifest, review: Review, place: str) -> None:
    """Raises DataError where the image of a place is not the one that was exported.

    Corrections belong to the image, whichever teacher labelled it. An image that is not there is taken for the same.
    """
    file, expected = manifest.image_file(place), review.images[place].image_sha256
    if expected and file.is_file() and file_checksum(file) != expected:
        raise DataError(
            f"{review.folder / REVIEW}: {place} was exported from another image than {file}; expected the labels that "
            "were exported, and their images as they were"
        )


def write_map(folder: Path, kind: str, place: str, label: np.ndarray) -> None:
    """Stores a label map, uint8 [H, W], as what was exported or imported. Raises OSError."""
    file = folder / kind / f"{place}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as out:
        out.write(_png(label))


def exported_map(review: Review, place: str) -> np.ndarray:
    """The label map that was exported, uint8 [H, W]. Raises DataError where it is not as it was written."""
    file = review.folder / EXPORTED / f"{place}.png"
    label = read_label(file)
    if checksum(label) != review.images[place].sha256:
        raise DataError(
            f"{file}: is not what was exported; expected the file as it was, since what people changed is found by "
            "comparing with it"
        )
    return label


def imported_map(review: Review, place: str) -> np.ndarray | None:
    """The label map that came back the last time, uint8 [H, W]; None before. Raises DataError."""
    file = review.folder / IMPORTED / f"{place}.png"
    if not file.is_file():
        return None
    label = read_label(file)
    size = review.images[place].size
    if label.shape != size or label.dtype != np.uint8:
        got = f"{label.shape[1]}x{label.shape[0]} pixels of {label.dtype}"
        raise DataError(f"{file}: {got}, expected {size[1]}x{size[0]} of uint8; remove the file to import anew")
    return label


def checksum(label: np.ndarray) -> str:
    """The SHA-256 of the pixels of a label map, row by row."""
    return hashlib.sha256(np.ascontiguousarray(label).tobytes()).hexdigest()


def file_checksum(file: Path) -> str:
    """The SHA-256 of a file. Raises DataError where it cannot be read."""
    return hashlib.sha256(read_bytes(file)).hexdigest()


def _png(pixels: np.ndarray) -> bytes:
    written, data = cv2.imencode(".png", pixels)
    assert written
    return data.tobytes()
