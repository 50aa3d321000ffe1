"""Loaders: one epoch is one sequence, however it is split, stopped or shared."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from hmsa_ext import data
from hmsa_ext.data.loader import epoch_order


class Numbered:
    """Small images whose every pixel is the index; item ``broken`` raises as a damaged file does."""

    classes = data.ClassTable(("a", "b"), np.zeros((2, 3), np.uint8))

    def __init__(self, length: int, broken: int | None = None) -> None:
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> data.Sample:
        if index == self.broken:
            raise data.DataError("/somewhere/frame_7.jpg: cannot be decoded; the file is damaged")
        noise = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        return data.Sample(noise, np.full((24, 32), index % 2, np.uint8), f"n{index}")


AUGMENT = data.Augment((16, 16))


def batches(length: int = 26, **options) -> list[data.Batch]:
    settings = {"batch_size": 4, "epoch": 3, "seed": 11, **options}
    return list(data.training_loader(Numbered(length), AUGMENT, **settings))


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
    loader = data.training_loader(Numbered(26), AUGMENT, batch_size=4, epoch=0, seed=0)
    names = [name for batch in loader for name in batch.names]
    assert len(loader) == 6
    assert len(names) == len(set(names)) == 24


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(workers):
    assert_equal(batches(), batches(workers=workers))


def test_another_process_gives_the_same_batches():
    code = """
import hashlib
from hmsa_ext import data
scenes = data.build("synthetic", "train", length=4)
loader = data.training_loader(scenes, data.Augment((48, 64)), batch_size=2, epoch=1, seed=5)
sums = [hashlib.sha256(b.images.numpy().tobytes() + b.labels.numpy().tobytes()).hexdigest() for b in loader]
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
    loader = data.training_loader(Numbered(26), AUGMENT, batch_size=4, epoch=3, seed=11, start_batch=start)
    assert len(loader) == 6 - start
    assert_equal(batches()[start:], list(loader))


def test_epochs_and_seeds_differ_in_order_and_in_crops():
    base, other_epoch, other_seed = batches(), batches(epoch=4), batches(seed=12)
    for other in (other_epoch, other_seed):
        assert [batch.names for batch in base] != [batch.names for batch in other]
    place = {name: image for batch in base for name, image in zip(batch.names, batch.images, strict=True)}
    again = {name: image for batch in other_epoch for name, image in zip(batch.names, batch.images, strict=True)}
    shared = place.keys() & again.keys()
    assert shared
    assert not any(torch.equal(place[name], again[name]) for name in shared)


def test_an_order_is_a_permutation():
    order = epoch_order(1000, 7, 2)
    assert sorted(order.tolist()) == list(range(1000))
    assert not np.array_equal(order, np.arange(1000))


def test_loaders_leave_the_global_random_numbers_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches()
    list(data.evaluation_loader(Numbered(3)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (4, 0), (2, 2)])
def test_evaluation_sees_every_image_once(world_size, workers):
    seen = []
    for rank in range(world_size):
        loader = data.evaluation_loader(Numbered(10), rank=rank, world_size=world_size, workers=workers)
        part = list(loader)
        assert len(part) == len(loader)
        assert all(batch.images.shape == (1, 3, 24, 32) for batch in part)
        seen += [name for batch in part for name in batch.names]
    assert sorted(seen) == sorted(f"n{index}" for index in range(10))


def test_evaluation_leaves_images_as_they_are():
    dataset = Numbered(2)
    for index, batch in enumerate(data.evaluation_loader(dataset)):
        assert np.array_equal(data.denormalise(batch.images[0]), dataset[index].image)
        assert np.array_equal(batch.labels[0].numpy(), dataset[index].label)


def test_more_ranks_than_images_leave_some_without():
    assert [len(data.evaluation_loader(Numbered(2), rank=rank, world_size=3)) for rank in range(3)] == [1, 1, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_stops_training_and_is_named(workers):
    loader = data.training_loader(Numbered(6, broken=3), AUGMENT, batch_size=2, epoch=0, seed=0, workers=workers)
    with pytest.raises(data.DataError, match=r"/somewhere/frame_7\.jpg: cannot be decoded"):
        list(loader)


def test_a_damaged_file_stops_evaluation_and_is_named():
    with pytest.raises(data.DataError, match=r"/somewhere/frame_7\.jpg: cannot be decoded"):
        list(data.evaluation_loader(Numbered(6, broken=3)))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected a number from 1 up, got 0"),
        ({"epoch": -1}, ValueError, "epoch: expected a number from 0 up, got -1"),
        ({"seed": -1}, ValueError, "seed: expected a number from 0 up, got -1"),
        ({"rank": 2, "world_size": 2}, ValueError, "got rank 2 of 2"),
        ({"workers": -1}, ValueError, "workers: expected a number from 0 up, got -1"),
        ({"start_batch": 7}, ValueError, r"start_batch: expected 0\.\.6, the batches of an epoch, got 7"),
        ({"batch_size": 20, "world_size": 2}, data.DataError, "has 26 images, fewer than one batch: batch_size 20 on "),
    ],
)
def test_bad_options_are_named(options, error, text):
    with pytest.raises(error, match=text):
        batches(**options)


def test_a_batch_moves_to_a_device(device):
    (batch, *_) = batches()
    moved = batch.to(device)
    assert moved.images.device.type == moved.labels.device.type == device.type
    assert torch.equal(moved.images.cpu(), batch.images)
    assert moved.names == batch.names
