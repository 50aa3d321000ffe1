"""Where there is no memory left, one line says what was tried and what helps, whatever command it was."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from hmsa_ext import HmsaError
from hmsa_ext.engine.out_of_memory import NotEnoughMemoryError, explained, shown_images, shown_scales
from hmsa_ext.settings import SettingError
from python_tests.prediction.networks import save, write_run

ROOT = Path(__file__).parents[2]

resource = pytest.importorskip("resource", reason="only Unix limits the memory of a process")

STARVED = """
import resource, sys
import numpy, torch, torch._dynamo
import hmsa_ext
from hmsa_ext import evaluate, predict, train
from hmsa_ext.autolabel import label

torch.set_num_threads(1)
numpy.ones((64, 64)) @ numpy.ones((64, 64))  # takes the buffers of its library now: that ends the process without them
command = {{"train": train, "evaluate": evaluate, "predict": predict, "autolabel": label}}[sys.argv[1]].main
{before}
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + {spare} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(command(sys.argv[2:]))
"""


def starved(spare: int, *arguments: str, folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """A command in a process that gets only so many MiB of addresses more than it has after its imports."""
    # The network of the run is one of the tests'. The heap of a thread reserves addresses, which the limit counts: one
    # heap for all makes what is left the same in each run.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        [sys.executable, "-c", STARVED.format(spare=spare, before=before), *arguments], cwd=folder, env=environment,
        text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder of a network that needs much more for large images than these take."""
    return write_run(tmp_path_factory.mktemp("out_of_memory") / "run")


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.memory
def test_a_training_that_does_not_fit_names_what_takes_less(tmp_path):
    done = starved(
        700, "train", "--size", "1024x1024", "--crop", "1024x1024", "--length", "2", "--val-length", "1",
        "--batch-size", "2", "--device", "cpu", "--epochs", "1", "--output", str(tmp_path / "run"), folder=tmp_path,
    )  # fmt: skip
    line = one_line(done)
    assert "memory: there was not enough for a training step on 2 crops of 1024x1024 at the scales 0.5, 1" in line
    for remedy in ("--recompute all", "a --batch-size below 2", "a --crop below 1024x1024", "--dtype bfloat16"):
        assert remedy in line
    assert "--dry-run" in line


@pytest.mark.memory
def test_an_evaluation_that_does_not_fit_names_tiles_and_scales(trained, tmp_path):
    done = starved(
        450, "evaluate", str(trained), "--size", "1024x1024", "--val-length", "1", "--device", "cpu", "--pictures", "0",
        "--eval-scales", "1,8", folder=tmp_path,
    )  # fmt: skip
    line = one_line(done)
    assert "memory: there was not enough for evaluating an image of 1024x1024 at the scales 1, 8" in line
    for remedy in ("--memory", "--tile", "--eval-scales"):
        assert remedy in line


@pytest.mark.memory
def test_images_that_do_not_fit_are_one_line_too(trained, tmp_path):
    done = starved(
        100, "evaluate", str(trained), "--size", "3072x3072", "--val-length", "1", "--device", "cpu", folder=tmp_path
    )  # fmt: skip
    assert "memory: there was not enough to hold images, labels or files; stop what else uses it" in one_line(done)


@pytest.mark.memory
@pytest.mark.parametrize("command", ["predict", "autolabel"])
def test_a_photo_that_does_not_fit_names_itself_and_what_helps(command, trained, tmp_path):
    save(tmp_path / "large.png", np.zeros((3000, 3000, 3), np.uint8))
    done = starved(
        250, command, "large.png", "--model", str(trained), "--output", "out", "--memory", "8GB", "--device", "cpu",
        folder=tmp_path,
    )  # fmt: skip
    line = one_line(done)
    assert "large.png: memory: there was not enough for predicting a photo of 3000x3000 at once" in line
    assert "at the scales 0.5, 1" in line
    for remedy in ("--memory", "--tile", "--eval-scales", "--resize-to"):
        assert remedy in line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("out of memory: cannot allocate a tensor [1, 2] of float32 on cpu"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_errors_of_all_allocators_become_one(error):
    expected = r"^memory: there was not enough for a; b; or stop"
    with pytest.raises(NotEnoughMemoryError, match=expected) as caught, explained("a", "b"):
        raise error
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, HmsaError)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), SettingError("memory", "1", "out of memory"), OSError()]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, explained("a", "b"):
        raise error
    assert caught.value is error


def test_what_the_failed_pass_had_made_is_let_go():
    seen = []

    def failing():
        made = torch.zeros(3)
        seen.append(weakref.ref(made))
        raise MemoryError

    try:
        with explained("a", "b"):
            failing()
    except NotEnoughMemoryError:
        assert seen[0]() is None
    assert seen


def test_words_for_images_and_scales():
    assert shown_images(1, (2, 3)) == "an image of 2x3"
    assert shown_images(4, (2, 3), "crop") == "4 crops of 2x3"
    assert shown_images(1, (2, 3), "crop") == "a crop of 2x3"
    assert shown_scales((2.0, 0.5), flip=True) == "the scales 0.5, 2, and mirrored"
    assert shown_scales((1.0,)) == "the scale 1"


def test_names_of_files_are_no_signs(tmp_path):
    missing = tmp_path / "not enough memory" / "a.png"
    with pytest.raises(FileNotFoundError), explained("reading", "nothing helps"):
        missing.read_bytes()
