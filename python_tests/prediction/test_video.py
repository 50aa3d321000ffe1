"""Frames of videos and MP4 files of frames: nothing is lost silently, and no half file keeps a name."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_ext.data import DataError
from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError
from hmsa_ext.files import OutputError
from hmsa_ext.prediction.marks import read_mark
from hmsa_ext.prediction.video import Frames, VideoFile

SIZE = (48, 64)


def pictures(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Frames RGB whose red grows and whose left half is blue."""
    frames = []
    for k in range(count):
        frame = np.zeros((*size, 3), np.uint8)
        frame[..., 0], frame[:, : size[1] // 2, 2] = 12 * k % 250, 200
        frames.append(frame)
    return frames


def recorded(path: Path, count: int = 10, size: tuple[int, int] = SIZE, codec: str = "mp4v", fps: float = 10) -> Path:
    """A video written by OpenCV alone."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, size[::-1])
    assert writer.isOpened()
    for frame in pictures(count, size):
        writer.write(frame[..., ::-1].copy())
    writer.release()
    return path


# ---- reading ----------------------------------------------------------------------------------------------------


def test_frames_are_rgb_in_their_order(tmp_path):
    with Frames(recorded(tmp_path / "a.mp4")) as frames:
        assert (frames.size, frames.fps, frames.count) == (SIZE, 10, 10)
        found = list(frames)
    assert len(found) == 10
    for frame, expected in zip(found, pictures(10), strict=True):
        assert frame.dtype == np.uint8
        assert np.abs(frame.astype(int) - expected).mean() < 8
    assert frames.warning == ""


def turned(path: Path) -> Path:
    """The video with the note of a phone that was held upright: a quarter turn to the right, in its track header."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", content, matrix) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def test_the_rotation_of_a_phone_is_followed(tmp_path):
    with Frames(turned(recorded(tmp_path / "a.mp4"))) as frames:
        assert frames.size == (64, 48)
        frame = next(iter(frames))
    assert frame.shape == (64, 48, 3)
    assert frame[:28, :, 2].mean() > 150, "the left half is now the upper one"
    assert frame[36:, :, 2].mean() < 50


@pytest.mark.parametrize(("form", "codec"), [(".avi", "MJPG"), (".mkv", "mp4v"), (".webm", "VP90")])
def test_a_file_that_ends_before_its_count_gives_a_warning(tmp_path, form, codec):
    path = recorded(tmp_path / f"a{form}", 100, codec=codec)
    with Frames(path) as frames:
        assert len(list(frames)) == 100
        assert frames.warning == ""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])
    with Frames(path) as frames:
        read = len(list(frames))
    assert 0 < read < 90
    assert frames.warning == f"{path}: ended after {read} of 100 frames; the file is incomplete or damaged there"


def test_what_is_no_video_is_an_error_that_names_it(tmp_path):
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    cut = recorded(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-200])
    for name, text in [
        ("text.mp4", "no video that can be read"),
        ("empty.mp4", "no video that can be read"),
        ("cut.mp4", "incomplete or damaged"),
        ("none.mp4", "there is no such file"),
        (".", "there is no such file"),
    ]:
        with pytest.raises(DataError, match=text), Frames(tmp_path / name):
            pass


def test_a_camera_and_a_stream_that_are_not_there_are_errors():
    with pytest.raises(DataError, match="camera:97: there is no such camera"), Frames("camera:97"):
        pass
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/a: the stream cannot") as caught:
        Frames("http://user:secret@127.0.0.1:9/a").__enter__()
    assert "secret" not in str(caught.value)


def test_a_camera_has_no_count_and_streams_say_when_they_end(tmp_path, monkeypatch):
    path = str(recorded(tmp_path / "a.mp4"))
    opened = []
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: (opened.append(source), capture(path))[1])
    with Frames("camera:3") as frames:
        assert (opened, frames.count) == ([3], None)
        assert len(list(frames)) == 10
    assert frames.warning == ""
    with Frames("rtsp://cam/live") as frames:
        frames.count = None
        list(frames)
    assert frames.warning == "rtsp://cam/live: the stream ended after 10 frames"


def test_frames_of_another_size_are_an_error(tmp_path):
    with Frames(recorded(tmp_path / "a.mp4")) as frames:
        frames.size = (10, 20)
        with pytest.raises(DataError, match="frame 1 has 64x48 pixels, those before 20x10"):
            list(frames)


def test_frames_outside_of_their_block_are_an_error(tmp_path):
    frames = Frames(recorded(tmp_path / "a.mp4"))
    with pytest.raises(ArgumentValueError, match="within a with block"):
        list(frames)


# ---- writing ----------------------------------------------------------------------------------------------------


def write(path: Path, count: int = 10, size: tuple[int, int] = SIZE, fps: float | None = 10, mark: str = "") -> Path:
    with VideoFile(path, fps, size, mark) as file:
        for frame in pictures(count, size):
            file.write(frame)
    return path


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path / "a.mp4", fps=29.97, mark="v1")
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert read_mark(path) == "v1"
    with Frames(path) as frames:
        assert (frames.size, frames.count) == (SIZE, 10)
        assert frames.fps == pytest.approx(29.97, abs=0.01)
        for frame, expected in zip(frames, pictures(10), strict=True):
            assert np.abs(frame.astype(int) - expected).mean() < 8


def test_frames_of_any_strides_are_written(tmp_path):
    with VideoFile(tmp_path / "a.mp4", 10, SIZE) as file:
        file.write(pictures(2, (96, 64))[1][::-2])
    with Frames(tmp_path / "a.mp4") as frames:
        assert np.abs(next(iter(frames)).astype(int) - pictures(2)[1]).mean() < 8


@pytest.mark.parametrize("fps", [None, 0])
def test_an_unknown_rate_is_25(tmp_path, fps):
    with Frames(write(tmp_path / "a.mp4", fps=fps)) as frames:
        assert frames.fps == 25


@pytest.mark.parametrize(
    ("size", "even"), [((47, 64), (48, 64)), ((48, 63), (48, 64)), ((47, 63), (48, 64)), ((1, 1), (2, 2))]
)
def test_odd_sides_are_made_even_by_repeating_the_edge(tmp_path, size, even):
    with VideoFile(tmp_path / "a.mp4", 10, size) as file:
        for _ in range(3):
            file.write(np.full((*size, 3), 180, np.uint8))
    with Frames(tmp_path / "a.mp4") as frames:
        assert frames.size == even
        assert np.abs(next(iter(frames)).astype(int) - 180).max() < 8


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.mp4").write_text("old")

    def interrupted() -> None:
        with VideoFile(tmp_path / "a.mp4", 10, SIZE) as file:
            file.write(pictures(1)[0])
            assert [path.name for path in tmp_path.glob(".*")] == [f".a.mp4.{os.getpid()}.tmp.mp4"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "old"
    write(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").stat().st_size > 100


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.mp4").write_text("old")
    os.symlink("real.mp4", tmp_path / "a.mp4")
    write(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").is_symlink()
    assert (tmp_path / "real.mp4").stat().st_size > 100


def test_a_video_without_frames_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"a\.mp4: no frame was written"):
        write(tmp_path / "a.mp4", 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a limit of the size of files")
def test_frames_that_do_not_reach_the_file_are_an_error(tmp_path):
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; from hmsa_ext.prediction.video import VideoFile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)\n"
        "with VideoFile(Path(sys.argv[1]), 10, (96, 128)) as file:\n"
        "    for k in range(100): file.write(np.roll(noise, k))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.mp4")], capture_output=True, text=True, check=False
    )
    assert "OutputError" in done.stderr
    assert "of 100 frames reached the file; is there room on the disk?" in done.stderr
    assert os.listdir(tmp_path) == []


def test_videos_that_cannot_be_written_are_errors(tmp_path):
    with pytest.raises(OutputError, match=r"no folder .*none"):
        write(tmp_path / "none" / "a.mp4")
    with pytest.raises(OutputError, match=r"OpenCV cannot write a video of 9000x48 pixels"):
        write(tmp_path / "a.mp4", 1, (48, 9000))
    with pytest.raises(ArgumentValueError, match="fps: got -1"):
        VideoFile(tmp_path / "a.mp4", -1, SIZE)
    with pytest.raises(ArgumentValueError, match="mark: got"):
        VideoFile(tmp_path / "a.mp4", 1, SIZE, "grün")
    with pytest.raises(ArgumentValueError, match="size: got"):
        VideoFile(tmp_path / "a.mp4", 1, (0, 5))
    with VideoFile(tmp_path / "a.mp4", 10, SIZE) as file:
        with pytest.raises(ArgumentValueError, match=r"frame: got \[24, 64, 3\], expected \[48, 64, 3\]"):
            file.write(pictures(1)[0][::2])
        with pytest.raises(ArgumentTypeError, match="frame: got float64, expected uint8"):
            file.write(pictures(1)[0] / 255)
        file.write(pictures(1)[0])
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_writing_prints_nothing(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path; from hmsa_ext.prediction.video import VideoFile\n"
        "with VideoFile(Path(sys.argv[1]), 10, (48, 64)) as file: file.write(np.zeros((48, 64, 3), np.uint8))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.mp4")], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
