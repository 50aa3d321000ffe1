"""What people changed in a review, and the corrections that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hmsa_ext.data.automatic.corrections import (
    FOLDER,
    corrected_file,
    label_table,
    with_corrections,
    write_corrections,
)
from hmsa_ext.data.automatic.manifest import Manifest
from hmsa_ext.data.automatic.review.exchange import (
    IMPORTED,
    Returned,
    Review,
    exported_map,
    imported_map,
    require_same_image,
    write_map,
)
from hmsa_ext.data.progress import report
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable
from hmsa_ext.files import writable_folder


@dataclass(frozen=True)
class Change:
    """What became of one image.

    moves: class before, class after (class numbers, 255 for no class) and pixels, the most pixels first.
    corrected: pixels that are written as corrections.
    emptied: it came back without any label, as images do that nobody opened; it is left alone.
    """

    place: str
    moves: tuple[tuple[int, int, int], ...]
    corrected: int
    emptied: bool = False

    @property
    def pixels(self) -> int:
        """Pixels that have another class than the exported one."""
        return sum(count for _, _, count in self.moves)

    def describe(self, classes: ClassTable, most: int = 3) -> str:
        """The moves in words, the most frequent ones."""
        names = {IGNORE_LABEL: "no class", **dict(enumerate(classes.names))}
        parts = [f"{names[old]} to {names[new]} {count}" for old, new, count in self.moves[:most]]
        return ", ".join([*parts, "..."] if len(self.moves) > most else parts)


def take_back(
    manifest: Manifest, review: Review, returned: Returned, *, confirm: bool = False, quiet: bool = False
) -> list[Change]:
    """Writes what people changed as corrections, and returns it by image.

    A pixel is corrected where its class is not the exported one. It is also corrected where its class was not the
    exported one the last time: somebody who takes a change back says that the exported class was right.

    confirm: all pixels of the images that came back are right, and become corrections.

    Everything is read and checked before anything is written. Raises DataError, OutputError.
    """
    count, some = len(returned.places), False
    # Read twice, since the label maps of all images may not fit into the memory.
    for change, label, _ in report(_compared(review, returned, confirm), count, what="checking", quiet=quiet):
        file = corrected_file(manifest.folder, change.place)
        if change.corrected:
            require_same_image(manifest, review, change.place)
        if change.corrected and file.is_file():
            with_corrections(label, file, label_table(manifest), manifest.untouched)
        some |= change.corrected > 0
    if some:
        writable_folder(review.folder / IMPORTED, "review")
        writable_folder(manifest.folder / FOLDER, "OUT")
    changes = []
    for change, label, touched in report(_compared(review, returned, confirm), count, what="importing", quiet=quiet):
        changes.append(change)
        if not change.corrected:
            continue
        # First what came back: if the second write fails, the next import knows all that the corrections may hold.
        write_map(review.folder, IMPORTED, change.place, label)
        write_corrections(manifest, change.place, label, touched)
    return changes


def _compared(review: Review, returned: Returned, confirm: bool) -> Iterator[tuple[Change, np.ndarray, np.ndarray]]:
    """Of each image that came back what changed, its label map, and where it is corrected, bool [H, W]."""
    for place in returned.places:
        label, exported = returned.read(place), exported_map(review, place)
        if (label == IGNORE_LABEL).all() and not (exported == IGNORE_LABEL).all():
            yield Change(place, (), 0, emptied=True), label, np.zeros(label.shape, bool)
            continue
        changed = label != exported
        touched, last = changed, imported_map(review, place)
        if last is not None:
            touched = changed | (last != exported)
        if confirm:
            touched = np.ones(label.shape, bool)
        yield Change(place, _moves(exported[changed], label[changed]), int(touched.sum())), label, touched


def _moves(before: np.ndarray, after: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    kinds, counts = np.unique(before.astype(np.int64) * 256 + after, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple((int(kinds[k]) // 256, int(kinds[k]) % 256, int(counts[k])) for k in order)
