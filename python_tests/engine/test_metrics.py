"""Metrics: what a confusion matrix says, sums over processes, loss and calibration, and metrics by name."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hmsa_ext.data import ClassTable
from hmsa_ext.engine import metrics
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.metrics import METRICS, CalibrationError, Loss, Predictions, Scores, Sums, build_metrics
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.settings import SettingError

CLASSES = ClassTable(("road", "sky", "car"), np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
CPU = Process(torch.device("cpu"))


def test_iou_accuracy_and_mean_over_present_classes() -> None:
    scores = Scores(torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    assert scores.iou[:2] == pytest.approx([3 / 4, 2 / 3])
    assert math.isnan(scores.iou[2])
    assert scores.miou == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert scores.pixel_accuracy == pytest.approx(5 / 6)


def test_a_class_that_is_predicted_but_absent_counts_as_zero() -> None:
    assert Scores(torch.tensor([[3, 1], [0, 0]])).iou == pytest.approx([3 / 4, 0.0])


def test_nothing_labelled_is_nan_not_an_error() -> None:
    scores = Scores(torch.zeros(2, 2, dtype=torch.int64))
    assert math.isnan(scores.miou)
    assert math.isnan(scores.pixel_accuracy)


def test_counts_beyond_float32_stay_exact() -> None:
    counts = torch.tensor([[2**24 + 1, 0], [1, 2**24 + 1]])
    assert Scores(counts).pixel_accuracy == pytest.approx((2**25 + 2) / (2**25 + 3), abs=1e-15)


def test_dice_precision_and_recall_by_class() -> None:
    scores = Scores(torch.tensor([[3, 1, 0, 0], [0, 2, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert scores.dice == pytest.approx([6 / 7, 4 / 7, math.nan, 0.0], nan_ok=True)
    assert scores.precision == pytest.approx([1.0, 2 / 3, math.nan, 0.0], nan_ok=True)
    assert scores.recall == pytest.approx([3 / 4, 1 / 2, math.nan, math.nan], nan_ok=True)
    assert scores.pixels == [4, 4, 0, 0]
    assert scores.mean_dice == pytest.approx((6 / 7 + 4 / 7 + 0) / 3)
    assert scores.mean_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)  # of the classes in the truth


def test_frequency_weights_are_the_pixels_of_the_truth() -> None:
    scores = Scores(torch.tensor([[6, 0, 0], [1, 1, 0], [0, 0, 0]]))
    assert scores.frequency_weighted_iou == pytest.approx(6 / 8 * 6 / 7 + 2 / 8 * 1 / 2)
    invented = Scores(torch.tensor([[3, 1], [0, 0]]))  # a class without pixels has no weight
    assert invented.frequency_weighted_iou == pytest.approx(3 / 4)
    assert math.isnan(Scores(torch.zeros(2, 2, dtype=torch.int64)).frequency_weighted_iou)


def test_sums_stay_exact_and_add_up_over_processes_that_saw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = Sums()
    sums.add("pixels", torch.tensor(2**53, dtype=torch.int64))
    sums.add("pixels", torch.tensor(1, dtype=torch.int32))
    sums.add("loss", torch.tensor(0.5))
    others: list[dict[str, Tensor]] = [{}, {"loss": torch.tensor(1.5, dtype=torch.float64), "late": torch.tensor(7)}]
    monkeypatch.setattr(metrics.distributed, "gather", lambda process, value: [value, *others])
    sums.reduce(Process(torch.device("cpu"), world_size=3))
    found = dict(sums.items())
    assert found["pixels"].item() == 2**53 + 1
    assert found["loss"].dtype == torch.float64
    assert {name: value.item() for name, value in found.items() if name != "pixels"} == {"loss": 2.0, "late": 7}


def predictions(confidences: list[float], right: list[bool]) -> Predictions:
    """One row of pixels, one scale, two of three classes: class 0 is predicted with each confidence."""
    p = torch.tensor(confidences)
    logits = torch.stack([p.log(), ((1 - p) / 2).log(), ((1 - p) / 2).log()])[None, :, None]
    target = torch.tensor([[[0 if ok else 1 for ok in right]]], dtype=torch.uint8)
    return Predictions(ScaleOutputs([logits], [], None, (1.0,), (1, len(right))), target, ["a"])


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    metric = CalibrationError(CLASSES)
    batch = predictions([0.9, 0.9, 0.6, 0.6], [True, True, True, False])
    batch.target[0, 0, 3] = 255  # ignored
    metric.update(batch)
    metric.update(predictions([0.6], [False]))
    metric.reduce(CPU)
    # 0.9: two pixels, all right. 0.6: two pixels that count, one right.
    expected = (2 * 0.1 + 2 * abs(0.6 - 0.5)) / 4
    assert metric.result()["calibration_error"]["attention"] == pytest.approx(expected, abs=1e-6)
    assert set(metric.result()["calibration_error"]) == {"1.0", "mean", "attention"}


def test_loss_is_the_mean_over_labelled_pixels_and_nothing_labelled_has_none() -> None:
    said = iter([1.0, 4.0, float("nan")])
    metric = Loss(lambda outputs, target: torch.tensor(next(said)), CLASSES)
    for labels in ([0, 1, 2, 0], [0, 255, 255, 255], [255] * 4):
        batch = predictions([0.9] * 4, [True] * 4)
        batch.target[:] = torch.tensor(labels, dtype=torch.uint8)
        metric.update(batch)
    metric.reduce(CPU)
    assert metric.result()["loss"] == pytest.approx((4 * 1.0 + 1 * 4.0) / 5)
    nothing = Loss(lambda outputs, target: torch.tensor(0.0), CLASSES)
    nothing.reduce(CPU)
    assert math.isnan(nothing.result()["loss"])


@pytest.mark.parametrize(
    ("way", "title"),
    [
        ("attention", "attention"),
        ("max", "max"),
        ("mean_probabilities", "mean of probabilities"),
        ("my_parts:soft_median", "soft_median"),
    ],
)
def test_ways_have_titles(way: str, title: str) -> None:
    assert metrics.title_of(way) == title


def test_metrics_by_name_are_new_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text(
        "class Own:\n"
        "    def __init__(self, classes): self.classes = classes\n"
        "    def update(self, predictions): pass\n"
        "    def reduce(self, process): pass\n"
        "    def result(self): return {'own': self.classes.num_classes}\n"
        "def nothing(classes): return 5\n"
    )
    monkeypatch.chdir(tmp_path)
    first, own = build_metrics(["calibration", "own_metric:Own"], CLASSES)
    assert isinstance(first, CalibrationError)
    assert own.result() == {"own": 3}
    assert build_metrics(["calibration"], CLASSES)[0] is not first
    with pytest.raises(SettingError, match=f"metrics: got 'dice', expected some of {', '.join(METRICS)}, or package"):
        build_metrics(["dice"], CLASSES)
    with pytest.raises(SettingError, match=r"metrics: got 'own_metric:nothing', expected .* has update, reduce"):
        build_metrics(["own_metric:nothing"], CLASSES)
    with pytest.raises(
        SettingError, match=r"metrics: got 'math:pi', expected a factory \(classes\) of an object, not 3"
    ):
        build_metrics(["math:pi"], CLASSES)
    with pytest.raises(SettingError, match="metrics: got 'own_metric:Absent'"):
        build_metrics(["own_metric:Absent"], CLASSES)


def test_the_metric_of_the_documentation_works() -> None:
    """The class in the text of the module, as it is printed."""
    text = (metrics.__doc__ or "").split("::\n\n", 1)[1]
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ") or not line.strip()]
    names = {
        "ClassTable": ClassTable, "Sums": Sums, "Predictions": Predictions, "Process": Process, "torch": torch,
        "Any": object,
    }  # fmt: skip
    exec("\n".join(lines), names)
    metric = names["NearBorder"](CLASSES)  # type: ignore[operator]
    metric.update(predictions([0.9] * 6, [True, True, True, False, True, True]))
    metric.reduce(CPU)
    # Next to a border, to its right: the wrong pixel and the one after it.
    assert metric.result()["border_errors"]["attention"] == pytest.approx(1 / 2)
