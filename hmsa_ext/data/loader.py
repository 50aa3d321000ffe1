"""Loaders for training and evaluation: worker processes decode, the device crops.

Every random number is a function of (seed, epoch, position); there is no generator state to save. A run therefore gives
the same batches with any number of workers, two ranks take the crops of one rank with twice the batch, and a run that
was stopped within an epoch continues with the next batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from hmsa_ext.data.augment import Looks, resized_size
from hmsa_ext.data.crops import DecodedBatch, Piece, collate, piece_of
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.training_set import TrainingSet
from hmsa_ext.data.types import DataError, Dataset, Sample
from hmsa_ext.errors import ArgumentValueError

ATTEMPTS = 8  # at another image in place of a damaged one
DAMAGED = ("stop", "skip")
_LOOKS = 1  # stream of the random numbers


def training_loader(
    training: TrainingSet,
    *,
    batch_size: int,
    epoch: int,
    epochs: int = 1,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    start_batch: int = 0,
    damaged: str = "stop",
) -> DataLoader:
    """Random crops, epoch by epoch.

    training: from :func:`hmsa_ext.data.prepare`.
    batch_size: crops per rank. Items that do not fill the last batch of all ranks are left out of an epoch.
    epoch: counts from 0; gives the items, with the seed of the sampler.
    epochs: number of epochs; workers continue from one into the next without a pause.
    rank, world_size: number of this process, and of all processes that train together.
    workers: worker processes, which decode; 0 decodes in this process.
    start_batch: the first batch of the first epoch, exactly as if the batches before it had been taken.
    damaged: when a file cannot be decoded, "stop" raises DataError with the name of the file, and "skip" takes another
        item for the same place (the next of the same class) and adds a sentence to the batch's ``warnings``.

    Returns an iterable of :class:`DecodedBatch`, with a length, in page-locked memory where there is a GPU;
    :func:`hmsa_ext.data.cut` makes the crops.

    Raises DataError when the items do not fill one batch.
    """
    _check_ranks(rank, world_size, workers)
    if damaged not in DAMAGED:
        raise ArgumentValueError(f"damaged: expected one of {', '.join(DAMAGED)}, got {damaged!r}")
    for name, value, low in (("batch_size", batch_size, 1), ("epoch", epoch, 0), ("epochs", epochs, 1)):
        if value < low:
            raise ArgumentValueError(f"{name}: expected a number from {low} up, got {value}")
    batches = batches_per_epoch(training, batch_size, world_size)
    if not 0 <= start_batch <= batches:
        raise ArgumentValueError(f"start_batch: expected 0..{batches}, the batches of an epoch, got {start_batch}")
    places = _Places(batches, batch_size, rank, world_size, first=epoch * batches + start_batch, epochs=epoch + epochs)
    return _loader(_Crops(training, damaged == "skip"), places, workers)


def batches_per_epoch(training: TrainingSet, batch_size: int, world_size: int = 1) -> int:
    """How many batches each rank takes in an epoch. Raises DataError when the items do not fill one."""
    together = batch_size * world_size
    if len(training.sampler) < together:
        images = len(training.sampler)
        largest = images // world_size
        remedy = f"a batch_size of at most {largest}" if largest else f"at most {images} ranks"
        raise DataError(
            f"an epoch has {images} items, fewer than one batch: batch_size {batch_size} on each of {world_size} "
            f"rank{'s' * (world_size > 1)} takes {together}. Set {remedy}, or add images"
        )
    return len(training.sampler) // together


def evaluation_loader(
    dataset: Dataset, *, rank: int = 0, world_size: int = 1, workers: int = 0, long_edge: int = 0
) -> DataLoader:
    """Every image once, whole and alone, in the order of the data set.

    Each rank takes every ``world_size``-th image: every image is seen exactly once, and the number per rank may differ
    by one. ``long_edge``: images and label maps are resized to this many pixels along their longer side; 0: as they
    are. A damaged file always raises DataError: a score without it would be the score of another data set.
    Returns an iterable of :class:`DecodedBatch` of one image, with a length.
    """
    _check_ranks(rank, world_size, workers)
    if long_edge < 0:
        raise ArgumentValueError(f"long_edge: expected pixels from 0 up, got {long_edge}")
    return _loader(_Whole(dataset, long_edge), [[i] for i in range(rank, len(dataset), world_size)], workers)


def whole_piece(sample: Sample, long_edge: int = 0) -> Piece:
    """A whole picture as a piece, resized as :func:`evaluation_loader` does it."""
    height, width = sample.label.shape
    return piece_of(sample, (0, 0, height, width), Looks(), resized_size(height, width, long_edge))


def looks_rng(seed: int, epoch: int, place: int) -> np.random.Generator:
    """The random numbers of the looks of the crop at one place of an epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, _LOOKS, place))))


class _Places:
    """The batches of one rank, each a list of (epoch, place), from batch number ``first`` of the run on."""

    def __init__(self, batches: int, batch_size: int, rank: int, world_size: int, *, first: int, epochs: int) -> None:
        self.batches, self.batch_size, self.rank, self.world_size = batches, batch_size, rank, world_size
        self.numbers = range(first, epochs * batches)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in self.numbers:
            epoch, batch = divmod(number, self.batches)
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(epoch, place) for place in range(start, start + self.batch_size)]


class _Crops:
    """The items of all epochs as pieces, by (epoch, place)."""

    def __init__(self, training: TrainingSet, skip: bool) -> None:
        self.dataset, self.sampler, self.augment = training.dataset, training.sampler, training.augment
        self.skip = skip
        self.epoch, self.boxes, self.classes = -1, np.empty((0, 5), np.int64), np.empty(0, np.int64)  # drawn last

    def __getitem__(self, key: tuple[int, int]) -> Piece:
        epoch, place = key
        if epoch != self.epoch:  # a whole epoch is drawn as fast as a few items
            self.epoch, (self.boxes, self.classes) = epoch, self.sampler.draw(epoch)
        boxes, classes = self.boxes, self.classes
        (image, *box), chosen_for, warnings = boxes[place].tolist(), int(classes[place]), []
        for attempt in range(1, ATTEMPTS + 1):
            try:
                sample = self.dataset[image]
                break
            except DataError as error:
                if not self.skip:
                    raise
                if attempt == ATTEMPTS:
                    raise DataError(f"{error}; so were the {ATTEMPTS - 1} images tried before it") from error
                warnings.append(f"skipped: {error}")
            boxes, _ = self.sampler.draw(epoch, place, 1, attempt=attempt)
            image, *box = boxes[0].tolist()
        looks = self.augment.draw_looks(looks_rng(self.sampler.seed, epoch, place))
        piece = piece_of(sample, (box[0], box[1], box[2], box[3]), looks, self.augment.crop_size)
        piece.chosen_for, piece.warnings = chosen_for, warnings
        return piece


class _Whole:
    """The data set as it is."""

    def __init__(self, dataset: Dataset, long_edge: int) -> None:
        self.dataset, self.long_edge = dataset, long_edge

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Piece:
        return whole_piece(self.dataset[index], self.long_edge)


def _start_worker(_: int) -> None:
    # One core per worker; and OpenCV's own threads do not survive a fork.
    cv2.setNumThreads(0)


@dataclass(frozen=True)
class _Failure:
    """The text of a DataError. PyTorch would turn the error of a worker into one whose text is a traceback."""

    text: str


class _Caught:
    """Items of which those that raise DataError are :class:`_Failure`."""

    def __init__(self, items: _Crops | _Whole) -> None:
        self.items = items

    def __getitem__(self, key: Any) -> Piece | _Failure:
        try:
            return self.items[key]
        except DataError as error:
            return _Failure(str(error))


def _collate(pieces: list[Piece | _Failure]) -> DecodedBatch | _Failure:
    good = [piece for piece in pieces if isinstance(piece, Piece)]
    failures = [piece for piece in pieces if isinstance(piece, _Failure)]
    return failures[0] if failures else collate(good)


class _Loader(DataLoader):
    """Raises the DataError of a worker in this process."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, _Failure):
                raise DataError(batch.text)
            yield batch


def _loader(items: _Crops | _Whole, places: _Places | list[list[int]], workers: int) -> DataLoader:
    return _Loader(
        cast("torch.utils.data.Dataset", _Caught(items)),  # it asks for no more than __getitem__
        batch_sampler=places,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Without it each iterator would draw from the global generator, and so change the dropout of the model.
        generator=torch.Generator(),
    )


def _check_ranks(rank: int, world_size: int, workers: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ArgumentValueError(f"rank, world_size: expected 0 <= rank < world_size, got rank {rank} of {world_size}")
    if workers < 0:
        raise ArgumentValueError(f"workers: expected a number from 0 up, got {workers}")
