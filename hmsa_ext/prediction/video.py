"""Frames of videos, cameras and streams, and MP4 files of frames, through OpenCV."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import DataError
from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError
from hmsa_ext.files import OutputError
from hmsa_ext.prediction.marks import append_mark, check_mark
from hmsa_ext.prediction.sources import camera_number, without_password

USUAL_FPS = 25.0
# Streams and recordings of browsers without a fixed rate state the ticks of their clock, 1000 or 90000 a second.
MOST_FPS = 1000.0


class Frames:
    """The frames of a video file, a camera (``camera:0``) or a stream (``rtsp://...``), for ``with`` and ``for``.

    The rotation that a phone stores beside a video is followed, as OpenCV does by default: frames are upright. Frames
    come in their order at whatever times; where the rate of a video varies, ``fps`` is its mean.

    size: (height, width) of the frames in pixels.
    fps: frames per second; None where unknown.
    count: how many frames the file states; None where unknown, as for cameras.
    warning: once the frames are at their end, why there were fewer than expected; empty where all were read.

    Raises :class:`hmsa_ext.data.DataError` on entering, for what is no video, a camera that is not there, a stream
    that does not answer, and while reading, where the size of the frames changes.
    """

    size: tuple[int, int]
    fps: float | None
    count: int | None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.shown = without_password(self.path)
        self.warning = ""
        self._capture: cv2.VideoCapture | None = None
        self._first: np.ndarray | None = None

    def __enter__(self) -> Frames:
        camera = camera_number(self.path)
        is_file = camera is None and "://" not in self.path
        if is_file and not os.path.isfile(self.path):
            raise DataError(f"{self.shown}: there is no such file")
        self._capture = cv2.VideoCapture(self.path if camera is None else camera)
        # Only with a frame in hand it is sure that there is a video, and that its size is that of upright frames.
        opened, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not opened or first is None:
            self._capture.release()
            reason = "the stream cannot be opened; expected an address that answers with a video"
            if camera is not None:
                reason = "there is no such camera, or another program uses it"
            elif is_file:
                reason = "no video that can be read; the file is incomplete or damaged, or of a kind that is not known"
            raise DataError(f"{self.shown}: {reason}")
        self._first = first
        self.size = first.shape[0], first.shape[1]
        fps, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps = fps if 0 < fps < MOST_FPS else None
        self.count = int(count) if camera is None and 0 < count < 2**40 else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture = self._first = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames uint8 [H, W, 3], red, green, blue, each once; ``warning`` is set at their end."""
        if self._capture is None:
            raise ArgumentValueError(f"{self.shown}: frames are read within a with block")
        frame, self._first = self._first, None
        number = 0
        while frame is not None:
            number += 1
            if frame.shape[:2] != self.size:
                (height, width), (now_high, now_wide) = self.size, frame.shape[:2]
                raise DataError(
                    f"{self.shown}: frame {number} has {now_wide}x{now_high} pixels, those before {width}x{height}; "
                    f"split the video where its size changes"
                )
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            if self._capture is None:
                return
            frame = self._capture.read()[1]
        self.warning = self._missing(number)

    def _missing(self, read: int) -> str:
        if self.count is None:
            return f"{self.shown}: the stream ended after {read} frames" if "://" in self.path else ""
        # Formats that store no count have one that OpenCV works out from duration and rate, which may miss by a few.
        if read < self.count - max(1, self.count // 100):
            return f"{self.shown}: ended after {read} of {self.count} frames; the file is incomplete or damaged there"
        return ""


class VideoFile:
    """An MP4 file of frames, for ``with``; it gets its name when the block ends well, and nothing is left if not.

    The codec is H.264 where this OpenCV can encode it, else MPEG-4 (mp4v), which players show but browsers do not. Both
    halve the resolution of colours and need even sides: an odd one is made longer by repeating the last row or column.

    path: the file to write; an old one is replaced at the end.
    fps: frames per second; 25 where it is None or 0.
    size: (height, width) of the frames in pixels.
    mark: see :mod:`hmsa_ext.prediction.marks`; none unless given.

    Raises :class:`hmsa_ext.files.OutputError` where the file cannot be written.
    """

    def __init__(self, path: Path, fps: float | None, size: tuple[int, int], mark: str = "") -> None:
        self.path, self.size, self.mark = Path(path), size, mark
        self.fps = float(fps or USUAL_FPS)
        self.written = 0
        if not 0 < self.fps < float("inf"):
            raise ArgumentValueError(f"fps: got {fps}, expected a number above 0, or None")
        if min(size) < 1:
            raise ArgumentValueError(f"size: got {size}, expected (height, width) in pixels")
        if mark:
            check_mark(mark)
        self._final = self.path.resolve()  # a link stays a link
        self._temporary = self._final.with_name(f".{self._final.name}.{os.getpid()}.tmp.mp4")
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> VideoFile:
        if not self._final.parent.is_dir():
            raise OutputError(f"{self.path}: no folder {self.path.parent}; expected a file in one that exists")
        height, width = (side + side % 2 for side in self.size)
        for codec in ("avc1", "mp4v") if _encodes_h264() else ("mp4v",):
            self._writer = _open(self._temporary, codec, self.fps, (height, width))
            if self._writer.isOpened():
                return self
            self._writer.release()
        self._temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{self.path}: OpenCV cannot write a video of {width}x{height} pixels and {self.fps:g} frames per second "
            f"there; expected a folder that can be written, and sides of at most 8190 pixels"
        )

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 [H, W, 3], red, green, blue."""
        if self._writer is None:
            raise ArgumentValueError(f"{self.path}: frames are written within a with block")
        if frame.dtype != np.uint8:
            raise ArgumentTypeError(f"frame: got {frame.dtype}, expected uint8")
        if frame.shape != (*self.size, 3):
            raise ArgumentValueError(f"frame: got {list(frame.shape)}, expected {[*self.size, 3]}")
        picture = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR)
        below, right = (side % 2 for side in self.size)
        if below or right:
            picture = cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE)
        self._writer.write(picture)
        self.written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        self._writer = None
        try:
            if kind is None:
                self._finish()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self.written:
            raise OutputError(f"{self.path}: no frame was written; expected at least one")
        # OpenCV does not say when a frame cannot be written, for example to a full disk.
        there = _count(self._temporary)
        if there < self.written:
            raise OutputError(
                f"{self.path}: {there} of {self.written} frames reached the file; is there room on the disk?"
            )
        try:
            if self.mark:
                append_mark(self._temporary, self.mark)
            with self._temporary.open("rb+") as file:
                os.fsync(file.fileno())
            self._temporary.replace(self._final)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def _open(path: Path, codec: str, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    return cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (size[1], size[0]))


def _count(path: Path) -> int:
    """How many frames a video file states; 0 where it cannot be opened."""
    capture = cv2.VideoCapture(str(path))
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0
    capture.release()
    return int(count)


@functools.cache
def _encodes_h264() -> bool:
    """Whether this OpenCV writes H.264. The wheels for Linux have no encoder for it but those of some boards."""
    with tempfile.TemporaryDirectory() as folder, _silence():
        path = Path(folder, "probe.mp4")
        writer = _open(path, "avc1", USUAL_FPS, (480, 640))
        for _ in range(3):
            writer.write(np.zeros((480, 640, 3), np.uint8))
        writer.release()
        return _count(path) == 3


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Leaves out what FFmpeg prints about a codec that is not there; it writes to the standard error itself."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing is printed
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
