"""The YAML, the commands and the Python of docs/data.md and of the help texts work as printed."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hmsa_ext import data, train
from hmsa_ext.data import __main__ as command
from hmsa_ext.data import stats
from hmsa_ext.data.description import KEYS, read_description
from hmsa_ext.data.scan import command as scan
from python_tests.automatic_files import make_labels

from .pictures import write, write_image

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
SMALL = (
    "--iterations",
    "1",
    "--max-minutes",
    "1e-9",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--crop",
    "64x64",
    "--output",
)


def blocks(language: str) -> list[str]:
    if not DOCS.is_file():
        pytest.skip("no docs beside the tests")
    found = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found
    return found


def commands(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("hmsa ")]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with MINE (images, masks, dataset.yaml), AUTO and CamVid, without an index of the user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "cache"))
    label = np.zeros((96, 128), np.uint8)
    label[:, 40:] = 1
    label[50:] = 2
    for split, count in (("train", 5), ("val", 2)):
        for k in range(count):
            seed = 10 * k + len(split)
            write_image(tmp_path / f"MINE/images/{split}/{k}.png", (96, 128), seed)
            write(tmp_path / f"MINE/masks/{split}/{k}.png", label)
            write_image(tmp_path / f"CamVid/{split}/{k}.png", (96, 128), seed)
            write(tmp_path / f"CamVid/{split}annot/{k}.png", label)
    (tmp_path / "MINE/dataset.yaml").write_text(blocks("yaml")[0])
    classes = read_description(tmp_path / "MINE/dataset.yaml").classes
    make_labels(tmp_path / "AUTO", classes=replace(classes, ids=tuple(range(classes.num_classes))))
    return tmp_path


def test_every_yaml_in_the_docs_is_read_and_all_keys_are_shown(tmp_path):
    shown = set()
    for number, text in enumerate(blocks("yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert read_description(path).classes.num_classes >= 2
        shown |= {line.partition(":")[0] for line in text.splitlines()}
    assert set(KEYS) - shown == {"val", "test"}


def test_the_commands_in_the_docs_run_as_printed(here):
    ran, description = [], here / "MINE/dataset.yaml"
    for name, *arguments in commands("\n".join(blocks("bash"))):
        if "--write-yaml" in arguments:
            named = description.read_text()
            description.unlink()
            assert command.main(arguments) == 1  # nothing named the classes yet
            assert read_description(description).classes.num_classes == 3
            description.write_text(named)  # as if the reader had given the classes their names
        elif name == "data":
            assert command.main(arguments) == 0
        else:
            assert name == "train"
            assert train.main([*arguments, *SMALL, str(here / "run")]) == 0
        ran.append(name)
    assert ran == ["data", "data", "data", "train", "data"]
    assert (here / "frequencies.png").is_file()


@pytest.mark.parametrize("module", [scan, stats])
def test_the_examples_in_help_texts_run(module, here):
    (here / "MINE/dataset.yaml").rename(here / "MINE/dataset.yml")
    found = commands(module.__doc__)
    assert len(found) >= 2
    for name, *arguments in found:
        assert name == "data"
        assert command.main(arguments) == 0


def test_the_data_set_in_python_in_the_docs_is_one(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    dataset = data.build("mine:stripes", "val", stripe_width=8)
    data.check(dataset, quiet=True)
    assert dataset[0].label[0, :16].tolist() == [0] * 8 + [1] * 8
    assert command.main(["stats", "--data", "mine:stripes", "--stripe-width", "8"]) == 0
    assert "40 images" in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "mine", raising=False)
