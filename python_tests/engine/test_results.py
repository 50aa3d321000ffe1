"""Results: what is printed, written and drawn of a model, and in which order."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hmsa_ext import losses
from hmsa_ext.data import Batch, ClassTable, Sample
from hmsa_ext.engine import pictures, results
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.evaluation import EvaluationSettings
from hmsa_ext.files import Output
from hmsa_ext.models import build

CLASSES = ClassTable(("road", "sky", "car"), np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]]))
SETTINGS = EvaluationSettings(scales=(0.5, 1.0), pictures=1, metrics=("calibration",))


class Pair:
    """Two tiny scenes."""

    classes = CLASSES

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        label = rng.integers(0, 3, (64, 96), dtype=np.uint8)
        return Sample(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), label, f"city{index}/0000")

    def label(self, index: int) -> np.ndarray:
        return self[index].label


def batches() -> list[Batch]:
    torch.manual_seed(0)
    labels = [torch.from_numpy(Pair().label(k))[None] for k in (0, 1)]
    return [Batch(torch.randn(1, 3, 64, 96), label, [f"city{k}/0000"]) for k, label in enumerate(labels)]


def test_a_report_is_printed_written_and_drawn(
    tmp_path: Path, device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = build("hrnet_small_ocr", 3).to(device), tmp_path / "results.json"
    result = results.report(
        model, batches(), Pair(), SETTINGS, Process(device), criterion=losses.MultiScaleLoss(),
        output=Output(file, "json"), folder=tmp_path / "pictures", about={"checkpoint": "x.pt"}, training_seconds=100.0,
    )  # fmt: skip
    shown = capsys.readouterr().out
    for text in ("IoU in %", "precision", "calibration error", "loss", "evaluated 2 images in", "drew 1 picture in"):
        assert text in shown
    content = json.loads(file.read_text())
    assert content["miou"] == result.to_dict()["miou"]
    assert content["checkpoint"] == "x.pt"
    assert content["versions"]["torch"] == torch.__version__
    assert content["seconds"] == pytest.approx(100 + result.seconds, abs=0.1)
    assert content["loss"] == result.more["loss"] > 0
    assert set(content["calibration_error"]) == {"0.5", "1.0", "mean", "attention"}
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")] == ["pictures/city0/0000.png"]


def test_pictures_that_cannot_be_written_do_not_cost_the_numbers(tmp_path: Path, device: torch.device) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "city0").write_text("in the way")
    model, file = build("hrnet_small_ocr", 3).to(device), tmp_path / "results.json"
    with pytest.raises(pictures.PictureError, match="cannot be written"):
        results.report(
            model, batches(), Pair(), SETTINGS, Process(device), output=Output(file, "json"),
            folder=tmp_path / "pictures",
        )  # fmt: skip
    assert json.loads(file.read_text())["images"] == 2


def test_other_processes_evaluate_and_write_nothing(
    tmp_path: Path, device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = build("hrnet_small_ocr", 3).to(device), tmp_path / "results.json"
    result = results.report(
        model, batches(), Pair(), SETTINGS, Process(device, rank=1), output=Output(file, "json"), folder=tmp_path / "p"
    )
    assert result.images == 2
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_no_pictures_are_drawn_where_none_are_wanted(tmp_path: Path, device: torch.device) -> None:
    model, none = build("hrnet_small_ocr", 3).to(device), EvaluationSettings(scales=(1.0,), pictures=0)
    results.report(model, batches(), Pair(), none, Process(device), folder=tmp_path / "p")
    results.report(model, batches(), Pair(), SETTINGS, Process(device), folder=None)
    assert not list(tmp_path.iterdir())


def test_json_has_rows_of_numbers_on_one_line_and_is_the_same_content() -> None:
    content = {
        "matrix": [[1, 2], [0, 3]], "numbers": [0.5, None, -1e-9], "names": ["[\n 1\n]", "b"], "empty": [],
        "nested": {"x": [1]}, "mixed": [1, "a"],
    }  # fmt: skip
    text = results.to_json(content)
    assert json.loads(text) == content
    assert "[1, 2]" in text
    assert "[0.5, null, -1e-09]" in text
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.to_json({"x": float("nan")})
