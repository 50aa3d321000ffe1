"""Decoded pictures on their way to the device, and the crops that the device makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from hmsa_ext import ops
from hmsa_ext.data.augment import Looks
from hmsa_ext.data.normalise import MEAN, STD
from hmsa_ext.data.types import Batch, DataError, Sample
from hmsa_ext.errors import ArgumentValueError


@dataclass
class DecodedBatch:
    """A batch of a loader: decoded pictures, and the crops that :func:`cut` is to make of them.

    images: uint8 [h_i, w_i, 3], one per crop: the part of the picture that its box covers.
    labels: uint8 [h_i, w_i]; 255 = ignored.
    boxes: int64 [B, 5] = number in ``images``, y0, x0, y1, x1 (end excluded); may reach outside.
    flip, jitter, blur: bool [B], float32 [B, 4] and float32 [B] as :func:`hmsa_ext.ops.sample_crop` takes them.
    size: (height, width) of the crops.
    names: one per crop.
    classes: the class that each crop was chosen for; -1: an image at random.
    warnings: sentences about files that could not be used.
    """

    images: list[torch.Tensor]
    labels: list[torch.Tensor]
    boxes: torch.Tensor
    flip: torch.Tensor
    jitter: torch.Tensor
    blur: torch.Tensor
    size: tuple[int, int]
    names: list[str]
    classes: list[int]
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> DecodedBatch:
        """The pictures on another device. From pinned memory the copy runs beside the host."""
        images = [image.to(device, non_blocking=non_blocking) for image in self.images]
        labels = [label.to(device, non_blocking=non_blocking) for label in self.labels]
        return replace(self, images=images, labels=labels)

    def pin_memory(self) -> DecodedBatch:
        """The pictures in page-locked memory; called by ``torch.utils.data.DataLoader``."""
        images = [image.pin_memory() for image in self.images]
        return replace(self, images=images, labels=[label.pin_memory() for label in self.labels])


@dataclass
class Piece:
    """One item of a :class:`DecodedBatch`."""

    image: np.ndarray
    label: np.ndarray
    box: tuple[int, int, int, int]
    looks: Looks
    size: tuple[int, int]
    name: str
    chosen_for: int = -1
    warnings: list[str] = field(default_factory=list)


def piece_of(sample: Sample, box: tuple[int, int, int, int], looks: Looks, size: tuple[int, int]) -> Piece:
    """The part of a picture that a box covers; the rest is not copied to the device."""
    height, width = sample.label.shape
    if sample.image.shape != (height, width, 3):
        raise ArgumentValueError(
            f"sample {sample.name}: expected an image [{height}, {width}, 3] as its label map has it, "
            f"got {list(sample.image.shape)}"
        )
    y0, x0, y1, x1 = (int(side) for side in box)
    top, left = min(max(y0, 0), height), min(max(x0, 0), width)
    inside = slice(top, max(y1, top)), slice(left, max(x1, left))
    image, label = np.ascontiguousarray(sample.image[inside]), np.ascontiguousarray(sample.label[inside])
    return Piece(image, label, (y0 - top, x0 - left, y1 - top, x1 - left), looks, size, sample.name)


def collate(pieces: list[Piece]) -> DecodedBatch:
    """Pieces of one size as a batch. Raises ValueError for none, and for several sizes."""
    sizes = {piece.size for piece in pieces}
    if len(sizes) != 1:
        raise ArgumentValueError(f"pieces: expected at least one, all of one size, got sizes {sorted(sizes)}")
    looks = [piece.looks for piece in pieces]
    return DecodedBatch(
        images=[torch.from_numpy(piece.image) for piece in pieces],
        labels=[torch.from_numpy(piece.label) for piece in pieces],
        boxes=torch.tensor([(i, *piece.box) for i, piece in enumerate(pieces)]),
        flip=torch.tensor([look.flip for look in looks]),
        jitter=torch.tensor([look.jitter for look in looks], dtype=torch.float32),
        blur=torch.tensor([look.blur for look in looks], dtype=torch.float32),
        size=pieces[0].size,
        names=[piece.name for piece in pieces],
        classes=[piece.chosen_for for piece in pieces],
        warnings=[text for piece in pieces for text in piece.warnings],
    )


class Batches(Protocol):
    """Decoded batches with a length, such as a ``torch.utils.data.DataLoader``."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[DecodedBatch]: ...


class Cropped:
    """The batches of a loader, cropped on a device as they come; as long as the loader."""

    def __init__(self, loader: Batches, device: torch.device | str) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for decoded in self.loader:
            yield cut(decoded.to(self.device))


def cut(batch: DecodedBatch, *, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Batch:
    """The crops of a batch, made on the device that its pictures are on: resized, mirrored, recoloured, normalised."""
    images, labels = ops.sample_crop(
        batch.images,
        batch.labels,
        batch.boxes,
        batch.flip,
        batch.jitter,
        batch.size,
        MEAN,
        STD,
        blur=batch.blur if batch.blur.any() else None,
        antialias=True,
        dtype=dtype,
        channels_last=channels_last,
    )
    return Batch(images, labels, batch.names)


def collate_samples(samples: list[Sample], *, collate_fn_map: object = None) -> Batch:
    """Whole pictures of one size as a batch; PyTorch's default collate calls it for :class:`Sample`.

    With it ``torch.utils.data.DataLoader(dataset, batch_size=4)`` yields :class:`Batch`. Raises DataError for pictures
    of several sizes.
    """
    sizes = sorted({sample.label.shape for sample in samples})
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise DataError(
            f"samples: expected pictures of one size, got {shown}; use batch_size=1, or "
            "hmsa_ext.data.training_loader (crops) or evaluation_loader (whole pictures, one by one)"
        )
    height, width = samples[0].label.shape
    return cut(collate([piece_of(sample, (0, 0, height, width), Looks(), (height, width)) for sample in samples]))


default_collate_fn_map[Sample] = collate_samples  # as torch.utils.data.default_collate documents
