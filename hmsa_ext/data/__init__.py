"""Data sets, training crops and loaders.

>>> from hmsa_ext import data
>>> scenes = data.build("synthetic", "train", length=4)
>>> batches = data.training_loader(scenes, data.Augment((96, 128)), batch_size=2, epoch=0, seed=0)
>>> [tuple(batch.images.shape) for batch in batches]
[(2, 3, 96, 128), (2, 3, 96, 128)]
"""

from __future__ import annotations

from pathlib import Path

from hmsa_ext.data.augment import Augment, Crop
from hmsa_ext.data.camvid import CamVid
from hmsa_ext.data.check import check
from hmsa_ext.data.frequencies import balanced_weights, class_frequencies
from hmsa_ext.data.loader import evaluation_loader, training_loader
from hmsa_ext.data.normalise import colourise, denormalise, normalise
from hmsa_ext.data.synthetic import Synthetic
from hmsa_ext.data.types import IGNORE_LABEL, Batch, ClassTable, DataError, Dataset, Sample

NAMES = ("synthetic", "camvid")


def build(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    size: tuple[int, int] | None = None,
    length: int | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set by name.

    name: "synthetic" or "camvid".
    split: "train" or "val".
    root: folder of a data set on disk ("camvid" needs it, "synthetic" has none).
    size: (height, width) of "synthetic" scenes; 128x256 unless given. Data sets on disk have their own.
    length: number of scenes of "synthetic"; only the first so many images of "camvid".
    seed: of "synthetic".

    Raises DataError for anything that is not there or does not fit.
    """
    if name == "synthetic":
        if root is not None:
            raise DataError(f"root: the synthetic scenes are drawn, not read; got {str(root)!r}")
        return Synthetic(split, size=size, length=length, seed=seed)
    if name == "camvid":
        if root is None:
            raise DataError("root: camvid needs the folder that holds train, trainannot, val and valannot; got none")
        if size is not None:
            raise DataError(f"size: camvid images have their own size; got {size}")
        return CamVid(root, split, length=length)
    raise DataError(f"name: expected one of {list(NAMES)}, got {name!r}")


__all__ = [
    "IGNORE_LABEL",
    "NAMES",
    "Augment",
    "Batch",
    "CamVid",
    "ClassTable",
    "Crop",
    "DataError",
    "Dataset",
    "Sample",
    "Synthetic",
    "balanced_weights",
    "build",
    "check",
    "class_frequencies",
    "colourise",
    "denormalise",
    "evaluation_loader",
    "normalise",
    "training_loader",
]
