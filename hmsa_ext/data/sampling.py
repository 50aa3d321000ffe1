"""The crops of an epoch and their order: class-uniform, rare-class and uniform epochs.

An epoch is a plan (a number of items from images at random, and from each class) and an order. Both follow from the
index, the seed and the number of the epoch alone; :func:`hmsa_ext.ops.draw_class_uniform_boxes` draws each item by
itself. Every rank, every worker and a resumed run therefore agree without communication.

Class-uniform sampling is that of the paper: a share of the epoch is divided evenly among the classes, whose items are
crops around a tile centroid of the class; the rest are images at random. Rare-class sampling divides that share by
``softmax((1 - frequency) / temperature)`` instead (Hoyer, Dai, Van Gool, 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch

from hmsa_ext import ops
from hmsa_ext.data.index import ClassIndex
from hmsa_ext.data.types import ClassTable, DataError
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.settings import NOT_NEGATIVE, POSITIVE, SHARE, Flag, Names, Weights, validate

ALL = "all"


@dataclass(frozen=True)
class Sampling:
    """Which crops make an epoch, which has as many as there are images."""

    kind: Annotated[Literal["class_uniform", "rare_class", "uniform"], Flag("sampling")] = "class_uniform"
    """How the crops of an epoch are chosen: evenly among the classes, by the rarity of the classes, or every image
    once."""
    share: Annotated[float, SHARE, Flag("sampling-share")] = 0.5
    """Part of an epoch that is drawn by class; the rest are images at random."""
    weights: Annotated[Weights, Flag("sampling-weights")] = field(default_factory=dict)
    """Factors of single classes, such as Bicyclist:2,Sky:0; 1 for all others, 0 leaves a class out."""
    temperature: Annotated[float, POSITIVE, Flag("sampling-temperature")] = 0.01
    """Temperature of "rare_class": the smaller, the more crops the rarest classes get."""
    epochs: Annotated[int | None, NOT_NEGATIVE, Flag("sampling-epochs")] = None
    """Sample by class (and from the extra images) in the first so many epochs only; default: in all."""
    extra_crops: Literal["by_class", "pooled"] = "by_class"
    """What crops the extra images (coarse or automatic labels) give: some of those that are drawn by class, while an
    epoch stays as long as without them; or they are pooled with the training images, and treated alike."""
    extra_classes: Names = (ALL,)
    """Classes whose crops by class also come from the extra images; "all" for every class."""
    tile: Annotated[int, NOT_NEGATIVE, Flag("sampling-tile")] = 0
    """Side in pixels of the tiles whose class centroids crops are drawn around (published for Cityscapes: 1024); 0: a
    quarter of the crop's smaller side, so that the centroid lies near the class and the class comes into the crop."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra_classes", tuple(self.extra_classes))
        validate(self)

    def extra_numbers(self, classes: ClassTable) -> list[int]:
        """Numbers of ``extra_classes``. Raises DataError for names that are no classes."""
        if self.extra_classes == (ALL,) and ALL not in classes.names:
            return list(range(classes.num_classes))
        return classes.numbers("extra_classes", self.extra_classes)

    def tile_of(self, crop: tuple[int, int]) -> int:
        """Side of the tiles in pixels for crops of (height, width)."""
        return self.tile or max(1, min(crop) // 4)


class EpochSampler:
    """The items of every epoch: boxes in images, for crops of one size.

    index: of the training images. One epoch has as many items as there are usable images.
    crop: (height, width) of the crops in pixels.
    scale: smallest and largest enlargement, drawn evenly; a box is the crop divided by it.
    seed: seed of all random numbers.
    long_edge: images count as if resized to this many pixels along their longer side first; 0: as they are.
    extra: index of more images; their crops are for ``sampling.extra_classes`` only. (Images that are pooled with those
        of the training belong into ``index``.)

    Images are numbered as in the data set; those of ``extra`` follow behind.

    Raises DataError where a class that was named does not exist, or no image is usable.
    """

    def __init__(
        self,
        index: ClassIndex,
        sampling: Sampling,
        *,
        crop: tuple[int, int],
        scale: tuple[float, float],
        seed: int,
        long_edge: int = 0,
        extra: ClassIndex | None = None,
    ) -> None:
        if seed < 0:
            raise ArgumentValueError(f"seed: expected a number from 0 up, got {seed}")
        self.index, self.sampling, self.extra = index, sampling, extra
        self.crop, self.scale, self.seed, self.long_edge = crop, scale, seed, long_edge
        names = index.classes.names
        index.classes.numbers("sampling_weights", tuple(sampling.weights))
        extra_classes = sampling.extra_numbers(index.classes)
        if extra is not None and extra.classes.names != names:
            raise DataError("extra: the extra images have other classes than the training images")
        self.images = index.usable  # in the op, images are numbered without gaps
        self.length = len(self.images)
        if self.length == 0:
            raise DataError("no image can be used: all have problems")
        sizes, centroids = index.sizes[self.images], _renumbered(index, self.images, 0)
        if extra is not None:
            more = extra.usable
            self.images = np.concatenate([self.images, len(index) + more])
            sizes = np.concatenate([sizes, extra.sizes[more]])
            added = _renumbered(extra, more, self.length)
            centroids = np.concatenate([centroids, added[np.isin(added[:, 0], extra_classes)]])
        self._sizes = torch.from_numpy(np.ascontiguousarray(sizes))
        self._centroids = {True: _sorted(centroids), False: _sorted(centroids[:0])}

    def __len__(self) -> int:
        return self.length

    def with_sampling(self, sampling: Sampling) -> EpochSampler:
        """The same images, crop and seed under another sampling."""
        return EpochSampler(
            self.index, sampling, crop=self.crop, scale=self.scale, seed=self.seed, long_edge=self.long_edge,
            extra=self.extra,
        )  # fmt: skip

    def by_class(self, epoch: int) -> bool:
        """Whether any item of this epoch is chosen by class."""
        sampling = self.sampling
        return sampling.kind != "uniform" and (sampling.epochs is None or epoch < sampling.epochs)

    def plan(self, epoch: int) -> np.ndarray:
        """Items of the epoch, int64 [1 + K]: from images at random, then from each class."""
        classes = self.index.classes
        items = np.zeros(1 + classes.num_classes, np.int64)
        if self.by_class(epoch):
            present = torch.bincount(self._centroids[True][:, 0], minlength=classes.num_classes).numpy() > 0
            parts = present * self._class_parts()
            if parts.sum() > 0:
                # Rounded down, as in the published code; the remainder goes to the images at random. (The small
                # number keeps a part that is a whole number from falling below it.)
                items[1:] = np.floor(self.length * self.sampling.share * parts / parts.sum() + 1e-9)
        items[0] = self.length - items[1:].sum()
        return items

    def draw(self, epoch: int, first: int = 0, count: int | None = None, *, attempt: int = 0) -> tuple:
        """Items ``first`` to ``first + count`` of the epoch (all that follow unless given).

        attempt: draws other items for the same places: the class stays, its next centroid is taken.

        Returns (boxes int64 [count, 5] = image, y0, x0, y1, x1; classes int64 [count], -1 for images at random).
        """
        boxes, classes = ops.draw_class_uniform_boxes(
            self._centroids[self.by_class(epoch)],
            torch.from_numpy(self.plan(epoch)),
            self._sizes,
            self.crop,
            scale=self.scale,
            uniform_images=self.length,
            seed=self.seed,
            epoch=epoch,
            first=first,
            count=self.length - first if count is None else count,
            attempt=attempt,
            long_edge=self.long_edge,
        )
        boxes = boxes.numpy()
        boxes[:, 0] = self.images[boxes[:, 0]]
        return boxes, classes.numpy()

    def describe(self) -> str:
        """The plan of the first epoch in words."""
        items = self.plan(0)
        kind = self.sampling.kind.replace("_", "-")
        text = f"every one of {self.length} images once per epoch"
        if not self.by_class(0):
            return text
        if items[0] == self.length:
            return f"{text} ({kind} sampling has no effect: the share of each class is less than one item)"
        names = self.index.classes.names
        several = items[1:][items[1:] > 0]
        each = f"{several.min()}" if several.min() == several.max() else f"{several.min()} to {several.max()}"
        text = f"{kind}: {self.length} items per epoch, {items[0]} from images at random and {each} from each class"
        missing = [name for name, count in zip(names, items[1:], strict=True) if count == 0]
        text += f" (none: {', '.join(missing)})" if missing else ""
        if self.extra is not None and self.sampling.extra_classes:
            which = "all classes" if self.sampling.extra_classes == (ALL,) else ", ".join(self.sampling.extra_classes)
            text += f"; {len(self.extra)} more images for {which}"
        ends = self.sampling.epochs
        return text if ends is None else f"{text}; uniform from epoch {ends + 1} on"

    def _class_parts(self) -> np.ndarray:
        sampling, classes = self.sampling, self.index.classes
        parts = np.array([float(sampling.weights.get(name, 1.0)) for name in classes.names])
        if sampling.kind == "rare_class":
            rarity = (1 - self.index.frequencies) / sampling.temperature
            parts = parts * np.exp(rarity - rarity.max())
        return parts


def _renumbered(index: ClassIndex, usable: np.ndarray, first: int) -> np.ndarray:
    """The centroids with images numbered from ``first`` on without the unusable ones (which have no centroids)."""
    number = np.full(len(index), -1, np.int64)
    number[usable] = first + np.arange(len(usable))
    centroids = index.centroids.copy()
    centroids[:, 1] = number[centroids[:, 1]]
    return centroids


def _sorted(centroids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(centroids[np.argsort(centroids[:, 0], kind="stable")]))
