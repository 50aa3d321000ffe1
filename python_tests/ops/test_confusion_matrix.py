"""confusion_matrix: counts by hand and by plain PyTorch, whatever the types, strides and values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import hmsa_ext
from bench.meters import LiveBytes, peak_memory
from hmsa_ext.ops import reference

LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
MEGABYTE = 1 << 20


def random_labels(shape, classes: int, device, *, seed: int = 0, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (torch.randint(0, classes, shape, generator=generator) for _ in range(2))
    target[torch.rand(shape, generator=generator) < ignored] = 255
    return prediction.to(device), target.to(device)


def assert_same(got, want) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == torch.int64
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)


def test_counts_equal_those_by_hand(device):
    truth = torch.tensor([[0, 0, 1], [1, 2, 255]], device=device)
    guess = torch.tensor([[0, 1, 1], [1, 0, 2]], device=device)
    counts, invalid = hmsa_ext.confusion_matrix(guess, truth, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert invalid.item() == 0


@pytest.mark.parametrize("prediction_type", LABELS)
@pytest.mark.parametrize("target_type", LABELS)
@pytest.mark.parametrize("classes", [1, 3, 19, 150])
def test_types_and_numbers_of_classes(device, classes, target_type, prediction_type):
    prediction, target = random_labels((2, 37, 53), classes, device)
    prediction, target = prediction.to(prediction_type), target.to(target_type)
    assert_same(
        hmsa_ext.confusion_matrix(prediction, target, classes), reference.confusion_matrix(prediction, target, classes)
    )


def test_more_classes_than_a_block_can_count(device):
    prediction, target = random_labels((2, 64, 64), 1000, device)
    for ignore_index in (255, -1):
        got = hmsa_ext.confusion_matrix(prediction, target.int(), 1000, ignore_index=ignore_index)
        assert_same(got, reference.confusion_matrix(prediction, target, 1000, ignore_index=ignore_index))


def test_many_pixels_of_one_pair_do_not_overflow(device):
    truth = torch.full((1, 1500, 1500), 18, dtype=torch.uint8, device=device)
    counts, _ = hmsa_ext.confusion_matrix(truth, truth, 19)
    assert counts[18, 18].item() == counts.sum().item() == 1500 * 1500


@pytest.mark.parametrize(
    ("truth", "guess", "invalid"),
    [([3, 1], [1, 1], 1), ([-1, 1], [1, 1], 1), ([1, 1], [7, -2], 2), ([255, 1], [9, 1], 0), ([1 << 33, 1], [1, 1], 1)],
)
def test_values_outside_the_classes_are_counted_as_invalid(device, truth, guess, invalid):
    counts, found = hmsa_ext.confusion_matrix(torch.tensor(guess, device=device), torch.tensor(truth, device=device), 3)
    assert found.item() == invalid
    assert counts.sum().item() == 2 - invalid - truth.count(255)


@pytest.mark.parametrize("ignore_index", [255, 2, -100, 0])
def test_any_label_can_be_the_ignored_one(device, ignore_index):
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randint(-3, 9, (3, 20, 30), generator=generator).to(device) for _ in range(2))
    got = hmsa_ext.confusion_matrix(prediction, target, 5, ignore_index=ignore_index)
    assert_same(got, reference.confusion_matrix(prediction, target, 5, ignore_index=ignore_index))
    assert got[1].item() > 0


@pytest.mark.parametrize("shape", [(), (1,), (1001,), (17, 23), (0, 4, 4), (2, 3, 5, 7), (1, 1, 1), (3, 1, 70000)])
def test_any_shape_is_taken(device, shape):
    prediction, target = random_labels(shape, 4, device)
    assert_same(hmsa_ext.confusion_matrix(prediction, target, 4), reference.confusion_matrix(prediction, target, 4))


def test_any_strides_are_read(device):
    prediction, target = random_labels((3, 40, 56), 7, device)
    expected = reference.confusion_matrix(prediction, target, 7)
    transposed = prediction.transpose(1, 2).contiguous().transpose(1, 2)
    gaps = target.repeat_interleave(2, dim=2)[..., ::2]
    rows_first = target.transpose(0, 1).contiguous().transpose(0, 1)
    assert_same(hmsa_ext.confusion_matrix(transposed, gaps, 7), expected)
    assert_same(hmsa_ext.confusion_matrix(prediction, rows_first, 7), expected)
    one = prediction[:1].expand(3, -1, -1)
    assert_same(hmsa_ext.confusion_matrix(one, target, 7), reference.confusion_matrix(one, target, 7))


def test_same_counts_for_every_number_of_threads():
    prediction, target = random_labels((3, 97, 231), 19, "cpu")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert_same(
                hmsa_ext.confusion_matrix(prediction, target, 19), reference.confusion_matrix(prediction, target, 19)
            )
    finally:
        torch.set_num_threads(before)


@pytest.mark.memory
def test_nothing_but_the_counts_is_allocated(device):
    prediction, target = (t.byte() for t in random_labels((1, 2048, 2048), 19, device))

    def count():
        torch.ops.hmsa.confusion_matrix(prediction, target, 19)

    count()
    with LiveBytes() as meter:
        count()
    assert meter.peak <= MEGABYTE
    peak = peak_memory(count, device)
    assert peak is None or peak <= 4 * MEGABYTE


@pytest.mark.compile
def test_opcheck_and_compile(device):
    prediction, target = random_labels((2, 17, 23), 5, device)
    opcheck(torch.ops.hmsa.confusion_matrix, (prediction.byte(), target, 5), {"ignore_index": 3})
    compiled = torch.compile(hmsa_ext.confusion_matrix, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 17, 23), (1, 40, 9)):
        labels = random_labels(shape, 5, device)
        assert_same(compiled(*labels, 5), reference.confusion_matrix(*labels, 5))


def test_vmap_is_a_loop(device):
    prediction, target = random_labels((4, 17, 23), 5, device)
    counts, invalid = torch.vmap(lambda p, t: hmsa_ext.confusion_matrix(p, t, 5))(prediction, target)
    for i in range(4):
        assert_same((counts[i], invalid[i]), reference.confusion_matrix(prediction[i], target[i], 5))


BAD_INPUT = {
    "shapes": ((torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), 4), r"prediction has shape \[2, 3\], target"),
    "prediction": ((torch.zeros(2, 3), torch.zeros(2, 3).long(), 4), r"prediction is float32; expected uint8, int16,"),
    "target": ((torch.zeros(2, 3).long(), torch.zeros(2, 3).bool(), 4), r"target is bool; expected uint8"),
    "classes": ((torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), 0), r"num_classes is 0; expected 1 to"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case):
    arguments, message = BAD_INPUT[case]
    with pytest.raises(RuntimeError, match=f"^confusion_matrix: {message}"):
        hmsa_ext.confusion_matrix(*arguments)


@pytest.mark.gpu
def test_devices_that_differ_are_named():
    labels = torch.zeros(2, 3).long()
    with pytest.raises(RuntimeError, match=r"confusion_matrix: prediction is on cpu, target on cuda:0; expected one"):
        hmsa_ext.confusion_matrix(labels, labels.cuda(), 4)
