"""A built-in data set of procedurally generated street scenes: no download, the same pictures on every machine."""

from __future__ import annotations

import numpy as np

from hmsa_ext.data.street_canvas import Dice
from hmsa_ext.data.street_scene import render
from hmsa_ext.data.types import ClassTable, DataError, Sample

CLASSES = ClassTable(
    (
        "road",
        "pavement",
        "grass",
        "building",
        "sky",
        "tree",
        "pole",
        "sign",
        "fence",
        "car",
        "pedestrian",
    ),
    np.array(
        [
            (128, 64, 128),
            (244, 35, 232),
            (152, 251, 152),
            (96, 96, 104),
            (70, 130, 220),
            (60, 120, 30),
            (230, 230, 140),
            (250, 170, 30),
            (190, 110, 90),
            (0, 0, 160),
            (220, 20, 60),
        ]
    ),
)
SPLITS = {"train": 0, "val": 1}
LENGTHS = {"train": 600, "val": 60}
SIZE = (128, 256)


class Synthetic:
    """Street scenes, each made when it is asked for.

    Scene ``index`` of a split depends on (seed, split, index) and the size alone, not on the length, the process or the
    order of access. Train and val are disjoint streams of the generator.

    split: "train" or "val".
    size: (height, width) in pixels, at least (64, 64).
    length: number of scenes; 600 for train and 60 for val unless given.
    """

    classes = CLASSES

    def __init__(
        self, split: str, *, size: tuple[int, int] | None = None, length: int | None = None, seed: int = 0
    ) -> None:
        if split not in SPLITS:
            raise DataError(f"split: expected one of {sorted(SPLITS)}, got {split!r}")
        height, width = size if size is not None else SIZE
        if min(height, width) < 64:
            raise DataError(f"size: expected at least (64, 64) pixels, got ({height}, {width})")
        length = LENGTHS[split] if length is None else length
        if length < 1:
            raise DataError(f"length: expected at least 1 scene, got {length}")
        if seed < 0:
            raise DataError(f"seed: expected a number from 0 up, got {seed}")
        self.split, self.size, self.length, self.seed = split, (int(height), int(width)), int(length), int(seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0..{self.length - 1}, got {index}")
        image, label = render(Dice((self.seed, SPLITS[self.split], int(index))), *self.size)
        return Sample(image, label, f"{self.split}_{index:05d}")

    def label(self, index: int) -> np.ndarray:
        """The label map of one scene, uint8 [H, W]; the scene is drawn for it."""
        return self[index].label

    def inspect(self, index: int) -> tuple[np.ndarray, list[str]]:
        """The label map, and no problems: nothing lies on a disk, and the labels are classes by construction."""
        return self.label(index), []
