"""The command that labels: what it writes, what it leaves as it is, how machines share the work, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hmsa_ext
from hmsa_ext.autolabel import __main__ as autolabel
from hmsa_ext.data.automatic.corrections import write_corrections
from hmsa_ext.data.automatic.manifest import Manifest, read_manifest
from hmsa_ext.files import OutputError
from hmsa_ext.prediction.label_pairs import LabelPairs
from hmsa_ext.prediction.marks import read_mark
from python_tests.prediction.networks import one_thread, photo, save, write_run

IDS = tuple(range(30, 41))
ROOT = Path(hmsa_ext.__file__).parents[1]
NAMES = ("a", "b/c", "b/d.e")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose data set stores 30 to 40 for its 11 classes."""
    return write_run(tmp_path_factory.mktemp("runs") / "first", ids=IDS)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with photos in a tree, on one thread."""
    monkeypatch.chdir(tmp_path)
    with one_thread():
        for k, name in enumerate(tuple(f"{name}.png" for name in NAMES)):
            save(f"in/{name}", photo(48, 64, seed=k))
        yield tmp_path


def main(run: Path, *arguments: str, output: str = "out", source: str = "in") -> int:
    return autolabel.main([source, *arguments, "--model", str(run), "--output", output, "--device", "cpu"])


def read(name: str | Path) -> np.ndarray:
    return np.asarray(Image.open(name))


def pictures(folder: str = "out") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.png"))}


def expect_counted(manifest: Manifest) -> None:
    """That the manifest's figures are those of its files."""
    ids = manifest.classes.ids
    assert ids is not None
    histogram = np.zeros((len(ids), 256), np.int64)
    for place, record in manifest.records.items():
        values, levels = read(manifest.label_file(place)), read(manifest.probability_file(place))
        labels = np.searchsorted(ids, values)
        np.add.at(histogram, (labels, levels), 1)
        assert record.size == labels.shape
        assert record.pixels.tolist() == np.bincount(labels.ravel(), minlength=len(ids)).tolist()
        assert record.probability == pytest.approx(levels.mean() / 255, abs=1e-5)
        assert manifest.image_file(place).is_file()
    assert np.array_equal(manifest.histogram, histogram)


# ---- what is written --------------------------------------------------------------------------------------------


def test_labels_and_probabilities_are_those_of_the_predictor(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run, "--flip", "--eval-scales", "0.5,1") == 0
    predictor = hmsa_ext.load(run, "cpu")
    for name in NAMES:
        found = predictor.predict(f"in/{name}.png", scales=(0.5, 1.0), flip=True)
        labels, levels = read(f"out/labels/{name}.png"), read(f"out/probabilities/{name}.png")
        assert labels.dtype == levels.dtype == np.uint8
        assert np.array_equal(labels, found.labels + 30)
        assert np.array_equal(levels, np.floor(found.confidence.astype(np.float32) * np.float32(255)))
    manifest = read_manifest("out")
    assert list(manifest.records) == list(NAMES)
    assert manifest.images == Path("in").absolute()
    assert (manifest.made["scales"], manifest.made["flip"]) == ([0.5, 1.0], True)
    assert manifest.made["weights_sha256"] == hmsa_ext.engine.trained.open_model(run).digest
    assert manifest.classes.ids == IDS
    expect_counted(manifest)
    assert "labels 3 images" in capsys.readouterr().out


def test_ids_may_be_the_numbers_of_the_classes(run: Path) -> None:
    assert main(run, "--ids", "classes") == 0
    assert read("out/labels/a.png").max() <= 10
    assert read_manifest("out").classes.ids == tuple(range(11))


def test_ids_above_255_take_16_bits(tmp_path: Path) -> None:
    wide = write_run(tmp_path / "wide", ids=(*range(10), 30000))
    assert main(wide) == 0
    values = read("out/labels/a.png")
    labels = hmsa_ext.load(wide, "cpu").predict("in/a.png").labels
    assert values.dtype in (np.uint16, np.int32)  # as Pillow has 16 bits
    assert np.array_equal(values, np.array([*range(10), 30000])[labels])
    expect_counted(read_manifest("out"))


def test_the_layout_of_cityscapes(run: Path) -> None:
    save("city/aachen/aachen_000000_000019_leftImg8bit.png", photo(48, 64))
    assert main(run, "--layout", "cityscapes", source="city") == 0
    stem = "out/aachen/aachen_000000_000019_leftImg8bit"
    assert read(f"{stem}.png").shape == read(f"{stem}_prob.png").shape == (48, 64)
    assert read_manifest("out").layout == "cityscapes"


def test_labels_lie_as_the_file_stores_its_pixels(run: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    save("turned/x.jpg", photo(48, 64), exif=exif)
    assert main(run, source="turned") == 0
    assert read("out/labels/x.png").shape == (48, 64)
    assert np.array_equal(read("out/labels/x.png"), hmsa_ext.load(run, "cpu").predict("turned/x.jpg").stored().ids())


# ---- nothing twice, nothing half --------------------------------------------------------------------------------


def test_a_second_run_labels_what_is_missing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run) == 0
    before = pictures()
    times = {name: Path("out", name).stat().st_mtime_ns for name in before}
    Path("out/labels/b/c.png").unlink()
    Path("out/probabilities/b/d.e.png").unlink()
    capsys.readouterr()
    assert main(run) == 0
    assert "2 predicted, 1 there already" in capsys.readouterr().out
    assert pictures() == before
    assert Path("out/labels/a.png").stat().st_mtime_ns == times["labels/a.png"]
    expect_counted(read_manifest("out"))


def test_a_changed_image_is_labelled_again_and_counted_once(run: Path) -> None:
    assert main(run) == 0
    save("in/a.png", photo(48, 64, seed=9))
    assert main(run) == 0
    assert np.array_equal(read("out/labels/a.png"), hmsa_ext.load(run, "cpu").predict("in/a.png").ids())
    expect_counted(read_manifest("out"))


def test_corrections_of_an_image_that_changed_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run) == 0
    write_corrections(read_manifest("out"), "b/c", np.ones((48, 64), np.uint8), np.ones((48, 64), bool))
    for _ in range(2):
        assert main(run, "--redo") == 0
        assert "warning" not in capsys.readouterr().err
    save("in/b/c.png", photo(48, 64, seed=9))
    assert main(run) == 0
    assert "out/corrected/b/c.png: people corrected the labels of an image" in capsys.readouterr().err


def test_more_images_are_added_to_the_manifest(run: Path) -> None:
    assert main(run) == 0
    save("more/z/new.png", photo(40, 56, seed=5))
    assert main(run, source="more") == 0
    manifest = read_manifest("out")
    assert list(manifest.records) == [*NAMES, "z/new"]
    assert manifest.images == Path().absolute()
    expect_counted(manifest)


def test_a_killed_run_leaves_no_half_pair_and_goes_on(run: Path) -> None:
    for k in range(30):
        save(f"many/{k:03d}.png", photo(96, 128, seed=k))
    command = [sys.executable, "-m", "hmsa_ext.autolabel", "many", "--model", str(run), "--output", "out"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(Path("out/labels").glob("0*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name for path in Path("out/labels").glob("0*.png")}
    assert 3 <= len(done) < 30
    assert done <= {path.name for path in Path("out/probabilities").glob("0*.png")}
    assert main(run, source="many") == 0
    manifest = read_manifest("out")
    assert len(manifest.records) == 30
    expect_counted(manifest)  # those of the killed run, too
    assert not list(Path("out").rglob(".*"))


def test_redo_labels_again_and_counts_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run) == 0
    capsys.readouterr()
    assert main(run, "--redo") == 0
    assert "3 predicted" in capsys.readouterr().out
    expect_counted(read_manifest("out"))


@pytest.mark.parametrize("redo", [False, True])
def test_a_run_that_is_killed_over_labels_that_it_replaced_leaves_no_wrong_figures(
    run: Path, redo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(run) == 0
    save("in/a.png", photo(48, 64, seed=9))
    update = LabelPairs.update_manifest

    def killed(self: LabelPairs, *arguments: Any, **options: Any) -> Manifest:
        if self.labelled.records:
            raise OutputError("killed before the manifest is written")
        return update(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LabelPairs, "update_manifest", killed)
        assert main(run, *["--redo"] * redo) == 2
    expect_counted(read_manifest("out"))
    assert main(run) == 0
    assert list(read_manifest("out").records) == list(NAMES)
    expect_counted(read_manifest("out"))


# ---- machines ---------------------------------------------------------------------------------------------------


def test_parts_are_together_what_one_run_gives(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run, output="whole") == 0
    assert main(run, "--shard", "2/2") == 0
    assert main(run, "--shard", "1/2") == 0
    assert sorted(path.name for path in Path("out").glob("*.json")) == ["manifest.1-of-2.json", "manifest.2-of-2.json"]
    assert pictures() == pictures("whole")
    parts, whole = read_manifest("out"), read_manifest("whole")
    assert list(parts.records) == list(whole.records)
    assert np.array_equal(parts.histogram, whole.histogram)
    assert autolabel.main(["merge", "out"]) == 0
    assert [path.name for path in Path("out").glob("*.json")] == ["manifest.json"]
    assert Path("out/manifest.json").read_text() == Path("whole/manifest.json").read_text()
    assert "one manifest of 3 images" in capsys.readouterr().out


def test_a_run_without_parts_takes_those_of_parts_in(run: Path) -> None:
    assert main(run, "--shard", "1/2") == 0
    assert main(run) == 0
    assert [path.name for path in Path("out").glob("*.json")] == ["manifest.json"]
    expect_counted(read_manifest("out"))


def test_merging_leaves_out_what_is_gone(run: Path) -> None:
    assert main(run) == 0
    Path("out/labels/a.png").unlink()
    assert autolabel.main(["merge", "out"]) == 0
    assert list(read_manifest("out").records) == ["b/c", "b/d.e"]
    expect_counted(read_manifest("out"))


@pytest.mark.distributed
def test_torchrun_gives_the_same_folder(run: Path) -> None:
    assert main(run, output="whole") == 0
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29733", "-m",
        "hmsa_ext.autolabel", "in", "--model", str(run), "--output", "out", "--device", "cpu",
    ]  # fmt: skip
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert pictures() == pictures("whole")
    assert Path("out/manifest.json").read_text() == Path("whole/manifest.json").read_text()


def test_a_folder_that_was_moved_with_its_images_finds_them(run: Path) -> None:
    assert main(run, source="in") == 0
    Path("elsewhere").mkdir()
    shutil.move("in", "elsewhere/in")
    shutil.move("out", "elsewhere/out")
    assert all(read_manifest("elsewhere/out").image_file(name).is_file() for name in NAMES)


# ---- what is refused --------------------------------------------------------------------------------------------


def test_labels_of_another_teacher_are_an_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run) == 0
    before = pictures()
    other = write_run(tmp_path / "other", ids=IDS, seed=1)
    for arguments, model, what in (
        ([], other, "weights_sha256"),
        (["--flip"], run, "flip"),
        (["--eval-scales", "1"], run, "scales"),
        (["--ids", "classes"], run, "settings, classes"),
        (["--redo"], other, "weights_sha256"),
    ):
        capsys.readouterr()
        assert main(model, *arguments) == 2
        error = capsys.readouterr().err
        assert "labels of another teacher or other settings" in error
        assert what in error
    Path("out/manifest.json").unlink()
    assert main(other) == 2
    assert "a.png is of another teacher" in capsys.readouterr().err
    assert pictures() == before


def test_a_label_file_that_somebody_painted_in_is_not_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run) == 0
    painted = read("out/labels/a.png").copy()
    painted[0, 0] = 31
    Image.fromarray(painted).save("out/labels/a.png")
    assert read_mark(Path("out/labels/a.png")) is None
    assert main(run) == 2
    error = capsys.readouterr().err
    assert "was edited" in error
    assert "hmsa autolabel import" in error
    assert np.array_equal(read("out/labels/a.png"), painted)


def test_what_a_data_set_could_not_read_again_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photo(8, 8)).save("pages.tif", save_all=True, append_images=[Image.fromarray(photo(8, 8))])
    assert main(run, source="pages.tif") == 2
    assert "several pages" in capsys.readouterr().err
    Path("clip.mp4").write_bytes(b"x")
    assert main(run, source="clip.mp4") == 2
    assert "clip.mp4 is a video; expected images" in capsys.readouterr().err
    assert not list(Path("out").rglob("*.png"))


def test_labels_of_another_image_of_the_same_name_are_not_replaced(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run) == 0
    before = pictures()
    save("other/a.png", photo(40, 56, seed=5))
    for arguments in ([], ["--redo"], ["--shard", "1/1"]):
        assert main(run, *arguments, source="other") == 2
        error = capsys.readouterr().err
        assert "out has labels of " in error
        assert "in/a.png, which those of other/a.png would replace; expected another folder" in error
    assert pictures() == before
    shutil.move("in", "moved")  # images that were moved are the same ones
    assert main(run, source="moved") == 0
    assert "0 predicted, 3 there already" in capsys.readouterr().out
    assert pictures() == before
    assert read_manifest("out").images == Path("moved").absolute()


@pytest.mark.parametrize(
    ("name", "text"),
    [("x_prob", "names that end in _prob are those of the probabilities"), ("corrected/x", "people's corrections")],
)
def test_names_that_the_layout_of_cityscapes_needs_are_refused(
    run: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save("city/x.png", photo(48, 64))
    save(f"city/{name}.png", photo(48, 64, seed=1))
    assert main(run, "--layout", "cityscapes", source="city") == 2
    assert text in capsys.readouterr().err
    assert not list(Path("out").rglob("*.png"))
    assert main(run, source="city") == 0


def test_a_name_that_the_manifest_cannot_hold_is_refused_before_the_work(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        shutil.copy("in/a.png", b"in/\xff.png".decode(errors="surrogateescape"))
    except OSError:
        pytest.skip("this file system stores names in UTF-8 alone")
    assert main(run) == 2
    assert "'in/\\udcff.png' is not in UTF-8" in capsys.readouterr().err
    assert not list(Path("out").rglob("*.png"))


def test_an_image_that_cannot_be_read_is_named_and_the_rest_is_labelled(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(run) == 1
    assert "broken.png" in capsys.readouterr().err
    assert list(read_manifest("out").records) == list(NAMES)


def test_what_is_missing_on_the_command_line_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert autolabel.main(["in", "--output", "out"]) == 2
    assert "autolabel: expected --model RUN" in capsys.readouterr().err
    assert autolabel.main(["merge", "in"]) == 2
    assert "no manifest.json in it" in capsys.readouterr().err


def test_the_report_as_json_says_what_was_done(run: Path) -> None:
    assert main(run, "--json", "done.json") == 0
    assert json.loads(Path("done.json").read_text())["predicted"] == 3
