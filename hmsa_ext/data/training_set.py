"""A data set ready for training: with its index, sampler and crops."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hmsa_ext.data.augment import Augment, resized_size
from hmsa_ext.data.fit import fit_augment
from hmsa_ext.data.index import ClassIndex, build_index, joined
from hmsa_ext.data.learnable import require_two_classes
from hmsa_ext.data.sampling import ALL, EpochSampler, Sampling
from hmsa_ext.data.settings import DataSettings
from hmsa_ext.data.types import DataError, Dataset, Sample
from hmsa_ext.settings import require


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The source of crops of :func:`hmsa_ext.data.training_loader`.

    dataset: the training images, followed by the extra ones.
    index: of the training images; of all images where they are pooled.
    """

    dataset: Dataset
    index: ClassIndex
    sampler: EpochSampler
    augment: Augment
    extra: ClassIndex | None = None
    """Index of the extra images alone, pooled or not."""

    def describe_extra(self) -> str:
        """How many extra images there are, and what is left of their labels; empty where there are none."""
        if self.extra is None:
            return ""
        labelled = 100 * self.extra.pixels.sum() / max(self.extra.sizes.prod(1).sum(), 1)
        pixels = self.extra.pixels.sum(0)
        none = [name for name, count in zip(self.extra.classes.names, pixels, strict=True) if count == 0]
        text = f"{len(self.extra)} images, {labelled:.0f} % of their pixels count"
        return f"{text}; no pixel of {', '.join(none)}" if none else text

    @property
    def image_size(self) -> tuple[int, int]:
        """Typical (height, width) of the training images in pixels: their median, at the size that ``long_edge`` gives.

        The index has the sizes, so that no file is read.
        """
        height, width = np.median(self.index.sizes[self.index.usable], axis=0)
        return resized_size(int(height), int(width), self.augment.long_edge)

    @property
    def fingerprint(self) -> str:
        """Changes with the number, the sizes and the pixels by class of the training images, the extra ones included.

        Labels that changed, or others that pass a threshold, show here.
        """
        found = hashlib.sha256()
        for index in (self.index, self.sampler.extra):
            for array in () if index is None else (index.sizes, index.pixels, index.centroids):
                found.update(np.ascontiguousarray(array, np.int64).data)
        return found.hexdigest()[:16]


def prepare(
    dataset: Dataset,
    augment: Augment,
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    extra: Dataset | list[Dataset] | None = None,
    tile: int | None = None,
    cache: str | Path | None = None,
    skip_damaged: bool = False,
    quiet: bool = False,
) -> TrainingSet:
    """Reads every label map, or takes the index from the cache, and plans the epochs.

    augment: without a crop, the one of :func:`hmsa_ext.data.fit_crop`.
    sampling: class-uniform for half of an epoch unless given.
    seed: of boxes, order and looks.
    extra: a data set, or a list of them, of coarsely or automatically labelled images of the same classes, for
        ``sampling.extra_classes``, or pooled with the training images.
    tile: instead of ``sampling.tile``.
    cache, skip_damaged, quiet: as for :func:`hmsa_ext.data.build_index`.

    Raises DataError that lists the problems of the data, also when there is nothing to learn: one class alone, no
    labelled pixel.
    """
    sampling = sampling or Sampling()
    if tile is not None:
        sampling = replace(sampling, tile=tile)
    augment, _ = fit_augment(augment, dataset)
    tile = sampling.tile_of(augment.crop_size)
    if extra is None:
        more: list[Dataset] = []
    else:
        more = list(extra) if isinstance(extra, list) else [extra]
    require_use_of_extra(sampling, bool(more))
    options = {"tile": tile, "cache": cache, "skip_damaged": skip_damaged, "quiet": quiet}
    whole = Chain([dataset, *more]) if more else dataset  # raises where the classes differ
    index = build_index(dataset, **options)
    require_two_classes(index, "train")
    extra_index = None
    if more:
        sampling.extra_numbers(dataset.classes)  # an error now, not after minutes of reading
        extra_index = functools.reduce(joined, [build_index(one, **options) for one in more])
        if not extra_index.pixels.any():
            raise DataError(
                "extra: no pixel of the extra images has a label that counts: lower the thresholds of automatic labels "
                "(hmsa autolabel report shows what passes), or leave the extra images out"
            )
    extra_alone = extra_index
    if extra_index is not None and sampling.extra_crops == "pooled":
        index, extra_index = joined(index, extra_index), None
    sampler = EpochSampler(
        index,
        sampling,
        crop=augment.crop_size,
        scale=augment.zoom,
        seed=seed,
        long_edge=augment.long_edge,
        extra=extra_index,
    )
    if extra_index is not None and not sampler.plan(0)[1:].any():
        raise DataError(
            f"extra_crops: by_class draws no crop from the extra images, since the part of each class in an epoch of "
            f"{len(sampler)} crops is less than one; expected --extra-crops pooled, or a larger --sampling-share"
        )
    return TrainingSet(whole, index, sampler, augment, extra_alone)


def require_use_of_extra(sampling: Sampling, has_extra: bool) -> None:
    """Raises :class:`hmsa_ext.settings.SettingError` where the sampling and the extra images do not go together."""
    classes, crops = sampling.extra_classes, sampling.extra_crops
    if not has_extra:
        require("extra_classes", classes, classes in ((), (ALL,)), "none without extra images")
        require("extra_crops", crops, crops == Sampling().extra_crops, "no value without extra images")
        return
    if crops == "pooled":
        require("extra_classes", classes, classes == (ALL,), "none with --extra-crops pooled, which takes all")
        return
    require("extra_classes", classes, classes, "all, or the classes that the extra images are for")
    by_class = sampling.kind != "uniform" and sampling.share > 0 and sampling.epochs != 0
    expected = "pooled, since no crop is drawn by class with this sampling"
    require("extra_crops", crops, by_class, expected)


def open_training(
    settings: DataSettings,
    sampling: Sampling,
    crops: Augment,
    *,
    seed: int,
    split: str = "train",
    quiet: bool = False,
) -> tuple[TrainingSet, str]:
    """The training set of these settings, and the reason for the size of its crops in words.

    ``train`` and ``data stats`` begin with this. ``seed`` and ``quiet``: see :func:`prepare`. Raises DataError.
    """
    dataset = settings.open(split)
    crops, reason = fit_augment(crops, dataset)
    training = prepare(
        dataset,
        crops,
        sampling,
        seed=seed,
        extra=settings.open_extra(dataset) if split == "train" else None,
        cache=settings.cache_path,
        skip_damaged=settings.damaged == "skip",
        quiet=quiet,
    )
    return training, reason


class Chain:
    """Data sets of the same classes, joined to one. Raises DataError where their classes differ."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts, self.classes = tuple(parts), parts[0].classes
        if any(part.classes != self.classes for part in parts):
            raise DataError("the data sets have other classes than the first: they cannot be used as one")
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Sample:
        part, index = self._find(index)
        return part[index]

    def label(self, index: int) -> np.ndarray:
        """The label map of one image."""
        part, index = self._find(index)
        return part.label(index)

    def _find(self, index: int) -> tuple[Dataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, got {index}")
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part], index - (int(self.ends[part - 1]) if part else 0)
