"""Colours for classes that have none of their own."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# Colours that pictures use for something else, and how far a class stays from them in OKLab (black to white is 1).
RESERVED = {"paper": (250, 250, 250), "ignored": (20, 20, 20), "wrong": (225, 45, 45)}
CLEARANCE = {"paper": 0.12, "ignored": 0.18, "wrong": 0.12}
# Neither dark nor grey: a photo is both.
DARKEST, PALEST = 0.38, 0.07  # lightness and chroma in OKLab
# Most readers see all colours: what looks alike to them counts for more.
_NORMAL_VISION = 0.65

# Full protanopia, deuteranopia and tritanopia, in linear RGB: G. M. Machado, M. M. Oliveira and L. A. F. Fernandes,
# "A physiologically-based model for simulation of color vision deficiency", IEEE TVCG 15 (6), 2009.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}

# B. Ottosson, "A perceptual color space for image processing", 2020: linear RGB to cone responses, and these to Lab.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def distinct_colours(count: int) -> np.ndarray:
    """Colours that tell apart, also for colour-blind readers, uint8 [count, 3]; longer tables begin alike.

    Each is the colour of a grid that is farthest from all before it and from the reserved ones, in the vision in which
    it is nearest: normal vision, protanopia, deuteranopia or tritanopia.
    """
    table = _table(256 if count <= 256 else count)
    return table[:count].copy()


def perceived(colours: np.ndarray) -> np.ndarray:
    """OKLab coordinates of colours uint8 [N, 3] under each of ``VISIONS``: float64 [4, N, 3]."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.stack([np.clip(linear @ vision.T, 0, 1) for vision in VISIONS.values()])
    return np.cbrt(seen @ _CONES.T) @ _LAB.T


@lru_cache(maxsize=4)
def _table(count: int) -> np.ndarray:
    steps = np.arange(0, 256, 15)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    reserved = perceived(np.array(list(RESERVED.values())))
    places = perceived(grid)
    vivid = (places[0, :, 0] >= DARKEST) & (np.hypot(places[0, :, 1], places[0, :, 2]) >= PALEST)
    distances = np.linalg.norm(places[:, :, None] - reserved[:, None], axis=-1)
    # The clearance holds for normal vision: in the others it would leave too few colours.
    free = vivid & (distances[0] >= list(CLEARANCE.values())).all(1)
    weight = np.where(np.arange(len(VISIONS)) == 0, _NORMAL_VISION, 1.0)[:, None]
    grid, places = grid[free], places[:, free]
    nearest = (distances[:, free].min(2) * weight).min(0)
    table = np.zeros((count, 3), np.uint8)
    for k in range(count):
        chosen = nearest.argmax()
        table[k] = grid[chosen]
        distance = np.linalg.norm(places - places[:, chosen, None], axis=-1) * weight
        nearest = np.minimum(nearest, distance.min(0))
    return table
