"""The whole loop on generated scenes: teacher, labels of the rest, a student on both. What is asserted is behaviour;
the networks learn next to nothing in their few steps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

import hmsa_ext
from hmsa_ext import __main__ as program
from hmsa_ext import data
from hmsa_ext.data.automatic.corrections import write_corrections
from hmsa_ext.data.automatic.manifest import Manifest, read_manifest
from hmsa_ext.engine import checkpoint
from python_tests.autolabel.scenes import FLAGS, NAMES, SIZE, three_classes, write_scenes

ROOT = Path(hmsa_ext.__file__).parents[1]
VALUES = (0, 7, 26)
"""What the masks store for background, road and car."""
MASKS, REST = 4, 4
FEW = ("--iterations", "2", "--eval-scales", "0.5,1", *FLAGS)
CAR = NAMES.index("car")


def hmsa(*arguments: object) -> None:
    """Runs a command of the package in this process."""
    assert program.main([str(argument) for argument in arguments]) == 0, arguments


def label(output: Path, teacher: Path, *flags: str) -> Manifest:
    """Labels the scenes that have no masks."""
    hmsa("autolabel", "PHOTOS", "--model", teacher, "--output", output, "--device", "cpu", "--threads", "1", *flags)
    return read_manifest(output)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: MINE with masks, PHOTOS without, the run of a teacher, and AUTO, what it says of PHOTOS."""
    folder = tmp_path_factory.mktemp("loop")
    write_scenes(folder, train=MASKS, rest=REST, values=VALUES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HMSA_CACHE", str(folder / "cache"))
        hmsa("train", "--data", "folder", "--root", "MINE", "--output", "teacher", *FEW)
        label(folder / "AUTO", folder / "teacher")
        yield folder
    torch.set_num_threads(threads)


def on_both(auto: Path, *, sampling: data.Sampling | None = None, **trust: Any) -> data.TrainingSet:
    """The training set of a student."""
    chosen = data.DataSettings.of("folder", root="MINE", auto_labels=str(auto), **trust)
    sampling = sampling or data.Sampling(extra_crops="pooled")
    return data.open_training(chosen, sampling, data.Augment(SIZE, scale=(1.0, 1.0)), seed=0, quiet=True)[0]


@pytest.fixture
def auto(here: Path, tmp_path: Path) -> Path:
    """A copy of the labels, which a test may change."""
    return Path(shutil.copytree(here / "AUTO", tmp_path / "AUTO"))


def test_label_files_store_the_values_of_the_masks(here: Path) -> None:
    manifest = read_manifest("AUTO")
    assert (manifest.classes.names, manifest.classes.ids) == (NAMES, VALUES)
    assert {record.image for record in manifest.records.values()} == {
        f"day{1 + number % 2}/{number:04}.jpg" for number in range(MASKS, MASKS + REST)
    }
    for place in manifest.records:
        stored = cv2.imread(str(manifest.label_file(place)), cv2.IMREAD_UNCHANGED)
        assert stored is not None
        assert stored.shape == SIZE
        assert set(np.unique(stored)) <= set(VALUES)


def test_the_student_sees_the_masks_of_people_and_the_labels_of_the_teacher(here: Path) -> None:
    training = on_both(here / "AUTO", min_probability=0.0)
    assert len(training.index) == MASKS + REST
    scenes = data.Synthetic("train", size=SIZE, length=MASKS)
    for number in range(MASKS):
        np.testing.assert_array_equal(training.dataset.label(number), three_classes(scenes[number].label))
    manifest = read_manifest("AUTO")
    for number, record in enumerate(manifest.records.values()):
        np.testing.assert_array_equal(training.index.pixels[MASKS + number], record.pixels)


def test_a_threshold_counts_in_the_index_as_in_the_manifest(here: Path) -> None:
    histogram = read_manifest("AUTO").histogram
    levels = np.flatnonzero(histogram.sum(0))
    assert len(levels) > 2, "the teacher is not equally sure everywhere"
    for level in levels[[1, len(levels) // 2, -1]]:
        index = on_both(here / "AUTO", min_probability=float(level) / 255).index
        np.testing.assert_array_equal(index.pixels[MASKS:].sum(0), histogram[:, level:].sum(1))
    with pytest.raises(data.DataError, match="no pixel of the extra images has a label"):
        on_both(here / "AUTO", min_probability=1.0)


def test_corrected_pixels_reach_the_crops_of_the_training_whatever_the_threshold(auto: Path) -> None:
    manifest = read_manifest(auto)
    place = next(iter(manifest.records))
    touched = np.zeros(SIZE, bool)
    touched[:, : SIZE[1] // 2] = True
    write_corrections(manifest, place, np.full(SIZE, CAR, np.uint8), touched)
    training = on_both(auto, min_probability=1.0)
    expected = np.where(touched, CAR, data.IGNORE_LABEL)
    np.testing.assert_array_equal(training.dataset.label(MASKS), expected)
    seen = []
    for batch in map(data.cut, data.training_loader(training, batch_size=4, epoch=0, epochs=4)):
        for name, crop in zip(batch.names, batch.labels.numpy(), strict=True):
            if name == place:
                assert {*np.unique(crop)} <= {CAR, data.IGNORE_LABEL}
                seen.append(int((crop == CAR).sum()))
    assert len(seen) >= 2
    assert max(seen) > 0


def test_a_correction_makes_crops_by_class(auto: Path) -> None:
    """What people say of an automatic image is found by the sampling by class."""
    sampling = data.Sampling(share=1.0, weights={"background": 0, "road": 0})
    manifest = read_manifest(auto)
    for place in manifest.records:
        write_corrections(manifest, place, np.full(SIZE, CAR, np.uint8), np.ones(SIZE, bool))
    after = on_both(auto, sampling=sampling, min_probability=1.0)
    boxes, classes = after.sampler.draw(0)
    assert set(classes) == {CAR}
    corrected = {*boxes[:, 0]} - {*range(MASKS)}
    assert corrected, "no automatic pixel passes the threshold: the crops are about corrections"
    for image in corrected:
        assert (after.dataset.label(int(image)) == CAR).all()


def test_machines_that_share_the_work_write_the_same_folder_as_one(here: Path) -> None:
    for part in ("1/2", "2/2"):
        label(here / "SHARED", here / "teacher", "--shard", part)
    hmsa("autolabel", "merge", "SHARED")
    assert files_of(here / "SHARED") == files_of(here / "AUTO")


def test_a_manifest_is_made_anew_from_the_pairs(auto: Path, here: Path) -> None:
    before = files_of(auto)
    (auto / "manifest.json").unlink()
    label(auto, here / "teacher")
    again = files_of(auto)
    assert {name for name in before if before[name] != again.get(name)} <= {"manifest.json"}
    one, other = read_manifest(here / "AUTO"), read_manifest(auto)
    assert (one.made, one.classes, one.images) == (other.made, other.classes, other.images)
    np.testing.assert_array_equal(one.histogram, other.histogram)
    for place, record in one.records.items():
        assert vars(other.records[place]).keys() == vars(record).keys()
        np.testing.assert_array_equal(other.records[place].pixels, record.pixels)
        assert other.records[place].image == record.image


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_student_that_goes_on_ends_as_one_that_was_not(here: Path) -> None:
    begin = ["--data", "folder", "--root", "MINE", "--auto-labels", "AUTO", "--class-threshold", "median"]
    begin += ["--extra-crops", "pooled", "--checkpoint-seconds", "0", *FEW, "--iterations", "8"]
    hmsa("train", *begin, "--output", "whole")
    command = [sys.executable, "-m", "hmsa_ext", "train", *begin, "--output", "killed"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        wait_for_step(here / "killed" / "metrics.jsonl", 2, process)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert 1 <= checkpoint.load(here / "killed")["progress"]["step"] < 8
    hmsa("train", "--resume", "killed")
    for state in ("state_dict", "optimizer", "rng"):
        pieces, whole = (tree_leaves(checkpoint.load(here / run)[state]) for run in ("killed", "whole"))
        assert len(pieces) == len(whole)
        for a, b in zip(pieces, whole, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, state
    assert checkpoint.load(here / "whole")["progress"]["step"] == 8


def wait_for_step(file: Path, step: int, process: subprocess.Popen, seconds: float = 120) -> None:
    """Until a run has recorded a step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and f'"step": {step},' in file.read_text(encoding="utf-8"):
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in {file}, exit status {process.poll()}")


def test_the_student_labels_again_and_corrections_go_along(auto: Path, here: Path) -> None:
    manifest = read_manifest(auto)
    place = next(iter(manifest.records))
    write_corrections(manifest, place, np.full(SIZE, CAR, np.uint8), np.ones(SIZE, bool))
    flags = ("--data", "folder", "--root", "MINE", "--auto-labels", auto, "--extra-crops", "pooled")
    hmsa("train", *flags, "--min-probability", "0", "--output", "student", *FEW)
    before = files_of(auto)
    arguments = ["PHOTOS", "--model", "student", "--output", str(auto), "--device", "cpu", "--threads", "1"]
    assert program.main(["autolabel", *arguments]) == 2, "the folder is the teacher's"
    assert files_of(auto) == before
    again = label(here / "AGAIN", here / "student")
    assert again.made["weights_sha256"] != manifest.made["weights_sha256"]
    shutil.copytree(auto / "corrected", here / "AGAIN" / "corrected")
    training = on_both(here / "AGAIN", min_probability=1.0)
    assert (training.dataset.label(MASKS) == CAR).all()
    assert (training.dataset.label(MASKS + 1) == data.IGNORE_LABEL).all()
