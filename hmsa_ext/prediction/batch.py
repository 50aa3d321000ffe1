"""Predicting many photos and videos into a folder: what is there is left, what cannot be read is named."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_ext.data import DataError
from hmsa_ext.data.photos import Photo, read_photo
from hmsa_ext.data.progress import Progress, usable_cores
from hmsa_ext.files import replacing
from hmsa_ext.prediction import pipeline
from hmsa_ext.prediction.outputs import Outputs, cannot_write, remove_leftovers
from hmsa_ext.prediction.pipeline import Done, Seconds
from hmsa_ext.prediction.prediction import Kind, Prediction
from hmsa_ext.prediction.predictor import Predictor
from hmsa_ext.prediction.settings import show_bytes
from hmsa_ext.prediction.sources import Item
from hmsa_ext.prediction.video import Frames, VideoFile

MOST_THREADS = 8
"""That decode, and as many that encode: more are no faster for one network."""


@dataclass
class Summary:
    """What became of the sources. ``skipped``: path and reason of those that could not be predicted."""

    predicted: int = 0
    frames: int = 0
    already: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    peak: int | None = None
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def pictures(self) -> int:
        """Photos and frames that were predicted."""
        return self.predicted + self.frames


def predict_all(
    predictor: Predictor,
    items: Sequence[Item],
    outputs: Outputs,
    *,
    redo: bool = False,
    frames: int | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Summary:
    """Predicts the sources that are not done yet, photos first, and writes their files.

    Args:
        redo: also those that are done.
        frames: the most frames of each video; None: all.
        quiet: show no progress, and say nothing but what is skipped.
        say: takes lines for the user.

    Raises :class:`hmsa_ext.files.OutputError` when a file cannot be written.
    """
    summary = Summary()
    missing = {item: outputs.files(item).keys() if redo else outputs.missing(item) for item in items}
    wanted = [item for item in items if missing[item]]
    summary.already = len(items) - len(wanted)
    if summary.already and not quiet:
        say(f"done   {summary.already} of {len(items)} are there already, made with this model and these settings")
    photos = [item for item in wanted if item.kind == "photo"]
    notes = _Notes(predictor, summary, None if quiet else say)
    if photos:
        _predict_photos(predictor, photos, outputs, missing, summary, notes, quiet=quiet)
    for item in wanted:
        if item.kind != "photo":
            _predict_video(predictor, item, outputs, missing[item], summary, notes, most=frames, quiet=quiet)
    notes.finish()
    return summary


def _predict_photos(
    predictor: Predictor, items: Sequence[Item], outputs: Outputs, missing: Any, summary: Summary, notes: _Notes, *,
    quiet: bool,
) -> None:  # fmt: skip
    threads = min(MOST_THREADS, usable_cores())

    def read(item: Item) -> Photo:
        return read_photo(Path(item.path), page=item.page, white=outputs.pictures.white)

    def predict(item: Item, photo: Photo) -> Prediction:
        notes.about(photo.pixels.shape[:2], photo.name)
        return predictor.predict_photo(photo, per_scale="attention" in missing[item])

    def write(item: Item, prediction: Prediction) -> None:
        outputs.write(item, prediction, missing[item])

    with Progress(len(items), what="predicting", unit="photo", quiet=quiet) as progress:
        for done in pipeline.work(
            items, read, predict, write, readers=threads, writers=threads, seconds=summary.seconds
        ):
            if done.error is not None:
                _skip(done, summary, progress)
            else:
                summary.predicted += 1
            progress.step()


def _predict_video(
    predictor: Predictor, item: Item, outputs: Outputs, kinds: Sequence[Kind], summary: Summary, notes: _Notes, *,
    most: int | None, quiet: bool,
) -> None:  # fmt: skip
    """One video or stream. Its files get their names when all frames are there, or when Ctrl-C ends a stream."""
    try:
        with Frames(item.path) as frames:
            count = most if frames.count is None else min(frames.count, most or frames.count)
            notes.about(frames.size, item.path)
            with Progress(count, what=item.place.name, unit="frame", quiet=quiet) as progress:
                files = outputs.files(item)
                with _Recording(item, outputs, {kind: files[kind] for kind in kinds}, frames.fps) as recording:
                    for _ in _predicted_frames(predictor, frames, recording, kinds, summary, most=most):
                        summary.frames += 1
                        progress.step()
            if frames.warning:
                print(f"warning: {frames.warning}", file=sys.stderr)
                if frames.count is not None:  # a file that is damaged; a stream may end at any time
                    summary.skipped.append((item.shown, frames.warning))
        summary.predicted += 1
    except pipeline.SKIPPED as error:
        _skip(Done(item, error), summary, None)


def _predicted_frames(
    predictor: Predictor, frames: Frames, recording: _Recording, kinds: Sequence[Kind], summary: Summary, *,
    most: int | None,
) -> Iterator[None]:  # fmt: skip
    """Yields once for each frame that was written."""
    pictures, ended = iter(frames), threading.Event()

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            if ended.is_set() or number == most:
                return
            yield number

    def read(number: int) -> np.ndarray | None:
        frame = next(pictures, None)
        if frame is None:
            ended.set()
        return frame

    def predict(number: int, frame: np.ndarray | None) -> Prediction | None:
        if frame is None:
            return None
        photo = Photo(frame, name=f"frame {number}")
        return predictor.predict_photo(photo, per_scale="attention" in kinds)

    def write(number: int, prediction: Prediction | None) -> None:
        if prediction is not None:
            recording.write(number, prediction)

    written = recording.count
    try:
        for done in pipeline.work(numbers(), read, predict, write, readers=1, writers=1, seconds=summary.seconds):
            if done.error is not None:
                raise done.error
            if recording.count > written:
                written += 1
                yield
    except KeyboardInterrupt:
        if frames.count is None:  # a stream has no end of its own
            recording.complete()
        raise


class _Recording:
    """The files of one video in progress."""

    def __init__(self, item: Item, outputs: Outputs, files: dict[Kind, Path], fps: float | None) -> None:
        self._item, self._outputs, self._files, self._fps = item, outputs, files, fps
        self._videos: dict[Kind, VideoFile] = {}
        self._open = contextlib.ExitStack()
        self._folder: Path | None = None
        self.count = 0

    def __enter__(self) -> _Recording:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.complete()
            return
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._open.__exit__(kind, *rest)

    def write(self, number: int, prediction: Prediction) -> None:
        """Adds a frame to each file."""
        for kind, file in self._files.items():
            if kind == "labels":
                self._write_labels(file, number, prediction)
                continue
            picture = self._picture(prediction, kind)
            if kind not in self._videos:
                self._videos[kind] = self._begin(kind, file, picture.shape[:2])
            self._videos[kind].write(picture)
        self.count += 1

    def complete(self) -> None:
        """Gives the files their names."""
        if not self.count:
            raise DataError(f"{self._item.path}: no frame could be read")
        self._open.close()
        if self._folder is not None:
            final = self._files["labels"]
            try:
                if final.exists():
                    shutil.rmtree(final)
                self._folder.rename(final)
            except OSError as error:
                raise cannot_write(final, error) from error
        self._folder = None

    def _begin(self, kind: Kind, file: Path, size: tuple[int, int]) -> VideoFile:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(file)
        except OSError as error:
            raise cannot_write(file, error) from error
        return self._open.enter_context(VideoFile(file, self._fps, size, self._outputs.mark(self._item, kind)))

    def _write_labels(self, folder: Path, number: int, prediction: Prediction) -> None:
        try:
            if self._folder is None:
                self._folder = folder.with_name(f".{folder.name}.tmp")
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True)
            content = self._outputs.encoded(prediction, "labels", ".png", self._outputs.mark(self._item, "labels"))
            with replacing(self._folder / f"{number:06d}.png") as out:
                out.write(content)
        except OSError as error:
            raise cannot_write(folder, error) from error

    def _picture(self, prediction: Prediction, kind: Kind) -> np.ndarray:
        """A frame, RGB: without a legend, whose height would change with the classes that are seen."""
        if kind == "overlay":
            return prediction.overlay(self._outputs.pictures.opacity)
        if kind == "confidence":
            return np.repeat(prediction.probabilities()[..., None], 3, axis=2)
        return prediction.colours() if kind == "colours" else prediction.attention()


class _Notes:
    """What is said once of the photos: how large they are predicted, with how much memory, and when sizes differ."""

    def __init__(self, predictor: Predictor, summary: Summary, say: Callable[[str], None] | None) -> None:
        self._predictor, self._summary, self._say = predictor, summary, say
        self._seen: set[tuple[int, int]] = set()
        self._tiled = self._noted = False
        self._more = 0

    def about(self, size: tuple[int, int], name: str) -> None:
        """Looks at the size of a photo that is about to be predicted."""
        if size not in self._seen:
            plan = self._predictor.plan(size, stated=True)
            assert plan.peak is not None
            first = not self._seen or (plan.layout is not None and not self._tiled)
            self._tiled |= plan.layout is not None
            self._summary.peak = max(self._summary.peak or 0, plan.peak)
            self._seen.add(size)
            if first and self._say is not None:
                self._say(f"photo  {name}: {plan}")
        note = self._predictor.size_note(size)
        if note and not self._noted and self._say is not None:
            self._say(f"note   {name}: {note}")
        self._more += bool(note) and self._noted
        self._noted |= bool(note)

    def finish(self) -> None:
        """Says how often it was so, and the most memory that a photo took."""
        if self._say is None:
            return
        if self._more:
            self._say(f"note   the sizes of {self._more} more differ so")
        if self._summary.peak is not None:
            self._say(f"memory at most {show_bytes(self._summary.peak)} for a photo, beside the network's weights")


def _skip(done: Done[Item], summary: Summary, progress: Progress | None) -> None:
    """Names a source that could not be predicted."""
    summary.skipped.append((done.job.path, str(done.error)))
    text = str(done.error)
    if done.job.path not in text:
        text = f"{done.job.path}: {text}"
    if progress is None:
        print(f"skipped: {text}", file=sys.stderr)
    else:
        progress.print(f"skipped: {text}")
