"""A description of a folder that has none, from a look at some of its label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hmsa_ext.data.files import read_colours, read_label
from hmsa_ext.data.label_table import show_value
from hmsa_ext.data.types import IGNORE_LABEL, DataError

LOOKED_AT = 20
MANY_COLOURS = 64


def suggest_description(labels: Sequence[Path]) -> str:
    """Text of a YAML that would fit the label maps, with made-up names; empty when none of them can be read.

    Up to 20 files, evenly spaced, are looked at.
    """
    values, colours = look_at_values(labels)
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
        return "names: [background, object]\nids: {0: background, 255: object}\n"
    classes = [value for value in values if value != IGNORE_LABEL] or [0]
    if len(classes) > classes[-1] // 2:  # most of the numbers up to the largest occur
        lines = [f"  - class_{value}" for value in range(classes[-1] + 1)]
    else:
        lines = [f"  {value}: class_{value}" for value in classes]
    return "\n".join(["names:", *lines, ""])


def suggest_for_colours(colours: Sequence[int]) -> str:
    """A description for masks in colours; empty when there are too many for that."""
    if len(colours) > MANY_COLOURS:
        return ""
    lines = [f'  class_{k}: "{show_value(colour, colours=True)}"' for k, colour in enumerate(colours)]
    names = ", ".join(f"class_{k}" for k in range(len(colours)))
    return "\n".join(["masks: colours", f"names: [{names}]", "colours:", *lines, ""])
