"""The panels of a page, and the page: rows of pictures with titles, and the legend below."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from hmsa_ext.data import ClassTable
from hmsa_ext.engine.legend import (
    IGNORED,
    IGNORED_LINES,
    MARGIN,
    PAPER,
    WRONG,
    WRONG_LINES,
    Entry,
    hatch,
    strip,
)
from hmsa_ext.engine.lettering import FAINT, INK, width_of, write
from hmsa_ext.engine.overlay import as_indices, confidence_picture, overlay

TILE_WIDTH = (320, 640)  # pixels: smaller images are enlarged, larger ones reduced
HEAD_HEIGHT, TITLE_HEIGHT = 36, 26

Panel = tuple[str, "np.ndarray | None"]
"""Title and picture; a panel without picture is the key of the shares' colours."""


def compose_page(rows: Sequence[Sequence[Panel]], entries: Sequence[Entry], name: str) -> np.ndarray:
    """The page as uint8 RGB: ``name`` at the top, rows of panels, all of one size, and the legend of ``entries``."""
    height, width = next(tile.shape[:2] for _, tile in rows[0] if tile is not None)
    page_width = MARGIN + max(len(row) for row in rows) * (width + MARGIN)
    legend = strip(entries, page_width)
    row_height = TITLE_HEIGHT + height + MARGIN
    page = np.full((HEAD_HEIGHT + len(rows) * row_height + len(legend), page_width, 3), PAPER, np.uint8)
    write(page, name, MARGIN, 25, scale=0.6, width=page_width - 2 * MARGIN)
    for r, row in enumerate(rows):
        top = HEAD_HEIGHT + r * row_height + TITLE_HEIGHT
        for c, (title, tile) in enumerate(row):
            left = MARGIN + c * (width + MARGIN)
            write(page, title, left, top - 9, width=width)
            if tile is None:
                _share_key(page, left, top, width, height)
                continue
            page[top : top + height, left : left + width] = tile
            # A frame: areas of a class as light as the paper end somewhere, too.
            cv2.rectangle(page, (left - 1, top - 1), (left + width, top + height), FAINT, 1)
    page[len(page) - len(legend) :] = legend
    return page


def zoom_of(width: int) -> float:
    """How much an image of this width is enlarged or reduced in a panel."""
    smallest, largest = TILE_WIDTH
    if width < smallest:
        return math.ceil(smallest / width)
    return min(1.0, largest / width)


def _resized(picture: np.ndarray, zoom: float, interpolation: int) -> np.ndarray:
    if zoom == 1:
        return picture
    size = max(1, round(picture.shape[1] * zoom)), max(1, round(picture.shape[0] * zoom))
    return cv2.resize(picture, size, interpolation=interpolation)


def photo_panel(image: np.ndarray, zoom: float) -> np.ndarray:
    """The photo."""
    return _resized(image, zoom, cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)


def _enlarged(labels: np.ndarray, zoom: float) -> np.ndarray:
    return _resized(as_indices(labels), zoom, cv2.INTER_NEAREST)


def overlay_panel(image: np.ndarray, labels: np.ndarray, classes: ClassTable, zoom: float) -> np.ndarray:
    """The photo under the colours of its labels."""
    return overlay(photo_panel(image, zoom), _enlarged(labels, zoom), classes.colours)


def labels_panel(labels: np.ndarray, classes: ClassTable, zoom: float) -> np.ndarray:
    """The colours of the classes; what is ignored is hatched."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: classes.num_classes] = classes.colours
    labels = _enlarged(labels, zoom)
    ignored = (labels >= classes.num_classes)[..., None]
    return np.where(ignored, hatch(labels.shape, IGNORED, IGNORED_LINES), palette[labels])


def errors_panel(image: np.ndarray, wrong: np.ndarray, ignored: np.ndarray, zoom: float) -> np.ndarray:
    """A pale grey photo with the wrong pixels in red and the ignored ones in black, both hatched."""
    pale = 170 + photo_panel(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), zoom)[..., None] // 3
    for mask, colours in ((wrong, (WRONG, WRONG_LINES)), (ignored, (IGNORED, IGNORED_LINES))):
        # Of a picture that is reduced, a pixel may be wrong in part.
        share = _resized(mask.astype(np.float32), zoom, cv2.INTER_AREA if zoom < 1 else cv2.INTER_NEAREST)[..., None]
        pale = pale * (1 - share) + hatch(share.shape[:2], *colours) * share
    return (pale + 0.5).astype(np.uint8)


def shares_panel(share: np.ndarray, zoom: float) -> np.ndarray:
    """Values 0..1 as colours."""
    return confidence_picture(_resized(share, zoom, cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR))


def _share_key(page: np.ndarray, left: int, top: int, width: int, height: int) -> None:
    """The colours of the shares, 0 to 1, drawn into the place of a panel."""
    bar_width, bar_height = 18, max(20, height - 24)
    ramp = np.linspace(1, 0, bar_height, dtype=np.float32)[:, None].repeat(bar_width, axis=1)
    top += (height - bar_height) // 2
    left += width - 60  # beside the first map
    page[top : top + bar_height, left : left + bar_width] = confidence_picture(ramp)
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + round((1 - value) * (bar_height - 1))
        cv2.line(page, (left - 6, y), (left - 1, y), INK, 1)
        write(page, f"{value:g}", left - 12 - width_of(f"{value:g}"), y + 5)
