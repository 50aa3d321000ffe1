"""Colours for classes that have none of their own."""

from __future__ import annotations

import numpy as np


def distinct_colours(count: int) -> np.ndarray:
    """Colours as far from each other, black and white as they get, uint8 [count, 3]; longer tables begin alike.

    Each is the point of a grid in the cube of colours that is farthest from black and white, which are the colours of
    ignored pixels and of paper, and from all colours before it.
    """
    steps = np.arange(0, 256, 15)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    distance, chosen = np.minimum((grid**2).sum(1), ((grid - 255) ** 2).sum(1)), np.zeros((count, 3), np.uint8)
    for k in range(count):
        chosen[k] = colour = grid[distance.argmax()]
        distance = np.minimum(distance, ((grid - colour) ** 2).sum(1))
    return chosen
