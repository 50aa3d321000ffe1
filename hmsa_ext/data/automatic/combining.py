"""One manifest of several, and of images that were just labelled; counted anew where sums would not be right."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hmsa_ext.data.automatic import manifest as manifests
from hmsa_ext.data.automatic.corrections import label_table
from hmsa_ext.data.automatic.manifest import Manifest, Record
from hmsa_ext.data.automatic.reader import count_pairs
from hmsa_ext.data.types import DataError


@dataclass(frozen=True, eq=False)
class Labelled:
    """What is known of an image that was labelled: its record, whose image is a whole path, and pixels by class and
    stored probability, int64 [K, 256]."""

    record: Record
    counts: np.ndarray


def combine(
    base: Manifest,
    parts: Sequence[Manifest],
    new: Mapping[str, Labelled],
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
    is_sum &= not gone and not records.keys() & new.keys()
    records = {place: record for place, record in records.items() if place not in gone}
    records |= {place: found.record for place, found in new.items()}
    if is_sum:
        histogram = sum((found.counts for found in new.values()), histogram)
    else:
        counts = count(base, list(records), quiet=quiet)
        histogram = sum(counts, np.zeros_like(histogram))
        records = {
            place: manifests.record_of(record.image, record.size, counted)
            for (place, record), counted in zip(records.items(), counts, strict=True)
        }
    images = manifests.common_folder(Path(record.image) for record in records.values())
    return replace(
        base,
        images=images,
        histogram=histogram,
        records={place: replace(records[place], image=_relative(records[place], images)) for place in sorted(records)},
    )


def count(manifest: Manifest, places: Sequence[str], *, quiet: bool = False) -> list[np.ndarray]:
    """Pixels by class and stored probability of the pairs of some places: int64 [K, 256] each. Raises DataError."""
    pairs = [(manifest.label_file(place), manifest.probability_file(place)) for place in places]
    return count_pairs(pairs, label_table(manifest), manifest.classes.num_classes, quiet=quiet) if pairs else []


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
    whole = combine(parts[0], parts, {}, quiet=quiet)
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
