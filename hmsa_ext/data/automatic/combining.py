"""One manifest of several, and of images that were just labelled; counted anew where sums would not be right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hmsa_ext.data.automatic import manifest as manifests
from hmsa_ext.data.automatic.corrections import label_table
from hmsa_ext.data.automatic.manifest import Manifest, Record
from hmsa_ext.data.automatic.reader import count_pairs
from hmsa_ext.data.types import DataError


@dataclass(eq=False)
class Labelled:
    """What is known of images that were labelled: records by place, whose images are whole paths, and pixels of all by
    class and stored probability, int64 [K, 256].

    Counts of each image would take gigabytes for tens of thousands of images.
    """

    records: dict[str, Record]
    histogram: np.ndarray

    @staticmethod
    def none(num_classes: int) -> Labelled:
        """No images."""
        return Labelled({}, np.zeros((num_classes, manifests.LEVELS), np.int64))

    def add(self, place: str, image: str, size: tuple[int, int], counts: np.ndarray) -> None:
        """Adds an image of (height, width) pixels, which is not there yet, with its counts, int64 [K, 256]."""
        self.records[place] = manifests.record_of(image, size, counts)
        self.histogram += counts

    def __or__(self, other: Labelled) -> Labelled:
        """Both; they have no image in common."""
        return Labelled(self.records | other.records, self.histogram + other.histogram)


def combine(
    base: Manifest,
    parts: Sequence[Manifest],
    new: Labelled,
    *,
    without: Collection[str] = (),
    quiet: bool = False,
) -> Manifest:
    """The images of all parts and the new ones, with the facts of ``base``. Of an image in several the last one counts.

    Images whose pair is no longer there are left out, and so are those of ``without``. Where sums of the histograms
    would not be right, all pairs are read. Raises DataError for pairs that cannot be read.
    """
    records: dict[str, Record] = {}
    histogram, is_sum = np.zeros_like(base.histogram), True
    for part in parts:
        is_sum &= not part.records.keys() & records.keys()
        records |= {
            place: replace(record, image=str(part.images / record.image)) for place, record in part.records.items()
        }
        histogram = histogram + part.histogram
    gone = {place for place in records if place in without or not _is_there(base, place)}
    is_sum &= not gone and not records.keys() & new.records.keys()
    records = {place: record for place, record in records.items() if place not in gone}
    records |= new.records
    if is_sum:
        histogram = histogram + new.histogram
    else:
        again = Labelled.none(base.classes.num_classes)
        for (place, record), counted in zip(records.items(), count(base, list(records), quiet=quiet), strict=True):
            again.add(place, record.image, record.size, counted)
        records, histogram = again.records, again.histogram
    images = manifests.common_folder(Path(record.image) for record in records.values())
    return replace(
        base,
        images=images,
        histogram=histogram,
        records={place: replace(records[place], image=_relative(records[place], images)) for place in sorted(records)},
    )


def count(manifest: Manifest, places: Sequence[str], *, quiet: bool = False) -> Iterator[np.ndarray]:
    """Pixels by class and stored probability of the pairs of some places: int64 [K, 256] each. Raises DataError."""
    pairs = [(manifest.label_file(place), manifest.probability_file(place)) for place in places]
    return count_pairs(pairs, label_table(manifest), manifest.classes.num_classes, quiet=quiet)


def merge(folder: str | Path, *, quiet: bool = False) -> Manifest:
    """Makes one manifest of all in a folder, without images whose pair is gone, and writes it. Returns it.

    Raises DataError where there is none and where they are of different teachers, OSError where it cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    files = manifests.manifest_files(folder)
    if not files:
        manifests.read_manifest(folder)  # raises
    parts = [manifests.read_one(file) for file in files]
    for other in parts[1:]:
        manifests.require_same(parts[0], other)
    whole = combine(parts[0], parts, Labelled.none(parts[0].classes.num_classes), quiet=quiet)
    manifests.write_manifest(whole)
    for file in files:
        if file.name != manifests.MANIFEST:
            file.unlink(missing_ok=True)
    return whole


def _is_there(manifest: Manifest, place: str) -> bool:
    return manifest.label_file(place).is_file() and manifest.probability_file(place).is_file()


def _relative(record: Record, images: Path) -> str:
    try:
        return Path(record.image).relative_to(images).as_posix()
    except ValueError as error:
        raise DataError(f"{record.image}: expected an image below {images}") from error
