"""The predict command from outside: what it writes, what it leaves as it is, how it ends, and what it says."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import hmsa_ext
from hmsa_ext import predict
from hmsa_ext.prediction.marks import read_mark
from hmsa_ext.prediction.video import Frames, VideoFile
from python_tests.prediction.networks import one_thread, photo, save, write_run

IDS = tuple(range(30, 41))
ROOT = Path(hmsa_ext.__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model whose data set stores 30 to 40 for its 11 classes."""
    return write_run(tmp_path_factory.mktemp("runs") / "first", ids=IDS)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with photos in a tree, on one thread."""
    monkeypatch.chdir(tmp_path)
    with one_thread():
        for k, name in enumerate(("a.png", "b/c.jpg", "b/d.e.png")):
            save(f"in/{name}", photo(48, 64, seed=k))
        yield tmp_path


def clip(name: str, count: int = 4) -> None:
    file = VideoFile(Path(name), 10, (48, 64))
    for k in range(count):
        file.write(photo(48, 64, seed=k))
    file.finish()


def main(run: Path, *arguments: str, output: str = "out") -> int:
    return predict.main([*arguments, "--model", str(run), "--output", output, "--device", "cpu"])


def tree(folder: str | Path = "out") -> dict[str, bytes]:
    """The content of all files, hidden ones too, by their names below the folder."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def times(folder: str = "out") -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file() and p.name != "classes.json"}


def read(name: str) -> np.ndarray:
    return np.asarray(Image.open(name))


# ---- what is written --------------------------------------------------------------------------------------------


def test_a_folder_gives_the_same_tree_of_labels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run, "in") == 0
    assert set(tree()) == {"a.png", "b/c.png", "b/d.e.png", "classes.json"}
    predictor = hmsa_ext.load(run, "cpu")
    for name, source in (("a", "in/a.png"), ("b/c", "in/b/c.jpg"), ("b/d.e", "in/b/d.e.png")):
        np.testing.assert_array_equal(read(f"out/{name}.png"), predictor.predict(source).ids())
    said = capsys.readouterr()
    assert "3 predicted in" in said.out
    assert "results are in out" in said.out
    assert said.err == ""


def test_ids_are_those_of_the_data_set_or_the_numbers_of_the_classes(run: Path) -> None:
    for ids, offset in (("dataset", 30), ("classes", 0)):
        assert main(run, "in/a.png", "--ids", ids) == 0
        labels = read("out/a.png")
        np.testing.assert_array_equal(labels, hmsa_ext.load(run, "cpu").predict("in/a.png").labels + offset)
        classes = json.loads(Path("out/classes.json").read_text())["classes"]
        assert [entry["id"] for entry in classes] == [k + offset for k in range(11)]
        assert set(np.unique(labels)) <= {entry["id"] for entry in classes}


def test_classes_json_says_what_the_files_were_made_with(run: Path) -> None:
    assert main(run, "in/a.png", "--flip", "--eval-scales", "1,2", "--opacity", "0.25") == 0
    content = json.loads(Path("out/classes.json").read_text())
    assert content["classes"][0] == {"id": 30, "name": "road", "colour": [128, 64, 128]}
    assert (content["scales"], content["flip"], content["dtype"]) == ([1, 2], True, "float32")
    assert content["model"] == str(run / "last.pt")
    assert content["settings"]["opacity"] == 0.25


def test_every_kind_has_its_file(run: Path) -> None:
    assert main(run, "in/b", "--write", "labels,colours,overlay,confidence,attention") == 0
    endings = (".png", ".colours.png", ".overlay.jpg", ".confidence.png", ".attention.png")
    assert set(tree()) == {"classes.json", *(f"{name}{ending}" for name in ("c", "d.e") for ending in endings)}
    found = hmsa_ext.load(run, "cpu").predict("in/b/c.jpg", per_scale=True)
    np.testing.assert_array_equal(read("out/c.colours.png"), found.colours())
    np.testing.assert_array_equal(read("out/c.confidence.png"), found.probabilities())
    np.testing.assert_array_equal(read("out/c.attention.png"), found.attention())
    legend = found.overlay(legend=True)
    assert read("out/c.overlay.jpg").shape == legend.shape
    assert main(run, "in/b/c.jpg", "--write", "overlay", "--no-legend", "--opacity", "0") == 0
    np.testing.assert_allclose(read("out/c.overlay.jpg").astype(int), read("in/b/c.jpg"), atol=40)


def test_pages_of_a_tiff_have_files_of_their_own(run: Path) -> None:
    pages = [Image.fromarray(photo(20, 24 + 8 * k, seed=k)) for k in range(3)]
    pages[0].save("scan.tif", save_all=True, append_images=pages[1:])
    assert main(run, "scan.tif") == 0
    assert [read(f"out/scan-page-{k}.png").shape for k in (1, 2, 3)] == [(20, 24), (20, 32), (20, 40)]
    assert main(run, "scan.tif") == 0


def test_photos_are_upright_unless_the_stored_pixels_are_asked_for(run: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    save("turned.png", photo(24, 40), exif=exif)
    assert main(run, "turned.png", "--write", "labels,overlay", "--no-legend") == 0
    upright = read("out/turned.png")
    assert upright.shape == (40, 24) == read("out/turned.overlay.jpg").shape[:2]
    assert main(run, "turned.png", "--write", "labels,overlay", "--no-legend", "--orientation", "stored") == 0
    assert read("out/turned.overlay.jpg").shape[:2] == (24, 40)
    np.testing.assert_array_equal(read("out/turned.png"), np.rot90(upright))


def test_white_of_photos_of_16_bits(run: Path) -> None:
    grey = photo(32, 40)[..., 0]
    save("bright.png", grey)
    save("deep.png", grey.astype(np.uint16) * 16)
    assert main(run, "bright.png", "deep.png", "--white", "4080") == 0
    np.testing.assert_array_equal(read("out/deep.png"), read("out/bright.png"))
    assert main(run, "deep.png") == 0  # nearly black
    assert not np.array_equal(read("out/deep.png"), read("out/bright.png"))


def test_photos_of_any_shape(run: Path) -> None:
    for size in ((24, 4000), (20, 4001), (3000, 8), (8, 8)):
        save(f"{size[0]}.png", photo(*size))
    assert main(run, "24.png", "20.png", "3000.png", "8.png", "--tile", "256", "--write", "labels,overlay") == 0
    whole = hmsa_ext.load(run, "cpu").predict("24.png")
    assert (read("out/24.png") == whole.ids()).mean() > 0.999
    assert read("out/20.png").shape == (20, 4001)
    assert read("out/3000.png").shape == (3000, 8)
    assert read("out/8.png").shape == (8, 8)


@pytest.mark.parametrize("more", [(), ("--resize-to", "64"), ("--tile", "64")], ids=str)
def test_a_photo_of_one_pixel_is_named_where_a_scale_leaves_nothing_of_it(
    run: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    save("in/dot.png", photo(1, 1))
    assert main(run, "in", *more) == 1
    assert "skipped: in/dot.png: image: 1x1 pixels leave nothing at scale 0.5; expected at least 2" in (
        capsys.readouterr().err
    )
    assert len(tree()) == 4
    for scales in ("1", "1,2"):
        assert main(run, "in/dot.png", "--eval-scales", scales, "--resize-to", "64") == 0
        assert read("out/dot.png").shape == (1, 1)


def test_a_video_gives_a_video_and_a_folder_of_labels(run: Path) -> None:
    clip("clip.mp4")
    assert main(run, "clip.mp4", "--write", "labels,overlay,attention,confidence,colours") == 0
    kinds = ("overlay", "attention", "confidence", "colours")
    assert {p.name for p in Path("out").iterdir()} == {"classes.json", "clip", *(f"clip.{kind}.mp4" for kind in kinds)}
    assert sorted(p.name for p in Path("out/clip").iterdir()) == [f"{k:06d}.png" for k in range(4)]
    predictor = hmsa_ext.load(run, "cpu")
    with Frames("clip.mp4") as frames, Frames("out/clip.overlay.mp4") as drawn:
        assert (drawn.fps, drawn.count, drawn.size) == (10, 4, (48, 64))
        for k, (frame, over) in enumerate(zip(frames, drawn, strict=True)):
            found = predictor.predict(frame)
            np.testing.assert_array_equal(read(f"out/clip/{k:06d}.png"), found.ids())
            np.testing.assert_allclose(over.astype(int).mean(), found.overlay().mean(), atol=3)


def test_a_video_alone_gives_an_overlay_of_its_first_frames(run: Path) -> None:
    clip("clip.mp4", 6)
    for wanted, there in (("2", 2), ("9", 6)):
        assert main(run, "clip.mp4", "--frames", wanted) == 0
        with Frames("out/clip.overlay.mp4") as drawn:
            assert len(list(drawn)) == there
    assert set(tree()) == {"classes.json", "clip.overlay.mp4"}


def test_the_first_frames_are_not_taken_for_the_whole_video(run: Path) -> None:
    clip("clip.mp4", 6)
    assert main(run, "clip.mp4", "--frames", "2", "--write", "labels,overlay") == 0
    assert main(run, "clip.mp4", "--write", "labels,overlay") == 0
    assert len(list(Path("out/clip").iterdir())) == 6
    with Frames("out/clip.overlay.mp4") as drawn:
        assert drawn.count == 6


def test_names_come_from_lists_and_standard_input(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_text("in/a.png\n# not this one: in/b/c.jpg\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("in/a.png\nin/b/c.jpg\n"))
    assert main(run, "@list.txt") == 0
    assert main(run, "-", output="piped") == 0
    assert set(tree()) == {"classes.json", "a.png"}
    assert set(tree("piped")) == {"classes.json", "a.png", "b/c.png"}


# ---- going on ---------------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip("in/clip.mp4")
    arguments = ("in", "--write", "labels,overlay")
    assert main(run, *arguments) == 0
    before = times()
    capsys.readouterr()
    assert main(run, *arguments) == 0
    assert times() == before
    said = capsys.readouterr().out
    assert "4 of 4 are there already" in said
    assert "0 predicted, 4 there already" in said
    assert main(run, *arguments, "--redo") == 0
    assert all(time != before[name] for name, time in times().items())
    assert set(times()) == set(before)


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (("--flip",), {"a.png", "a.overlay.jpg"}),
        (("--eval-scales", "1"), {"a.png", "a.overlay.jpg"}),
        (("--fusion", "max"), {"a.png", "a.overlay.jpg"}),
        (("--resize-to", "40"), {"a.png", "a.overlay.jpg"}),
        (("--tile", "64"), {"a.png", "a.overlay.jpg"}),
        (("--orientation", "stored"), {"a.png", "a.overlay.jpg"}),
        (("--ids", "classes"), {"a.png"}),
        (("--opacity", "0.3"), {"a.overlay.jpg"}),
        (("--no-legend",), {"a.overlay.jpg"}),
        (("--write", "labels,overlay,confidence"), {"a.confidence.png"}),
        (("--threads", "1", "--shard", "1/1"), set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_other_settings_make_again_what_depends_on_them(run: Path, change: tuple[str, ...], redone: set[str]) -> None:
    assert main(run, "in/a.png", "--write", "labels,overlay") == 0
    before = times()
    assert main(run, "in/a.png", "--write", "labels,overlay", *change) == 0
    assert {Path(name).name for name, time in times().items() if time != before.get(name)} == redone


def test_another_model_makes_everything_again(run: Path) -> None:
    other = write_run(Path("other").absolute(), seed=1, ids=IDS)
    assert main(run, "in") == 0
    before = times()
    assert main(other, "in") == 0
    assert all(time != before[name] for name, time in times().items())
    # The same weights in another place are the same model.
    shutil.copytree(run, "moved")
    assert main(other, "in") == 0
    before = times()
    shutil.copytree(other, "elsewhere")
    assert main(Path("elsewhere"), "in") == 0
    assert times() == before


def test_what_changed_was_deleted_or_was_damaged_is_made_again(run: Path) -> None:
    clip("in/clip.mp4")
    assert main(run, "in", "--write", "labels") == 0
    complete, before = tree(), times()
    save("in/a.png", photo(48, 64, seed=9))
    Path("out/b/c.png").unlink()
    data = Path("out/b/d.e.png").read_bytes()
    Path("out/b/d.e.png").write_bytes(data[: len(data) // 2])
    Path("out/clip/000002.png").unlink()
    assert main(run, "in", "--write", "labels") == 0
    assert set(times()) == set(before)
    after = tree()
    assert {name for name in after if after[name] != complete[name]} == {"a.png"}


def test_what_a_killed_run_left_is_removed_and_the_rest_stays(run: Path) -> None:
    clip("in/clip.mp4")
    gone, alive = 5_000_000, os.getppid()  # no system has processes of so high a number
    half = (f".a.png.{gone}.tmp", f"b/.c.png.{gone}.tmp", f".clip.overlay.mp4.{gone}.tmp.mp4")
    left = [f"out/{name}" for name in (*half, f".clip.{gone}.tmp/000000.png")]
    foreign = (f".other.png.{gone}.tmp", ".a.png.x.tmp", f".a.png.b.png.{gone}.tmp", ".git/x", "mine.png")
    others = [f"out/{name}" for name in (*foreign, f".a.png.{alive}.tmp")]
    for name in (*left, *others):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"half")
    assert main(run, "in", "--write", "labels,overlay") == 0
    assert not [name for name in left if Path(name).exists()]
    assert not Path(f"out/.clip.{gone}.tmp").exists()
    assert all(Path(name).read_bytes() == b"half" for name in others)


def start(run: Path, output: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hmsa_ext.predict", *arguments, "--model", str(run), "--output", output]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=_hear_interrupts if os.name == "posix" else None,
    )  # fmt: skip


def _hear_interrupts() -> None:
    """A shell that runs the tests in the background makes what they start ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_run_that_is_ended_leaves_whole_files_and_the_next_one_completes_them(
    run: Path, number: str, status: int
) -> None:
    if not hasattr(signal, number):
        pytest.skip(f"needs {number}")
    for k in range(60):
        save(f"many/{k:02d}.png", photo(300, 400, seed=k))
    clip("many/video.mp4", 20)
    arguments = ("many", "--write", "labels,overlay")
    process = start(run, "out", *arguments)
    patience = time.monotonic() + 60
    while not list(Path("out").glob("*.overlay.jpg")) and time.monotonic() < patience:
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    _, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert "Traceback" not in error
    broken = tree()
    assert main(run, *arguments, output="whole") == 0
    whole = tree("whole")
    assert 1 < len(broken) < len(whole)
    visible = {name: data for name, data in broken.items() if "/." not in f"/{name}"}
    assert all(data == whole[name] for name, data in visible.items())
    if number != "SIGKILL":
        assert visible == broken
    assert main(run, *arguments) == 0
    assert tree() == whole


# ---- sharing ----------------------------------------------------------------------------------------------------


def test_shards_give_together_what_one_run_gives(run: Path) -> None:
    clip("in/clip.mp4")
    assert main(run, "in") == 0
    whole, counts = tree(), []
    for k in (1, 2, 3):
        assert main(run, "in", "--shard", f"{k}/3", output="parts") == 0
        counts.append(len(tree("parts")))
    assert tree("parts") == whole
    assert counts == sorted(set(counts))


def torchrun(
    run: Path, *arguments: str, program: tuple[str, ...] = ("-m", "hmsa_ext.predict")
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [*program, *arguments, "--model", str(run), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)


ENDS = """
import sys, threading
from pathlib import Path
from hmsa_ext import predict

status = predict.main()
tasks = Path("/proc/self/task")
left = [path.read_text().strip() for path in tasks.glob("*/comm")] if tasks.exists() else []
left = [name for name in left if "gloo" in name] + threading.enumerate()[1:]
sys.stderr.write(f"left over: {left}\\n")  # at once, so that two processes do not mix their lines
sys.exit(status)
"""


@pytest.mark.distributed
def test_no_thread_of_a_process_outlives_the_work(run: Path) -> None:
    """One that meets the end of the interpreter aborts the process now and then."""
    Path("ends.py").write_text(ENDS)
    done = torchrun(run, "in", "--output", "two", program=("ends.py",))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left over: []") == 2


@pytest.mark.distributed
def test_two_processes_give_what_one_gives_and_tell_of_both_shares(run: Path) -> None:
    assert main(run, "in") == 0
    done = torchrun(run, "in", "--output", "two", "--json", "report.json")
    assert done.returncode == 0, done.stderr
    assert tree("two") == tree()
    assert json.loads(Path("report.json").read_text())["predicted"] == 3
    assert "3 predicted in" in done.stdout
    # The second process has the second source, which cannot be read.
    Path("in/aa.png").write_bytes(b"no picture")
    done = torchrun(run, "in", "--output", "two", "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert (report["already_done"], [entry["source"] for entry in report["skipped"]]) == (3, ["in/aa.png"])
    assert "1 could not be predicted: in/aa.png" in done.stderr
    assert "exitcode  : 1" in done.stderr


# ---- what goes wrong --------------------------------------------------------------------------------------------


def test_sources_that_cannot_be_read_are_named_and_the_others_predicted(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("in/text.jpg").write_text("no picture")
    Path("in/empty.png").write_bytes(b"")
    Path("in/cut.png").write_bytes(Path("in/a.png").read_bytes()[:500])
    Path("in/film.mp4").write_bytes(b"no film")
    os.symlink("nowhere.png", "in/gone.png")  # as a file that was deleted after it was found
    save("in/locked.png", photo(48, 64))
    real = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "locked.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert main(run, "in", "--json", "report.json") == 1
    error = capsys.readouterr().err
    names = ["cut.png", "empty.png", "gone.png", "locked.png", "text.jpg", "film.mp4"]
    for name, reason in zip(
        names, ("", "is empty", "No such file", "Permission", "not a picture", "no vid"), strict=True
    ):
        lines = [line for line in error.splitlines() if line.startswith(f"skipped: in/{name}: ")]
        assert len(lines) == 1, name
        assert reason in lines[0]
    assert f"6 could not be predicted: {', '.join(f'in/{name}' for name in names)}" in error
    assert {"a.png", "b/c.png", "b/d.e.png"} <= set(tree())
    report = json.loads(Path("report.json").read_text())
    assert report["predicted"] == 3
    assert [entry["source"] for entry in report["skipped"]] == [f"in/{name}" for name in names]
    assert report["skipped"][1]["reason"] == "the file is empty"


def test_a_video_that_was_cut_off_is_named_and_what_is_there_predicted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = cv2.VideoWriter("whole.avi", cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for k in range(30):
        writer.write(photo(48, 64, seed=k))
    writer.release()
    Path("cut.avi").write_bytes(Path("whole.avi").read_bytes()[: Path("whole.avi").stat().st_size // 2])
    assert main(run, "cut.avi") == 1
    assert "warning: cut.avi: ends after" in capsys.readouterr().err
    with Frames("out/cut.overlay.mp4") as drawn:
        assert 0 < len(list(drawn)) < 30


def test_a_photo_too_large_for_the_memory_is_named_and_the_others_predicted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save("in/b/large.png", photo(6000, 9000), compress_level=1)
    assert main(run, "in", "--memory", "240MiB") == 1
    error = capsys.readouterr().err
    assert "skipped: in/b/large.png: memory: got 240 MiB, expected at least " in error.replace("'", "")
    assert {"a.png", "b/c.png", "b/d.e.png"} <= set(tree())


def test_no_space_left_is_one_line_and_what_is_done_is_kept(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(run, "in/b") == 0
    before, real = tree(), os.fsync

    def full(file: int) -> None:
        if "a.png" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs the names of open files")
    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert main(run, "in/b", "in/a.png") == 2
    error = capsys.readouterr().err
    assert error == (
        "error: output: no space is left for out/a.png; make some, and run the same command again: what is done is "
        "kept\n"
    )
    assert {name: data for name, data in tree().items() if name != "classes.json"} == {
        name: data for name, data in before.items() if name != "classes.json"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "--output", "out"], "sources: not found: absent.png"),
        (["nothing", "--output", "out"], "no picture or video in the folder nothing"),
        (["in", "--output", "in"], "output: in is the folder of the sources, too; expected another one"),
        (["in/a.png", "other/a.jpg", "--output", "out"], "in/a.png and other/a.jpg would be the same files"),
        (["in/a.png", "clip.mp4", "--output", "afile"], "output: afile is a file, or lies in one; expected a folder"),
        (["in"], "predict: expected --output FOLDER: where the results go; got none"),
        (["--output", "out"], "predict: expected SOURCE: photos, folders or videos; got none"),
        (["in", "--output", "out", "--write", "label"], "write: got label, expected some of labels, colours"),
        (["in", "--output", "out", "--tile", "5"], "tile: got 5, expected N or HxW in pixels, at least 64"),
        (["in", "--output", "out", "--shard", "4/3"], "shard: got 4,3, expected K/N with K from 1 to N"),
        (["in", "--output", "out", "--white", "0"], "white: got 0, expected a value from 1 to 65535"),
        (["in", "--output", "out", "--opacity", "2"], "opacity: got 2"),
        (["in", "--output", "out", "--frames", "0"], "frames: got 0, expected a number above 0"),
        (["in", "--output", "out", "--json", "in"], "json: in is a folder; expected a file"),
        (
            ["tree", "--output", "out", "--write", "labels"],
            "the labels of tree/clip.mp4 are the folder out/clip, and tree/clip/a.png would be written in it",
        ),
        (["b", "--output", "."], "sources: not found: b"),
        (["clip.mp4", "--output", "."], "the results of clip.mp4 would lie beside it"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("nothing").mkdir()
    Path("afile").write_text("")
    clip("clip.mp4", 1)
    save("other/a.jpg", photo(8, 8))
    save("tree/clip/a.png", photo(8, 8))
    shutil.copy("clip.mp4", "tree/clip.mp4")
    assert predict.main([*arguments, "--model", str(run), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not Path("out").exists() or not [name for name in tree() if name != "classes.json"]


@pytest.mark.parametrize("given", ["lots", "1MB", "0.0001", "-1", "4 elephants"])
def test_memory_that_cannot_be_meant_is_named(run: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(run, "in", f"--memory={given}")
    assert ended.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"--memory: got '{given}', expected memory such as 4GB, 1.5GiB or 800MB; a number alone is GiB" in error


@pytest.mark.parametrize("labels", ["files of the user", "a frame of another program"])
def test_a_folder_of_others_is_never_replaced_by_frames(
    run: Path, labels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip("clip.mp4", 2)
    name = "out/clip/thesis.txt" if labels == "files of the user" else "out/clip/000000.png"
    save("out/clip/000001.png", photo(8, 8))
    save("frame.png", photo(8, 8))
    shutil.copy("frame.png", name)
    before = tree()
    assert main(run, "clip.mp4", "--write", "labels") == 2
    assert (
        "output: the labels of clip.mp4 are the folder out/clip, which has files of others" in capsys.readouterr().err
    )
    assert tree() == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "predict: expected --model RUN: a run folder, a checkpoint or a .safetensors file"),
        ("absent", "no file absent; expected a checkpoint, or a run folder with a last.pt"),
        ("in", "no file in/last.pt; expected a checkpoint, or a run folder with a last.pt"),
        ("in/a.png", "cannot read in/a.png: not a checkpoint"),
        ("results.json", "cannot read results.json: not a checkpoint"),
    ],
)
def test_what_is_no_model_is_named(model: str | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("results.json").write_text(json.dumps({"miou": {"mean": 0.5}}))
    given = [] if model is None else ["--model", model]
    assert predict.main(["in", "--output", "out", *given]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_without_a_model_the_newest_run_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, "runs/mine")
    assert predict.main(["in", "--output", "out"]) == 2
    assert "the newest run here is runs/mine" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**given: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert main(run, "in") == 2
    assert (
        "output: out cannot be written, since no file can be made in out: Permission denied" in capsys.readouterr().err
    )


# ---- what it says -----------------------------------------------------------------------------------------------


def test_json_is_a_file_or_all_of_standard_output(run: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    clip("in/clip.mp4", 3)
    assert main(run, "in", "--json", "deep/report.json") == 0
    capsysbinary.readouterr()
    assert main(run, "in", "--json", "-", "--redo") == 0
    output, error = capsysbinary.readouterr()
    for report in (json.loads(Path("deep/report.json").read_text()), json.loads(output)):
        assert (report["predicted"], report["frames"], report["already_done"]) == (4, 3, 0)
        assert report["skipped"] == []
        assert report["model"] == str(run / "last.pt")
        assert report["seconds_by_part"].keys() == {"read", "predict", "write", "waited"}
        assert report["peak_bytes"] > 0
    assert b"results are in out" in error


def test_memory_is_said_as_it_was_given(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, shown in (("500MB", "477 MiB"), ("2", "2.0 GiB"), ("1.5GiB", "1.5 GiB")):
        assert main(run, "in/a.png", "--memory", given, "--redo") == 0
        assert f"(limit {shown})" in capsys.readouterr().out


def test_the_help_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    text = capsys.readouterr().out
    for flag in ("--model", "--output", "--write", "--tile", "--eval-scales", "--device", "--json", "SOURCE"):
        assert flag in text
    for flag in ("--pictures", "--batch-size", "--workers", "--lr"):
        assert f"{flag} " not in text


def test_every_result_has_the_mark_of_its_source(run: Path) -> None:
    assert main(run, "in/a.png", "in/b/c.jpg", "--write", "labels,overlay") == 0
    marks = [read_mark(path) for path in Path("out").iterdir() if path.suffix != ".json"]
    assert len(set(marks)) == 4
    about = Path("in/a.png").stat()
    assert sum(f"source {about.st_size}-{about.st_mtime_ns} page 0" in (mark or "") for mark in marks) == 2
