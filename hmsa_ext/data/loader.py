"""Loaders for training and evaluation.

All randomness is counted, not carried on: the order of an epoch follows from (seed, epoch), and the crop at place
``n`` of it from (seed, epoch, n). So a run gives the same batches with any number of workers, two ranks see what one
rank with twice the batch sees, and a run that was stopped in the middle of an epoch goes on with the very next batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader

from hmsa_ext.data.augment import Augment
from hmsa_ext.data.normalise import normalise
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import Batch, DataError, Dataset, Sample

_ORDER, _CROP = 0, 1  # two independent streams of one seed


def training_loader(
    dataset: Dataset,
    augment: Augment,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    start_batch: int = 0,
) -> DataLoader:
    """One epoch of random crops in a random order.

    batch_size: images per rank. Images that do not fill the last batch of all ranks are left out of this epoch.
    epoch, seed: give the order and the crops.
    rank, world_size: this process among those that train together.
    workers: worker processes; 0 loads in this process.
    start_batch: begin with this batch of the epoch, exactly as if the ones before had been taken.

    Returns an iterable of :class:`Batch`, with a length. Images are float32 [batch_size, 3, *augment.crop], in
    page-locked memory where there is a GPU.

    Raises DataError when the images do not fill one batch; when a file turns out to be damaged, while iterating.
    """
    _check_ranks(rank, world_size, workers)
    for name, value, low in (("batch_size", batch_size, 1), ("epoch", epoch, 0), ("seed", seed, 0)):
        if value < low:
            raise ValueError(f"{name}: expected a number from {low} up, got {value}")
    together = batch_size * world_size
    batches = len(dataset) // together
    if batches == 0:
        raise DataError(
            f"the data set has {len(dataset)} images, fewer than one batch: batch_size {batch_size} on each of "
            f"{world_size} ranks takes {together}"
        )
    if not 0 <= start_batch <= batches:
        raise ValueError(f"start_batch: expected 0..{batches}, the batches of an epoch, got {start_batch}")
    first = [batch * together + rank * batch_size for batch in range(start_batch, batches)]
    places = [range(start, start + batch_size) for start in first]
    crops = _Crops(dataset, augment, epoch_order(len(dataset), seed, epoch), seed, epoch)
    return _loader(crops, places, workers)


def evaluation_loader(dataset: Dataset, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> DataLoader:
    """Every image once, whole and alone, in the order of the data set.

    Of several ranks each takes every ``world_size``-th image: all of them are seen exactly once, and the number per
    rank may differ by one. Returns an iterable of :class:`Batch` of one image, with a length.
    """
    _check_ranks(rank, world_size, workers)
    return _loader(_Whole(dataset), [[index] for index in range(rank, len(dataset), world_size)], workers)


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The images of an epoch, int64 [length]: a permutation that follows from (seed, epoch) alone."""
    # Raw output of the generator: of this NumPy promises that it never changes, of ``permutation`` it does not.
    keys = np.random.Philox(np.random.SeedSequence((seed, epoch, _ORDER))).random_raw(length)
    return np.argsort(keys, kind="stable")


def crop_rng(seed: int, epoch: int, place: int) -> np.random.Generator:
    """The random numbers of the crop at one place of an epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, _CROP, place))))


class _Crops:
    """The places of one epoch as a sequence of training crops."""

    def __init__(self, dataset: Dataset, augment: Augment, order: np.ndarray, seed: int, epoch: int) -> None:
        self.dataset, self.augment, self.order, self.seed, self.epoch = dataset, augment, order, seed, epoch

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Sample:
        return self.augment(self.dataset[int(self.order[place])], crop_rng(self.seed, self.epoch, place))


class _Whole:
    """The data set as it is."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[index]


def _collate(samples: list[Sample]) -> Batch:
    images = torch.stack([normalise(sample.image) for sample in samples])
    labels = torch.stack([torch.from_numpy(sample.label) for sample in samples])
    return Batch(images, labels, [sample.name for sample in samples])


def _start_worker(_: int) -> None:
    # One core per worker; and OpenCV's own threads do not survive a fork.
    cv2.setNumThreads(0)


def _loader(items: _Crops | _Whole, places: list, workers: int) -> DataLoader:
    return DataLoader(
        items,
        batch_sampler=places,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Else making an iterator would draw from the global generator, and with it change what the model draws.
        generator=torch.Generator(),
    )


def _check_ranks(rank: int, world_size: int, workers: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank, world_size: expected 0 <= rank < world_size, got rank {rank} of {world_size}")
    if workers < 0:
        raise ValueError(f"workers: expected a number from 0 up, got {workers}")
