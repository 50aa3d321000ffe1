"""What README.md shows is run."""

import re
from pathlib import Path

import pytest
import torch

import hmsa_ext

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_two_lines_for_any_network(blocks):
    names = {"hmsa_ext": hmsa_ext, "logits": torch.randn(1, 3, 8, 16), "target": torch.zeros(1, 64, 128).long()}
    exec(blocks[0], names)
    assert names["loss"].shape == ()
    assert names["labels"].shape == names["confidence"].shape == (1, 1024, 2048)


def test_the_ops_in_your_own_code(blocks):
    names: dict = {}
    exec(blocks[1], names)
    assert names["logits"].shape == (1, 19, 1024, 2048)
    assert names["high"].grad.shape == names["high"].shape
    assert names["alpha"].grad.shape == names["alpha"].shape
    assert names["counts"].sum() == names["labels"].numel()
    assert names["invalid"] == 0


def test_pictures_and_files_that_it_names_exist():
    text = README.read_text()
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (README.parent / path).exists(), path
