"""CamVid in the layout of the SegNet tutorial: 480x360 frames, 11 classes, void.

    ROOT/train/NAME.png or .jpg    ROOT/trainannot/NAME.png    values 0..10, 11 = void
    ROOT/val/...                   ROOT/valannot/...

Scores from these labels are not comparable with those from the original 32-class label pictures at 960x720.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hmsa_ext.data.files import picture_size, read_bytes, read_image, read_label
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError, Sample

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
)
VOID = 11
SPLITS = ("train", "val", "test")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")

_WRONG = 254  # what the table below gives values that are no class
_TABLE = np.full(256, _WRONG, np.uint8)
_TABLE[: CLASSES.num_classes] = np.arange(CLASSES.num_classes)
_TABLE[VOID] = IGNORE_LABEL


class CamVid:
    """One split of CamVid.

    root: the folder that holds ``train``, ``trainannot`` and so on.
    split: "train", "val" or "test".
    length: only the first so many images by name; all unless given.

    Raises DataError for a missing folder, an empty split, an image without a label and a label without an image. What
    is inside the files is looked at by :func:`hmsa_ext.data.check`, and again whenever one is loaded.
    """

    classes = CLASSES

    def __init__(self, root: str | Path, split: str, *, length: int | None = None) -> None:
        if split not in SPLITS:
            raise DataError(f"split: expected one of {list(SPLITS)}, got {split!r}")
        if length is not None and length < 1:
            raise DataError(f"length: expected at least 1 image, got {length}")
        self.root, self.split = Path(root).expanduser(), split
        images = _files(self.root, split, IMAGE_ENDINGS)
        labels = _files(self.root, f"{split}annot", (".png",))
        if not images and not labels:
            raise DataError(f"{self.root / split}: the split is empty. {_layout(self.root, split)}")
        _refuse_unpaired(self.root, split, images, labels)
        names = sorted(images)[:length]
        self.names = names
        self.pairs = [(images[name], labels[name]) for name in names]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image_path, label_path = self.pairs[index]
        image, stored = read_image(image_path), read_label(label_path)
        if image.shape[:2] != stored.shape:
            raise DataError(_sizes_differ(image_path, image.shape[:2], label_path, stored.shape))
        label = cv2.LUT(stored, _TABLE)
        if (label == _WRONG).any():
            raise DataError(_wrong_values(label_path, stored))
        return Sample(image, label, self.names[index])

    def inspect(self, index: int) -> list[str]:
        """The problems of one pair of files. The image is looked through but not decoded."""
        image_path, label_path = self.pairs[index]
        problems, size, stored = [], None, None
        try:
            size = picture_size(image_path, read_bytes(image_path))
        except DataError as error:
            problems.append(str(error))
        try:
            stored = read_label(label_path)
        except DataError as error:
            problems.append(str(error))
        if stored is None:
            return problems
        if size is not None and size != stored.shape:
            problems.append(_sizes_differ(image_path, size, label_path, stored.shape))
        if (cv2.LUT(stored, _TABLE) == _WRONG).any():
            problems.append(_wrong_values(label_path, stored))
        return problems


def _files(root: Path, folder: str, endings: tuple[str, ...]) -> dict[str, Path]:
    path = root / folder
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. {_layout(root, folder.removesuffix('annot'))}")
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        # A leading dot is what other systems leave behind when they copy a folder.
        if file.suffix.lower() not in endings or file.name.startswith("."):
            continue
        if file.stem in found:
            raise DataError(f"{path}: two files of one name, {found[file.stem].name} and {file.name}")
        found[file.stem] = file
    return found


def _layout(root: Path, split: str) -> str:
    return f"Expected images {root}/{split}/NAME.png or .jpg and label maps {root}/{split}annot/NAME.png"


def _refuse_unpaired(root: Path, split: str, images: dict[str, Path], labels: dict[str, Path]) -> None:
    lines = []
    for have, want, what in ((images, labels, "image"), (labels, images, "label")):
        lonely = sorted(have.keys() - want.keys())
        if lonely:
            other = "label" if what == "image" else "image"
            some = ", ".join(have[name].name for name in lonely[:5]) + (", ..." if len(lonely) > 5 else "")
            plural = "" if len(lonely) == 1 else "s"
            lines.append(f"{len(lonely)} {what}{plural} without {'a' if other == 'label' else 'an'} {other}: {some}")
    if lines:
        raise DataError(f"{root / split}: {'; '.join(lines)}. {_layout(root, split)}")


def _sizes_differ(image: Path, image_size: tuple[int, ...], label: Path, label_size: tuple[int, ...]) -> str:
    return (
        f"{label}: the label map is {label_size[1]}x{label_size[0]} pixels, "
        f"its image {image.name} {image_size[1]}x{image_size[0]}"
    )


def _wrong_values(path: Path, stored: np.ndarray) -> str:
    counts = np.bincount(stored.ravel(), minlength=256)
    found = ", ".join(
        f"{value} in {counts[value]} pixels" for value in np.flatnonzero(counts) if _TABLE[value] == _WRONG
    )
    return f"{path}: values that are no class: {found}. Expected 0..{CLASSES.num_classes - 1}, or {VOID} for void"
