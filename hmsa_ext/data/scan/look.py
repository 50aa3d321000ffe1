"""The facts of a scan: kind and content of each pair of files. Nothing is judged here, and no error stops it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from hmsa_ext.data.files import check_whole, largest_value, read_bytes, read_colours, read_image, read_label
from hmsa_ext.data.headers import FormatError, Header, read_header
from hmsa_ext.data.label_table import MANY_COLOURS, NO_CLASS, LabelTable, describe_values
from hmsa_ext.data.labelled_files import Item, LabelReader, Listing, sizes_differ
from hmsa_ext.data.progress import reader_threads, report
from hmsa_ext.data.types import IGNORE_LABEL, DataError

# The first bytes and the length of an image tell frames apart, and take little time to hash.
HASHED = 1 << 16


@dataclass
class PairLook:
    """One image with its label files.

    image, label: the headers, None where they cannot be read.
    digest: of the image file.
    largest: the largest value of an image of 16 bits; None for others.
    values, pixels: the values that the label map stores, and how many pixels store each; int64.
    colours: the values are colours.
    classes: pixels by class number, int64 [256], 255 = ignored; None where it is unknown.
    errors: kind and text: "image", "label" (damaged), "format" (kinds of files that are not read), "lossy" (JPEG
        masks), "colours" (colours where numbers are expected), "sizes", "values".
    """

    item: Item
    image: Header | None = None
    label: Header | None = None
    digest: bytes = b""
    largest: int | None = None
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    colours: bool = False
    classes: np.ndarray | None = None
    errors: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class SplitScan:
    """All pairs of one split, and the files that have no partner."""

    split: str
    listing: Listing
    pairs: list[PairLook]

    @cached_property
    def wrong_values(self) -> np.ndarray:
        """Stored values that are no class, in any pair."""
        return np.array([value for value in self.stored(colours=self._by_colour) if self._is_wrong(value)], np.int64)

    @cached_property
    def classes(self) -> np.ndarray:
        """Pixels of each class number, int64 [256]."""
        return sum((pair.classes for pair in self.pairs if pair.classes is not None), np.zeros(256, np.int64))

    @cached_property
    def images_with(self) -> np.ndarray:
        """Images that each class number occurs in, int64 [256]."""
        return sum((pair.classes > 0 for pair in self.pairs if pair.classes is not None), np.zeros(256, np.int64))

    def stored(self, *, colours: bool = False) -> dict[int, tuple[int, int]]:
        """Pixels and images of each stored value, or of each colour, in the order of the values."""
        return self._stored[colours]

    @cached_property
    def _stored(self) -> dict[bool, dict[int, tuple[int, int]]]:
        return {colours: self._count_stored(colours) for colours in (False, True)}

    def _count_stored(self, colours: bool) -> dict[int, tuple[int, int]]:
        pixels, images = Counter(), Counter()
        for pair in self.pairs:
            if pair.colours == colours:
                values = pair.values.tolist()
                images.update(values)
                pixels.update(dict(zip(values, pair.pixels.tolist(), strict=True)))
        return {value: (pixels[value], images[value]) for value in sorted(pixels)}

    def sizes(self) -> Counter[tuple[int, int]]:
        """Number of images of each (height, width)."""
        return Counter(pair.image.size for pair in self.pairs if pair.image is not None)

    def kinds(self, what: str) -> Counter[str]:
        """Number of files of each kind; what: "image" or "label"."""
        headers = (getattr(pair, what) for pair in self.pairs)
        return Counter(str(header) for header in headers if header is not None)

    @property
    def _by_colour(self) -> bool:
        return self.listing.labels is not None and self.listing.labels.table.colours

    def _is_wrong(self, value: int) -> bool:
        return self.listing.labels is not None and self.listing.labels.table.entries[value] == NO_CLASS


def scan_split(
    split: str, listing: Listing, *, decode_images: bool = False, threads: int | None = None, quiet: bool = False
) -> SplitScan:
    """The facts of every pair of a listing, found in parallel.

    decode_images: decode each image. Without it the file is checked (see :func:`hmsa_ext.data.files.check_whole`).
    threads: see :func:`hmsa_ext.data.progress.reader_threads`.
    """
    with ThreadPoolExecutor(reader_threads(threads)) as pool:
        looks = pool.map(lambda item: look_at(item, listing.labels, decode_image=decode_images), listing.items)
        return SplitScan(
            split, listing, list(report(looks, len(listing.items), what=f"looking at {split}", quiet=quiet))
        )


def look_at(item: Item, labels: LabelReader | None, *, decode_image: bool) -> PairLook:
    """The facts of one pair."""
    look = PairLook(item)
    try:
        data = read_bytes(item.image)
        look.image = check_whole(item.image, data)
        look.digest = hashlib.blake2b(data[:HASHED] + len(data).to_bytes(8, "little"), digest_size=16).digest()
        if look.image.depth == 16:
            look.largest = largest_value(item.image)
        elif decode_image:
            read_image(item.image)
    except FormatError as error:
        look.errors.append(("format", str(error)))
    except DataError as error:
        look.errors.append(("image", str(error)))
    size = None
    try:
        look.label = read_header(item.labels[0])
        size = _look_at_label(look, labels)
    except DataError as error:
        look.errors.append((_kind_of_failure(look, error), str(error)))
    if look.image is not None and size is not None and look.image.size != size:
        look.errors.append(("sizes", sizes_differ(item, look.image.size, size)))
    return look


def _look_at_label(look: PairLook, labels: LabelReader | None) -> tuple[int, int]:
    path, table = look.item.labels[0], labels.table if labels is not None else None
    stored = _load(look, path, table)
    look.values, look.pixels = _count(stored)
    if look.colours and len(look.values) > MANY_COLOURS:
        colours, look.values, look.pixels = len(look.values), look.values[:0], look.pixels[:0]
        raise DataError(f"{path}: {colours} different colours, more than classes can have")
    size = (stored.shape[0], stored.shape[1])
    if table is None or labels is None:
        return size
    numbers = table.entries[look.values]
    if (numbers == NO_CLASS).any():
        wrong = numbers == NO_CLASS
        found = describe_values(look.values[wrong], look.pixels[wrong], colours=table.colours)
        look.errors.append(("values", f"{path}: values that are no class: {found}. Expected {table.expected}"))
    elif labels is table:
        look.classes = np.bincount(numbers, look.pixels, minlength=IGNORE_LABEL + 1).astype(np.int64)
    else:  # further files decide the labels
        look.classes = np.bincount(labels.read(look.item.labels).ravel(), minlength=IGNORE_LABEL + 1)
    return size


def _load(look: PairLook, path: Path, table: LabelTable | None) -> np.ndarray:
    if table is not None:
        look.colours = table.colours
        return table.load(path)
    try:
        return read_label(path)
    except DataError:  # without a description the masks may be in colours
        look.colours = True
        return read_colours(path)


def _count(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if stored.dtype == np.uint32:
        values, pixels = np.unique(stored, return_counts=True)
        return values.astype(np.int64), pixels
    pixels = np.bincount(stored.ravel())
    values = np.flatnonzero(pixels)
    return values, pixels[values]


def _kind_of_failure(look: PairLook, error: DataError) -> str:
    if look.label is not None and look.label.format in ("JPEG", "WebP"):
        return "lossy"
    if isinstance(error, FormatError):
        return "format"
    in_colours = look.label is not None and (look.label.channels > 2 or look.colours)
    return "colours" if in_colours and len(look.values) == 0 else "label"


def files_with(pairs: Iterable[PairLook], kind: str) -> list[tuple[PairLook, str]]:
    """The pairs with an error of a kind, and its text."""
    return [(pair, text) for pair in pairs for found, text in pair.errors if found == kind]
