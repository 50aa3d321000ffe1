"""BDD100K, semantic segmentation: 10k images of 1280x720, Cityscapes classes as train ids.

ROOT/images/10k/SPLIT/NAME.jpg    ROOT/labels/sem_seg/masks/SPLIT/NAME.png    train ids 0..18, 255 = unknown
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hmsa_ext.data.labelled_files import LabelledFiles, Listing
from hmsa_ext.data.pairs import list_files, pair
from hmsa_ext.data.sets.cityscapes import CLASSES_AS_TRAIN_IDS, train_id_table
from hmsa_ext.data.source import Root, check, root_of

CLASSES = CLASSES_AS_TRAIN_IDS


@dataclass(frozen=True)
class Bdd100k:
    """BDD100K, semantic segmentation: 19 classes of Cityscapes."""

    splits: ClassVar = ("train", "val")
    needs: ClassVar = "the folder that holds images/10k and labels/sem_seg/masks"

    root: Root = None
    """Folder of the data set."""

    def __post_init__(self) -> None:
        check(self)

    def find(self, split: str) -> Listing:
        """One split and everything that is wrong with it."""
        root = root_of(self, split)
        listing = Listing(
            root,
            f"Expected images {root}/images/10k/{split}/NAME.jpg and label maps "
            f"{root}/labels/sem_seg/masks/{split}/NAME.png",
            classes=CLASSES,
            labels=train_id_table(),
        )
        images = list_files(root / "images" / "10k" / split, (".jpg",), listing.problems)
        labels = list_files(root / "labels" / "sem_seg" / "masks" / split, (".png",), listing.problems)
        pair(listing, root / "images" / "10k" / split, images, label=labels)
        return listing

    def open(self, split: str, *, length: int | None = None) -> LabelledFiles:
        """One split, or its first ``length`` images. Raises DataError with everything that is wrong."""
        return self.find(split).dataset(length=length)


SOURCE = Bdd100k
