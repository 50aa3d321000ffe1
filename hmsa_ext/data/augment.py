"""What a training crop is drawn from: size, scale, mirror, colours and blur.

A crop is drawn first and cut afterwards: its box by :class:`hmsa_ext.data.EpochSampler`, its looks by
:meth:`Augment.draw_looks`; :func:`hmsa_ext.data.cut` is then plain arithmetic, on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MOST_BLUR = 4.0  # sigma that ``sample_crop`` goes up to


class Looks(NamedTuple):
    """What happens to a crop besides being cut.

    flip: mirror left and right.
    jitter: factors of brightness, contrast and saturation, and the turn of the hue in whole turns; none: (1, 1, 1, 0).
    blur: sigma of a Gaussian blur in pixels of the crop; 0 is none.
    """

    flip: bool = False
    jitter: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    blur: float = 0.0


@dataclass(frozen=True)
class Augment:
    """Random crops of one size.

    crop: (height, width) in pixels.
    scale: the image is enlarged by a factor drawn evenly from this range.
    flip: mirror half of the crops.
    colour: factors of brightness, contrast and saturation are drawn evenly from [1 - colour, 1 + colour], the turn of
        the hue from [-colour, colour] whole turns.
    blur: sigma of a Gaussian blur of every crop, in pixels, drawn evenly from this range; the published recipes with a
        blur have (0.15, 1.3).
    long_edge: the image is taken as if it were resized to this many pixels along its longer side first (for images of
        many sizes; published: 2177 on Mapillary Vistas); 0: as it is.

    The image is resized bilinearly, with a support that grows where it shrinks (antialias); the label map takes the
    nearest pixel centre. Outside the image a crop has the mean colour and is ignored.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    colour: float = 0.25
    blur: tuple[float, float] = (0.0, 0.0)
    long_edge: int = 0

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop: expected (height, width) of at least 1 pixel, got {self.crop}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale: expected (low, high) with 0 < low <= high, got {self.scale}")
        if not 0 <= self.colour <= 0.5:
            raise ValueError(f"colour: expected 0..0.5, got {self.colour}")
        if len(self.blur) != 2 or not 0 <= self.blur[0] <= self.blur[1] <= MOST_BLUR:
            raise ValueError(f"blur: expected (low, high) with 0 <= low <= high <= {MOST_BLUR:g}, got {self.blur}")
        if self.long_edge < 0:
            raise ValueError(f"long_edge: expected pixels from 0 up, got {self.long_edge}")

    def draw_looks(self, rng: np.random.Generator) -> Looks:
        """Random looks of a crop. Always draws six numbers, whatever the options."""
        mirror, *change, turn, soft = rng.random(6).tolist()
        factors = (1 + self.colour * (2 * value - 1) for value in change)
        return Looks(
            self.flip and mirror < 0.5,
            (*factors, self.colour * (2 * turn - 1)),
            self.blur[0] + (self.blur[1] - self.blur[0]) * soft,
        )


def resized_size(height: int, width: int, long_edge: int) -> tuple[int, int]:
    """(height, width) of an image after its longer side became ``long_edge`` pixels; as it was for 0.

    Raises ValueError for less than 0.
    """
    if long_edge < 0:
        raise ValueError(f"long_edge: expected pixels from 0 up, got {long_edge}")
    if long_edge == 0:
        return height, width
    factor = long_edge / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))
