"""Videos, cameras and streams: their frames in order, and MP4 files of the results."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmsa_ext.data.types import DataError
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import OutputError
from hmsa_ext.prediction.marks import append_mark

USUAL_FPS = 25.0
"""Frames a second of a video that does not say."""
MOST_FPS = 1000.0
MOST_SIDE = 8190
"""Pixels along a side that MPEG-4 can hold."""
H264, MPEG4 = "avc1", "mp4v"
"""Codecs. Browsers show H.264, which the wheels of OpenCV for Linux cannot encode; players show MPEG-4 Part 2 too."""


class Frames:
    """The frames of a video file, camera or stream: a context manager, and an iterator of uint8 RGB [H, W, 3].

    Frames are turned as the file says, which OpenCV does by itself.

    size: (height, width) of the first frame. fps: frames a second; None where nobody says. count: how many frames the
    file says that it has; None of cameras and streams. warnings: what went wrong, in words.

    Raises :class:`hmsa_ext.data.DataError` for a file that is no video, and for a camera or stream that is not there.
    """

    def __init__(self, path: str) -> None:
        self.path, self.warnings = path, list[str]()
        camera = re.fullmatch(r"camera:(\d+)", path)
        self._is_file = camera is None and "://" not in path
        # FFmpeg takes the beginning of "12:30.mp4" for a protocol, but not that of a whole path.
        opened = int(camera[1]) if camera else os.path.abspath(path) if self._is_file else path
        if isinstance(opened, str) and not _is_text(opened):
            raise DataError(f"{path}: OpenCV opens no video whose path is not UTF-8; rename the file or its folder")
        self._capture = _quietly(lambda: cv2.VideoCapture(opened))
        first = self._read() if self._capture.isOpened() else None
        if first is None:
            self._capture.release()
            raise DataError(self._unreadable(camera is not None))
        self._first: np.ndarray | None = first
        self.size: tuple[int, int] = (first.shape[0], first.shape[1])
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= MOST_FPS else None
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if self._is_file and math.isfinite(count) and count > 0 else None

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        done = 0
        while True:
            frame, self._first = self._first if done == 0 else self._read(), None
            if frame is None:
                break
            if frame.shape[:2] != self.size:  # a stream may change; a file of frames has one size
                frame = cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA)
            done += 1
            yield frame
        # The count in a file is reckoned from its duration, and may be one or two off.
        if self.count is not None and done < 0.99 * self.count - 2:
            self.warnings.append(f"ends after {done} of {self.count} frames: the file is damaged or cut off")

    def _read(self) -> np.ndarray | None:
        found, frame = self._capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if found and frame is not None else None

    def _unreadable(self, is_camera: bool) -> str:
        if is_camera:
            there = ", ".join(f"camera:{name[5:]}" for name in _cameras()) or "none"
            return f"{self.path}: there is no such camera, or another program has it; found here: {there}"
        if not self._is_file:
            return f"{self.path}: the stream cannot be opened; expected an address that a video player opens too"
        if not Path(self.path).is_file():
            return f"{self.path}: no such file"
        return (
            f"{self.path}: no video that can be read: it is damaged, or its codec is unknown to this OpenCV; try "
            "ffmpeg -i FILE -c:v libx264 NEW.mp4"
        )


class VideoFile:
    """An MP4 file in progress, under a temporary name until :meth:`finish`.

    path: the file that it becomes. fps: frames a second; None: 25. size: (height, width) of the frames. The format
    needs even sides: the last row or column is repeated where a side is odd.

    Raises :class:`hmsa_ext.files.OutputError` where no such file can be written, and ValueError for more than 8190
    pixels along a side.
    """

    def __init__(self, path: Path, fps: float | None, size: tuple[int, int]) -> None:
        if max(size) > MOST_SIDE:
            raise ArgumentValueError(
                f"size: videos have at most {MOST_SIDE} pixels along a side, got {size[0]}x{size[1]} for {path}; write "
                "the labels, which are a picture for each frame"
            )
        if not _is_text(str(path)):
            raise OutputError(f"output: OpenCV writes no video whose path is not UTF-8: {path}; rename its folder")
        self.path, self.size = path, size
        self._odd = size[0] % 2, size[1] % 2
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.mp4")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.write_bytes(b"")  # the reason where it cannot be written: OpenCV has none
        except OSError as error:
            raise OutputError(f"output: {path} cannot be written: {error.strerror or error}") from error
        shape = size[1] + self._odd[1], size[0] + self._odd[0]
        codec = H264 if _encodes_h264() else MPEG4
        self._writer = _quietly(lambda: _writer(self._temporary, codec, fps or USUAL_FPS, shape))
        if not self._writer.isOpened():
            self.discard()
            raise OutputError(f"output: this OpenCV cannot write {path} of {shape[0]}x{shape[1]} pixels as {codec}")

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, uint8 RGB [H, W, 3]."""
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ArgumentValueError(
                f"frame: expected uint8 {[*self.size, 3]}, the size of the first one, got {frame.dtype} "
                f"{list(frame.shape)}"
            )
        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if any(self._odd):
            picture = cv2.copyMakeBorder(picture, 0, self._odd[0], 0, self._odd[1], cv2.BORDER_REPLICATE)
        self._writer.write(picture)

    def finish(self, mark: str = "") -> None:
        """Ends the file and gives it its name. mark: see :mod:`hmsa_ext.prediction.marks`."""
        self._writer.release()
        try:
            if not _is_whole(self._temporary):  # OpenCV says nothing of errors in writing
                raise OutputError(f"output: {self.path} cannot be written: only a part came out; is the disk full?")
            if mark:
                append_mark(self._temporary, mark)
            self._temporary.replace(self.path)
        except OSError as error:
            self.discard()
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"output: {self.path} cannot be written: {error.strerror or error}") from error

    def discard(self) -> None:
        """Removes the file, which was not finished."""
        if hasattr(self, "_writer"):
            self._writer.release()
        self._temporary.unlink(missing_ok=True)


def _is_text(path: str) -> bool:
    """Whether a path is UTF-8: of others OpenCV crashes the process."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _writer(path: Path, codec: str, fps: float, shape: tuple[int, int]) -> cv2.VideoWriter:
    fourcc: Any = cv2.VideoWriter.fourcc(*codec)
    return cv2.VideoWriter(str(path), fourcc, fps, shape)


@functools.cache
def _encodes_h264() -> bool:
    """Whether this OpenCV writes H.264: an encoder may be listed and not work."""
    with tempfile.TemporaryDirectory() as folder, _silent_stderr():
        path = Path(folder, "probe.mp4")
        writer = _quietly(lambda: _writer(path, H264, USUAL_FPS, (640, 480)))
        for _ in range(3):
            writer.write(np.zeros((480, 640, 3), np.uint8))
        writer.release()
        capture = _quietly(lambda: cv2.VideoCapture(str(path)))
        return capture.isOpened() and capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Leaves out what FFmpeg writes to standard error by itself about a codec that is not there."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing is written
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


def _is_whole(path: Path) -> bool:
    """Whether an MP4 file has its table of frames, which is written last, and ends with one of its boxes."""
    kinds, place, size = set[bytes](), 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # more than 4 GiB: the length follows
                length = int.from_bytes(head[8:], "big")
            if length < 8:
                return False
            kinds.add(head[4:8])
            place += length
    return place == size and b"moov" in kinds


def _cameras() -> list[str]:
    """The names of the cameras where the system lists them."""
    return sorted(device.name for device in Path("/dev").glob("video[0-9]*"))


def _quietly(action: Any) -> Any:
    """The result of an action of OpenCV, without what OpenCV would print: errors of ours say it."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg has a line for each damaged block of a frame
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        return action()
    finally:
        logging.setLogLevel(before)
