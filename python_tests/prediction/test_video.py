"""Videos: the frames come back, whatever their size and rate; what cannot be read or written is named."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_ext.data import DataError
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import OutputError
from hmsa_ext.prediction import video
from hmsa_ext.prediction.marks import read_mark
from hmsa_ext.prediction.video import Frames, VideoFile


def clip(path: Path, *, count: int = 5, size: tuple[int, int] = (32, 48), fps: float | None = 10) -> Path:
    """A video of plain frames, each redder than the one before."""
    file = VideoFile(path, fps, size)
    for k in range(count):
        file.write(np.full((*size, 3), (40 * k, 20, 200 - 40 * k), np.uint8))
    file.finish()
    return path


def test_frames_come_in_order_as_red_green_blue(tmp_path: Path) -> None:
    with Frames(str(clip(tmp_path / "a.mp4"))) as frames:
        assert (frames.size, frames.fps, frames.count) == ((32, 48), 10, 5)
        found = list(frames)
    assert [frame.dtype for frame in found] == [np.uint8] * 5
    for k, frame in enumerate(found):
        np.testing.assert_allclose(frame.mean(axis=(0, 1)), (40 * k, 20, 200 - 40 * k), atol=6)
    assert frames.warnings == []


@pytest.mark.parametrize("size", [(1, 1), (31, 48), (32, 47), (33, 17), (2, 300)])
def test_odd_sides_are_made_even_by_repeating_the_last(tmp_path: Path, size: tuple[int, int]) -> None:
    with Frames(str(clip(tmp_path / "a.mp4", size=size))) as frames:
        assert frames.size == tuple(side + side % 2 for side in size)
        last = list(frames)[-1]
    np.testing.assert_allclose(last[-1, -1], (160, 20, 40), atol=8)


@pytest.mark.parametrize("fps", [0.5, 23.976, 30000 / 1001, 240])
def test_the_rate_is_kept(tmp_path: Path, fps: float) -> None:
    with Frames(str(clip(tmp_path / "a.mp4", fps=fps))) as frames:
        assert frames.fps == pytest.approx(fps, rel=1e-3)


def test_without_a_rate_it_is_the_usual_one(tmp_path: Path) -> None:
    with Frames(str(clip(tmp_path / "a.mp4", fps=None))) as frames:
        assert frames.fps == video.USUAL_FPS


@pytest.mark.parametrize("said", [0.0, -1.0, float("nan"), float("inf"), 90000.0])
def test_rates_that_cannot_be_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: float) -> None:
    path = str(clip(tmp_path / "a.mp4"))

    class Capture:
        def __init__(self, source: object) -> None:
            self.isOpened, self.read, self.release = (lambda: True), (lambda: (True, image)), lambda: None

        def get(self, what: int) -> float:
            return said

    image = np.zeros((4, 6, 3), np.uint8)
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    with Frames(path) as frames:
        assert frames.fps is None
        assert frames.count is None or frames.count > 0


def test_frames_of_another_size_in_a_stream_are_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [np.full((*size, 3), 90, np.uint8) for size in ((10, 20), (10, 20), (40, 40))]

    class Capture:
        def __init__(self, source: object) -> None:
            assert source == 3
            self.isOpened, self.release, self.get = (lambda: True), (lambda: None), lambda what: 0.0

        def read(self) -> tuple[bool, np.ndarray | None]:
            return (True, pictures.pop(0)) if pictures else (False, None)

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    with Frames("camera:3") as frames:
        assert frames.count is None
        assert [frame.shape for frame in frames] == [(10, 20, 3)] * 3
    assert frames.warnings == []


def test_a_video_that_was_cut_off_warns(tmp_path: Path) -> None:
    whole = tmp_path / "whole.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 25, (48, 32))
    for k in range(50):
        writer.write(np.random.default_rng(k).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    writer.release()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with Frames(str(cut)) as frames:
        done = len(list(frames))
    assert 0 < done < 50
    assert frames.warnings == [f"ends after {done} of 50 frames: the file is damaged or cut off"]


def test_what_is_no_video_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, empty, cut = (tmp_path / name for name in ("text.mp4", "empty.mp4", "cut.mp4"))
    text.write_text("no video")
    empty.write_bytes(b"")
    data = clip(tmp_path / "a.mp4").read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    for path in (text, empty, cut):
        with pytest.raises(DataError, match=f"{path}: no video that can be read: it is damaged, or its codec"):
            Frames(str(path))
    with pytest.raises(DataError, match=r"absent.mp4: no such file"):
        Frames(str(tmp_path / "absent.mp4"))
    assert capfd.readouterr() == ("", "")  # the error says it, once


def test_a_camera_and_a_stream_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_cameras", lambda: ["video0", "video2"])
    with pytest.raises(DataError, match=r"camera:97: there is no such camera, .*found here: camera:0, camera:2"):
        Frames("camera:97")
    monkeypatch.setattr(video, "_cameras", list)
    with pytest.raises(DataError, match=r"found here: none"):
        Frames("camera:97")
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/x: the stream cannot be opened; expected an address"):
        Frames("http://127.0.0.1:9/x")


# ---- writing ----------------------------------------------------------------------------------------------------


def test_a_file_gets_its_name_and_mark_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.mp4"
    file = VideoFile(path, 25, (32, 48))
    file.write(np.zeros((32, 48, 3), np.uint8))
    assert not path.exists()
    file.finish("a mark")
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    assert read_mark(path) == "a mark"


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    before = path.read_bytes()
    file = VideoFile(path, 25, (32, 48))
    file.write(np.zeros((32, 48, 3), np.uint8))
    assert path.read_bytes() == before
    file.discard()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_frames_of_another_size_or_kind_are_errors(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "a.mp4", 25, (32, 48))
    for frame in (np.zeros((32, 50, 3), np.uint8), np.zeros((32, 48), np.uint8), np.zeros((32, 48, 3), np.float32)):
        with pytest.raises(ArgumentValueError, match=r"frame: expected uint8 \[32, 48, 3\], the size of the first"):
            file.write(frame)
    file.discard()
    assert not list(tmp_path.iterdir())


def test_sides_that_the_format_cannot_hold_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentValueError, match=r"at most 8190 pixels along a side, got 20x9000 for .*a.mp4; write"):
        VideoFile(tmp_path / "a.mp4", 25, (20, 9000))
    assert not list(tmp_path.iterdir())
    assert clip(tmp_path / "a.mp4", size=(16, 8189), count=1).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"output: .*file/a.mp4 cannot be written: "):
        VideoFile(tmp_path / "file" / "a.mp4", 25, (32, 48))


def test_no_space_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mark: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video, "append_mark", full)
    file = VideoFile(tmp_path / "a.mp4", 25, (32, 48))
    file.write(np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(OutputError, match=r"a.mp4 cannot be written: No space left on device"):
        file.finish("a mark")
    assert not list(tmp_path.iterdir())


WRITES = """
import resource, sys
from pathlib import Path
import numpy as np
from hmsa_ext.files import OutputError
from hmsa_ext.prediction.video import VideoFile

resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
file = VideoFile(Path(sys.argv[1]), 25, (64, 96))
for k in range(60):
    file.write(np.random.default_rng(k).integers(0, 256, (64, 96, 3), dtype=np.uint8))
try:
    file.finish()
except OutputError as error:
    print(error)
"""


def test_a_disk_that_fills_up_meanwhile_leaves_no_part_of_a_video(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs a limit of the size of files")
    path = tmp_path / "a.mp4"
    done = subprocess.run([sys.executable, "-c", WRITES, str(path)], capture_output=True, text=True, timeout=60)
    assert f"{path} cannot be written: only a part came out; is the disk full?" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["12:30.mp4", "pipe:0.mp4", "shot%03d.mp4", "a[1] b.mp4"])
def test_names_that_mean_something_to_ffmpeg_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    clip(tmp_path / "plain.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with Frames(name) as frames:
        assert len(list(frames)) == 5


def test_paths_that_are_not_utf_8_are_errors_and_crash_nothing(tmp_path: Path) -> None:
    name = tmp_path / "b\udcff.mp4"
    with pytest.raises(DataError, match="not UTF-8"):
        Frames(str(name))
    with pytest.raises(OutputError, match="not UTF-8"):
        VideoFile(name, 10, (32, 48))
