"""Centroids of classes by tile as the published code finds them, written plainly: what ours is held against.

Tao, Sapra, Catanzaro 2020, after Zhu et al. 2019: for each tile and each class that is in it an integer mask, and
scipy's centre of mass of it. Strips and small maps are covered as in ours; the published code leaves them out. Needs
scipy.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage  # pyright: ignore[reportMissingImports]  (no dependency of this project)


def class_tile_centres(labels: np.ndarray, tile: int, num_classes: int) -> np.ndarray:
    """Of a map [H, W], centres [Ty, Tx, K, 2] (y, x; NaN where there is no pixel)."""
    rows, columns = (-(-side // tile) for side in labels.shape)
    centres = np.full((rows, columns, num_classes, 2), np.nan)
    for i in range(rows):
        for j in range(columns):
            part = labels[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile]
            for c in range(num_classes):
                if c in part:
                    centre = ndimage.center_of_mass((part == c).astype(int))
                    centres[i, j, c] = np.add((i * tile, j * tile), centre)
    return centres
