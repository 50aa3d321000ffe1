"""Loaders: one epoch is one sequence, however it is split, stopped or shared."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch

from hmsa_ext import HmsaError, data
from python_tests.data.picture_sets import Blocks

AUGMENT = data.Augment((16, 16))


def prepared(length: int = 26, *, seed: int = 11, augment: data.Augment = AUGMENT, **options) -> data.TrainingSet:
    return data.prepare(Blocks(length, **options), augment, seed=seed, tile=16, quiet=True)


def loader(training: data.TrainingSet | None = None, **options):
    return data.training_loader(training or prepared(), **{"batch_size": 4, "epoch": 3, **options})


def batches(training: data.TrainingSet | None = None, **options) -> list[data.Batch]:
    return [data.cut(decoded) for decoded in loader(training, **options)]


def assert_equal(first: list[data.Batch], second: list[data.Batch]) -> None:
    assert [batch.names for batch in first] == [batch.names for batch in second]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_batches_have_the_promised_form():
    (batch, *_) = batches()
    assert isinstance(batch, data.Batch)
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert batch.labels.shape == (4, 16, 16)
    assert batch.labels.dtype == torch.uint8
    assert len(batch) == len(batch.names) == 4


def test_the_ragged_end_is_left_out():
    assert len(loader()) == len(batches()) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_follow_each_other_without_a_seam(workers):
    one_by_one = [*batches(epoch=3, start_batch=4), *batches(epoch=4), *batches(epoch=5)]
    assert len(loader(epoch=3, start_batch=4, epochs=3)) == len(one_by_one) == 2 + 6 + 6
    assert_equal(batches(epoch=3, start_batch=4, epochs=3, workers=workers), one_by_one)


def test_a_uniform_epoch_is_every_image_once():
    training = data.prepare(Blocks(24), AUGMENT, data.Sampling("uniform"), seed=1, tile=16, quiet=True)
    names = [name for decoded in loader(training) for name in decoded.names]
    assert sorted(names) == sorted(f"n{i}" for i in range(24))


def test_crops_are_those_of_the_sampler():
    """Each crop, cut by hand out of its whole picture at scale one."""
    training = prepared(augment=data.Augment((16, 16), scale=(1, 1), flip=False, colour=0))
    boxes, classes = training.sampler.draw(3)
    chosen = []
    for number, decoded in enumerate(loader(training)):
        chosen += decoded.classes
        for k, (picture, label) in enumerate(zip(data.cut(decoded).images, data.cut(decoded).labels, strict=True)):
            image, y0, x0, y1, x1 = boxes[4 * number + k].tolist()
            sample = training.dataset[image]
            assert decoded.names[k] == sample.name
            assert np.array_equal(label.numpy(), sample.label[y0:y1, x0:x1])
            assert np.array_equal(data.denormalise(picture), sample.image[y0:y1, x0:x1])
    assert chosen == classes[:24].tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(workers):
    assert_equal(batches(), batches(workers=workers))


def test_another_process_gives_the_same_batches():
    code = """
import hashlib
from hmsa_ext import data
scenes = data.prepare(data.build("synthetic", "train", length=4), data.Augment((48, 64), blur=(0.15, 1.3)), seed=5)
crops = map(data.cut, data.training_loader(scenes, batch_size=2, epoch=1))
sums = [hashlib.sha256(b.images.numpy().tobytes() + b.labels.numpy().tobytes()).hexdigest() for b in crops]
"""
    here: dict = {}
    exec(code, here)
    output = subprocess.run([sys.executable, "-c", code + "print(*sums)"], capture_output=True, text=True, check=True)
    assert output.stdout.split() == here["sums"]
    assert len(here["sums"]) == 2


def test_two_ranks_see_what_one_with_twice_the_batch_sees():
    whole = batches(batch_size=4)
    ranks = [batches(batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    joined = [
        data.Batch(torch.cat([a.images, b.images]), torch.cat([a.labels, b.labels]), a.names + b.names)
        for a, b in zip(*ranks, strict=True)
    ]
    assert_equal(whole, joined)


@pytest.mark.parametrize("start", [0, 2, 5, 6])
def test_a_stopped_epoch_goes_on_with_the_next_batch(start):
    assert len(loader(start_batch=start)) == 6 - start
    assert_equal(batches()[start:], batches(start_batch=start))


def test_epochs_and_seeds_differ_in_order_and_in_looks():
    base, other_epoch, other_seed = batches(), batches(epoch=4), batches(prepared(seed=12))
    for other in (other_epoch, other_seed):
        assert [batch.names for batch in base] != [batch.names for batch in other]
    looks = [torch.cat([decoded.jitter for decoded in loader(epoch=epoch)]) for epoch in (3, 4)]
    assert not (looks[0] == looks[1]).all(1).any()


def global_numbers() -> np.ndarray:
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    return state[1].copy()


def test_loaders_leave_the_global_random_numbers_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), global_numbers()
    batches()
    list(data.evaluation_loader(Blocks(3)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(global_numbers(), before[1])


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (4, 0), (2, 2)])
def test_evaluation_sees_every_image_once(world_size, workers):
    seen = []
    for rank in range(world_size):
        whole = data.evaluation_loader(Blocks(10), rank=rank, world_size=world_size, workers=workers)
        part = list(whole)
        assert len(part) == len(whole)
        seen += [name for batch in part for name in batch.names]
    assert sorted(seen) == sorted(f"n{index}" for index in range(10))


def test_evaluation_leaves_images_as_they_are():
    dataset = Blocks(4)
    for index, batch in enumerate(map(data.cut, data.evaluation_loader(dataset))):
        assert np.array_equal(data.denormalise(batch.images[0]), dataset[index].image)
        assert np.array_equal(batch.labels[0].numpy(), dataset[index].label)


def test_evaluation_resizes_to_the_long_edge():
    (first, second, *_) = map(data.cut, data.evaluation_loader(Blocks(4), long_edge=32))
    assert first.images.shape == (1, 3, 24, 32)  # of 48x64
    assert second.labels.shape == (1, 22, 32)  # of 56x80
    sample = Blocks(4)[0]
    assert np.array_equal(first.labels[0].numpy(), sample.label[1::2, 1::2])


def test_more_ranks_than_images_leave_some_without():
    assert [len(data.evaluation_loader(Blocks(2), rank=rank, world_size=3)) for rank in range(3)] == [1, 1, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_stops_training_and_is_named(workers):
    training = data.prepare(Blocks(6, broken=(3,)), AUGMENT, data.Sampling("uniform"), tile=16, quiet=True)
    with pytest.raises(data.DataError, match=r"/somewhere/frame_3\.jpg: cannot be decoded"):
        list(loader(training, batch_size=2, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_skipped_if_wanted_and_named(workers):
    dataset = Blocks(20, broken=(3, 10))
    training = data.prepare(dataset, AUGMENT, seed=11, tile=16, quiet=True)
    whole = data.prepare(Blocks(20), AUGMENT, seed=11, tile=16, quiet=True)
    boxes, classes = training.sampler.draw(3)
    skipping = list(loader(training, batch_size=5, workers=workers, damaged="skip"))
    plain = list(loader(whole, batch_size=5))
    warnings = [text for decoded in skipping for text in decoded.warnings]
    hit = np.isin(boxes[:, 0], (3, 10)).sum()
    assert hit > 0
    assert len(warnings) >= hit
    assert all("skipped: /somewhere/frame_" in text for text in warnings)
    names = [name for decoded in skipping for name in decoded.names]
    assert not {"n3", "n10"} & set(names)
    assert [number for decoded in skipping for number in decoded.classes] == classes.tolist()
    # All other crops are what they were.
    before = [name for decoded in plain for name in decoded.names]
    assert sum(a != b for a, b in zip(names, before, strict=True)) == hit


def test_when_nothing_can_be_read_training_stops_all_the_same():
    training = data.prepare(Blocks(6, broken=tuple(range(6))), AUGMENT, tile=16, quiet=True)
    with pytest.raises(data.DataError, match=r"frame_.*cannot be decoded.*so were the 7 images tried before it"):
        list(loader(training, damaged="skip"))


def test_a_damaged_file_stops_evaluation_and_is_named():
    with pytest.raises(data.DataError, match=r"/somewhere/frame_3\.jpg: cannot be decoded"):
        list(data.evaluation_loader(Blocks(6, broken=(3,))))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected a number from 1 up, got 0"),
        ({"epoch": -1}, ValueError, "epoch: expected a number from 0 up, got -1"),
        ({"epochs": 0}, ValueError, "epochs: expected a number from 1 up, got 0"),
        ({"damaged": "ignore"}, ValueError, "damaged: expected one of stop, skip, got 'ignore'"),
        ({"rank": 2, "world_size": 2}, ValueError, "got rank 2 of 2"),
        ({"workers": -1}, ValueError, "workers: expected a number from 0 up, got -1"),
        ({"start_batch": 7}, ValueError, r"start_batch: expected 0\.\.6, the batches of an epoch, got 7"),
        ({"batch_size": 20, "world_size": 2}, data.DataError, "has 26 items, fewer than one batch: batch_size 20 on "),
    ],
)
def test_bad_options_are_named(options, error, text):
    with pytest.raises(error, match=text):
        batches(**options)


def test_the_same_crops_on_every_device(device):
    augment = data.Augment((16, 24), blur=(0.15, 1.3))
    (decoded, *_) = loader(prepared(augment=augment))
    here, there = data.cut(decoded), data.cut(decoded.to(device), channels_last=True)
    assert there.images.device.type == there.labels.device.type == device.type
    assert there.images.is_contiguous(memory_format=torch.channels_last)
    # The same arithmetic in float32; what is added first may differ.
    assert torch.allclose(there.images.cpu(), here.images, atol=2e-5)
    assert torch.equal(there.labels.cpu(), here.labels)


def test_only_the_part_under_the_box_travels():
    for decoded in loader(prepared(augment=data.Augment((16, 16), scale=(1, 1)))):
        assert all(image.shape == (16, 16, 3) for image in decoded.images)


def test_options_of_prepare_that_do_not_fit_are_named():
    with pytest.raises(HmsaError, match="extra_classes: got rare, expected none without extra images"):
        data.prepare(Blocks(), AUGMENT, data.Sampling(extra_classes=("rare",)))
    with pytest.raises(HmsaError, match="extra_crops: got 'pooled', expected no value without extra images"):
        data.prepare(Blocks(), AUGMENT, data.Sampling(extra_crops="pooled"))
    with pytest.raises(HmsaError, match="extra_classes: got , expected all, or the classes that the extra images"):
        data.prepare(Blocks(), AUGMENT, data.Sampling(extra_classes=()), extra=Blocks())
    with pytest.raises(
        HmsaError, match="extra_crops: got 'by_class', expected pooled, since no crop is drawn by class"
    ):
        data.prepare(Blocks(), AUGMENT, data.Sampling("uniform"), extra=Blocks())


def test_extra_images_are_decoded_from_the_second_data_set():
    class Coarse(Blocks):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return data.Sample(sample.image, sample.label, f"coarse{index}")

    sampling = data.Sampling(extra_classes=("rare",))
    training = data.prepare(Blocks(40), AUGMENT, sampling, seed=1, extra=Coarse(30), tile=16, quiet=True)
    pairs = [pair for decoded in loader(training) for pair in zip(decoded.names, decoded.classes, strict=True)]
    assert any(name.startswith("coarse") for name, _ in pairs)
    assert all(number == 2 for name, number in pairs if name.startswith("coarse"))


def test_the_example_of_the_package_runs():
    result = doctest.testmod(data)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_worker_stays_one_line(workers):
    training = data.prepare(Blocks(6, broken=(3,)), AUGMENT, data.Sampling("uniform"), tile=16, quiet=True)
    for run in (
        lambda: list(loader(training, batch_size=2, workers=workers)),
        lambda: list(data.evaluation_loader(Blocks(6, broken=(3,)), workers=workers)),
    ):
        with pytest.raises(data.DataError) as caught:
            run()
        assert str(caught.value) == "/somewhere/frame_3.jpg: cannot be decoded; the file is damaged"


def test_too_few_images_for_a_batch_name_the_remedy():
    with pytest.raises(data.DataError, match="Set a batch_size of at most 13, or add images"):
        data.batches_per_epoch(prepared(), 20, 2)
    with pytest.raises(data.DataError, match="Set at most 26 ranks, or add images"):
        data.batches_per_epoch(prepared(), 1, 30)


class OneClass(Blocks):
    """Every pixel is of one class, or ignored."""

    def __init__(self, value: int) -> None:
        super().__init__(4)
        self.value = value

    def label(self, index):
        return np.full_like(super().label(index), self.value)


def test_training_that_can_learn_nothing_stops_with_the_words_of_the_scan():
    with pytest.raises(data.DataError, match=r"train: only one class occurs at all, common\. `hmsa data scan` shows"):
        data.prepare(OneClass(1), AUGMENT, quiet=True)
    with pytest.raises(data.DataError, match="train: every pixel of every image is ignored"):
        data.prepare(OneClass(255), AUGMENT, quiet=True)
    only = OneClass(0)
    only.classes = data.ClassTable(("fg",), np.zeros((1, 3)))
    with pytest.raises(data.DataError, match=r"train: only one class is named, fg: .* Name the background"):
        data.prepare(only, AUGMENT, quiet=True)
    index = data.build_index(OneClass(255), tile=8, quiet=True)
    with pytest.raises(data.DataError, match="val: every pixel of every image is ignored"):
        data.require_labels(index, "val")
    data.require_labels(data.build_index(OneClass(1), tile=8, quiet=True), "val")
