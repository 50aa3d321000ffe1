"""Class weights that balance the frequencies of the classes."""

from __future__ import annotations

import numpy as np

from hmsa_ext.errors import ArgumentValueError


def balanced_weights(frequencies: np.ndarray, exponent: float) -> np.ndarray:
    """Class weights ``frequency ** -exponent``, scaled so that a pixel's weight is 1 on average: float64 [C].

    frequencies: float64 [C], such as :attr:`hmsa_ext.data.ClassIndex.frequencies`.

    0 gives all classes the same weight, 1 makes every class as heavy as any other; a class that does not occur gets the
    weight of the rarest that does.

    Raises ValueError for an exponent below 0 or not finite.
    """
    if not 0 <= exponent < float("inf"):
        raise ArgumentValueError(f"exponent: expected a number of at least 0, got {exponent}")
    present = frequencies > 0
    if not present.any():
        return np.ones_like(frequencies)
    weights = np.where(present, frequencies, frequencies[present].min()) ** -exponent
    return weights / (weights * frequencies).sum()
