"""BDD100K, semantic segmentation: 10k images of 1280x720, Cityscapes classes as train ids.

ROOT/images/10k/SPLIT/NAME.jpg    ROOT/labels/sem_seg/masks/SPLIT/NAME.png    train ids 0..18, 255 = unknown
"""

from __future__ import annotations

from pathlib import Path

from hmsa_ext.data.labelled_files import Listing
from hmsa_ext.data.pairs import list_files, pair
from hmsa_ext.data.sets.cityscapes import CLASSES, train_id_table

SPLITS = ("train", "val")
ROOT = "the folder that holds images/10k and labels/sem_seg/masks"


def find(root: Path, split: str) -> Listing:
    """One split of BDD100K."""
    listing = Listing(
        f"Expected images {root}/images/10k/{split}/NAME.jpg and label maps "
        f"{root}/labels/sem_seg/masks/{split}/NAME.png",
        classes=CLASSES,
        labels=train_id_table(),
    )
    images = list_files(root / "images" / "10k" / split, (".jpg",), listing.problems)
    labels = list_files(root / "labels" / "sem_seg" / "masks" / split, (".png",), listing.problems)
    pair(listing, root / "images" / "10k" / split, images, label=labels)
    return listing
