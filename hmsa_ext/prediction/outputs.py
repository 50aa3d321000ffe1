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
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hmsa_ext
from hmsa_ext import settings as declared
from hmsa_ext.data import DataError
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
VERSION = 1
"""Of the files: raised when the same model and settings give other pictures."""
_OF_KIND = {"labels": ("ids",), "overlay": ("opacity", "legend")}
"""Settings that only one kind depends on."""
_OF_ALL = ("orientation", "white")
_OF_NETWORK = ("model", "trunk", "attention_channels", "attention_head", "fusion")
_LEFTOVER = re.compile(r"\.(.+)\.(\d+)\.tmp(?:\.mp4)?")  # the name of the file, and the process that writes it
"""Temporary names of :func:`hmsa_ext.files.replacing` and of videos."""
_FRAME = re.compile(r"\d{6,}\.png")


class SourceStamps:
    """Size and time of sources when they were first asked for: before they were read, so that a change shows."""

    def __init__(self) -> None:
        self._known: dict[Item, str] = {}

    def of(self, item: Item) -> str:
        """The stamp of a source, without blanks."""
        if item not in self._known:
            try:
                about = os.stat(item.path)
                self._known[item] = f"{about.st_size}-{about.st_mtime_ns}"
            except OSError:
                self._known[item] = "unknown"
        return self._known[item]


def deciding(predictor: Predictor) -> dict[str, Any]:
    """Everything beside the weights that decides what a predictor gives, as plain values."""
    network = declared.to_dict(predictor.trained.network)
    return {
        "version": VERSION,
        "network": {name: network[name] for name in _OF_NETWORK},
        **declared.to_dict(predictor.settings),
        "long_edge": (predictor.trained.settings or {}).get("long_edge"),
        "scales": predictor.scales,
        "flip": predictor.flip,
        "dtype": str(predictor.dtype),
        "classes": predictor.classes.to_dict(),
    }


class Outputs:
    """The files that a predictor writes below a folder. frames: the most frames of each video; None: all."""

    def __init__(
        self, folder: Path, predictor: Predictor, pictures: PictureSettings, *, frames: int | None = None
    ) -> None:
        self.folder, self.pictures, self.frames, self._predictor = folder, pictures, frames, predictor
        self._sources = SourceStamps()
        chosen = declared.to_dict(pictures)
        shared = deciding(predictor) | {name: chosen[name] for name in _OF_ALL}
        self._settings = {
            kind: short(shared | {name: chosen[name] for name in _OF_KIND.get(kind, ())}) for kind in ENDINGS
        }

    def kinds(self, item: Item) -> tuple[Kind, ...]:
        """What is written of a source."""
        default = ("labels",) if item.kind == "photo" else ("overlay",)
        return cast("tuple[Kind, ...]", self.pictures.write or default)

    def files(self, item: Item) -> dict[Kind, Path]:
        """The files of a source by kind. Of a video the labels are a folder of one PNG for each frame."""
        return {kind: self._file(item, kind) for kind in self.kinds(item)}

    def _file(self, item: Item, kind: Kind) -> Path:
        place = self.folder / item.place
        if item.kind == "photo":
            return place.with_name(place.name + ENDINGS[kind])
        return place if kind == "labels" else place.with_name(f"{place.name}.{kind}.mp4")

    def require_apart(self, items: Iterable[Item]) -> None:
        """Raises :class:`OutputError` where a result would replace a source, another result, or files of others."""
        items = list(items)
        sources = {os.path.realpath(item.path): item.path for item in items if item.kind != "stream"}
        taken: dict[str, str] = {}
        for item in items:
            for file in self.files(item).values():
                where = os.path.realpath(file)
                if where in sources:
                    raise OutputError(f"output: {file} is itself one of the sources; expected a folder apart from them")
                other = taken.setdefault(where, item.shown)
                if other is not item.shown:
                    raise OutputError(
                        f"output: {other} and {item.shown} would both be written to {file}; rename one of them, or "
                        "predict them into two folders"
                    )
        folders = {
            os.path.realpath(file): (item, file)
            for item in items if item.kind != "photo"
            for kind, file in self.files(item).items() if kind == "labels"
        }  # fmt: skip
        for where, shown in taken.items() if folders else ():
            for above in map(str, Path(where).parents):
                if above in folders:
                    item, file = folders[above]
                    raise OutputError(
                        f"output: the labels of {item.shown} are the folder {file}, and {shown} would be written in "
                        "it; rename one of them, or predict them into two folders"
                    )
        for item, file in folders.values():
            _require_frames_only(file, item)

    def mark(self, item: Item, kind: Kind) -> str:
        """What a file of this kind is made from, in one line."""
        model = self._predictor.trained.digest[:16]
        part = f"page {item.page}" if item.kind == "photo" else f"frames {self.frames or 'all'}"
        return f"model {model} settings {self._settings[kind]} source {self._sources.of(item)} {part}"

    def missing(self, item: Item, *, redo: bool = False) -> list[Kind]:
        """The kinds that are not there yet, or were made otherwise; with ``redo`` all of them."""
        return [kind for kind, file in self.files(item).items() if not self._is_done(item, kind, file) or redo]

    def _is_done(self, item: Item, kind: Kind, file: Path) -> bool:
        if item.kind == "stream":
            return False  # it is another one each time
        if file.is_dir():
            frames = sorted(file.glob("*.png"))
            whole = bool(frames) and frames[-1].stem == f"{len(frames) - 1:06d}"
            return whole and read_mark(frames[0]) == self.mark(item, kind)
        return read_mark(file) == self.mark(item, kind)

    def remove_leftovers(self, items: Iterable[Item]) -> None:
        """Deletes what killed processes left of the files of these sources.

        Processes that are at work on this machine keep theirs.
        """
        # Also of what an earlier run was to write.
        remove_leftovers({self._file(item, kind) for item in items for kind in ENDINGS})

    def write(self, item: Item, prediction: Prediction, kinds: Sequence[Kind]) -> None:
        """Writes the files of a photo, each whole or not at all. Raises :class:`OutputError`."""
        if self.pictures.orientation == "stored":
            prediction = prediction.stored()
        files = self.files(item)
        for kind in kinds:
            file = files[kind]
            write_result(item, file, self.encoded(prediction, kind, file.suffix, self.mark(item, kind)))

    def encoded(self, prediction: Prediction, kind: Kind, suffix: str, mark: str) -> bytes:
        """One file of a prediction, as the settings say."""
        chosen = self.pictures
        return prediction.encoded(
            kind, suffix, mark=mark, ids=chosen.ids == "dataset", opacity=chosen.opacity, legend=chosen.legend
        )

    def describe(self) -> str:
        """Writes ``classes.json``: what the numbers in the label files mean, and what they were made with.

        Returns a warning where an older one gave the numbers another meaning, else "".
        """
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
            "fusion": declared.to_dict(predictor.trained.network)["fusion"],
            "scales": list(predictor.scales),
            "flip": predictor.flip,
            "dtype": str(predictor.dtype).removeprefix("torch."),
            "settings": {**declared.to_dict(predictor.settings), **declared.to_dict(self.pictures)},
            "hmsa_ext": hmsa_ext.__version__,
        }
        file = self.folder / CLASSES
        before = _classes_in(file)
        try:
            write_text(file, _readable(content))
        except OSError as error:
            raise cannot_write(file, error) from error
        now = [(entry["id"], entry["name"]) for entry in content["classes"]]
        if before in (None, now):
            return ""
        return (
            f"{file} gave the numbers another meaning until now: label files in this folder that are not made anew "
            "keep the old one; a folder for each model keeps them apart"
        )


def remove_leftovers(files: Collection[Path]) -> None:
    """Deletes what killed processes left of some files; processes that are at work on this machine keep theirs."""
    for folder in {file.parent for file in files}:
        try:
            with os.scandir(folder) as there:
                hidden = [entry for entry in there if entry.name.startswith(".")]
        except OSError:  # not there yet
            continue
        for entry in hidden:
            found = _LEFTOVER.fullmatch(entry.name)
            if found is None or folder / found[1] not in files or _is_at_work(int(found[2])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def write_result(item: Item, file: Path, content: bytes) -> None:
    """Writes a file of a source, whole or not at all. Raises :class:`OutputError`; DataError where only it suffers."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            out.write(content)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{item.shown}: its name is too long for that of a result; rename it") from error
        raise cannot_write(file, error) from error


def cannot_write(file: Path, error: OSError) -> OutputError:
    """The error for a file that could not be written, with what to do."""
    if error.errno == errno.ENOSPC:
        return OutputError(
            f"output: no space is left for {file}; make some, and run the same command again: what is done is kept"
        )
    return OutputError(f"output: {file} cannot be written: {error.strerror or error}")


def unfinished(folder: Path) -> Path:
    """The name of a folder of frames until all are there."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.tmp")


def _is_at_work(process: int) -> bool:
    """Whether another process of this number runs on this machine."""
    if process == os.getpid():
        return False
    if os.name != "posix":  # there the question ends the process
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def replace_frames(new: Path, folder: Path) -> None:
    """Gives a folder of frames its name; the one of an earlier run is deleted. Raises OSError."""
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def _require_frames_only(folder: Path, item: Item) -> None:
    """Raises where a folder is not one of frames that an earlier run wrote: it will be replaced whole."""
    if not folder.exists():
        return
    others = [path.name for path in folder.iterdir() if not _FRAME.fullmatch(path.name)] if folder.is_dir() else [""]
    if not others:
        others = [path.name for path in [min(folder.iterdir(), default=None)] if path and read_mark(path) is None]
    if others:
        what = f"has files of others ({others[0]})" if others[0] else "is a file"
        raise OutputError(
            f"output: the labels of {item.shown} are the folder {folder}, which {what}; expected none, or one of an "
            "earlier prediction; move it away, or choose another folder"
        )


def _classes_in(file: Path) -> list[tuple[int, str]] | None:
    """Numbers and names of the classes that an older ``classes.json`` describes; None where there is none."""
    try:
        return [(entry["id"], entry["name"]) for entry in json.loads(file.read_text(encoding="utf-8"))["classes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _readable(content: Mapping[str, Any]) -> str:
    """JSON with a line for each class."""
    classes = ",\n    ".join(json.dumps(entry, ensure_ascii=False) for entry in content["classes"])
    rest = json.dumps({**content, "classes": []}, indent=2, ensure_ascii=False)
    return rest.replace('"classes": []', f'"classes": [\n    {classes}\n  ]', 1) + "\n"


def short(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
