"""Small data sets in memory, for tests, and where the real CamVid is."""

import os
from pathlib import Path

import numpy as np

from hmsa_ext import data

# $HMSA_SHARED/data/camvid, or shared/data/camvid beside the repository.
CAMVID = Path(os.environ.get("HMSA_SHARED") or Path(__file__).resolve().parents[3] / "shared") / "data" / "camvid"


class Blocks:
    """Images of several sizes with rectangles of four classes; "rare" is in every fifth only, "never" in none.

    broken: numbers of images whose image cannot be read; their label maps can.
    """

    classes = data.ClassTable(("ground", "common", "rare", "never"), np.arange(12).reshape(4, 3))

    def __init__(self, length: int = 20, *, broken: tuple[int, ...] = (), size: tuple[int, int] = (48, 64)) -> None:
        self.length, self.broken, self.size = length, broken, size

    def __len__(self) -> int:
        return self.length

    def label(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        height, width = self.size[0] + index % 3 * 8, self.size[1] + index % 2 * 16
        label = np.zeros((height, width), np.uint8)
        label[:2] = 255
        for number in (1, 2) if index % 5 == 0 else (1,):
            y, x = rng.integers(2, height - 6), rng.integers(0, width - 6)
            label[y : y + 6, x : x + 6] = number
        return label

    def inspect(self, index: int) -> tuple[np.ndarray | None, list[str]]:
        try:
            return self.label(index), []
        except data.DataError as error:
            return None, [str(error)]

    def __getitem__(self, index: int) -> data.Sample:
        if index in self.broken:
            raise data.DataError(f"/somewhere/frame_{index}.jpg: cannot be decoded; the file is damaged")
        label = self.label(index)
        image = np.random.default_rng(1000 + index).integers(0, 256, (*label.shape, 3), dtype=np.uint8)
        return data.Sample(image, label, f"n{index}")
