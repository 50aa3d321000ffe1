"""Evaluation: every reading of one pass is scored as it would be by hand."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.meters import LiveBytes
from hmsa_ext import losses, settings
from hmsa_ext.data import Batch, ClassTable
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.evaluation import EvaluationError, EvaluationSettings, evaluate, table
from hmsa_ext.engine.metrics import METRICS, CalibrationError, Loss, Predictions
from hmsa_ext.engine.passes import run
from hmsa_ext.errors import HmsaError
from hmsa_ext.models import ScaleOutputs, build
from hmsa_ext.ops import confusion_matrix

CLASSES = ClassTable(("road", "sky", "car"), np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))


class Scripted(nn.Module):
    """Says what it is told: at each scale a label map (by confidence 10) and an attention, at stride 1."""

    def __init__(self, labels: dict[float, list[list[int]]], attention: dict[float, float]) -> None:
        super().__init__()
        self.labels, self.attention = labels, attention
        self.calls: list[tuple[float, ...]] = []

    def forward(self, images: Tensor, scales: tuple[float, ...]) -> ScaleOutputs:
        self.calls.append(tuple(scales))
        height, width = images.shape[-2:]
        ordered = sorted(scales, reverse=True)
        logits, attention = [], []
        for i, s in enumerate(ordered):
            labels = torch.tensor(self.labels[s], device=images.device)
            z = 10.0 * nn.functional.one_hot(labels, 3).permute(2, 0, 1)[None].float()
            z = nn.functional.interpolate(z, (int(height * s), int(width * s)), mode="nearest")
            logits.append(z)
            if i:
                attention.append(torch.full_like(z[:, :1], self.attention[s]))
        return ScaleOutputs(logits, attention, None, tuple(ordered), (height, width))


def batch(labels: list[list[int]]) -> Batch:
    truth = torch.tensor([labels], dtype=torch.uint8)
    return Batch(torch.zeros(1, 3, *truth.shape[1:]), truth, ["one"])


def test_every_way_equals_a_confusion_by_hand(device: torch.device) -> None:
    truth = [[0, 0, 1, 255], [0, 0, 1, 2]]
    large = [[0, 0, 1, 1], [0, 0, 1, 1]]  # scale 1.0: misses the car
    small = [[1, 1, 1, 1], [1, 1, 1, 2]]  # scale 0.5, at 2x4 before the grid halves it
    model = Scripted({1.0: large, 0.5: small}, {0.5: 0.0})
    result = evaluate(model, [batch(truth)], CLASSES, (0.5, 1.0), Process(device))
    assert list(result.scores) == ["0.5", "1.0", "mean", "attention"]
    assert result.scores["1.0"].counts.tolist() == [[4, 0, 0], [0, 2, 0], [0, 1, 0]]
    # Attention 0 trusts the larger scale alone.
    assert torch.equal(result.scores["attention"].counts, result.scores["1.0"].counts)
    assert result.scores["attention"].counts.dtype == torch.int64
    assert result.miou["attention"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert result.scores["1.0"].pixel_accuracy == pytest.approx(6 / 7)
    assert result.images == 1
    assert model.calls == [(0.5, 1.0)]  # one pass, whatever is read from it


def test_attention_chooses_between_scales(device: torch.device) -> None:
    labels = {1.0: [[0, 0], [0, 0]], 0.5: [[1, 1], [1, 1]]}
    truth = batch([[1, 1], [1, 1]])
    trusting = evaluate(Scripted(labels, {0.5: 0.9}), [truth], CLASSES, (0.5, 1.0), Process(device))
    doubting = evaluate(Scripted(labels, {0.5: 0.1}), [truth], CLASSES, (0.5, 1.0), Process(device))
    assert trusting.scores["attention"].pixel_accuracy == 1.0
    assert doubting.scores["attention"].pixel_accuracy == 0.0


def test_scores_add_up_over_images(device: torch.device) -> None:
    model = Scripted({1.0: [[0, 1]]}, {})
    batches = [batch([[0, 1]]), batch([[0, 0]]), batch([[255, 255]])]
    result = evaluate(model, batches, CLASSES, (1.0,), Process(device))
    assert result.scores["attention"].counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert result.images == 3


def test_one_scale_other_than_one_works(device: torch.device) -> None:
    model = Scripted({0.5: [[0, 0, 1, 1], [0, 0, 1, 1]]}, {})
    result = evaluate(model, [batch([[0, 0, 1, 1], [0, 0, 1, 1]])], CLASSES, (0.5,), Process(device))
    assert result.miou["0.5"] == result.miou["attention"] == 1.0


def readings(outputs: ScaleOutputs, *, flip: bool = False) -> Iterator[Tensor]:
    """Labels of each way."""
    images = outputs.logits[0].shape[0] // (2 if flip else 1)
    target = torch.zeros(images, *outputs.size, dtype=torch.uint8)
    predictions = Predictions(outputs, target, ["one"] * images, flip=flip)
    return (predictions.labels(way) for way in predictions.ways)


def assert_labels_of(labels: Tensor, logits: Tensor) -> None:
    """Each label is the best class of ``logits``, or as good as that but for rounding."""
    best = logits.amax(1)
    assert labels.shape == best.shape
    assert (logits.gather(1, labels.long()[:, None])[:, 0] >= best - 1e-5 * logits.abs().max()).all()


def test_readings_equal_the_outputs_own_methods(device: torch.device) -> None:
    torch.manual_seed(0)
    model = build("hrnet_small_ocr", 3).to(device).eval()
    images = torch.randn(1, 3, 64, 96, device=device)
    with torch.no_grad():
        outputs = model(images, scales=(0.5, 1.0, 2.0))
        half, whole, double, mean, fused = readings(outputs)
    assert_labels_of(half, outputs.single_scale(2))
    assert_labels_of(whole, outputs.single_scale(1))
    assert_labels_of(double, outputs.single_scale(0))
    assert_labels_of(mean, outputs.mean())
    assert_labels_of(fused, outputs.fuse())


def test_flip_averages_the_logits_of_both_directions(device: torch.device) -> None:
    torch.manual_seed(0)
    model = build("hrnet_small_ocr", 3).to(device).eval()
    images = torch.randn(1, 3, 64, 96, device=device)
    with torch.no_grad():
        *_, mean, fused = readings(run(model, images, (0.5, 1.0), device, flip=True), flip=True)
        straight = model(images, scales=(0.5, 1.0))
        mirrored = model(images.flip(-1), scales=(0.5, 1.0))
    # Two images in one batch may be convolved by another algorithm than one: equal up to rounding.
    assert_labels_of(fused, (straight.fuse() + mirrored.fuse().flip(-1)) / 2)
    assert_labels_of(mean, (straight.mean() + mirrored.mean().flip(-1)) / 2)


@pytest.mark.memory
def test_no_reading_makes_logits_at_full_resolution(device: torch.device) -> None:
    heads = [torch.randn(1, 40, 128 * s // 2, 128 * s // 2, device=device) for s in (4, 2, 1)]
    attention = [torch.rand(1, 1, *z.shape[2:], device=device) for z in heads[1:]]
    outputs = ScaleOutputs(heads, attention, None, (2.0, 1.0, 0.5), (512, 512))
    for flip in (False, True):
        if flip:
            outputs.logits, outputs.attention = ([torch.cat([t, t]) for t in x] for x in (heads, attention))
        with LiveBytes() as meter:
            for labels in readings(outputs, flip=flip):
                assert labels.dtype == torch.uint8
        assert meter.peak < 40 * 512 * 512 * 4 // 4


def test_flip_makes_the_result_independent_of_the_direction(device: torch.device) -> None:
    torch.manual_seed(0)
    model = build("hrnet_small_ocr", 3).to(device)
    images = torch.randn(1, 3, 64, 64)
    labels = torch.randint(0, 3, (1, 64, 64), dtype=torch.uint8)
    one = evaluate(model, [Batch(images, labels, ["a"])], CLASSES, (1.0,), Process(device), flip=True)
    other = evaluate(
        model, [Batch(images.flip(-1), labels.flip(-1), ["a"])], CLASSES, (1.0,), Process(device), flip=True
    )
    assert torch.equal(one.scores["attention"].counts, other.scores["attention"].counts)


def test_the_models_mode_is_left_as_it_was(device: torch.device) -> None:
    model = build("hrnet_small_ocr", 3).to(device).train()
    images, labels = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.uint8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, [Batch(images, labels, ["a"])], CLASSES, (0.5, 1.0), Process(device))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_labels_outside_the_classes_raise_once_with_their_number(device: torch.device) -> None:
    model = Scripted({1.0: [[0, 1]]}, {})
    with pytest.raises(EvaluationError, match="2 pixels of 2 images are neither one of 3 classes"):
        evaluate(model, [batch([[0, 7]]), batch([[9, 255]])], CLASSES, (1.0,), Process(device))


def test_table_and_dictionary_show_absent_classes(device: torch.device) -> None:
    model = Scripted({1.0: [[0, 1]]}, {})
    result = evaluate(model, [batch([[0, 1]])], CLASSES, (1.0,), Process(device))
    text = table(result)
    assert "scale 1.0" in text
    assert "absent" in text.splitlines()[4]
    content = result.to_dict()
    assert content["iou"]["attention"] == {"road": 1.0, "sky": 1.0, "car": None}
    assert content["miou"] == {"1.0": 1.0, "mean": 1.0, "attention": 1.0}


def test_counts_of_a_real_pass_equal_an_argmax(device: torch.device) -> None:
    torch.manual_seed(1)
    model = build("hrnet_small_ocr", 3).to(device).eval()
    images = torch.randn(1, 3, 64, 64)
    labels = torch.randint(0, 3, (1, 64, 64), dtype=torch.uint8)
    result = evaluate(model, [Batch(images, labels, ["a"])], CLASSES, (0.5, 1.0), Process(device))
    with torch.inference_mode():
        guess = model(images.to(device), scales=(1.0, 0.5)).fuse().argmax(1)
    counts, _ = confusion_matrix(guess, labels.to(device), 3)
    assert torch.equal(result.scores["attention"].counts, counts.cpu())


class Names:
    """A metric in a few lines: the images that it has seen, and the wrong pixels of each way."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.wrong: dict[str, int] = {}
        self.calls: list[str] = []

    def update(self, predictions: Predictions) -> None:
        self.seen += predictions.names
        for way in predictions.ways:
            wrong = int((predictions.labels(way) != predictions.target).sum())
            self.wrong[way] = self.wrong.get(way, 0) + wrong
        self.calls.append("update")

    def reduce(self, process: Process) -> None:
        self.calls.append("reduce")

    def result(self) -> dict[str, Any]:
        return {"seen": len(self.seen), "wrong": self.wrong}


def test_a_metric_of_ones_own_sees_every_batch_and_stands_in_the_result(device: torch.device) -> None:
    metric = Names()
    model = Scripted({1.0: [[0, 1]]}, {})
    result = evaluate(model, [batch([[0, 1]]), batch([[0, 0]])], CLASSES, (1.0,), Process(device), metrics=[metric])
    assert metric.calls == ["update", "update", "reduce"]
    assert result.more == {"seen": 2, "wrong": {"1.0": 1, "mean": 1, "attention": 1}}
    assert result.to_dict()["wrong"]["attention"] == 1
    assert result.scalars()["seen"] == 2
    assert result.scalars()["wrong"] == 1
    assert "1.0000" in next(line for line in table(result).splitlines() if line.startswith("wrong"))


def test_results_of_metrics_are_numbers_so_that_nothing_is_lost_when_they_are_written(device: torch.device) -> None:
    def more(results: Any) -> Mapping[str, Any]:
        class Given(Names):
            def result(self) -> dict[str, Any]:
                return results

        model = Scripted({1.0: [[0, 1]]}, {})
        return evaluate(model, [batch([[0, 1]])], CLASSES, (1.0,), Process(device), metrics=[Given()]).more

    numbers = {"a": torch.tensor(0.5), "b": {"1.0": np.float32(0.25)}, "c": [np.int64(3)]}
    assert more(numbers) == {"a": 0.5, "b": {"1.0": 0.25}, "c": [3]}
    assert json.dumps(more(numbers))
    with pytest.raises(
        EvaluationError, match=r"metrics: .*Given gave tensor\(\[1\., 1\.\]\) as a/b; expected a number"
    ):
        more({"a": {"b": torch.ones(2)}})
    with pytest.raises(EvaluationError, match=r"metrics: .*Given\.result\(\) gave None; expected a dictionary"):
        more(None)


def test_two_metrics_with_one_result_are_refused(device: torch.device) -> None:
    class Named(Names):
        def result(self) -> dict[str, Any]:
            return {"miou": 1.0}

    model, batches = Scripted({1.0: [[0, 1]]}, {}), [batch([[0, 1]])]
    for metrics, name in (([Named()], "miou"), ([Names(), Names()], "seen, wrong")):
        with pytest.raises(EvaluationError, match=f"metrics: the result already has {name}; expected other names"):
            evaluate(model, batches, CLASSES, (1.0,), Process(device), metrics=metrics)
    assert issubclass(EvaluationError, HmsaError)


def test_labels_are_computed_once_for_all_metrics(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("argmax", "single_scale_argmax"):
        own = getattr(ScaleOutputs, name)
        monkeypatch.setattr(
            ScaleOutputs, name, lambda self, *a, own=own, name=name, **k: calls.append(name) or own(self, *a, **k)
        )
    model = Scripted({1.0: [[0, 1]], 0.5: [[0, 1]]}, {0.5: 0.5})
    metrics = [Names(), CalibrationError(CLASSES)]
    evaluate(model, [batch([[0, 1], [0, 1]])], CLASSES, (0.5, 1.0), Process(device), metrics=metrics)
    assert sorted(calls) == ["argmax", "argmax", "single_scale_argmax", "single_scale_argmax"]


def test_confusion_matrices_alone_need_no_confidence(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    for name in ("argmax", "single_scale_argmax"):
        own = getattr(ScaleOutputs, name)
        monkeypatch.setattr(
            ScaleOutputs,
            name,
            lambda self, *a, own=own, **k: wanted.append(k.get("confidence", True)) or own(self, *a, **k),
        )
    model, batches = Scripted({1.0: [[0, 1]], 0.5: [[0, 1]]}, {0.5: 0.5}), [batch([[0, 1], [0, 1]])]
    alone = evaluate(model, batches, CLASSES, (0.5, 1.0), Process(device))
    assert wanted == [False] * 4
    with_others = evaluate(model, batches, CLASSES, (0.5, 1.0), Process(device), metrics=[CalibrationError(CLASSES)])
    assert wanted == [False] * 4 + [True] * 4
    assert [s.counts.tolist() for s in alone.scores.values()] == [
        s.counts.tolist() for s in with_others.scores.values()
    ]


def test_a_confidence_that_was_not_announced_is_computed(device: torch.device) -> None:
    model, truth = Scripted({1.0: [[0, 1]], 0.5: [[0, 1]]}, {0.5: 0.5}), batch([[0, 1], [0, 1]])
    outputs = model(truth.images.to(device), (0.5, 1.0))
    lazy = Predictions(outputs, truth.labels.to(device), truth.names, with_confidence=False)
    whole = Predictions(outputs, truth.labels.to(device), truth.names)
    for way in whole.ways:
        assert torch.equal(lazy.labels(way), whole.labels(way))
        assert torch.equal(lazy.confidence(way), whole.confidence(way))


@pytest.mark.parametrize("flip", [False, True])
def test_validation_loss_is_that_of_the_images_themselves(device: torch.device, flip: bool) -> None:
    torch.manual_seed(0)
    model = build("hrnet_small_ocr", 3).to(device).eval()
    images = torch.randn(1, 3, 64, 64)
    labels = torch.randint(0, 3, (1, 64, 64), dtype=torch.uint8)
    criterion = losses.MultiScaleLoss("ce", 0.4)
    result = evaluate(
        model, [Batch(images, labels, ["a"])], CLASSES, (0.5, 1.0), Process(device),
        flip=flip, metrics=[Loss(criterion, CLASSES)],
    )  # fmt: skip
    with torch.no_grad():
        expected = criterion(model(images.to(device), scales=(0.5, 1.0)), labels.to(device)).item()
    assert result.more["loss"] == pytest.approx(expected, rel=1e-4)  # a batch of two may be convolved otherwise
    assert result.scalars()["loss"] == result.more["loss"]


def test_the_dictionary_has_every_score_and_the_matrix_and_is_json(device: torch.device) -> None:
    model = Scripted({1.0: [[0, 1, 1, 1]]}, {})
    content = evaluate(model, [batch([[0, 0, 1, 255]])], CLASSES, (1.0,), Process(device)).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["confusion_matrix"]["attention"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert content["dice"]["attention"] == {"road": pytest.approx(2 / 3), "sky": pytest.approx(2 / 3), "car": None}
    assert content["precision"]["attention"] == {"road": 1.0, "sky": 0.5, "car": None}
    assert content["recall"]["attention"] == {"road": 0.5, "sky": 1.0, "car": None}
    assert content["mean_accuracy"]["attention"] == 0.75
    assert content["frequency_weighted_iou"]["attention"] == 0.5
    assert content["mean_dice"]["attention"] == pytest.approx(2 / 3)


def test_infinite_values_become_null(device: torch.device) -> None:
    class Infinite(Names):
        def result(self) -> dict[str, Any]:
            return {"far": {"1.0": float("inf")}, "near": [float("-inf"), 1.0]}

    result = evaluate(
        Scripted({1.0: [[0, 1]]}, {}), [batch([[0, 1]])], CLASSES, (1.0,), Process(device), metrics=[Infinite()]
    )
    assert result.to_dict()["far"] == {"1.0": None}
    assert result.to_dict()["near"] == [None, 1.0]


def test_of_two_classes_the_iou_of_each_is_said_beside_the_mean(device: torch.device) -> None:
    crack = ClassTable(("background", "crack"), np.array([[0, 0, 0], [255, 0, 0]]))

    class Background(Scripted):
        def forward(self, images: Tensor, scales: tuple[float, ...]) -> ScaleOutputs:
            outputs = super().forward(images, scales)
            outputs.logits = [z[:, :2] for z in outputs.logits]
            return outputs

    model = Background({1.0: [[0] * 20]}, {})
    result = evaluate(model, [batch([[0] * 19 + [1]])], crack, (1.0,), Process(device))
    assert result.miou["attention"] == pytest.approx(0.475)
    assert result.headline() == "attention: mIoU 47.50 (IoU background 95.00, crack 0.00)"


def test_of_many_classes_the_headline_says_the_lowest(device: torch.device) -> None:
    model = Scripted({1.0: [[0, 1, 1, 1]]}, {})
    result = evaluate(model, [batch([[0, 0, 1, 1]])], CLASSES, (1.0,), Process(device))
    assert result.headline() == "attention: mIoU 58.33 (lowest IoU road 50.00, sky 66.67)"
    nothing = evaluate(model, [batch([[255] * 4])], CLASSES, (1.0,), Process(device))
    assert nothing.headline() == "attention: mIoU absent (lowest IoU none)"


def test_the_table_has_the_scores_of_the_attention_by_class(device: torch.device) -> None:
    model = Scripted({1.0: [[0, 1, 1, 2]]}, {})
    text = table(evaluate(model, [batch([[0, 0, 1, 1]])], CLASSES, (1.0,), Process(device)))
    first, second, note = text.split("\n\n")
    for name in ("mIoU", "mean Dice", "mean accuracy", "pixel accuracy", "frequency-weighted IoU"):
        assert name in first
    assert second.splitlines()[0].split() == [
        *("attention,", "in", "%", "IoU", "Dice", "precision", "recall", "of", "pixels")
    ]
    assert second.splitlines()[2].split() == ["road", "50.00", "66.67", "100.00", "50.00", "50.00"]
    assert second.splitlines()[4].split() == ["car", "0.00", "0.00", "0.00", "-", "0.00"]
    assert note == "not in the truth, but predicted, hence IoU 0: car"


def test_an_evaluation_without_images_has_no_scores(device: torch.device) -> None:
    result = evaluate(Scripted({}, {}), [], CLASSES, (1.0,), Process(device), metrics=[CalibrationError(CLASSES)])
    assert result.images == 0
    assert result.to_dict()["miou"] == {"1.0": None, "mean": None, "attention": None}
    assert "absent" in table(result)
    assert result.headline() == "attention: mIoU absent (lowest IoU none)"


def test_settings_have_one_flag_each_and_defaults() -> None:
    chosen = EvaluationSettings()
    assert settings.to_dict(chosen) == {
        "eval_scales": None, "flip": False, "pictures": 4, "metrics": [],
        "tile": None, "overlap": 0.25, "blend": "linear", "memory": None,
    }  # fmt: skip
    assert all(option.free and option.help for option in settings.options(chosen))
    texts = {option.name: option.help for option in settings.options(chosen)}
    assert all(name in texts["metrics"] for name in METRICS)
    changed = settings.replace(chosen, {"eval_scales": "1,0.5", "metrics": "calibration,here:Own"})
    assert changed.scales == (0.5, 1.0)
    assert changed.metrics == ("calibration", "here:Own")
    with pytest.raises(settings.SettingError, match="pictures: got -1, expected a number not below 0"):
        settings.replace(chosen, {"pictures": -1})
    with pytest.raises(settings.SettingError, match=r"eval_scales: got 0.5,2.0, expected .*1.0 among them"):
        settings.replace(chosen, {"eval_scales": "0.5,2"})
    with pytest.raises(
        settings.SettingError, match=f"metrics: got 'iou', expected some of {', '.join(METRICS)}, or package"
    ):
        EvaluationSettings(metrics=("calibration", "iou"))
