"""Predicting many photos and videos into a folder: what is there is left, what cannot be read is named."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hmsa_ext.data import DataError
from hmsa_ext.data.photos import Photo, read_photo
from hmsa_ext.data.progress import Progress, usable_cores
from hmsa_ext.engine.memory import show_bytes
from hmsa_ext.engine.out_of_memory import NotEnoughMemoryError
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import replacing
from hmsa_ext.prediction import pipeline
from hmsa_ext.prediction.outputs import Outputs, cannot_write, replace_frames, unfinished
from hmsa_ext.prediction.pipeline import Done, Seconds
from hmsa_ext.prediction.prediction import Kind, Prediction
from hmsa_ext.prediction.predictor import PredictionError, Predictor
from hmsa_ext.prediction.settings import PictureSettings
from hmsa_ext.prediction.sources import Item
from hmsa_ext.prediction.video import Frames, VideoFile
from hmsa_ext.settings import SettingError

MOST_THREADS = 8
"""That decode, and as many that encode: more are no faster for one network."""


@dataclass
class Summary:
    """What became of the sources.

    predicted: those that were, videos among them. frames: of these videos. skipped: name and reason of those that could
    not be predicted, or only in part. peak: bytes that one photo takes at most. waiting: bytes of photos and results
    that wait for the network and for their files.
    """

    predicted: int = 0
    videos: int = 0
    frames: int = 0
    already: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    peak: int | None = None
    waiting: int = 0
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def pictures(self) -> int:
        """Photos and frames that were predicted."""
        return self.predicted - self.videos + self.frames


class Files(Protocol):
    """What :func:`predict_all` writes to; videos are for :class:`Outputs` alone."""

    pictures: PictureSettings

    def remove_leftovers(self, items: Iterable[Item]) -> None: ...

    def missing(self, item: Item, *, redo: bool = False) -> list[Kind]: ...

    def write(self, item: Item, prediction: Prediction, kinds: Sequence[Kind]) -> None: ...


def predict_all(
    predictor: Predictor,
    items: Sequence[Item],
    outputs: Files,
    *,
    redo: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Summary:
    """Predicts the sources that are not done yet, photos first, and writes their files.

    Args:
        redo: also those that are done.
        quiet: show no progress, and say nothing but what is skipped.
        say: takes lines for the user.

    Raises :class:`hmsa_ext.files.OutputError` when a file cannot be written.
    """
    summary = Summary()
    outputs.remove_leftovers(items)
    missing = {item: outputs.missing(item, redo=redo) for item in items}
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
            assert isinstance(outputs, Outputs)
            _predict_video(predictor, item, outputs, missing[item], summary, notes, quiet=quiet)
    notes.finish()
    return summary


def merged(summaries: Sequence[Summary]) -> Summary:
    """One summary of the shares of several processes."""
    result = Summary()
    for one in summaries:
        for name in ("predicted", "videos", "frames", "already", "skipped"):
            setattr(result, name, getattr(result, name) + getattr(one, name))
        for name in vars(one.seconds):
            setattr(result.seconds, name, getattr(result.seconds, name) + getattr(one.seconds, name))
        result.peak = max(result.peak or 0, one.peak or 0) or None
        result.waiting = max(result.waiting, one.waiting)
    return result


def _predict_photos(
    predictor: Predictor, items: Sequence[Item], outputs: Files, missing: Any, summary: Summary, notes: _Notes, *,
    quiet: bool,
) -> None:  # fmt: skip
    threads = min(MOST_THREADS, usable_cores())
    largest = 0  # pixels of a photo so far

    def read(item: Item) -> Photo:
        nonlocal largest
        photo = read_photo(Path(item.path), page=item.page, white=outputs.pictures.white)
        largest = max(largest, photo.pixels.size // 3)
        return photo

    def room() -> int:
        """How many photos may wait to be predicted, and as many to be written; one until the first has been read."""
        kinds = {kind for item in items for kind in missing[item]}
        per_pixel = waiting_per_pixel(len(predictor.scales), shares="attention" in kinds)
        found = predictor.reserve // (per_pixel * largest) if largest else 1
        summary.waiting = max(summary.waiting, min(found, threads + pipeline.AHEAD) * per_pixel * largest)
        return found

    def predict(item: Item, photo: Photo) -> Prediction:
        per_scale = "attention" in missing[item]
        with _sparing_others(item):
            notes.about(photo.pixels.shape[:2], photo.name, per_scale=per_scale, what_was_done=photo.notes)
            return predictor.predict_photo(
                photo, per_scale=per_scale, tile_done=lambda part, parts: progress.within(part, parts, "tile")
            )

    def write(item: Item, prediction: Prediction) -> None:
        with _sparing_others(item):
            outputs.write(item, prediction, missing[item])

    work = pipeline.work(
        items, read, predict, write, readers=threads, writers=threads, room=room, seconds=summary.seconds
    )
    with Progress(len(items), what="predicting", unit="photo", quiet=quiet) as progress, contextlib.closing(work):
        for done in work:
            if done.error is not None:
                _skip(done, summary, progress)
            else:
                summary.predicted += 1
            progress.step()


def _predict_video(
    predictor: Predictor, item: Item, outputs: Outputs, kinds: Sequence[Kind], summary: Summary, notes: _Notes, *,
    quiet: bool,
) -> None:  # fmt: skip
    """One video or stream. Its files get their names when all frames are there, or when Ctrl-C ends a stream."""
    most = outputs.frames
    try:
        with _sparing_others(item), Frames(item.path) as frames:
            count = most if frames.count is None else min(frames.count, most or frames.count)
            notes.about(frames.size, item.shown, per_scale="attention" in kinds)
            files = outputs.files(item)
            recording = _Recording(item, outputs, {kind: files[kind] for kind in kinds}, frames.fps)
            written = _predicted_frames(predictor, frames, recording, kinds, summary, most=most)
            with (
                Progress(count, what=item.place.name, unit="frame", quiet=quiet) as progress,
                recording,
                contextlib.closing(written),  # first, so that no thread writes to what is being finished
            ):
                for _ in written:
                    summary.frames += 1
                    progress.step()
            summary.skipped += [(item.shown, warning) for warning in frames.warnings]
            for warning in frames.warnings:
                print(f"warning: {item.shown}: {warning}", file=sys.stderr)
        summary.predicted += 1
        summary.videos += 1
    except pipeline.SKIPPED as error:
        _skip(Done(item, error), summary, None)


def _predicted_frames(
    predictor: Predictor, frames: Frames, recording: _Recording, kinds: Sequence[Kind], summary: Summary, *,
    most: int | None,
) -> Generator[None, None, None]:  # fmt: skip
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

    written = 0
    work = pipeline.work(numbers(), read, predict, write, readers=1, writers=1, seconds=summary.seconds)
    with contextlib.closing(work):
        for done in work:
            if done.error is not None:
                raise done.error
            if recording.count > written:
                written += 1
                yield


class _Recording:
    """The files of one video in progress: all or none of them get their names when the block ends.

    A stream has no end of its own: Ctrl-C or SIGTERM ends it well.
    """

    def __init__(self, item: Item, outputs: Outputs, files: dict[Kind, Path], fps: float | None) -> None:
        self._item, self._outputs, self._files, self._fps = item, outputs, files, fps
        self._videos: dict[Kind, VideoFile] = {}
        self._folder: Path | None = None
        self.count = 0

    def __enter__(self) -> _Recording:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        ended = self._item.kind == "stream" and kind is not None and not issubclass(kind, Exception)
        try:
            if kind is None or (ended and self.count):
                self._complete()
        finally:
            for video in self._videos.values():
                video.discard()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, number: int, prediction: Prediction) -> None:
        """Adds a frame to each file."""
        for kind, file in self._files.items():
            if kind == "labels":
                self._write_labels(file, number, prediction)
                continue
            picture = self._picture(prediction, kind)
            if kind not in self._videos:
                self._videos[kind] = VideoFile(file, self._fps, picture.shape[:2])
            self._videos[kind].write(picture)
        self.count += 1

    def _complete(self) -> None:
        if not self.count:
            raise DataError(f"{self._item.path}: no frame could be read")
        for kind in list(self._videos):
            self._videos.pop(kind).finish(self._outputs.mark(self._item, kind))
        if self._folder is not None:
            final = self._files["labels"]
            try:
                replace_frames(self._folder, final)
            except OSError as error:
                raise cannot_write(final, error) from error
            self._folder = None

    def _write_labels(self, folder: Path, number: int, prediction: Prediction) -> None:
        try:
            if self._folder is None:
                self._folder = unfinished(folder)
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
        self._seen: set[tuple[tuple[int, int], bool]] = set()
        self._said: set[str] = set()
        self._tiled = self._noted = False
        self._more = 0

    def about(
        self, size: tuple[int, int], name: str, *, per_scale: bool, what_was_done: Sequence[str] = ()
    ) -> None:  # fmt: skip
        """Looks at the size of a photo that is about to be predicted, and at what reading did to it."""
        for text in what_was_done:
            kind = text.partition("(")[0]
            if kind not in self._said and self._say is not None:
                self._say(f"note   {name}: {text}")
            self._said.add(kind)
        if (size, per_scale) not in self._seen:
            plan = self._predictor.plan(size, per_scale=per_scale, stated=True)
            assert plan.peak is not None
            first = not self._seen or (plan.layout is not None and not self._tiled)
            self._tiled |= plan.layout is not None
            self._summary.peak = max(self._summary.peak or 0, plan.peak)
            self._seen.add((size, per_scale))
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
            waiting = f" and {show_bytes(self._summary.waiting)} for those that wait" if self._summary.waiting else ""
            peak = show_bytes(self._summary.peak)
            self._say(f"memory at most {peak} for a photo{waiting}, beside the network's weights")


def waiting_per_pixel(scales: int, *, shares: bool) -> int:
    """Bytes per pixel of a photo that was read, and of one that is to be written with its results."""
    return 3 + 3 + 1 + 4 + (5 * scales if shares else 0)


@contextlib.contextmanager
def _sparing_others(item: Item) -> Iterator[None]:
    """Makes of what this source alone suffers from (too large for the memory, for a JPEG) an error that skips it."""
    try:
        yield
    except (PredictionError, NotEnoughMemoryError) as error:
        raise type(error)(f"{item.shown}: {error}") from error
    except (ArgumentValueError, SettingError) as error:
        raise DataError(f"{item.path}: {error}") from error


def _skip(done: Done[Item], summary: Summary, progress: Progress | None) -> None:
    """Names a source that could not be predicted."""
    shown = done.job.shown
    text = str(done.error).replace(done.job.path, shown)
    if f"-page-{done.job.page + 1}" in done.job.place.name:
        text = f"{text} (page {done.job.page + 1})"
    summary.skipped.append((shown, text.removeprefix(f"{shown}: ")))
    if shown not in text:
        text = f"{shown}: {text}"
    if progress is None:
        print(f"skipped: {text}", file=sys.stderr)
    else:
        progress.print(f"skipped: {text}")
