"""IoU and accuracy of a confusion matrix."""

import math

import pytest
import torch

from hmsa_ext.engine.metrics import Scores


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
