"""Pictures of label maps and of confidences, as large as the photo; made in bands of rows, for photos of any size."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from hmsa_ext.data import IGNORE_LABEL
from hmsa_ext.data.palette import RESERVED
from hmsa_ext.errors import ArgumentValueError

_BAND = 1 << 20  # pixels


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """The photo under the colours of its labels: uint8 [H, W, 3].

    image: uint8 [H, W, 3]. labels: integers [H, W]; those without a colour (ignored) leave the photo as it is. colours:
    uint8 [C, 3], at most 255. opacity: 0 shows the photo alone, 1 the colours alone. Raises ArgumentValueError for
    another shape, dtype or opacity.
    """
    _check(image, labels, colours, opacity)
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(colours), 0] = colours
    mixed = np.empty(image.shape, np.uint8)
    for rows in _bands(labels.shape):
        found = np.ascontiguousarray(as_indices(labels[rows]))
        photo = image[rows]
        band = cv2.addWeighted(photo, 1 - opacity, cv2.applyColorMap(found, table), opacity, 0)
        np.copyto(band, photo, where=(found >= len(colours))[..., None])
        mixed[rows] = band
    return mixed


def confidence_picture(confidence: np.ndarray) -> np.ndarray:
    """Values 0..1 [H, W] as colours, uint8 [H, W, 3]: dark to bright, the same for every picture; NaN is red."""
    picture = np.empty((*confidence.shape, 3), np.uint8)
    for rows in _bands(confidence.shape):
        band = confidence[rows].astype(np.float32)
        undefined = np.isnan(band)
        values = np.where(undefined, 0, np.clip(band, 0, 1) * 255 + 0.5).astype(np.uint8)
        picture[rows] = cv2.applyColorMap(values, cv2.COLORMAP_VIRIDIS)[..., ::-1]
        picture[rows][undefined] = RESERVED["wrong"]
    return picture


def as_indices(labels: np.ndarray) -> np.ndarray:
    """Labels as uint8: what does not fit is ignored."""
    if labels.dtype == np.uint8:
        return labels
    return np.where((labels < 0) | (labels > IGNORE_LABEL), IGNORE_LABEL, labels).astype(np.uint8)


def count_labels(labels: np.ndarray) -> np.ndarray:
    """How many pixels have each label: int64 [256], the last for those that are ignored."""
    counts = np.zeros(256, np.int64)
    for rows in _bands(labels.shape):
        counts += np.bincount(as_indices(labels[rows]).ravel(), minlength=256)
    return counts


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    height = max(1, _BAND // max(1, shape[1]))
    for top in range(0, shape[0], height):
        yield slice(top, top + height)


def _check(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ArgumentValueError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if labels.shape != image.shape[:2] or labels.dtype.kind not in "iu":
        raise ArgumentValueError(
            f"labels: expected integers {list(image.shape[:2])}, the size of the image, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    if colours.ndim != 2 or colours.shape[1] != 3 or len(colours) > IGNORE_LABEL or colours.dtype != np.uint8:
        raise ArgumentValueError(
            f"colours: expected uint8 [C, 3] with at most {IGNORE_LABEL} rows, "
            f"got {colours.dtype} {list(colours.shape)}"
        )
    if not 0 <= opacity <= 1:
        raise ArgumentValueError(f"opacity: expected a number from 0 to 1, got {opacity}")
