"""Settings of a prediction: at which size, in which tiles, with how much memory; and what is written of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hmsa_ext.settings import SHARE, Names, Rule, Spelling, read_number, validate

KINDS = ("labels", "colours", "overlay", "confidence", "attention")
LEAST_TILE, MOST_OVERLAP, LEAST_MEMORY = 64, 0.5, 2**20
_UNITS = {"": 2**30, "m": 10**6, "mb": 10**6, "mib": 2**20, "g": 10**9, "gb": 10**9, "gib": 2**30}


def _read_sides(value: object) -> int | tuple[int, int]:
    if isinstance(value, list | tuple):
        value = "x".join(map(str, value))
    if not isinstance(value, str) or "x" not in value:
        return read_number(value, int)
    height, width = value.split("x")
    return int(height), int(width)


def _show_sides(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _are_sides(value: Any, least: int = 1) -> bool:
    sides = value if isinstance(value, tuple) else (value,)
    return len(sides) in (1, 2) and all(isinstance(side, int) and side >= least for side in sides)


def _read_bytes(value: object) -> int:
    """Bytes from text; a number alone is GiB, unless it is so large that it can only be bytes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value == math.inf:
            raise ValueError
        return int(value if value >= 2**20 else value * 2**30)
    found = re.fullmatch(r"([\d.]{1,20})\s*([a-z]*)", str(value).strip().lower())
    if found is None or found[2] not in _UNITS:
        raise ValueError
    # A number alone that is too large for GiB is one of bytes: settings are read again from what was read before.
    in_bytes = not found[2] and float(found[1]) >= LEAST_MEMORY
    count = int(float(found[1]) * (1 if in_bytes else _UNITS[found[2]]))
    if count < LEAST_MEMORY:
        raise ValueError
    return count


def show_bytes(count: float) -> str:
    """Bytes in words: ``"1.5 GiB"``, ``"320 MiB"``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


Sides = Annotated[int | tuple[int, int], Spelling("N|HxW", _read_sides, _show_sides)]
_SIDES = Rule(_are_sides, "pixels of the longer side, such as 1024, or HxW, such as 512x1024")
_TILE = Rule(lambda v: _are_sides(v, LEAST_TILE), f"N or HxW in pixels, at least {LEAST_TILE}")
_OVERLAP = Rule(lambda v: 0 <= v <= MOST_OVERLAP, f"a share of the tile from 0 to {MOST_OVERLAP:g}")
_MEMORY = Rule(lambda v: v >= LEAST_MEMORY, "memory such as 4GB, 1.5GiB or 800MB; a number alone is GiB")
_KINDS = Rule(lambda v: set(v) <= set(KINDS), f"some of {', '.join(KINDS)}")
_WHITE = Rule(lambda v: 1 <= v <= 65535, "a value from 1 to 65535")
Memory = Annotated[int, Spelling("SIZE", _read_bytes, lambda v: show_bytes(v).replace(" ", ""))]


@dataclass(frozen=True)
class PredictionSettings:
    """The size at which photos are predicted, and the memory that it may take."""

    resize_to: Annotated[Sides | None, _SIDES] = None
    """Predict photos at this size: N pixels along the longer side, or HxW. The result has the size of the photo all
    the same. Default: as in the training, that is the photo's own size unless it had --long-edge."""
    tile: Annotated[Sides | None, _TILE] = None
    """Predict in overlapping tiles of at most N or HxW pixels. Default: tiles only where the memory asks for them."""
    overlap: Annotated[float, _OVERLAP] = 0.25
    """Share of a tile that it has in common with the next one; across it the two are blended."""
    memory: Annotated[Memory | None, _MEMORY] = None
    """The most memory that a photo may take beside the network's weights, such as 4GB. Default: half of the machine's
    memory on the CPU, 0.8 of the GPU's, shared by the processes of the machine."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class PictureSettings:
    """What is written of each photo or video, and how."""

    write: Annotated[Names, _KINDS] = ()
    """What to write: labels (numbers, PNG), colours, overlay (on the photo, JPEG), confidence (grey, 255 * probability)
    and attention (a page with the share of each scale). Default: labels of photos, the overlay of videos."""
    ids: Literal["dataset", "classes"] = "dataset"
    """Numbers in label files: those that the data set's own label files have, where they are known, or the numbers of
    the classes."""
    orientation: Literal["upright", "stored"] = "upright"
    """Photos are predicted upright, as their EXIF orientation says and viewers show them. Files are written "upright"
    too, or turned back to the pixels as they are "stored", which label maps of data sets belong to."""
    opacity: Annotated[float, SHARE] = 0.5
    """Of the colours in overlays: 0 shows the photo alone, 1 the colours alone."""
    legend: bool = True
    """Name the classes below overlays of photos."""
    white: Annotated[int, _WHITE] = 65535
    """Value of white in photos of 16 bits, such as 4095 for 12 bits stored in 16."""

    def __post_init__(self) -> None:
        validate(self)
