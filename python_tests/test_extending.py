"""What docs/extending.md shows is run: the parts as one file, the command with all of them, and the Python."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmsa_ext import evaluate
from hmsa_ext.__main__ import main as hmsa

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with my_parts.py, made of the page's blocks of code but the last one."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "my_parts.py").write_text("\n\n".join(blocks[:-1]))
    (tmp_path / "last.py").write_text("from my_parts import *\n" + blocks[-1])
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


def test_the_same_in_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    names: dict[str, object] = {}
    exec((folder / "last.py").read_text(), names)
    assert 0 <= names["result"].miou["attention"] <= 1  # pyright: ignore[reportAttributeAccessIssue]
    (run,) = (folder / "runs").iterdir()
    assert "model: my_parts:Net" in (run / "config.yaml").read_text()
