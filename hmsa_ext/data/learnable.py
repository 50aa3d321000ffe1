"""Whether there is anything to learn from the labels: the words of ``data scan``, and the error of ``train``."""

from __future__ import annotations

import numpy as np

from hmsa_ext.data.index import ClassIndex
from hmsa_ext.data.types import ClassTable, DataError

ONE_NAME = (
    "only one class is named, {}: a network has nothing to tell apart. Name the background (all other pixels) as a "
    "class of its own, with the stored value that it has in the label maps"
)
_LOOK = "`hmsa data scan` shows the values that the label maps store"


def nothing_to_learn(classes: ClassTable, occurs: np.ndarray) -> str:
    """Why nothing can be learnt, in words; empty when there are at least two classes.

    occurs: bool [K], the classes that occur in the label maps.
    """
    if classes.num_classes == 1:
        return ONE_NAME.format(classes.names[0])
    if not occurs.any():
        return "every pixel of every image is ignored"
    if occurs.sum() == 1:
        return f"only one class occurs at all, {classes.names[int(occurs.argmax())]}"
    return ""


def require_two_classes(index: ClassIndex, split: str) -> None:
    """Raises DataError when the label maps of the training images have fewer than two classes."""
    text = nothing_to_learn(index.classes, index.pixels.sum(0) > 0)
    if text:
        raise DataError(f"{split}: {text}. {_LOOK}")


def require_labels(index: ClassIndex, split: str) -> None:
    """Raises DataError when no pixel of any image has a class: a score of such images has no value."""
    if not index.pixels.any():
        raise DataError(f"{split}: every pixel of every image is ignored. {_LOOK}")
