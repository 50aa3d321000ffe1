"""What README.md shows is run."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_op_in_your_own_code(blocks):
    names: dict = {}
    exec(blocks[0], names)
    assert names["logits"].shape == (1, 19, 1024, 2048)
    assert names["high"].grad.shape == names["high"].shape
    assert names["alpha"].grad.shape == names["alpha"].shape


def test_pictures_and_files_that_it_names_exist():
    text = README.read_text()
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (README.parent / path).exists(), path
