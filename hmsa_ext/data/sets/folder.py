"""Your own folder: images and label maps of the same name, or list files, and a small YAML.

    ROOT/images/train/NAME.jpg   ROOT/masks/train/NAME.png    masks may be called labels or annotations as well
    ROOT/img_dir/train/NAME.jpg  ROOT/ann_dir/train/NAME.png
    ROOT/train.txt               with lines: images/NAME.jpg labels/NAME.png
    ROOT/dataset.yaml            names of the classes; see hmsa_ext.data.description

Folders within these are searched. Images are PNG, JPEG, BMP, TIFF or WebP; label maps are PNG, BMP or TIFF. Folders
are taken before lists. Example, the original CamVid pictures, with ``mask_suffix`` for NAME_L.png and colours that the
classes share:

    masks: colours
    mask_suffix: _L
    names: [sky, building, road, car]
    ids: {"#808080": sky, "#800000": building, "#804080": road, "#8000c0": road, "#400080": car, "#4080c0": car}
    ignore: ["#000000", "#40c000"]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from hmsa_ext.data.description import SPLITS, Description, read_description
from hmsa_ext.data.files import IMAGE_SUFFIXES
from hmsa_ext.data.labelled_files import Item, LabelledFiles, Listing
from hmsa_ext.data.pairs import SHOWN, first_folder, list_files, other_files, pair, shorten_names
from hmsa_ext.data.source import Root, check, root_of
from hmsa_ext.data.suggestion import suggest_description
from hmsa_ext.data.types import DataError
from hmsa_ext.settings import FREE, Metavar

_MASK_FOLDERS = ("masks", "labels", "annotations")


@dataclass(frozen=True)
class Folder:
    """Your own images and label maps, described by a small YAML."""

    splits: ClassVar = SPLITS
    needs: ClassVar = "the folder that holds images, masks and dataset.yaml"

    root: Root = None
    """Folder of the data set."""
    description: Annotated[str | None, Metavar("FILE"), FREE] = None
    """YAML file that names the classes, from the current folder or from the root; default: dataset.yaml in the root."""

    def __post_init__(self) -> None:
        if self.description is not None:
            path = Path(self.description).expanduser()
            object.__setattr__(self, "description", str(path.absolute() if path.is_file() else path))
        check(self)

    def find(self, split: str) -> Listing:
        """One split and everything that is wrong with it."""
        root = root_of(self, split)
        listing = Listing(
            root,
            f"Expected images {root}/images/{split}/NAME.jpg or .png and label maps {root}/masks/{split}/NAME.png "
            f"(or labels, annotations; or img_dir and ann_dir), or a list {root}/{split}.txt with lines "
            f'"images/NAME.jpg masks/NAME.png"',
        )
        path, said = _description_path(root, self.description), None
        if path.is_file():
            try:
                said = read_description(path)
                listing.classes, listing.labels, listing.white = said.classes, said.table, said.white
            except DataError as error:
                listing.problems.append(str(error))
        list_file = _list_file(root, split, said)
        if list_file is not None:
            _add_listed(listing, root, list_file)
        else:
            _add_folders(listing, root, split, said)
        shorten_names(listing)
        if not path.is_file():
            listing.problems.append(f"{path}: no such file; it has to name the classes")
            labels = [*(item.labels[0] for item in listing.items), *listing.lonely_labels]
            listing.description = suggest_description(labels)
        return listing

    def open(self, split: str, *, length: int | None = None) -> LabelledFiles:
        """One split, or its first ``length`` images. Raises DataError with everything that is wrong."""
        return self.find(split).dataset(length=length)


SOURCE = Folder


def _description_path(root: Path, description: str | None) -> Path:
    if description is None:
        yml = root / "dataset.yml"
        return yml if yml.is_file() else root / "dataset.yaml"
    path = Path(description)
    return path if path.is_file() else root / path


def _list_file(root: Path, split: str, said: Description | None) -> Path | None:
    """The list file of the split, where it has one and no folders."""
    place = said.places.get(split) if said is not None else None
    if place is not None:
        return None if (root / place).is_dir() else root / place
    if any((root / folder / split).is_dir() for folder in _image_folders(said)):
        return None
    path = root / f"{split}.txt"
    return path if path.is_file() else None


def _image_folders(said: Description | None) -> tuple[str, ...]:
    return (said.images,) if said is not None and said.images else ("images", "img_dir")


def _add_folders(listing: Listing, root: Path, split: str, said: Description | None) -> None:
    images = first_folder(*(root / name / split for name in _image_folders(said)))
    within = Path(split)
    if said is not None and split in said.places:  # a folder: images/train has its label maps in masks/train
        images = root / said.places[split]
        within = Path(*Path(said.places[split]).parts[1:])
    names = (said.masks_dir,) if said is not None and said.masks_dir else (*_MASK_FOLDERS, "ann_dir")
    masks = first_folder(*(root / name / within for name in names))
    suffix = said.mask_suffix if said is not None else ""
    found = list_files(images, IMAGE_SUFFIXES, listing.problems, recursive=True)
    labels = list_files(masks, [suffix + ending for ending in IMAGE_SUFFIXES], listing.problems, recursive=True)
    for folder, files, prefix in ((images, found, ""), (masks, labels, suffix)):
        others = "" if files else other_files(folder, [prefix + ending for ending in IMAGE_SUFFIXES])
        listing.problems += [others] if others else []
    pair(listing, images, found, label=labels)
    common = _common_suffix(sorted(found), sorted(labels))
    if common:
        listing.advice.append(
            f'The label maps are called like the images with "{common}" behind: mask_suffix: {suffix + common} '
            f"in the description pairs them"
        )


def _common_suffix(images: list[str], labels: list[str]) -> str:
    """What every label map has behind the name of its image; empty when it is not the same."""
    if len(images) != len(labels):
        return ""
    rests = {
        label[len(image) :] if label.startswith(image) else "" for image, label in zip(images, labels, strict=True)
    }
    return rests.pop() if len(rests) == 1 else ""


def _add_listed(listing: Listing, root: Path, path: Path) -> None:
    """The pairs of a list file, in its order."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows writes a mark at the start
    except (OSError, UnicodeDecodeError) as error:
        listing.problems.append(f"{path}: cannot be read: {error}")
        return
    missing, seen = [], set()
    for number, line in enumerate(lines, 1):
        # Names may contain blanks where a tab lies between them.
        parts = [part.strip() for part in line.split("\t")] if "\t" in line else line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) != 2:
            listing.problems.append(f"{path}, line {number}: expected IMAGE LABEL (or a tab between), got {line!r}")
            continue
        image, label = (root / part for part in parts)
        if image in seen:
            listing.problems.append(f"{path}, line {number}: {parts[0]} is in the list already")
        seen.add(image)
        absent = [file for file in (image, label) if not file.is_file()]
        if absent:
            missing += absent
            listing.lonely_images += [image] if image not in absent else []
            listing.lonely_labels += [label] if label not in absent else []
        else:
            listing.items.append(Item(Path(parts[0]).with_suffix("").as_posix(), image, (label,)))
    if missing:
        some = ", ".join(str(file) for file in missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        plural = "s" * (len(missing) > 1)
        listing.problems.append(f"{path}: {len(missing)} file{plural} in the list not found: {some}")
    elif not listing.items and not listing.problems:
        listing.problems.append(f"{path}: the split is empty")
