"""Copies images and their automatic labels into a folder for people who correct them in a tool for annotation.

    hmsa autolabel export OUT --review FOLDER                                  # the 20 least sure images, for COCO
    hmsa autolabel export OUT --review FOLDER --shapes polygons                # for tools that take polygons only
    hmsa autolabel export OUT --review FOLDER --format cvat                    # CVAT's "Segmentation mask 1.1"
    hmsa autolabel export OUT --review FOLDER --names LIST.txt

The labels are those of every pixel, however sure, with the corrections that were made before. hmsa autolabel import
takes the corrected ones back. It compares them with FOLDER/exported, so keep the folder as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from hmsa_ext import command_line
from hmsa_ext.data.automatic.manifest import read_manifest
from hmsa_ext.data.automatic.review import coco, cvat
from hmsa_ext.data.automatic.review.exchange import Format, Review, Shapes
from hmsa_ext.data.automatic.review.export import Order, chosen, named, write_images
from hmsa_ext.data.types import DataError
from hmsa_ext.settings import POSITIVE, SEED, Metavar, Positional, require, validate

PROG = "hmsa autolabel export"


@dataclass(frozen=True)
class ReviewedLabels:
    """The labels, and the folder that people work in."""

    folder: Annotated[str | None, Positional("OUT")] = None
    """Folder of automatic labels."""
    review: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder for the images and labels that people look at."""

    def __post_init__(self) -> None:
        validate(self)

    def folders(self, command: str) -> tuple[Path, Path]:
        """Both folders. Raises :class:`hmsa_ext.command_line.UsageError` where one is missing."""
        for value, expected in ((self.folder, "OUT: a folder of automatic labels"), (self.review, "--review FOLDER")):
            if not value:
                raise command_line.UsageError(f"{command}: expected {expected}; got none")
        return Path(self.folder or "").expanduser(), Path(self.review or "").expanduser()


@dataclass(frozen=True)
class Export:
    """Which images to export, and how."""

    labels: ReviewedLabels = field(default_factory=ReviewedLabels)
    format: Format = "coco"
    """Layout: COCO's instances, or the masks of CVAT."""
    shapes: Shapes = "rle"
    """How COCO's instances are stored: all pixels of a class as run lengths, or a polygon for each region."""
    count: Annotated[int, POSITIVE] = 20
    """Export so many images."""
    order: Order = "doubtful"
    """Which images come first: the least sure ones, the surest ones, any, or by name."""
    names: Annotated[str | None, Metavar("FILE")] = None
    """Export the images that this file names, one a line, instead of --count by --order."""
    seed: Annotated[int, SEED] = 0
    """Seed of the random order."""

    def __post_init__(self) -> None:
        validate(self)
        polygons = self.format == "cvat" and self.shapes == "polygons"
        require("shapes", self.shapes, not polygons, "rle with --format cvat, which stores masks")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_command, arguments)


def _command(arguments: list[str]) -> int:
    export(command_line.parse(Export(), arguments, prog=PROG, description=__doc__ or ""))
    return 0


def export(settings: Export) -> Review:
    """Exports as the settings say, and says what to do next. Raises DataError and OutputError."""
    labels, folder = settings.labels.folders("export")
    manifest = read_manifest(labels)
    if settings.names:
        places = named(manifest, Path(settings.names).expanduser())
    else:
        places = chosen(manifest, settings.count, settings.order, settings.seed)
    if not places:
        raise DataError(f"{manifest.folder}: expected labels of at least one image, got none")
    review = write_images(manifest, places, folder, settings.format, settings.shapes)
    sure = [manifest.records[place].probability for place in places]
    print(
        f"exported {len(places)} of {len(manifest.records)} images to {folder}; mean probability "
        f"{min(sure):.3f} to {max(sure):.3f}"
    )
    if review.format == "coco":
        print(f"images: {folder / coco.IMAGES}\nannotations: {folder / coco.ANNOTATIONS}")
    else:
        print(f"images: {folder / cvat.IMAGES}\nmasks: {folder / cvat.MASKS}, colours: {folder / cvat.LABEL_MAP}")
    print(f"afterwards: hmsa autolabel import {settings.labels.folder} --review {settings.labels.review}")
    return review
