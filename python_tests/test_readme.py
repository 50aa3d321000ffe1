"""The README is short, its examples run, and its commands are those that exist."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import hmsa_ext
from hmsa_ext.models.recomputation import is_recomputed

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_three_lines_for_a_photo(blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/NAME"))
    assert cv2.imwrite("photo.jpg", np.full((48, 80, 3), 90, np.uint8))
    names: dict = {"hmsa_ext": hmsa_ext}
    exec(blocks[0], names)
    assert names["found"].labels.shape == names["found"].confidence.shape == (48, 80)
    overlay = cv2.imread("overlay.jpg")
    assert overlay is not None
    assert overlay.shape[0] > 48, "the legend is below"


def write_run(folder: Path) -> None:
    """A run folder with the checkpoint of a network that has learnt nothing."""
    folder.mkdir(parents=True)
    classes = hmsa_ext.data.ClassTable(("road", "sky"), np.array([(128, 64, 128), (70, 130, 180)]))
    content = {
        "state_dict": hmsa_ext.models.hrnet_small_ocr(2).state_dict(),
        "config": {"model": "hrnet_small_ocr"},
        "class_names": list(classes.names),
        "classes": classes.to_dict(),
    }
    torch.save(content, folder / "last.pt")


def test_two_lines_for_any_network(blocks):
    names = {"hmsa_ext": hmsa_ext, "logits": torch.randn(1, 3, 8, 16), "target": torch.zeros(1, 64, 128).long()}
    exec(blocks[1], names)
    assert names["loss"].shape == ()
    assert names["labels"].shape == names["confidence"].shape == (1, 1024, 2048)


def test_the_ops_in_your_own_code(blocks):
    names: dict = {}
    exec(blocks[2], names)
    assert names["logits"].shape == (1, 19, 1024, 2048)
    assert names["high"].grad.shape == names["high"].shape
    assert names["alpha"].grad.shape == names["alpha"].shape
    assert names["labels"].shape == names["target"].shape


def test_a_model_and_its_loss(blocks):
    names: dict = {"torch": torch, "hmsa_ext": hmsa_ext}
    exec(blocks[3], names)
    assert torch.isfinite(names["loss"])
    names["loss"].backward()
    assert any(is_recomputed(module) for module in names["model"].modules())
    assert len(blocks) == 4


def test_what_it_says_of_the_loss_holds():
    logits, target = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 32, 32))
    target[0, :4] = -100
    with pytest.raises(RuntimeError, match="labels that are no class"):
        hmsa_ext.upsample_cross_entropy(logits, target)  # ignore_index is 255
    large = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(large, target)
    torch.testing.assert_close(hmsa_ext.upsample_cross_entropy(logits, target, ignore_index=-100), expected)
    with pytest.raises(RuntimeError, match="target"):
        hmsa_ext.upsample_cross_entropy(logits, torch.rand(1, 3, 32, 32))  # class probabilities
    for dtype in (torch.float16, torch.bfloat16):
        assert hmsa_ext.upsample_cross_entropy(logits.to(dtype), target, ignore_index=-100).dtype == torch.float32


def test_it_has_at_most_120_lines():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_the_command_of_the_tests_stands_where_ci_reads_it():
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(r"^<!-- test-command -->\n```bash\n(.*?)```\n<!-- /test-command -->$", text, re.M | re.S)
    assert re.fullmatch(r"python3 -m venv .* && pip install \"\.\[test\]\" && pytest -n auto\n", block)
    assert "<!-- test-command -->" in (README.parent / ".ci" / "run").read_text(encoding="utf-8")


def test_pictures_and_files_that_it_names_exist():
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (README.parent / path).exists(), path
