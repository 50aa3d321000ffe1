"""Mapillary Vistas 1.2 (1.1) and 2.0: palette PNGs whose indices count the labels of a configuration file.

    ROOT/config.json (or config_v1.2.json), ROOT/config_v2.0.json
    ROOT/training/images/NAME.jpg     ROOT/training/labels/NAME.png, or v1.2/labels, v2.0/labels, within training
    ROOT/validation/...

Names and colours of the classes are those of the file. Of version 1.2 the last label ("Unlabeled") is ignored, which
leaves 65 classes with the numbers of the file. Of version 2.0 the labels that the file marks as not evaluated are
ignored, and the others are numbered from 0, in their order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from hmsa_ext.data.label_table import NO_CLASS, LabelTable
from hmsa_ext.data.labelled_files import LabelledFiles, Listing
from hmsa_ext.data.pairs import first_folder, list_files, pair
from hmsa_ext.data.source import Root, check, root_of
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError
from hmsa_ext.settings import Flag, Rule, Spelling

VERSIONS = ("1.2", "2.0")
Version = Annotated[
    str,
    Spelling("|".join(VERSIONS), lambda version: str(version).removeprefix("v"), str),
    Rule(lambda version: version in VERSIONS, f"one of {', '.join(VERSIONS)}"),
]
_FOLDERS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Mapillary:
    """Mapillary Vistas: the 65 classes of version 1.2, or those of version 2.0 that are evaluated."""

    splits: ClassVar = ("train", "val")
    needs: ClassVar = (
        "the folder that holds training, validation and config.json (or config_v1.2.json, config_v2.0.json)"
    )

    root: Root = None
    """Folder of the data set."""
    version: Annotated[Version, Flag("vistas-version", was=("version",))] = "1.2"
    """Version of the labels: 1.2 (1.1 has the same) or 2.0."""

    def __post_init__(self) -> None:
        check(self)

    def find(self, split: str) -> Listing:
        """One split and everything that is wrong with it."""
        root = root_of(self, split)
        version, folder = self.version, root / _FOLDERS[split]
        listing = Listing(
            root,
            f"Expected images {folder}/images/NAME.jpg, label maps {folder}/v{version}/labels/NAME.png or "
            f"{folder}/labels/NAME.png, and {root}/config_v{version}.json or config.json",
        )
        path = next(
            (path for path in (root / f"config_v{version}.json", root / "config.json") if path.is_file()),
            root / f"config_v{version}.json",
        )
        try:
            listing.classes, listing.labels = read_classes(path, version)
        except DataError as error:
            listing.problems.append(str(error))
        images = list_files(folder / "images", (".jpg", ".jpeg"), listing.problems)
        label_folder = first_folder(folder / f"v{version}" / "labels", folder / "labels")
        labels = list_files(label_folder, (".png",), listing.problems)
        pair(listing, folder, images, label=labels)
        return listing

    def open(self, split: str, *, length: int | None = None) -> LabelledFiles:
        """One split, or its first ``length`` images. Raises DataError with everything that is wrong."""
        return self.find(split).dataset(length=length)


def read_classes(path: Path, version: str) -> tuple[ClassTable, LabelTable]:
    """The classes in a configuration file. Raises DataError that names the file."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        rows = [(str(row["readable"]), str(row["name"]), row["color"], bool(row["evaluate"])) for row in labels]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected a configuration of Mapillary Vistas, labels with name, readable, color and evaluate; "
            f"got {type(error).__name__}: {error}"
        ) from error
    if version == "1.2":
        if not rows or "unlabeled" not in rows[-1][0].lower():
            last = repr(rows[-1][0]) if rows else "none"
            raise DataError(f"{path}: expected the last label to be Unlabeled, as in version 1.2, got {last}")
        kept = list(range(len(rows) - 1))
    else:
        kept = [index for index, row in enumerate(rows) if row[3]]
    if not 0 < len(kept) <= NO_CLASS:
        raise DataError(f"{path}: expected 1 to {NO_CLASS} classes, got {len(kept)}")
    meaning = {**dict.fromkeys(range(len(rows)), IGNORE_LABEL), **{index: place for place, index in enumerate(kept)}}
    readable = [rows[index][0] for index in kept]
    # Where two labels read the same, the full name tells them apart.
    names = [
        name if readable.count(name) == 1 else f"{name} ({rows[index][1]})"
        for name, index in zip(readable, kept, strict=True)
    ]
    try:
        classes = ClassTable(tuple(names), np.array([rows[index][2] for index in kept]), ids=tuple(kept))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return classes, LabelTable(meaning, expected=f"0..{len(rows) - 1}, the labels of {path.name}")


SOURCE = Mapillary
