"""KITTI semantics: 200 labelled images, Cityscapes classes; folds, as there is no official validation split.

ROOT/training/image_2/NUMBER_10.png    ROOT/training/semantic/NUMBER_10.png    Cityscapes ids
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from hmsa_ext.data.labelled_files import LabelledFiles, Listing
from hmsa_ext.data.pairs import list_files, pair
from hmsa_ext.data.sets.cityscapes import CLASSES, id_table
from hmsa_ext.data.source import Root, check, root_of
from hmsa_ext.settings import Rule

FOLD = Rule(lambda fold: fold in range(10), "a whole number from 0 to 9")

# Numbers of the images that NVIDIA validates on in its split cv0.
_PUBLISHED = (1, 5, 11, 29, 35, 49, 57, 68, 72, 82, 93, 115, 119, 130, 145, 154, 156, 167, 169, 189, 198)


@dataclass(frozen=True)
class Kitti:
    """KITTI semantics: 200 images, 19 classes of Cityscapes."""

    splits: ClassVar = ("train", "val")
    needs: ClassVar = "the folder that holds training/image_2 and training/semantic"

    root: Root = None
    """Folder of the data set."""
    fold: Annotated[int, FOLD] = 0
    """Division into train and val: 0 validates on the 21 published images; N from 1 to 9 (this package's own) on every
    tenth image, those whose number in the file name ends with the digit N."""

    def __post_init__(self) -> None:
        check(self)

    def find(self, split: str) -> Listing:
        """One split and everything that is wrong with it."""
        root = root_of(self, split)
        listing = Listing(
            root,
            f"Expected images {root}/training/image_2/NUMBER_10.png and label maps "
            f"{root}/training/semantic/NUMBER_10.png",
            classes=CLASSES,
            labels=id_table(),
        )
        images = list_files(root / "training" / "image_2", (".png",), listing.problems)
        labels = list_files(root / "training" / "semantic", (".png",), listing.problems)
        pair(listing, root / "training", images, label=labels)
        numbers = [item.name.partition("_")[0] for item in listing.items]
        odd = [item.image for item, number in zip(listing.items, numbers, strict=True) if not number.isdecimal()]
        if odd:
            listing.problems.append(
                f"{odd[0]}: expected a name that begins with a number and _: the number decides the fold"
            )
            return listing
        in_val = [int(n) in _PUBLISHED if self.fold == 0 else int(n) % 10 == self.fold for n in numbers]
        chosen = [item for item, val in zip(listing.items, in_val, strict=True) if val == (split == "val")]
        if listing.items and not chosen:
            listing.problems.append(f"{root / 'training'}: no image in {split} of fold {self.fold}")
        listing.items = chosen
        return listing

    def open(self, split: str, *, length: int | None = None) -> LabelledFiles:
        """One split, or its first ``length`` images. Raises DataError with everything that is wrong."""
        return self.find(split).dataset(length=length)


SOURCE = Kitti
