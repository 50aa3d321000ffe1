"""The files of a folder of predictions: their names, what they were made from, and which of them are there already.

Each file carries a mark: the model's weights, the settings, and size and time of the source. A file whose mark is the
wanted one is done. So a run can be killed and begun again, shared among machines, or moved, with nothing beside the
pictures to keep in step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any, cast

import hmsa_ext
from hmsa_ext import settings as declared
from hmsa_ext.data import DataError
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import OutputError, replacing, write_text
from hmsa_ext.prediction.marks import read_mark
from hmsa_ext.prediction.prediction import Kind, Prediction
from hmsa_ext.prediction.predictor import Predictor
from hmsa_ext.prediction.settings import PictureSettings
from hmsa_ext.prediction.sources import Item

ENDINGS: dict[Kind, str] = {
    "labels": ".png",
    "colours": ".colours.png",
    "overlay": ".overlay.jpg",
    "confidence": ".confidence.png",
    "attention": ".attention.png",
}
CLASSES = "classes.json"
_OF_KIND = {"labels": ("ids",), "overlay": ("opacity", "legend")}
"""Settings that only one kind depends on."""
_OF_ALL = ("orientation", "white")


class Outputs:
    """The files that a predictor writes below a folder."""

    def __init__(self, folder: Path, predictor: Predictor, pictures: PictureSettings) -> None:
        self.folder, self.pictures, self._predictor = folder, pictures, predictor
        chosen = declared.to_dict(pictures)
        shared = {
            **declared.to_dict(predictor.settings),
            "long_edge": (predictor.trained.settings or {}).get("long_edge"),
            "scales": predictor.scales,
            "flip": predictor.flip,
            "dtype": str(predictor.dtype),
            "classes": predictor.classes.to_dict(),
            **{name: chosen[name] for name in _OF_ALL},
        }
        self._settings = {
            kind: _short(shared | {name: chosen[name] for name in _OF_KIND.get(kind, ())}) for kind in ENDINGS
        }

    def kinds(self, item: Item) -> tuple[Kind, ...]:
        """What is written of a source."""
        default = ("labels",) if item.kind == "photo" else ("overlay",)
        return cast("tuple[Kind, ...]", self.pictures.write or default)

    def files(self, item: Item) -> dict[Kind, Path]:
        """The files of a source by kind. Of a video the labels are a folder of one PNG for each frame."""
        place = self.folder / item.place
        if item.kind == "photo":
            return {kind: place.with_name(place.name + ENDINGS[kind]) for kind in self.kinds(item)}
        endings = {kind: "" if kind == "labels" else f".{kind}.mp4" for kind in self.kinds(item)}
        return {kind: place.with_name(place.name + ending) for kind, ending in endings.items()}

    def require_apart(self, items: Iterable[Item]) -> None:
        """Raises :class:`OutputError` where two sources, or a source and a result, would be one file."""
        items = list(items)
        sources = {os.path.realpath(item.path): item.path for item in items if item.kind != "stream"}
        taken: dict[str, str] = {}
        for item in items:
            for file in self.files(item).values():
                where = os.path.realpath(file)
                if where in sources:
                    raise OutputError(f"output: {file} is itself one of the sources; expected a folder apart from them")
                other = taken.setdefault(where, item.path)
                if other is not item.path:
                    raise OutputError(
                        f"output: {other} and {item.path} would both be written to {file}; rename one of them, or "
                        "predict them into two folders"
                    )

    def mark(self, item: Item, kind: Kind) -> str:
        """What a file of this kind is made from, in one line."""
        try:
            about = Path(item.path).stat()
            source = f"{about.st_size}-{about.st_mtime_ns}"
        except OSError:
            source = "unknown"
        model = self._predictor.trained.digest[:16]
        return f"model {model} settings {self._settings[kind]} source {source} page {item.page}"

    def missing(self, item: Item) -> list[Kind]:
        """The kinds that are not there yet, or were made otherwise."""
        return [kind for kind, file in self.files(item).items() if not self._is_done(item, kind, file)]

    def _is_done(self, item: Item, kind: Kind, file: Path) -> bool:
        if item.kind == "stream":
            return False  # it is another one each time
        if file.is_dir():
            first = min(file.glob("*.png"), default=None)
            return first is not None and read_mark(first) == self.mark(item, kind)
        return read_mark(file) == self.mark(item, kind)

    def write(self, item: Item, prediction: Prediction, kinds: Sequence[Kind]) -> None:
        """Writes the files of a photo, each whole or not at all. Raises :class:`OutputError`."""
        if self.pictures.orientation == "stored":
            prediction = prediction.stored()
        files = self.files(item)
        for kind in kinds:
            file = files[kind]
            try:
                content = self.encoded(prediction, kind, file.suffix, self.mark(item, kind))
            except ArgumentValueError as error:  # a JPEG has at most 65535 pixels along a side
                raise DataError(f"{item.path}: {kind}: {error}") from error
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(file)
                with replacing(file) as out:
                    out.write(content)
            except OSError as error:
                raise cannot_write(file, error) from error

    def encoded(self, prediction: Prediction, kind: Kind, suffix: str, mark: str) -> bytes:
        """One file of a prediction, as the settings say."""
        chosen = self.pictures
        return prediction.encoded(
            kind, suffix, mark=mark, ids=chosen.ids == "dataset", opacity=chosen.opacity, legend=chosen.legend
        )

    def describe(self) -> None:
        """Writes ``classes.json``: what the numbers in the label files mean, and what they were made with."""
        predictor, classes = self._predictor, self._predictor.classes
        by_class = classes.ids if self.pictures.ids == "dataset" else None
        numbers = range(classes.num_classes) if by_class is None else by_class
        content: Mapping[str, Any] = {
            "classes": [
                {"id": number, "name": name, "colour": colour}
                for number, name, colour in zip(numbers, classes.names, classes.colours.tolist(), strict=True)
            ],
            "model": str(predictor.trained.path),
            "weights_sha256": predictor.trained.digest,
            "scales": list(predictor.scales),
            "flip": predictor.flip,
            "dtype": str(predictor.dtype).removeprefix("torch."),
            "settings": {**declared.to_dict(predictor.settings), **declared.to_dict(self.pictures)},
            "hmsa_ext": hmsa_ext.__version__,
        }
        file = self.folder / CLASSES
        try:
            write_text(file, _readable(content))
        except OSError as error:
            raise cannot_write(file, error) from error


def cannot_write(file: Path, error: OSError) -> OutputError:
    """The error for a file that could not be written, with what to do."""
    if error.errno == errno.ENOSPC:
        return OutputError(
            f"output: no space is left for {file}; make some, and run the same command again: what is done is kept"
        )
    return OutputError(f"output: {file} cannot be written: {error.strerror or error}")


def remove_leftovers(file: Path) -> None:
    """Deletes what a killed process left of this file. Each source has one process: nobody else is writing it."""
    for leftover in file.parent.glob(f".{escape(file.name)}.*.tmp*"):
        leftover.unlink(missing_ok=True)


def _readable(content: Mapping[str, Any]) -> str:
    """JSON with a line for each class."""
    classes = ",\n    ".join(json.dumps(entry, ensure_ascii=False) for entry in content["classes"])
    rest = json.dumps({**content, "classes": []}, indent=2, ensure_ascii=False)
    return rest.replace('"classes": []', f'"classes": [\n    {classes}\n  ]', 1) + "\n"


def _short(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
