"""Which colour stands for which class: the strip below a page, and below a picture of a prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from hmsa_ext.data import ClassTable
from hmsa_ext.data.palette import RESERVED
from hmsa_ext.engine.lettering import FAINT, width_of, write
from hmsa_ext.engine.overlay import count_labels

MARGIN, ROW_HEIGHT = 12, 26
PAPER = RESERVED["paper"]
# Both are hatched, so that no class of a like colour is taken for them: (colour, colour of the lines).
WRONG, WRONG_LINES = RESERVED["wrong"], (120, 0, 0)
IGNORED, IGNORED_LINES = RESERVED["ignored"], (120, 120, 120)

_TEXT = 0.45
_FIELD = 16, 22  # rows, columns
# Letters of a legend are a sixtieth of its width, as of a page that is read as a whole.
_SMALLEST_LETTERS, _LETTERS_PER_WIDTH = 12, 60
_NARROWEST = 200


class Entry(NamedTuple):
    """A colour and what it means; with lines of another colour it is hatched."""

    name: str
    colour: Sequence[int] | np.ndarray
    lines: tuple[int, int, int] | None = None
    note: str = ""


def with_legend(picture: np.ndarray, classes: ClassTable, labels: np.ndarray) -> np.ndarray:
    """The picture, uint8 [H, W, 3], with a strip below it that names the classes among ``labels``.

    The largest comes first; each has its share of all pixels. labels: integers [H, W]. The letters are larger under a
    larger picture. Where a picture is too narrow for a name, paper is added at its right.
    """
    entries = occurring(classes, labels)
    width = picture.shape[1]
    letters = max(_SMALLEST_LETTERS, width / _LETTERS_PER_WIDTH)
    zoom = letters / _SMALLEST_LETTERS
    widest = max((_width(entry, zoom) for entry in entries), default=0) + 2 * round(MARGIN * zoom)
    below = strip(entries, max(width, min(widest, round(_NARROWEST * zoom))), zoom)
    page = np.full((picture.shape[0] + below.shape[0], below.shape[1], 3), PAPER, np.uint8)
    page[: picture.shape[0], :width] = picture
    page[picture.shape[0] :] = below
    return page


def occurring(classes: ClassTable, labels: np.ndarray) -> list[Entry]:
    """The classes among ``labels``, the largest first, with their share of the pixels; at last what is ignored."""
    counts = count_labels(labels)
    total = max(1, counts.sum())
    order = sorted(np.flatnonzero(counts[: classes.num_classes]), key=lambda k: -counts[k])
    found = [Entry(classes.names[k], classes.colours[k], note=_percent(counts[k] / total)) for k in order]
    ignored = counts[classes.num_classes :].sum()
    return [*found, Entry("ignored", IGNORED, IGNORED_LINES, _percent(ignored / total))] if ignored else found


def strip(entries: Sequence[Entry], width: int, zoom: float = 1.0) -> np.ndarray:
    """Rows of colour fields with their names, ``width`` pixels wide; ``zoom`` 1 has letters of 12 pixels."""
    margin, row, gap = (round(length * zoom) for length in (MARGIN, ROW_HEIGHT, 8))
    field = round(_FIELD[0] * zoom), round(_FIELD[1] * zoom)
    inner = width - 2 * margin
    entry_width = min(max((_width(entry, zoom) for entry in entries), default=1), inner)
    per_row = max(1, inner // max(1, entry_width))
    page = np.full((math.ceil(len(entries) / per_row) * row + round(14 * zoom), width, 3), PAPER, np.uint8)
    line = max(1, round(zoom / 2))
    for i, entry in enumerate(entries):
        x, y = margin + (i % per_row) * entry_width, gap + (i // per_row) * row
        area = page[y : y + field[0], x : x + field[1]]
        area[:] = entry.colour if entry.lines is None else hatch(field, entry.colour, entry.lines, 8 * zoom)
        cv2.rectangle(page, (x - 1, y - 1), (x + field[1], y + field[0]), FAINT, line)
        base, text = y + round(13 * zoom), x + field[1] + gap
        room = entry_width - field[1] - gap - round(4 * zoom)
        note_width = width_of(entry.note, _TEXT * zoom) + gap if entry.note else 0
        name_width = min(width_of(entry.name, _TEXT * zoom), max(1, room - note_width))
        write(page, entry.name, text, base, scale=_TEXT * zoom, width=name_width)
        write(page, entry.note, text + name_width + gap, base, scale=_TEXT * zoom, colour=FAINT)
    return page


def hatch(
    size: tuple[int, ...], colour: Sequence[int] | np.ndarray, lines: tuple[int, int, int], distance: float = 8
) -> np.ndarray:
    """An area [H, W, 3] of one colour, with diagonal lines."""
    y, x = np.ogrid[: size[0], : size[1]]
    return np.where(
        ((x + y) % distance < distance / 4)[..., None], np.array(lines, np.uint8), np.array(colour, np.uint8)
    )


def _width(entry: Entry, zoom: float) -> int:
    text = width_of(entry.name, _TEXT * zoom)
    if entry.note:
        text += round(8 * zoom) + width_of(entry.note, _TEXT * zoom)
    return round(44 * zoom) + text


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
