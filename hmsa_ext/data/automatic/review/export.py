"""Which images go to people, and the folder that they go in."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from hmsa_ext.data.automatic.corrections import corrected_file
from hmsa_ext.data.automatic.manifest import Manifest
from hmsa_ext.data.automatic.review import coco, cvat
from hmsa_ext.data.automatic.review.exchange import (
    EXPORTED,
    REVIEW,
    Exported,
    Format,
    Returned,
    Review,
    Shapes,
    checksum,
    copy_image,
    current_label,
    file_checksum,
    file_names,
    write_map,
    write_review,
)
from hmsa_ext.data.progress import report
from hmsa_ext.data.types import DataError
from hmsa_ext.files import OutputError, writable_folder

Order = Literal["doubtful", "sure", "random", "name"]


def chosen(manifest: Manifest, count: int, order: Order, seed: int = 0) -> list[str]:
    """The first so many places in an order. In every order but that of the names, images that people corrected already
    come last: the next review goes on with others.

    seed: of the random order.
    """
    places = list(manifest.records)
    if order == "random":
        places = [places[k] for k in np.random.default_rng(seed).permutation(len(places))]
    elif order != "name":
        sign = 1 if order == "doubtful" else -1
        places.sort(key=lambda place: sign * manifest.records[place].probability)
    if order != "name":
        places.sort(key=lambda place: corrected_file(manifest.folder, place).is_file())
    return places[:count]


def named(manifest: Manifest, file: Path) -> list[str]:
    """The places in a file with one name a line: that of a place, or of an image as the manifest has it.

    Raises DataError for a file that cannot be read, and for names that are not among the labels.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"names: {file} cannot be read: {error}") from error
    known = {record.image: place for place, record in manifest.records.items()}
    known |= {place: place for place in manifest.records}
    found: dict[str, None] = {}
    for name in filter(None, map(str.strip, lines)):
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise DataError(f"names: {file}: {name} is not among the labels in {manifest.folder}{hint}")
        found[known[name]] = None
    if not found:
        raise DataError(f"names: {file}: expected one name a line, got none")
    return list(found)


def write_images(
    manifest: Manifest, places: Sequence[str], folder: Path, format: Format, shapes: Shapes, *, quiet: bool = False
) -> Review:
    """Writes images and labels into a new or empty folder, in the layout of a tool.

    Raises DataError for images and labels that cannot be read, OutputError for a folder that cannot be written or has
    something in it, and :class:`hmsa_ext.data.automatic.review.coco.MissingPackageError`.
    """
    new_folder(folder)
    if format == "coco":
        writer = coco.Writer(folder, manifest.classes, shapes)
    else:
        writer = cvat.Writer(folder, manifest.classes)
    names = file_names(manifest, places)
    for place in report(places, len(places), what="exporting", quiet=quiet):
        label = current_label(manifest, place)
        copy_image(manifest.image_file(place), writer.images, names[place], manifest.records[place].size)
        writer.add(names[place], label)
    writer.finish()
    images = {
        place: Exported(
            names[place],
            manifest.records[place].size,
            image_sha256=file_checksum(manifest.image_file(place)),
        )
        for place in places
    }
    review = Review(folder, format, shapes, manifest.classes.names, images)
    # Kept is what the files mean when they are read again. Whatever a format does to a label map is no change then.
    back = open_returned(review)
    for place in back.places:
        label = back.read(place)
        write_map(folder, EXPORTED, place, label)
        images[place] = dataclasses.replace(images[place], sha256=checksum(label))
    write_review(review)
    return review


def new_folder(folder: Path) -> None:
    """Makes the folder of a review. Raises OutputError where it cannot be made, and where something is in it."""
    writable_folder(folder, "review")
    there = sorted(os.listdir(folder))
    if REVIEW in there:
        raise OutputError(
            f"review: {folder} is an earlier export; hmsa autolabel import takes what was corrected in it. Then remove "
            "it, or name a new folder"
        )
    if there:
        raise OutputError(f"review: {folder} has {there[0]} in it; expected a folder that is new or empty")


def open_returned(review: Review, place: Path | None = None) -> Returned:
    """What came back in a review.

    place: the JSON file of COCO's format, or the folder of CVAT's; those that were exported unless given.

    Raises DataError, see :class:`coco.Annotations` and :class:`cvat.Masks`.
    """
    if review.format == "coco":
        return coco.Annotations(place or review.folder / coco.ANNOTATIONS, review)
    return cvat.Masks(place or review.folder, review)
