"""Confusion matrix, IoU, accuracy."""

import math

import pytest
import torch

from hmsa_ext.engine.metrics import Scores, confusion_matrix


def test_counts_equal_those_by_hand(device: torch.device) -> None:
    truth = torch.tensor([[0, 0, 1], [1, 2, 255]], device=device)
    guess = torch.tensor([[0, 1, 1], [1, 0, 2]], device=device)
    counts, invalid = confusion_matrix(guess, truth, 3)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert invalid.item() == 0


def test_small_integer_types_do_not_overflow(device: torch.device) -> None:
    truth = torch.full((40, 40), 18, dtype=torch.uint8, device=device)
    counts, _ = confusion_matrix(truth, truth, 19)
    assert counts[18, 18].item() == 1600
    assert counts.sum().item() == 1600


@pytest.mark.parametrize(
    ("truth", "guess", "invalid"),
    [([3, 1], [1, 1], 1), ([-1, 1], [1, 1], 1), ([1, 1], [7, -2], 2), ([255, 1], [9, 1], 0)],
)
def test_values_outside_the_classes_are_counted_as_invalid(truth: list[int], guess: list[int], invalid: int) -> None:
    counts, found = confusion_matrix(torch.tensor(guess), torch.tensor(truth), 3)
    assert found.item() == invalid
    assert counts.sum().item() == 2 - invalid - truth.count(255)


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
