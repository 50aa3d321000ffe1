"""A folder of automatic labels as a data set: ``--auto-labels OUT`` of any data set."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from hmsa_ext.data.automatic.corrections import FOLDER, corrected_file, label_table
from hmsa_ext.data.automatic.manifest import Manifest, read_manifest
from hmsa_ext.data.automatic.reader import AutoLabels, Coarse, Corrected
from hmsa_ext.data.automatic.trust import Trust
from hmsa_ext.data.files import WHITE
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.labelled_files import Item, LabelledFiles
from hmsa_ext.data.pairs import SHOWN
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError

LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


def open_automatic(
    folder: str | Path,
    classes: ClassTable,
    trust: Trust | None = None,
    *,
    images: str | Path | None = None,
    coarse: str | Path | None = None,
    coarse_table: LabelTable | None = None,
) -> LabelledFiles:
    """The images that a folder of automatic labels is about, with the labels that are trusted.

    classes: of the training; those of the folder have the same names, in any order.
    trust: which pixels count.
    images: the folder of the images, where they are not where the manifest says: with the tree of their common folder,
        or with that of the labels.
    coarse: a folder of coarse label maps by people, with the same tree; images may lack one.
    coarse_table: the meaning of their values.

    Raises DataError with everything that is missing or does not fit.
    """
    trust = trust or Trust()
    manifest = read_manifest(folder)
    order = _order(manifest, classes)
    own = label_table(manifest)
    if order != list(range(classes.num_classes)):
        ids = manifest.classes.ids
        assert ids is not None
        own = LabelTable({**dict(zip(ids, order, strict=True)), manifest.ignored: IGNORE_LABEL}, expected=own.expected)
    histogram = manifest.histogram[[order.index(number) for number in range(classes.num_classes)]]
    root = manifest.images if images is None else Path(images).expanduser().absolute()
    use_coarse = _require_coarse(trust, coarse, coarse_table)
    items, missing = [], []
    for place, record in manifest.records.items():
        image, files = root / record.image, [manifest.label_file(place)]
        if images is not None and not image.is_file():
            # Machines that shared the work had the images in folders of their own: places are the same on all.
            image = root / f"{place}{PurePosixPath(record.image).suffix}"
        if trust.needs_probabilities:
            files.append(manifest.probability_file(place))
        missing += [file for file in (image, *files) if not file.is_file()]
        if use_coarse:
            assert coarse is not None
            files.append(_coarse_file(Path(coarse).expanduser().absolute(), place))
        files.append(corrected_file(manifest.folder, place))
        items.append(Item(place, image, tuple(files)))
    if missing:
        some = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise DataError(
            f"auto_labels: {manifest.folder}: {len(missing)} file{'s' * (len(missing) > 1)} that the manifest lists "
            f"not found: {some}. Images that were moved: --auto-images FOLDER; labels that were deleted: "
            "hmsa autolabel merge takes them out of the manifest; images that were deleted: delete their labels, too"
        )
    if not items:
        raise DataError(f"auto_labels: {manifest.folder} has no labelled images")
    if use_coarse and not any(item.labels[-2].is_file() for item in items):
        raise DataError(
            f"coarse_labels: no label map in {coarse} is called like an image; expected for example "
            f"{items[0].labels[-2]}"
        )
    stray = _stray_corrections(manifest)
    if stray:
        raise DataError(f"auto_labels: {stray} is a correction of no image that the manifest lists; move it away")
    reader = AutoLabels(
        own, classes, trust, histogram=histogram, corrected=Corrected(own, manifest.untouched),
        coarse=Coarse(coarse_table, optional=True) if use_coarse and coarse_table is not None else None,
    )  # fmt: skip
    return LabelledFiles(items, classes, reader, white=manifest.made.get("settings", {}).get("white", WHITE))


def _order(manifest: Manifest, classes: ClassTable) -> list[int]:
    """The number in ``classes`` of each class of the manifest."""
    names, own = manifest.classes.names, classes.names
    if set(names) != set(own):
        more = ", ".join(name for name in names if name not in own) or "none"
        fewer = ", ".join(name for name in own if name not in names) or "none"
        raise DataError(
            f"auto_labels: {manifest.folder} has other classes than the training images: only there {more}; "
            f"not there {fewer}"
        )
    return [own.index(name) for name in names]


def _require_coarse(trust: Trust, coarse: str | Path | None, table: LabelTable | None) -> bool:
    """Whether coarse labels are in use."""
    if (coarse is None) != (trust.coarse_use == "none"):
        expected = "a folder of label maps with --coarse-use" if coarse is None else "--coarse-use wins or bounds too"
        raise DataError(f"coarse_labels: got {coarse or 'none'}, expected {expected}")
    if coarse is not None and not Path(coarse).expanduser().is_dir():
        raise DataError(f"coarse_labels: no such folder {coarse}")
    if coarse is not None and table is None:
        raise DataError("coarse_labels: this data set has no label files, whose values the coarse labels would have")
    return coarse is not None


def _coarse_file(folder: Path, place: str) -> Path:
    """The coarse label map of a place: the first that exists, else its usual name."""
    files = [folder / f"{place}{suffix}" for suffix in LABEL_SUFFIXES]
    return next((file for file in files if file.is_file()), files[0])


def _stray_corrections(manifest: Manifest) -> Path | None:
    root = manifest.folder / FOLDER
    files = sorted(root.rglob("*.png")) if root.is_dir() else []
    known = {corrected_file(manifest.folder, place) for place in manifest.records}
    return next((file for file in files if not file.name.startswith(".") and file not in known), None)
