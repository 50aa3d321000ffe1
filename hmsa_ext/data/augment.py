"""The random choices of a training crop: size, scale, mirror, colours and blur.

A crop is drawn first and cut afterwards: its box by :class:`hmsa_ext.data.EpochSampler`, its looks by
:meth:`Augment.draw_looks`; :func:`hmsa_ext.data.cut` is then plain arithmetic, on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np

from hmsa_ext.data.types import Batch
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.parts import Part
from hmsa_ext.settings import (
    NOT_NEGATIVE,
    Flag,
    Range,
    Rule,
    SettingError,
    Size,
    load_object,
    validate,
)

MOST_BLUR = 4.0  # sigma that ``sample_crop`` goes up to


class Looks(NamedTuple):
    """The changes of a crop besides cutting.

    flip: mirror left and right.
    jitter: factors of brightness, contrast and saturation, and the turn of the hue in whole turns; none: (1, 1, 1, 0).
    blur: sigma of a Gaussian blur in pixels of the crop; 0 is none.
    """

    flip: bool = False
    jitter: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    blur: float = 0.0


@functools.cache
def _load_hook(hook: str | Callable[..., Any]) -> Callable[..., Any]:
    function: Any = load_object(hook, "batch_hook") if isinstance(hook, str) else hook
    if not callable(function):
        raise SettingError("batch_hook", hook, "the name of a function")
    return function


def _is_range(value: tuple[float, float]) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1] < math.inf


def _is_blur(value: tuple[float, float]) -> bool:
    return len(value) == 2 and 0 <= value[0] <= value[1] <= MOST_BLUR


PUBLISHED_ZOOM = (0.5, 2.0)
_ZOOMS = Rule(_is_range, "SMALLEST,LARGEST with 0 < SMALLEST <= LARGEST")
_TO_HALF = Rule(lambda value: 0 <= value <= 0.5, "a number from 0 to 0.5")


@dataclass(frozen=True)
class Augment:
    """Random crops of one size.

    The image is resized bilinearly, with a support that grows where it shrinks (antialias); the label map takes the
    nearest pixel centre. Outside the image a crop has the mean colour and is ignored.
    """

    crop: Size | None = None
    """Training crop HxW in pixels; default: follows from the sizes of the images."""
    scale: Annotated[Range | None, Flag("scale-range"), _ZOOMS] = None
    """Random zoom of a training image before the crop, drawn evenly from SMALLEST,LARGEST; default: 0.5,2 with a crop
    of yours (published), else the range that fits the crop and the images."""
    flip: Annotated[bool, Flag("mirror")] = True
    """Mirror half of the training crops."""
    colour: Annotated[float, _TO_HALF] = 0.25
    """Colour jitter of training crops: brightness, contrast, saturation by 1 +- this, hue by +- this many turns."""
    blur: Annotated[Range, Rule(_is_blur, f"SMALLEST,LARGEST from 0 to {MOST_BLUR:g}, in ascending order")] = (0.0, 0.0)
    """Sigma of the Gaussian blur of a training crop in pixels, drawn evenly from SMALLEST,LARGEST (published:
    0.15,1.3)."""
    long_edge: Annotated[int, NOT_NEGATIVE] = 0
    """Resize images to this many pixels along their longer side first, also in evaluation (published for Mapillary
    Vistas: 2177); 0: as they are."""
    batch_hook: Part | None = None
    """Python function that changes each training batch after the crop, on the device: hook(batch) returns a
    hmsa_ext.data.Batch."""

    def __post_init__(self) -> None:
        validate(self)
        if self.batch_hook is not None and not callable(self.batch_hook) and ":" not in self.batch_hook:
            raise SettingError("batch_hook", self.batch_hook, "package.module:function")

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the crops; raises ValueError where the crop is still to follow from the data."""
        if self.crop is None:
            raise ArgumentValueError(
                "crop: expected (height, width) in pixels, got none; hmsa_ext.data.fit_augment sets it"
            )
        return self.crop

    @property
    def zoom(self) -> tuple[float, float]:
        """(smallest, largest) zoom of an image before the crop."""
        return PUBLISHED_ZOOM if self.scale is None else self.scale

    def change(self, batch: Batch) -> Batch:
        """What ``batch_hook`` makes of a batch; the batch itself without a hook.

        Raises :class:`hmsa_ext.settings.SettingError` where there is no such function, and where its result is no
        batch.
        """
        if self.batch_hook is None:
            return batch
        changed = _load_hook(self.batch_hook)(batch)
        if not isinstance(changed, Batch):
            raise SettingError("batch_hook", self.batch_hook, f"a function that returns a Batch, not {changed!r:.60}")
        return changed

    def draw_looks(self, rng: np.random.Generator) -> Looks:
        """Random looks of a crop. Always draws six numbers, so that options do not shift the random numbers."""
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
        raise ArgumentValueError(f"long_edge: expected pixels from 0 up, got {long_edge}")
    if long_edge == 0:
        return height, width
    factor = long_edge / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))
