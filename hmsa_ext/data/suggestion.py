"""A description for a folder that has none, from the values that its label maps store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from hmsa_ext.data.files import read_colours, read_label
from hmsa_ext.data.label_table import MANY_COLOURS, show_value
from hmsa_ext.data.types import IGNORE_LABEL, DataError

LOOKED_AT = 20
BINARY = "names: [background, object]\nids: {0: background, 255: object}\n"
BLACK, VOC_BORDER = 0x000000, 0xE0E0C0  # the colours of void in most data sets, and in Pascal VOC
# Smoothed borders hold many values, each in few pixels.
_SMOOTHED_VALUES, _SMOOTHED_SHARE, _CLASS_SHARE, _MOST_SMOOTHED_CLASSES = 8, 0.2, 0.01, 4


def suggest_description(labels: Sequence[Path]) -> str:
    """Text of a YAML that would fit the label maps, with made-up names; empty when none of them can be read.

    Up to 20 files, evenly spaced, are read.
    """
    return suggest(*look_at_values(labels))


def suggest(values: Collection[int], colours: Collection[int]) -> str:
    """A description for the stored values, or for the colours when there are any; empty when there is nothing."""
    if colours:
        return suggest_for_colours(sorted(colours))
    return suggest_for_values(sorted(values)) if values else ""


def look_at_values(labels: Sequence[Path]) -> tuple[set[int], set[int]]:
    """The values, and of files in colours the colours, that some label maps store."""
    values, colours = set(), set()
    for k in range(min(LOOKED_AT, len(labels))):
        path = labels[k * len(labels) // min(LOOKED_AT, len(labels))]
        try:
            values.update(np.unique(read_label(path)).tolist())
        except DataError:
            try:
                colours.update(np.unique(read_colours(path)).tolist())
            except DataError:
                continue
    return values, colours


def suggest_for_values(values: Sequence[int]) -> str:
    """A description for stored values: binary masks, class numbers, or any other numbers."""
    if set(values) == {0, 255}:
        return BINARY
    classes = [value for value in values if value != IGNORE_LABEL] or [0]
    if len(classes) > classes[-1] // 2:  # most of the numbers up to the largest occur
        lines = [f"  - class_{value}" for value in range(classes[-1] + 1)]
    else:
        lines = [f"  {value}: class_{value}" for value in classes]
    return "\n".join(["names:", *lines, ""])


def suggest_for_colours(colours: Sequence[int]) -> str:
    """A description for masks in colours, with the colour of void as ``ignore``; empty when there are too many.

    Void is the border colour of Pascal VOC where it occurs, else black where there are two more colours.
    """
    if len(colours) > MANY_COLOURS:
        return ""
    void = next((c for c in (VOC_BORDER, BLACK) if c in colours and len(colours) > 2), None)
    classes = [colour for colour in colours if colour != void]
    lines = [f'  class_{k}: "{show_value(colour, colours=True)}"' for k, colour in enumerate(classes)]
    names = ", ".join(f"class_{k}" for k in range(len(classes)))
    text = ["masks: colours", f"names: [{names}]", "colours:", *lines]
    if void is not None:
        text.append(
            f'ignore: "{show_value(void, colours=True)}"  # taken for void; move it to colours if it is a class'
        )
    return "\n".join([*text, ""])


def smoothed_values(pixels: Mapping[int, int]) -> set[int]:
    """The stored values that come from smoothed borders (antialiasing, resizing with interpolation); mostly none.

    pixels: how many pixels store each value. At least 8 values, between few frequent ones and in few pixels, are taken
    for smoothed.
    """
    total = max(sum(pixels.values()), 1)
    classes = {value for value, count in pixels.items() if count >= _CLASS_SHARE * total}
    rest = pixels.keys() - classes
    few = sum(pixels[value] for value in rest) <= _SMOOTHED_SHARE * total
    between = bool(classes) and all(min(classes) < value < max(classes) for value in rest)
    enough = len(rest) >= _SMOOTHED_VALUES and len(rest) > 2 * len(classes)
    return set(rest) if enough and few and between and len(classes) <= _MOST_SMOOTHED_CLASSES else set()
