"""What docs/extending.md shows is run: the parts as one file, the command with all of them, the op, and the Python."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmsa_ext import evaluate
from hmsa_ext.__main__ import main as hmsa

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def blocks() -> tuple[list[str], str, str]:
    """The page's blocks of Python: the parts, the op, and the last one, which trains."""
    *parts, op, last = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return parts, op, last


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the parts of the page as my_parts.py."""
    parts, _, last = blocks()
    (tmp_path / "my_parts.py").write_text("\n\n".join(parts))
    (tmp_path / "last.py").write_text("from my_parts import *\n" + last)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_parts", None)


def command() -> list[str]:
    text = PAGE.read_text()
    block = text[text.index("<!-- extending-command -->") : text.index("<!-- /extending-command -->")]
    return shlex.split(next(line for line in block.splitlines() if line.startswith("hmsa ")))


def test_one_command_trains_with_every_part_and_evaluate_finds_them_again(folder: Path) -> None:
    arguments = [*command()[1:], "--output", "run", "--device", "cpu", "--threads", "1", "--pictures", "1"]
    assert hmsa(arguments) == 0
    results = json.loads((folder / "run" / "results.json").read_text())
    assert len(results["classes"]) == 3
    assert 0 <= results["border_errors"]["attention"] <= 1
    assert results["config"]["trunk"] == "my_parts:Plain"
    assert evaluate.main(["run", "--json", "again.json", "--device", "cpu", "--threads", "1"]) == 0
    assert json.loads((folder / "again.json").read_text())["miou"] == results["miou"]


def test_the_fusions_train_and_evaluate(folder: Path) -> None:
    small = ["--size", "64x96", "--crop", "64x64", "--length", "2", "--val-length", "1", "--batch-size", "2"]
    device = ["--pictures", "1", "--device", "cpu", "--threads", "1"]
    fusion = ["--fusion", "my_parts:median_of_two"]
    assert hmsa(["train", *small, *device, *fusion, "--epochs", "1", "--output", "run"]) == 0
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["scales"] == [0.5, 1.0]
    assert results["combination"] == "my_parts:median"
    wider = ["--fusion", "my_parts:median", "--eval-scales", "0.5,1,2"]
    assert evaluate.main(["run", *wider, "--json", "wide.json", *device]) == 0
    found = json.loads((folder / "wide.json").read_text())
    assert list(found["miou"]) == ["0.5", "1.0", "2.0", "mean", "my_parts:median"]
    assert found["miou"]["1.0"] == results["miou"]["1.0"]


def test_the_same_in_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    names: dict[str, object] = {}
    exec((folder / "last.py").read_text(), names)
    assert 0 <= names["result"].miou["attention"] <= 1  # pyright: ignore[reportAttributeAccessIssue]
    (run,) = (folder / "runs").iterdir()
    assert "model: my_parts:Net" in (run / "config.yaml").read_text()


CALLS = """

torch.manual_seed(0)
inputs = [torch.randn(2, 5, 8, 12), torch.randn(2, 5, 4, 6)], [torch.rand(2, 1, 4, 6)], [1.0, 0.5]
size = (32, 48)
labels, probability = torch.ops.hmsa.fuse_scales_argmax(*inputs, size)
found = torch.ops.hmsa.sure_labels(*inputs, size, least=0.5)
assert torch.equal(found == 255, probability < 0.5)
assert 0 < (found == 255).float().mean() < 1
assert torch.equal(found[found != 255], labels[found != 255])
assert torch.equal(torch.ops.hmsa.sure_labels(*inputs, size), labels)

compiled = torch.compile(lambda *a: torch.ops.hmsa.sure_labels(*a, size, least=0.5), fullgraph=True, backend="eager")
assert torch.equal(compiled(*inputs), found)
mapped = torch.vmap(lambda low: torch.ops.hmsa.sure_labels([inputs[0][0], low], *inputs[1:], size, least=0.5))
assert torch.equal(mapped(torch.stack([inputs[0][1]] * 2)), torch.stack([found] * 2))
assert "sure_labels" in registration.names()
assert torch.ops.hmsa.sure_labels.__doc__ == sure_labels.__doc__
"""


def test_the_op_with_an_argument_of_its_own(tmp_path: Path) -> None:
    """In a process of its own: an op stays registered as long as its process lives."""
    (tmp_path / "my_op.py").write_text(blocks()[1] + CALLS)
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    done = subprocess.run([sys.executable, "my_op.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
