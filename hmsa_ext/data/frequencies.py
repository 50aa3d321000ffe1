"""How often each class occurs, and weights that even it out."""

from __future__ import annotations

import numpy as np

from hmsa_ext.data.types import Dataset


def class_frequencies(dataset: Dataset, *, images: int = 200) -> np.ndarray:
    """Share of each class among the labelled pixels of up to ``images`` evenly spaced images: float64 [C], sum 1.

    Raises ValueError unless ``images`` is at least 1.
    """
    if images < 1:
        raise ValueError(f"images: expected at least 1, got {images}")
    count = min(images, len(dataset))
    classes = dataset.classes.num_classes
    pixels = np.zeros(classes, np.int64)
    for k in range(count):
        label = dataset[k * len(dataset) // count].label
        pixels += np.bincount(label.ravel(), minlength=256)[:classes]
    return pixels / max(pixels.sum(), 1)


def balanced_weights(frequencies: np.ndarray, exponent: float) -> np.ndarray:
    """Class weights ``frequency ** -exponent``, scaled so that a pixel's weight is 1 on average: float64 [C].

    0 gives all classes the same weight, 1 makes every class as heavy as any other; a class that does not occur gets the
    weight of the rarest that does.

    Raises ValueError for an exponent below 0 or not finite.
    """
    if not 0 <= exponent < float("inf"):
        raise ValueError(f"exponent: expected a number of at least 0, got {exponent}")
    present = frequencies > 0
    if not present.any():
        return np.ones_like(frequencies)
    weights = np.where(present, frequencies, frequencies[present].min()) ** -exponent
    return weights / (weights * frequencies).sum()
