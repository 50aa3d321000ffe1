"""CamVid in the layout of the SegNet tutorial: 480x360 frames, 11 classes, void.

    ROOT/train/NAME.png or .jpg    ROOT/trainannot/NAME.png    values 0..10, 11 = void
    ROOT/val/...                   ROOT/valannot/...
    ROOT/test/...                  ROOT/testannot/...

Scores from these labels are not comparable with those from the original 32-class label pictures at 960x720. Those are
read as a folder of your own with colours: see :mod:`hmsa_ext.data.sets.folder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.labelled_files import LabelledFiles, Listing
from hmsa_ext.data.pairs import list_files, pair
from hmsa_ext.data.source import Root, check, root_of
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable

# Colours as the SegNet tutorial shows them.
CLASSES = ClassTable(
    (
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    np.array(
        [
            (128, 128, 128),
            (128, 0, 0),
            (192, 192, 128),
            (128, 64, 128),
            (60, 40, 222),
            (128, 128, 0),
            (192, 128, 128),
            (64, 64, 128),
            (64, 0, 128),
            (64, 64, 0),
            (0, 128, 192),
        ]
    ),
    ids=tuple(range(11)),
)
VOID = 11


@dataclass(frozen=True)
class Camvid:
    """CamVid as in the SegNet tutorial: 11 classes."""

    splits: ClassVar = ("train", "val", "test")
    needs: ClassVar = "the folder that holds train, trainannot, val and valannot"

    root: Root = None
    """Folder of the data set."""

    def __post_init__(self) -> None:
        check(self)

    def find(self, split: str) -> Listing:
        """One split and everything that is wrong with it."""
        root = root_of(self, split)
        listing = Listing(
            root,
            f"Expected images {root}/{split}/NAME.png or .jpg and label maps {root}/{split}annot/NAME.png",
            classes=CLASSES,
            labels=LabelTable(
                {**{value: value for value in range(CLASSES.num_classes)}, VOID: IGNORE_LABEL},
                expected=f"0..{CLASSES.num_classes - 1}, or {VOID} for void",
            ),
        )
        images = list_files(root / split, (".png", ".jpg", ".jpeg"), listing.problems)
        labels = list_files(root / f"{split}annot", (".png",), listing.problems)
        pair(listing, root / split, images, label=labels)
        return listing

    def open(self, split: str, *, length: int | None = None) -> LabelledFiles:
        """One split, or its first ``length`` images. Raises DataError with everything that is wrong."""
        return self.find(split).dataset(length=length)


SOURCE = Camvid
