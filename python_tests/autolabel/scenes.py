"""Small generated street scenes on disk, a few with masks and more without, for tests of the loop."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from hmsa_ext.data import Synthetic

SIZE = (64, 128)
NAMES = ("background", "road", "car")
FLAGS = (
    *("--model", "hrnet_small_ocr", "--crop", "64x64", "--batch-size", "2", "--train-scales", "0.5,1"),
    *("--threads", "1", "--device", "cpu", "--pictures", "0", "--log-every", "1"),
)
"""Of a training of a few seconds, beside its length."""


def write_scenes(
    here: Path, *, train: int = 4, val: int = 2, rest: int = 4, values: tuple[int, int, int] = (0, 1, 2)
) -> None:
    """Writes HERE/MINE, a folder data set, and HERE/PHOTOS, scenes without masks in two folders of the same tree.

    values: what the masks store for background, road and car.
    """
    mine = here / "MINE"
    scenes = Synthetic("train", size=SIZE, length=train + rest)
    for number in range(train):
        _write(mine, "train", number, scenes, values)
    for number in range(val):
        _write(mine, "val", number, Synthetic("val", size=SIZE, length=val), values)
    table = ", ".join(f"{value}: {name}" for value, name in zip(values, NAMES, strict=True))
    (mine / "dataset.yaml").write_text(f"names: {{{table}}}\n", encoding="utf-8")
    for number in range(train, train + rest):
        _write_picture(here / "PHOTOS" / f"day{1 + number % 2}" / f"{number:04}.jpg", scenes[number].image[..., ::-1])


def three_classes(label: np.ndarray) -> np.ndarray:
    """Background, road and car of the classes of generated scenes, uint8 [H, W]."""
    names = Synthetic.classes.names
    return ((label == names.index("road")) + 2 * (label == names.index("car"))).astype(np.uint8)


def _write(mine: Path, split: str, number: int, scenes: Synthetic, values: tuple[int, int, int]) -> None:
    sample = scenes[number]
    _write_picture(mine / "images" / split / f"{number:04}.jpg", sample.image[..., ::-1])
    mask = np.array(values, np.uint8)[three_classes(sample.label)]
    _write_picture(mine / "masks" / split / f"{number:04}.png", mask)


def _write_picture(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), pixels)
