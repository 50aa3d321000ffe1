"""KITTI semantics: 200 labelled images, Cityscapes classes; folds, as there is no official validation split.

ROOT/training/image_2/NUMBER_10.png    ROOT/training/semantic/NUMBER_10.png    Cityscapes ids
"""

from __future__ import annotations

from pathlib import Path

from hmsa_ext.data.labelled_files import Listing
from hmsa_ext.data.pairs import list_files, pair
from hmsa_ext.data.sets.cityscapes import CLASSES, id_table
from hmsa_ext.data.types import DataError

SPLITS = ("train", "val")
FOLDS = range(10)
ROOT = "the folder that holds training/image_2 and training/semantic"

# Numbers of the images that NVIDIA validates on in its split cv0.
_PUBLISHED = (1, 5, 11, 29, 35, 49, 57, 68, 72, 82, 93, 115, 119, 130, 145, 154, 156, 167, 169, 189, 198)


def find(root: Path, split: str, *, fold: int = 0) -> Listing:
    """One split of KITTI.

    fold: in fold 0 val are the 21 images that were published as such; in folds 1 to 9 every tenth image, those whose
        number ends with the digit ``fold``. Folds 1 to 9 are this package's own. The number is that in the file name.
    """
    if fold not in FOLDS:
        raise DataError(f"fold: expected one of {list(FOLDS)}, got {fold!r}")
    listing = Listing(
        f"Expected images {root}/training/image_2/NUMBER_10.png and label maps {root}/training/semantic/NUMBER_10.png",
        classes=CLASSES,
        labels=id_table(),
    )
    images = list_files(root / "training" / "image_2", (".png",), listing.problems)
    labels = list_files(root / "training" / "semantic", (".png",), listing.problems)
    pair(listing, root / "training", images, label=labels)
    numbers = [item.name.partition("_")[0] for item in listing.items]
    odd = [item.image for item, number in zip(listing.items, numbers, strict=True) if not number.isdecimal()]
    if odd:
        listing.problems.append(f"{odd[0]}: expected a name that begins with a number and _, which decides the fold")
        return listing
    in_val = [int(n) in _PUBLISHED if fold == 0 else int(n) % 10 == fold for n in numbers]
    chosen = [item for item, val in zip(listing.items, in_val, strict=True) if val == (split == "val")]
    if listing.items and not chosen:
        listing.problems.append(f"{root / 'training'}: no image in {split} of fold {fold}")
    listing.items = chosen
    return listing
