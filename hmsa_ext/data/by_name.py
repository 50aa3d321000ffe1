"""Data sets by name: which there are, which options each has, and the one function that opens any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from hmsa_ext.data.labelled_files import Listing
from hmsa_ext.data.sets import ade20k, bdd100k, camvid, cityscapes, folder, kitti, mapillary
from hmsa_ext.data.synthetic import Synthetic
from hmsa_ext.data.types import DataError, Dataset

# Data sets on disk, and what their ``find`` takes besides folder and split.
_ON_DISK: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "camvid": (camvid, ()),
    "cityscapes": (
        cityscapes,
        ("fold", "labels", "min_probability", "coarse_classes", "region_of_interest"),
    ),
    "mapillary": (mapillary, ("version",)),
    "kitti": (kitti, ("fold",)),
    "bdd100k": (bdd100k, ()),
    "ade20k": (ade20k, ()),
    "folder": (folder, ("description",)),
}
NAMES = ("synthetic", *_ON_DISK)
# The options that only some data sets have, with their defaults.
OPTIONS: dict[str, object] = {
    "fold": 0,
    "version": None,
    "labels": "fine",
    "min_probability": 0.5,
    "coarse_classes": (),
    "region_of_interest": False,
    "description": None,
}


def build(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    size: tuple[int, int] | None = None,
    length: int | None = None,
    seed: int = 0,
    fold: int = 0,
    version: str | None = None,
    labels: str = "fine",
    min_probability: float = 0.5,
    coarse_classes: Sequence[int] = (),
    region_of_interest: bool = False,
    description: str | Path | None = None,
) -> Dataset:
    """A data set by name.

    name: one of ``NAMES``.
    split: "train" or "val"; "camvid" also has "test", "cityscapes" also "train_extra".
    root: folder of a data set on disk; "synthetic" has none.
    size: (height, width) of "synthetic" scenes; 128x256 unless given. Data sets on disk have their own.
    length: number of scenes of "synthetic"; only the first so many images of the others.
    seed: of "synthetic"; the others have none and take any.
    fold: which split into train and val, of "cityscapes" (0..3) and "kitti" (0..9); 0 is the published one.
    version: of "mapillary", "1.2" (unless given) or "2.0".
    labels: of "cityscapes", "fine", "coarse" or "autolabelled".
    min_probability, coarse_classes, region_of_interest: of automatic labels; see
        :func:`hmsa_ext.data.sets.cityscapes.find`.
    description: YAML file of "folder"; ROOT/dataset.yaml unless given. See :mod:`hmsa_ext.data.sets.folder`.

    Raises DataError for anything that is not there or does not fit, and for options that the data set does not have.
    """
    options = {
        "fold": fold,
        "version": version,
        "labels": labels,
        "min_probability": min_probability,
        "coarse_classes": tuple(coarse_classes),
        "region_of_interest": region_of_interest,
        "description": description,
    }
    if name == "synthetic":
        if root is not None:
            raise DataError(f"root: the synthetic scenes are drawn, not read; got {str(root)!r}")
        _refuse_foreign(name, options, ())
        return Synthetic(split, size=size, length=length, seed=seed)
    if size is not None and name in NAMES:
        raise DataError(f"size: {name} images have their own size; got {size}")
    return find(name, split, root=root, **options).dataset(length=length)


def find(name: str, split: str, *, root: str | Path | None, **options: object) -> Listing:
    """What there is of one split of a data set on disk, with all that is wrong with it.

    Takes the options of :func:`build` that are in ``OPTIONS``. Raises DataError for a name, a split or an option that
    does not exist.
    """
    if name not in _ON_DISK:
        raise DataError(f"name: expected one of {list(NAMES)}, got {name!r}")
    module, own = _ON_DISK[name]
    if root is None:
        raise DataError(f"root: {name} needs {module.ROOT}; got none")
    if split not in module.SPLITS:
        raise DataError(f"split: expected one of {list(module.SPLITS)}, got {split!r}")
    _refuse_foreign(name, options, own)
    chosen = {option: value for option, value in options.items() if option in own}
    return module.find(Path(root).expanduser(), split, **chosen)


def _refuse_foreign(name: str, options: dict[str, object], own: Sequence[str]) -> None:
    for option, value in options.items():
        if option not in own and value != OPTIONS[option]:
            raise DataError(f"{option}: {name} has no such option; got {value!r}")
