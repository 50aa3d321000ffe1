"""Settings of a prediction: at which size, in which tiles, with how much memory; and what is written of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hmsa_ext.engine.tiling import Sides, TileSettings, are_sides
from hmsa_ext.settings import SHARE, Names, Rule, validate

KINDS = ("labels", "colours", "overlay", "confidence", "attention")
_SIDES = Rule(are_sides, "pixels of the longer side, such as 1024, or HxW, such as 512x1024")
_KINDS = Rule(lambda v: set(v) <= set(KINDS), f"some of {', '.join(KINDS)}")
_WHITE = Rule(lambda v: 1 <= v <= 65535, "a value from 1 to 65535")


@dataclass(frozen=True)
class PredictionSettings(TileSettings):
    """The size at which photos are predicted, and the memory that it may take."""

    resize_to: Annotated[Sides | None, _SIDES] = None
    """Predict photos at this size: N pixels along the longer side, or HxW. The result has the size of the photo all
    the same. Default: as in the training, that is the photo's own size unless it had --long-edge."""


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
