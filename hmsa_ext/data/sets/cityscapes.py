"""Cityscapes: 34 stored ids of which 19 are classes; fine, coarse and automatic labels; the folds cv0 to cv3.

Both layouts are taken, per folder (NAME = CITY_SEQUENCE_FRAME):

    ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
    ROOT/leftImg8bit_trainvaltest/leftImg8bit/... and ROOT/leftImg8bit_trainextra/leftImg8bit/...
    ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png      or ROOT/gtFine_trainvaltest/gtFine/...
    ROOT/gtCoarse/SPLIT/CITY/NAME_gtCoarse_labelIds.png  or ROOT/gtCoarse/gtCoarse/...
    ROOT/autolabelled/SPLIT/CITY/NAME_leftImg8bit.png, ..._leftImg8bit_prob.png

Where a split has no ``_labelIds.png``, ``_labelTrainIds.png`` are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.labelled_files import Listing
from hmsa_ext.data.pairs import first_folder, list_files, pair, shorten_names
from hmsa_ext.data.sets.auto_labels import AutoLabels
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError


class Label(NamedTuple):
    """A row of the official table. ``train_id`` is the class number, 255 for ignored."""

    name: str
    id: int
    train_id: int
    category: str
    has_instances: bool
    colour: tuple[int, int, int]


LABELS = (
    Label("unlabeled", 0, 255, "void", False, (0, 0, 0)),
    Label("ego vehicle", 1, 255, "void", False, (0, 0, 0)),
    Label("rectification border", 2, 255, "void", False, (0, 0, 0)),
    Label("out of roi", 3, 255, "void", False, (0, 0, 0)),
    Label("static", 4, 255, "void", False, (0, 0, 0)),
    Label("dynamic", 5, 255, "void", False, (111, 74, 0)),
    Label("ground", 6, 255, "void", False, (81, 0, 81)),
    Label("road", 7, 0, "flat", False, (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", False, (244, 35, 232)),
    Label("parking", 9, 255, "flat", False, (250, 170, 160)),
    Label("rail track", 10, 255, "flat", False, (230, 150, 140)),
    Label("building", 11, 2, "construction", False, (70, 70, 70)),
    Label("wall", 12, 3, "construction", False, (102, 102, 156)),
    Label("fence", 13, 4, "construction", False, (190, 153, 153)),
    Label("guard rail", 14, 255, "construction", False, (180, 165, 180)),
    Label("bridge", 15, 255, "construction", False, (150, 100, 100)),
    Label("tunnel", 16, 255, "construction", False, (150, 120, 90)),
    Label("pole", 17, 5, "object", False, (153, 153, 153)),
    Label("polegroup", 18, 255, "object", False, (153, 153, 153)),
    Label("traffic light", 19, 6, "object", False, (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", False, (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", False, (107, 142, 35)),
    Label("terrain", 22, 9, "nature", False, (152, 251, 152)),
    Label("sky", 23, 10, "sky", False, (70, 130, 180)),
    Label("person", 24, 11, "human", True, (220, 20, 60)),
    Label("rider", 25, 12, "human", True, (255, 0, 0)),
    Label("car", 26, 13, "vehicle", True, (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", True, (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", True, (0, 60, 100)),
    Label("caravan", 29, 255, "vehicle", True, (0, 0, 90)),
    Label("trailer", 30, 255, "vehicle", True, (0, 0, 110)),
    Label("train", 31, 16, "vehicle", True, (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", True, (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", True, (119, 11, 32)),
    Label("license plate", -1, 255, "vehicle", False, (0, 0, 142)),
)

_EVALUATED = sorted((label for label in LABELS if label.train_id != IGNORE_LABEL), key=lambda label: label.train_id)
CLASSES = ClassTable(
    tuple(label.name for label in _EVALUATED), np.array([label.colour for label in _EVALUATED], np.uint8)
)

# uint8 [256], for submissions: the id of each train id; the ignored ones are "unlabeled".
IDS = np.zeros(256, np.uint8)
IDS[: len(_EVALUATED)] = [label.id for label in _EVALUATED]

SPLITS = ("train", "val", "train_extra")
FOLDS = range(4)
REGION_OF_INTEREST = (slice(15, 840), slice(14, 2030))  # rows and columns that automatic labels are good for
ROOT = "the folder that holds leftImg8bit and gtFine (or the folders of the archives)"

_IMAGES = "_leftImg8bit.png"
_IMAGE_FOLDERS = ("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit", "leftImg8bit_trainextra/leftImg8bit")
# Folders and endings of the label files of each kind.
_KINDS = {
    "fine": (("gtFine", "gtFine_trainvaltest/gtFine"), "_gtFine_labelIds.png"),
    "coarse": (("gtCoarse", "gtCoarse/gtCoarse"), "_gtCoarse_labelIds.png"),
    "autolabelled": (("autolabelled", "refinement_final", "refinement_final_v0"), _IMAGES),
}


def id_table() -> LabelTable:
    """Ids to classes. The id -1 is 255 in a byte."""
    return LabelTable(
        {label.id % 256: label.train_id for label in LABELS}, expected="Cityscapes ids 0..33, or 255 for -1"
    )


def train_id_table() -> LabelTable:
    """Train ids to classes: themselves, and 255."""
    classes = {value: value for value in (*range(CLASSES.num_classes), IGNORE_LABEL)}
    return LabelTable(classes, expected=f"train ids 0..{CLASSES.num_classes - 1}, or {IGNORE_LABEL} for ignored")


def find(
    root: Path,
    split: str,
    *,
    labels: str = "fine",
    fold: int = 0,
    min_probability: float = 0.5,
    coarse_classes: Sequence[int] = (),
    region_of_interest: bool = False,
) -> Listing:
    """One split of Cityscapes.

    split: "train", "val", or "train_extra" (coarse and automatic labels only).
    labels: "fine", "coarse" or "autolabelled".
    fold: 0 is the official split into train and val. The cities of val, then those of train, each in the order of
        their names, make one row of n; in folds 1 and 2 val is the window of as many cities as val has that begins at
        fold * n // 3. (The published code takes the cities of val in the order of the file system.) In fold 3 all
        cities are in train and in val. ``train_extra`` is the same in every fold.
    min_probability: of automatic labels; pixels with a lower probability are ignored. At 0 no probabilities are read.
    coarse_classes: train ids; where automatic labels hold one of them, the pixels of that class in gtCoarse are set to
        it as well (published: 14, 15, 16 = truck, bus, train).
    region_of_interest: ignore automatic labels outside rows 15..839 and columns 14..2029.
    """
    _check_options(split, labels, fold, min_probability, coarse_classes, region_of_interest)
    folders, suffix = _KINDS[labels]
    listing = Listing(
        f"Expected images {root}/leftImg8bit/{split}/CITY/NAME{_IMAGES} and label maps "
        f"{root}/{folders[0]}/{split}/CITY/NAME{suffix}; the folders of the archives are taken too, as "
        f"{root}/{folders[-1]}/{split}",
        classes=CLASSES,
        labels=id_table(),
    )
    parts = ("val", "train") if fold and split != "train_extra" else (split,)
    images = [_list(root, _IMAGE_FOLDERS, (part,), _IMAGES, listing.problems) for part in parts]
    files = {"label": _list(root, folders, parts, suffix, listing.problems)}
    if labels == "autolabelled":
        if min_probability > 0:
            files["probability_map"] = _list(root, folders, parts, "_leftImg8bit_prob.png", [])
        if coarse_classes:
            files["coarse_label"] = _list(root, _KINDS["coarse"][0], parts, _KINDS["coarse"][1], [])
        listing.labels = AutoLabels(
            id_table(),
            min_probability=min_probability,
            coarse_classes=coarse_classes,
            region=REGION_OF_INTEREST if region_of_interest else None,
        )
    elif not files["label"]:
        files["label"] = _list(root, folders, parts, suffix.replace("labelIds", "labelTrainIds"), [])
        if files["label"]:
            listing.labels = train_id_table()
    dropped = _dropped_cities(images, split, fold)
    kept = {what: _without(found, dropped) for what, found in files.items()}
    where = first_folder(*(root / folder / split for folder in _IMAGE_FOLDERS))
    pair(listing, where, _without({**images[0], **images[-1]}, dropped), **kept)
    shorten_names(listing)
    return listing


def _list(
    root: Path, folders: Sequence[str], parts: Sequence[str], suffix: str, problems: list[str]
) -> dict[str, Path]:
    """The files of the published splits ``parts``, by CITY/NAME; each split in whichever of the folders holds it."""
    found: dict[str, Path] = {}
    for part in parts:
        folder = first_folder(*(root / folder / part for folder in folders))
        found |= list_files(folder, (suffix,), problems, recursive=True)
    return found


def _city(name: str) -> str:
    return name.partition("/")[0]


def _dropped_cities(images: list[dict[str, Path]], split: str, fold: int) -> set[str]:
    """The cities that a fold has listed and does not take; images of val and of train, in folds 1 and 2."""
    if fold in (0, 3) or split == "train_extra":
        return set()
    val, train = (sorted({_city(name) for name in files}) for files in images)
    row, first = val + train, fold * (len(val) + len(train)) // 3
    window = set(row[first : first + len(val)])
    return set(row) - window if split == "val" else window


def _without(files: dict[str, Path], cities: set[str]) -> dict[str, Path]:
    return {name: path for name, path in files.items() if _city(name) not in cities}


def _check_options(
    split: str, labels: str, fold: int, min_probability: float, coarse_classes: Sequence[int], region: bool
) -> None:
    for name, value, allowed in (
        ("split", split, SPLITS),
        ("labels", labels, tuple(_KINDS)),
        ("fold", fold, tuple(FOLDS)),
    ):
        if value not in allowed:
            raise DataError(f"{name}: expected one of {list(allowed)}, got {value!r}")
    if split == "train_extra" and labels == "fine":
        raise DataError("labels: train_extra has no fine labels; expected 'coarse' or 'autolabelled', got 'fine'")
    if labels != "autolabelled" and (min_probability != 0.5 or coarse_classes or region):
        raise DataError(
            f"min_probability, coarse_classes, region_of_interest: of labels 'autolabelled' only, got labels {labels!r}"
        )
    if not 0 <= min_probability <= 1:
        raise DataError(f"min_probability: expected 0..1, got {min_probability}")
    if any(number not in range(CLASSES.num_classes) for number in coarse_classes):
        raise DataError(f"coarse_classes: expected train ids 0..{CLASSES.num_classes - 1}, got {list(coarse_classes)}")
