"""Many sources: one that fails is named, streams end well, and nothing half-written keeps a name."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pytest

from hmsa_ext.data.progress import Progress
from hmsa_ext.errors import HmsaError
from hmsa_ext.files import OutputError
from hmsa_ext.prediction import batch
from hmsa_ext.prediction.batch import Summary, merged, predict_all
from hmsa_ext.prediction.marks import encode_png, read_mark
from hmsa_ext.prediction.outputs import Outputs
from hmsa_ext.prediction.pipeline import Seconds
from hmsa_ext.prediction.predictor import PredictionError, Predictor
from hmsa_ext.prediction.settings import PictureSettings, PredictionSettings
from hmsa_ext.prediction.sources import Item
from hmsa_ext.prediction.video import Frames, VideoFile
from python_tests.prediction.networks import photo, trained

STREAM = Item("rtsp://me:secret@host/door", PurePosixPath("host-door"), "stream")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder; no thread and no temporary file may be left in it."""
    monkeypatch.chdir(tmp_path)
    before = set(threading.enumerate())
    yield tmp_path
    assert set(threading.enumerate()) <= before
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(trained(), "cpu", scales=(0.5, 1.0))


def outputs_of(predictor: Predictor, *kinds: str, frames: int | None = None, folder: str = "out") -> Outputs:
    return Outputs(Path(folder), predictor, PictureSettings(write=kinds), frames=frames)


def photo_item(name: str, size: tuple[int, int] = (32, 40)) -> Item:
    Path(name).write_bytes(encode_png(photo(*size)))
    return Item(name, PurePosixPath(name).with_suffix(""), "photo")


def video_item(name: str = "clip.mp4", count: int = 5) -> Item:
    file = VideoFile(Path(name), 10, (32, 40))
    for k in range(count):
        file.write(photo(32, 40, seed=k))
    file.finish()
    return Item(name, PurePosixPath(name).with_suffix(""), "video")


class Endless:
    """A capture that always has another frame."""

    def __init__(self, source: object) -> None:
        self.count = 0

    def isOpened(self) -> bool:  # noqa: N802, the name that OpenCV gave it
        return True

    def read(self) -> tuple[bool, np.ndarray]:
        self.count += 1
        return True, photo(32, 40, seed=self.count)

    def get(self, what: int) -> float:
        return 0.0

    def release(self) -> None:
        pass


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Endless(source) if "://" in source else real(source))


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException) -> None:
    """Raises the error when the number-th photo is predicted, or between two frames."""
    owner, name = (Predictor, "predict_photo") if place == "predicting" else (Progress, "step")
    real, seen = getattr(owner, name), []

    def counted(*given: Any, **options: Any) -> Any:
        seen.append(0)
        if len(seen) == number:
            raise error
        return real(*given, **options)

    monkeypatch.setattr(owner, name, counted)


class Stopped(BaseException):
    """As SIGTERM is raised by the commands."""


# ---- streams and videos -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["predicting", "between frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped()], ids=repr)
def test_what_was_predicted_of_a_stream_is_kept_when_it_is_ended(
    predictor: Predictor, endless: None, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    outputs = outputs_of(predictor, "labels", "overlay")
    with monkeypatch.context() as patch:
        interrupt_at(6, patch, place, error)
        with pytest.raises(type(error)):
            predict_all(predictor, [STREAM], outputs, quiet=True)
    labels = sorted(Path("out/host-door").iterdir())
    assert len(labels) >= 5
    assert labels[-1].name == f"{len(labels) - 1:06d}.png"
    with Frames("out/host-door.overlay.mp4") as frames:
        assert len(list(frames)) == len(labels)


def test_a_stream_that_is_ended_before_its_first_frame_leaves_nothing_and_still_ends(
    predictor: Predictor, endless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(1, monkeypatch, "predicting", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        predict_all(predictor, [STREAM], outputs_of(predictor, "labels", "overlay"), quiet=True)
    assert not list(Path("out").glob("*")) if Path("out").exists() else True


@pytest.mark.parametrize("place", ["predicting", "between frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")], ids=repr)
def test_a_video_that_is_interrupted_leaves_nothing(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    item = video_item(count=9)
    with monkeypatch.context() as patch:
        interrupt_at(4, patch, place, error)
        with pytest.raises(type(error)):
            predict_all(predictor, [item], outputs_of(predictor, "labels", "overlay"), quiet=True)
    assert not list(Path("out").iterdir())


def test_the_first_frames_of_a_stream(predictor: Predictor, endless: None, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = outputs_of(predictor, "labels", frames=3)
    for _ in range(2):  # a stream is another one each time
        summary = predict_all(predictor, [STREAM], outputs)
        assert (summary.predicted, summary.frames, summary.already) == (1, 3, 0)
    assert len(list(Path("out/host-door").iterdir())) == 3
    assert "secret" not in "".join(capsys.readouterr())


def test_messages_never_show_the_password_of_a_stream(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Endless, "isOpened", lambda self: False)
    monkeypatch.setattr(cv2, "VideoCapture", Endless)
    summary = predict_all(predictor, [STREAM], outputs_of(predictor))
    assert summary.skipped == [
        (
            "rtsp://host/door",
            "the stream cannot be opened; expected an address that a video player opens too",
        )
    ]
    said = capsys.readouterr()
    assert "skipped: rtsp://host/door: the stream cannot be opened" in said.err
    assert "secret" not in said.out + said.err


def test_a_video_that_cannot_be_finished_leaves_nothing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    item = video_item()

    def refused(path: Path, mark: str) -> None:
        raise OSError("no")

    monkeypatch.setattr("hmsa_ext.prediction.video.append_mark", refused)
    with pytest.raises(OutputError, match=r"overlay.mp4 cannot be written: no"):
        predict_all(predictor, [item], outputs_of(predictor, "overlay", "colours", "labels"), quiet=True)
    assert not list(Path("out").iterdir())


def test_frames_that_a_video_cannot_hold_skip_it(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmsa_ext.prediction.video.MOST_SIDE", 39)
    items = [photo_item("a.png"), Item("clip.mp4", PurePosixPath("clip"), "video")]
    monkeypatch.setattr(cv2, "VideoCapture", Endless)
    Path("clip.mp4").write_bytes(b"")
    summary = predict_all(predictor, items, outputs_of(predictor, "overlay"), quiet=True)
    assert summary.predicted == 1
    ((name, reason),) = summary.skipped
    assert name == "clip.mp4"
    assert "at most 39 pixels along a side, got 32x40" in reason


# ---- photos -----------------------------------------------------------------------------------------------------


def test_a_photo_too_wide_for_a_jpeg_is_named_and_the_others_written(predictor: Predictor) -> None:
    items = [photo_item("wide.png", (8, 65540)), photo_item("a.png")]
    summary = predict_all(predictor, items, outputs_of(predictor, "overlay"), quiet=True)
    assert summary.predicted == 1
    ((name, reason),) = summary.skipped
    assert name == "wide.png"
    assert "JPEG has at most 65535 pixels along a side" in reason
    assert [path.name for path in Path("out").iterdir()] == ["a.overlay.jpg"]


def test_too_little_memory_for_a_photo_that_has_no_tiles_skips_it_alone() -> None:
    predictor = Predictor(
        trained(), "cpu", scales=(0.613, 1.0), settings=PredictionSettings(memory=185 * 2**20)
    )  # fmt: skip
    items = [photo_item("large.png", (1000, 2000)), photo_item("a.png")]
    summary = predict_all(predictor, items, outputs_of(predictor), quiet=True)
    assert summary.predicted == 1
    assert [name for name, _ in summary.skipped] == ["large.png"]
    assert summary.skipped[0][1].startswith("scales: tiles need scales that share a grid")


def test_a_photo_too_small_for_the_network_is_named_and_the_others_predicted(predictor: Predictor) -> None:
    """At half its size this one has fewer pixels than the network pools."""
    items = [photo_item("small.png", (6, 6)), photo_item("a.png")]
    summary = predict_all(predictor, items, outputs_of(predictor), quiet=True)
    assert summary.predicted == 1
    ((name, reason),) = summary.skipped
    assert name == "small.png"
    assert "network: failed on images of 3 x 3 pixels" in reason


def test_an_error_of_the_machine_names_the_photo_and_ends_the_work(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [photo_item(f"{k}.png") for k in range(3)]
    interrupt_at(2, monkeypatch, "predicting", PredictionError("memory: there was not enough"))
    with pytest.raises(PredictionError, match=r"^1.png: memory: there was not enough$"):
        predict_all(predictor, items, outputs_of(predictor), quiet=True)
    assert [path.name for path in Path("out").iterdir()] == ["0.png"]


def test_a_source_that_changes_while_it_is_predicted_is_done_again(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = photo_item("a.png")
    real = batch.read_photo

    def read(path: Path, **options: Any) -> Any:
        found = real(path, **options)
        photo_item("a.png", (48, 40))
        os.utime(path, ns=(1, 1))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(batch, "read_photo", read)
        predict_all(predictor, [item], outputs_of(predictor), quiet=True)
    summary = predict_all(predictor, [item], outputs_of(predictor), quiet=True)
    assert (summary.predicted, summary.already) == (1, 0)
    found = cv2.imread("out/a.png", cv2.IMREAD_UNCHANGED)
    assert found is not None
    assert found.shape == (48, 40)


def test_done_sources_are_not_read(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [photo_item("a.png"), video_item()]
    predict_all(predictor, items, outputs_of(predictor), quiet=True)

    def never(*given: Any, **options: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(batch, "read_photo", never)
    monkeypatch.setattr(batch, "Frames", never)
    assert predict_all(predictor, items, outputs_of(predictor), quiet=True).already == 2


def test_what_is_said_once_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    predictor = Predictor(trained(image_size=(500, 500)), "cpu", scales=(1.0,))
    items = [photo_item(f"{k}.png", (32, 40 + 4 * (k % 2))) for k in range(5)]
    predict_all(predictor, items, outputs_of(predictor))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["photo", "0.png:"], ["note", "0.png:"], ["note", "the"], ["memory", "at"]
    ]  # fmt: skip
    assert "of 4 more" in lines[2]


def test_quiet_names_only_what_is_skipped(predictor: Predictor, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_text("no picture")
    items = [photo_item("a.png"), Item("bad.png", PurePosixPath("bad"), "photo")]
    predict_all(predictor, items, outputs_of(predictor), quiet=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("skipped: bad.png: ")
    assert said.err.count("\n") == 1


def test_summaries_of_processes_add_up() -> None:
    first = Summary(2, 1, 30, 4, [("a", "x")], 100, 7, Seconds(1, 2, 3, 4))
    second = Summary(3, 0, 0, 5, [("b", "y")], None, 5, Seconds(1, 1, 1, 1))
    both = merged([first, second])
    assert both == Summary(5, 1, 30, 9, [("a", "x"), ("b", "y")], 100, 7, Seconds(2, 3, 4, 5))
    assert both.pictures == 34
    assert first.skipped == [("a", "x")]
    assert merged([second]) == second


# ---- places -----------------------------------------------------------------------------------------------------


def test_results_never_replace_sources_or_each_other(predictor: Predictor) -> None:
    Path("out").mkdir()
    source = photo_item("out/a.png")
    outputs = outputs_of(predictor, "labels")
    with pytest.raises(OutputError, match=r"output: out/a.png is itself one of the sources; expected a folder apart"):
        outputs.require_apart([Item(source.path, PurePosixPath("a"), "photo")])
    twice = [photo_item(name) for name in ("a.jpg", "a.bmp")]
    with pytest.raises(OutputError, match=r"a.jpg and a.bmp would both be written to out/a.png; rename one of them"):
        outputs.require_apart(twice)
    # "a.colours" in colours is not "a" in labels, but its labels are the colours of "a".
    pair = [photo_item("b.jpg"), photo_item("b.colours.jpg")]
    with pytest.raises(OutputError, match=r"would both be written to out/b.colours.png"):
        outputs_of(predictor, "labels", "colours").require_apart(pair)
    outputs.require_apart(pair)


def test_an_old_folder_of_frames_is_replaced_and_no_other(predictor: Predictor) -> None:
    item = video_item(count=5)
    for most, count in ((None, 5), (2, 2)):
        outputs = outputs_of(predictor, "labels", frames=most)
        outputs.require_apart([item])
        predict_all(predictor, [item], outputs, quiet=True)
        assert len(list(Path("out/clip").iterdir())) == count
    outputs.require_apart([item])
    Path("out/clip/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"labels of clip.mp4 are the folder out/clip, which has files of others"):
        outputs.require_apart([item])
    Path("file").mkdir()
    Path("file/clip").write_text("mine")
    with pytest.raises(HmsaError, match="the folder file/clip, which is a file"):
        outputs_of(predictor, "labels", folder="file").require_apart([item])


def test_the_mark_is_one_line_that_tells_kinds_and_pages_apart(predictor: Predictor) -> None:
    item = photo_item("a.png")
    outputs = outputs_of(predictor, "labels", "overlay")
    page = Item(item.path, item.place, "photo", page=1)
    marks = [outputs.mark(item, "labels"), outputs.mark(item, "overlay"), outputs.mark(page, "labels")]
    assert len(set(marks)) == 3
    assert all(mark.isascii() and "\n" not in mark for mark in marks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict_all(predictor, [item], outputs, quiet=True)
    assert read_mark(Path("out/a.png")) == marks[0]
