"""The one class for data on disk: pairs of an image and its label files, a table of classes, a reader of labels.

One small module per data set finds which files belong together and what their values mean. It returns a
:class:`Listing`, which becomes a data set when nothing is wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from hmsa_ext.data.files import WHITE, check_whole, read_bytes, read_image
from hmsa_ext.data.headers import read_header, turned_note
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.types import ClassTable, DataError, Sample


class LabelReader(Protocol):
    """Makes a label map of the label files of an item; :class:`LabelTable` is the usual one.

    table: the meaning of the values that the first label file stores.
    identity: see :class:`hmsa_ext.data.types.Dataset`.
    """

    identity: str

    @property
    def table(self) -> LabelTable: ...

    def read(self, files: tuple[Path, ...]) -> np.ndarray: ...


@dataclass(frozen=True)
class Item:
    """One image with its label files.

    name: a file name without its ending, as the user knows it.
    labels: the file of class numbers first, then other files of the reader of labels (probabilities, ...).
    """

    name: str
    image: Path
    labels: tuple[Path, ...]


class LabelledFiles:
    """A data set on disk.

    items: in their order.
    classes: the class table.
    labels: reads the label files of an item.
    white: the value of white in images of 16 bits.

    Files are opened when an item is read. DataError names a file that cannot be used.
    """

    def __init__(self, items: Sequence[Item], classes: ClassTable, labels: LabelReader, *, white: int = WHITE) -> None:
        self.items, self.classes, self.labels, self.white = list(items), classes, labels, white

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        image, label = read_image(item.image, white=self.white), self.labels.read(item.labels)
        if image.shape[:2] != label.shape:
            raise DataError(sizes_differ(item, image.shape[:2], label.shape))
        return Sample(image, label, item.name)

    def label(self, index: int) -> np.ndarray:
        """The label map of one item, uint8 [H, W], class numbers and 255; the image is not touched."""
        return self.labels.read(self.items[index].labels)

    def files(self, index: int) -> tuple[Path, ...]:
        """Every file that decides an item, the image first."""
        item = self.items[index]
        return (item.image, *item.labels)

    @property
    def identity(self) -> str:
        """What decides the labels besides the content of the files."""
        return f"{self.classes.num_classes} classes; {self.labels.identity}"

    def inspect(self, index: int) -> tuple[np.ndarray | None, list[str]]:
        """The label map of one item, None where it cannot be used, and the problems of the item in words.

        The file of the image is checked, but not decoded.
        """
        item, problems, size, label = self.items[index], [], None, None
        try:
            size = check_whole(item.image, read_bytes(item.image)).size
        except DataError as error:
            problems.append(str(error))
        try:
            label = self.labels.read(item.labels)
        except DataError as error:
            problems.append(str(error))
        if label is not None and size is not None and size != label.shape:
            problems.append(sizes_differ(item, size, label.shape))
        return (None if problems else label), problems


@dataclass
class Listing:
    """What was found of one split of a data set on disk, and everything that is wrong with it.

    root: folder of the data set. When it does not exist, that is the first problem.
    layout: the expected folders, in words.
    items: the pairs, in the order of their names.
    classes, labels: None where the table of classes could not be read.
    white: the value of white in images of 16 bits.
    problems: in words, each with its folder or file.
    advice: how to mend them, in words.
    description: a dataset.yaml that would fit the label maps, where there is none.
    lonely_images, lonely_labels: files without a partner.
    """

    root: Path
    layout: str
    items: list[Item] = field(default_factory=list)
    classes: ClassTable | None = None
    labels: LabelReader | None = None
    white: int = WHITE
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    description: str = ""
    lonely_images: list[Path] = field(default_factory=list)
    lonely_labels: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            here = Path.cwd()
            self.problems.insert(
                0,
                f"root: no such folder {self.root}, which is {os.path.relpath(self.root, here)} from the current "
                f"folder {here}",
            )

    def dataset(self, *, length: int | None = None) -> LabelledFiles:
        """The data set, or its first so many items. Raises DataError with all problems."""
        if length is not None and length < 1:
            raise DataError(f"length: expected at least 1 image, got {length}")
        if self.problems or self.classes is None or self.labels is None:
            lines = [f"{'; '.join(self.problems)}. {self.layout}", *self.advice]
            if self.description:
                lines.append(f"For these label maps this dataset.yaml would fit:\n\n{self.description}")
            raise DataError("\n".join(lines))
        return LabelledFiles(self.items[:length], self.classes, self.labels, white=self.white)


def sizes_differ(item: Item, image: tuple[int, ...], label: tuple[int, ...]) -> str:
    """The text about an item whose image and label map have these (height, width), with the cause if it is known."""
    text = (
        f"{item.labels[0]}: the label map is {label[1]}x{label[0]} pixels, "
        f"its image {item.image.name} {image[1]}x{image[0]}"
    )
    if tuple(image) != tuple(label[::-1]):
        return text
    try:
        note = turned_note(read_header(item.image))
    except DataError:
        note = ""
    return f"{text}; {note}" if note else text
