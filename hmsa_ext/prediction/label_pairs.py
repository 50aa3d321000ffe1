"""The files of automatic labels: a label map and a map of probabilities for each image, and their manifest.

Each file carries a mark, as those of :mod:`hmsa_ext.prediction.outputs` do. Of a pair the probabilities get their name
first, so that a label map is never without them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hmsa_ext
from hmsa_ext import settings as declared
from hmsa_ext.data import ClassTable, DataError
from hmsa_ext.data.automatic import manifest as manifests
from hmsa_ext.data.automatic.combining import Labelled, combine, count
from hmsa_ext.data.automatic.corrections import FOLDER, corrected_file
from hmsa_ext.data.automatic.manifest import Layout, Manifest, counts_by_probability, pair_of
from hmsa_ext.data.headers import read_header
from hmsa_ext.files import OutputError
from hmsa_ext.prediction.marks import encode_png, read_mark
from hmsa_ext.prediction.outputs import SourceStamps, cannot_write, deciding, remove_leftovers, short, write_result
from hmsa_ext.prediction.prediction import Kind, Prediction
from hmsa_ext.prediction.predictor import Predictor
from hmsa_ext.prediction.settings import PictureSettings
from hmsa_ext.prediction.sources import Item

KINDS: tuple[Kind, ...] = ("labels", "confidence")
"""What is written of an image; the confidence is the probability."""


class LabelPairs:
    """The pairs that a teacher writes below a folder. pictures: their ``ids`` and ``white`` count.

    ``labelled`` collects what :meth:`write` has written.
    """

    def __init__(self, folder: Path, predictor: Predictor, pictures: PictureSettings, layout: Layout) -> None:
        self.folder, self.pictures, self._predictor = folder, pictures, predictor
        self.layout: Layout = layout
        self.labelled = Labelled.none(predictor.classes.num_classes)
        self._adding = threading.Lock()  # several threads write
        self._stamps = SourceStamps()
        chosen = {"ids": pictures.ids, "white": pictures.white, "layout": layout}
        settings = short(deciding(predictor) | chosen)
        self._teacher = f"teacher {predictor.trained.digest[:16]} settings {settings} "
        self.classes = _with_ids(predictor.classes, pictures.ids == "dataset")

    @property
    def made(self) -> dict[str, Any]:
        """What the labels are made with, for the manifest."""
        predictor = self._predictor
        facts = deciding(predictor)
        own = declared.to_dict(predictor.settings) | {
            "long_edge": facts["long_edge"], "ids": self.pictures.ids, "white": self.pictures.white,
        }  # fmt: skip
        return {
            "model": str(predictor.trained.path),
            "weights_sha256": predictor.trained.digest,
            "network": facts["network"],
            "scales": list(predictor.scales),
            "flip": predictor.flip,
            "dtype": str(predictor.dtype).removeprefix("torch."),
            "settings": own,
            "versions": {"hmsa_ext": hmsa_ext.__version__, "torch": _torch_version()},
        }

    def require_photos_apart(self, items: Iterable[Item]) -> None:
        """Raises DataError for sources that a data set could not read again, :class:`OutputError` where a label file
        would replace a source."""
        for item in items:
            if item.kind != "photo":
                raise DataError(f"sources: {item.shown} is a {item.kind}; expected images (hmsa predict takes videos)")
            if item.page or item.place.name.endswith("-page-1"):
                raise DataError(
                    f"sources: {item.shown} has several pages, of which data sets read the first alone; expected "
                    "files of one image"
                )
            self._require_usable_name(item)
        sources = {os.path.realpath(item.path) for item in items}
        for item in items:
            for file in self.files(item):
                if os.path.realpath(file) in sources:
                    raise OutputError(f"output: {file} is itself one of the sources; expected a folder apart from them")

    def _require_usable_name(self, item: Item) -> None:
        if not _is_text(str(item.path)):
            raise DataError(f"sources: the name {item.shown!a} is not in UTF-8, as the manifest is; rename the file")
        if self.layout == "cityscapes" and item.place.name.endswith("_prob"):
            raise DataError(
                f"sources: {item.shown}: in the layout of Cityscapes names that end in _prob are those of the "
                "probabilities; rename the image, or expected --layout plain"
            )
        if self.layout == "cityscapes" and item.place.parts[0] == FOLDER:
            raise DataError(
                f"sources: {item.shown}: in the layout of Cityscapes the folder {FOLDER!r} is that of people's "
                "corrections; rename it, or expected --layout plain"
            )

    def files(self, item: Item) -> tuple[Path, Path]:
        """Label file and file of the probabilities."""
        return pair_of(self.folder, item.place, self.layout)

    def refuse_others(self, items: Iterable[Item]) -> None:
        """Raises :class:`OutputError` where the folder has labels of another teacher, of other settings, or of another
        image of the same name."""
        images: dict[str, Path] = {}
        for name in manifests.manifest_files(self.folder):
            there = manifests.read_one(name)
            images |= {place: there.image_file(place) for place in there.records}
            differing = manifests.differences(there, self.made, self.classes, self.layout)
            if differing:
                raise OutputError(
                    f"output: {self.folder} has labels of another teacher or other settings ({name.name}: "
                    f"{', '.join(differing)}); expected a new folder, or the same teacher and settings"
                )
        for item in items:
            for file in self.files(item):
                mark = read_mark(file) if file.exists() else self._teacher
                if mark is None or not mark.startswith(self._teacher):
                    what = "is not of this command, or was edited" if mark is None else "is of another teacher"
                    raise OutputError(
                        f"output: {file} {what}; expected a folder of this teacher's labels. Corrections by people "
                        "belong into the folder's 'corrected': see hmsa autolabel import"
                    )
            before = images.get(str(item.place))
            if before is not None and self.missing(item) and _is_another(before, item.path):
                raise OutputError(
                    f"output: {self.folder} has labels of {before}, which those of {item.shown} would replace; "
                    "expected another folder, or sources whose names differ (the folder above both, as one source)"
                )

    def remove_leftovers(self, items: Iterable[Item]) -> None:
        """Deletes what killed processes left of these pairs."""
        remove_leftovers({file for item in items for file in self.files(item)})

    def missing(self, item: Item, *, redo: bool = False) -> list[Kind]:
        """Both files where one of them is not there yet or is of an image that changed since, else none."""
        done = all(read_mark(file) == self.mark(item) for file in self.files(item))
        return [] if done and not redo else list(KINDS)

    def mark(self, item: Item) -> str:
        """What a pair is made from, in one line."""
        return f"{self._teacher}source {self._stamps.of(item)}"

    def write(self, item: Item, prediction: Prediction, kinds: Sequence[Kind]) -> None:
        """Writes a pair in the orientation that the file stores, which data sets read. Raises :class:`OutputError`."""
        prediction = prediction.stored()
        probabilities = prediction.probabilities()
        labels = prediction.ids() if self.pictures.ids == "dataset" else prediction.labels
        if labels.dtype not in (np.uint8, np.uint16):
            labels = labels.astype(np.uint16)
        mark = self.mark(item)
        label_file, probability_file = self.files(item)
        encoded = encode_png(labels, mark), encode_png(probabilities, mark)
        if read_mark(label_file) is not None:  # never an old label map beside new probabilities
            with contextlib.suppress(OSError):
                label_file.unlink()
        write_result(item, probability_file, encoded[1])
        write_result(item, label_file, encoded[0])
        counts = counts_by_probability(prediction.labels, probabilities, self.classes.num_classes)
        with self._adding:
            self.labelled.add(str(item.place), _absolute(item), labels.shape, counts)

    def changed_under_corrections(self, items: Iterable[Item]) -> list[Path]:
        """The corrections by people of images that changed since they were labelled, and that are labelled again."""
        return [
            file
            for item in items
            if (file := corrected_file(self.folder, str(item.place))).is_file() and self.missing(item)
        ]

    def begin_manifest(self, items: Iterable[Item], part: int, parts: int, *, redo: bool = False) -> None:
        """Writes the manifest of a part before its work, without the images that are to be labelled.

        A run that is killed then leaves no figures of labels that it replaced. Raises as :meth:`update_manifest` does.
        """
        again = {str(item.place) for item in items if self.missing(item, redo=redo)}
        self.update_manifest([], Labelled.none(self.classes.num_classes), part, parts, without=again)

    def update_manifest(
        self,
        items: Sequence[Item],
        labelled: Labelled,
        part: int,
        parts: int,
        *,
        without: Collection[str] = (),
    ) -> Manifest:
        """Writes the manifest of the K-th of N parts: what it had, what was labelled, and pairs that nobody recorded.

        items: all sources of the part. A run without parts takes the manifests of parts in. without: places to leave
        out. Returns the manifest.

        Raises DataError and :class:`OutputError`.
        """
        name = manifests.share_name(part, parts)
        files = manifests.manifest_files(self.folder)
        found = {file: manifests.read_one(file) for file in files}
        own = [file for file in files if parts == 1 or file.name == name]
        before = [_with_moved_images(found[file], items) for file in own]
        known = {place for manifest in found.values() for place in manifest.records} | labelled.records.keys()
        base = self._empty_manifest()
        new = labelled | Labelled.none(self.classes.num_classes)
        # Pairs of a run that was killed before it could record them.
        unrecorded = [item for item in items if str(item.place) not in known and not self.missing(item)]
        counted = count(base, [str(item.place) for item in unrecorded])
        for item, counts in zip(unrecorded, counted, strict=True):
            size = read_header(self.files(item)[0]).size
            new.add(str(item.place), _absolute(item), size, counts)
        manifest = combine(base, before, new, without=without)
        try:
            manifests.write_manifest(manifest, name)
            for file in own:
                if file.name != name:
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.folder / name, error) from error
        return manifest

    def _empty_manifest(self) -> Manifest:
        ids = self.classes.ids
        assert ids is not None
        ignored, untouched = manifests.free_values(ids)
        none = np.zeros((self.classes.num_classes, manifests.LEVELS), np.int64)
        return Manifest(
            self.classes, ignored, untouched, Path.cwd(), self.made, {}, none, self.layout, self.folder.absolute()
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of another encoding
        return False
    return True


def _is_another(before: Path, now: str) -> bool:
    """Whether the file that was labelled is still there and is another one than the source."""
    try:
        return not os.path.samefile(before, now)
    except OSError:  # it is gone: the images were moved
        return False


def _with_moved_images(manifest: Manifest, items: Iterable[Item]) -> Manifest:
    """The manifest with the sources in place of images that are no longer where they were."""
    here = {str(item.place): _absolute(item) for item in items}
    records = {
        place: replace(record, image=here[place])
        if place in here and not manifest.image_file(place).is_file() else record
        for place, record in manifest.records.items()
    }  # fmt: skip
    return replace(manifest, records=records)


def _absolute(item: Item) -> str:
    return os.path.abspath(item.path)


def _with_ids(classes: ClassTable, of_data_set: bool) -> ClassTable:
    """The table whose ids are the values that the files get."""
    ids = classes.ids if of_data_set and classes.ids is not None else tuple(range(classes.num_classes))
    return replace(classes, ids=ids)


def _torch_version() -> str:
    return str(torch.__version__)
