"""Canvas and camera of the synthetic street scenes: one call paints a shape into the picture and into the label map.

Only integer rasterisation, IEEE additions and multiplications, and draws that map bits to numbers in one fixed way are
used, so that a scene is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmsa_ext.data.opencv import cv2

ROAD, PAVEMENT, GRASS, BUILDING, SKY, TREE, POLE, SIGN, FENCE, CAR, PEDESTRIAN = range(11)
VOID = 255

# A material is the look of a surface from close by. Several classes share one on purpose: a small window then does not
# tell road from pavement from a facade, nor a lawn from a tree, nor a pane of glass from the sky.
MINERAL, LEAF, MIRROR, PAINT = range(4)

Colour = tuple[float, float, float]


class Dice:
    """Random draws of one scene, from a counter-based generator.

    ``key`` is the tuple of non-negative integers that names the scene; equal keys give equal draws everywhere.
    """

    def __init__(self, key: Sequence[int]) -> None:
        self.bits = np.random.Philox(np.random.SeedSequence(tuple(key)))
        self.random = np.random.Generator(self.bits).random

    def between(self, low: float, high: float) -> float:
        """A float from [low, high)."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def count(self, low: int, high: int) -> int:
        """An integer from low..high, both included."""
        return low + int(self.random() * (high - low + 1))

    def pick(self, options: Sequence):
        """One of the options, all equally likely."""
        return options[int(self.random() * len(options))]

    def bytes(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 array of the given shape, uniform over 0..255."""
        size = int(np.prod(shape))
        # Little-endian words, so that the bytes come in the same order on any machine.
        words = self.bits.random_raw((size + 7) // 8).astype("<u8")
        return words.view(np.uint8)[:size].reshape(shape)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along a street: x to the right, y up from the ground, z ahead, all in metres."""

    height: int
    width: int
    horizon: float  # row of the horizon, pixels
    vanish: float  # column of the vanishing point, pixels
    focal: float  # pixels
    eye: float  # metres above the ground

    @property
    def near(self) -> float:
        """Depth in metres at which the ground leaves the picture at the bottom."""
        return self.focal * self.eye / (self.height - self.horizon)

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row in pixels of a point in metres."""
        scale = self.focal / z
        return self.vanish + scale * x, self.horizon + scale * (self.eye - y)

    def points(self, corners: Sequence[tuple[float, float, float]]) -> np.ndarray:
        """int32 [N, 2] columns and rows of N points in metres."""
        focal, vanish, horizon, eye = self.focal, self.vanish, self.horizon, self.eye
        # Plain Python: for the usual four points it takes a third of the time of array arithmetic.
        pixels = [(round(vanish + focal * x / z), round(horizon + focal * (eye - y) / z)) for x, y, z in corners]
        return np.array(pixels, np.int32)

    def pixels(self, metres: float, z: float) -> float:
        """Length in pixels of so many metres across the view at depth z."""
        return self.focal * metres / z


class Canvas:
    """Picture and label map that are painted together.

    ``paint`` is uint8 [H, W, 4]: red, green, blue, material. ``label`` is uint8 [H, W], ``shadow`` uint8
    [H, W], 1 where the ground lies in the shadow. Every method takes ``label=None`` for a mark that changes the picture
    but not the class (a window, a lane marking, a puddle).
    """

    def __init__(self, height: int, width: int) -> None:
        self.paint = np.zeros((height, width, 4), np.uint8)
        self.label = np.full((height, width), SKY, np.uint8)
        self.shadow = np.zeros((height, width), np.uint8)

    def polygons(self, corners: np.ndarray, colour: Colour, material: int, label: int | None) -> None:
        """Fill convex polygons, int32 [N, points, 2] in columns and rows."""
        for polygon in corners:
            self.polygon(polygon, colour, material, label)

    def polygon(self, corners: np.ndarray, colour: Colour, material: int, label: int | None) -> None:
        """Fill one convex polygon, int32 [points, 2]."""
        # Not fillPoly: a few of its pixels differ between versions 4 and 5 of OpenCV.
        cv2.fillConvexPoly(self.paint, corners, (*colour, material))
        if label is not None:
            cv2.fillConvexPoly(self.label, corners, label)

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, material: int, label: int | None
    ):
        """Fill columns [left, right) and rows [top, bottom), rounded; at least one pixel each way."""
        x0, y0 = round(left), round(top)
        x1, y1 = max(round(right), x0 + 1), max(round(bottom), y0 + 1)
        rows, columns = slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0))
        self.paint[rows, columns] = (*colour, material)
        if label is not None:
            self.label[rows, columns] = label

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour, material: int, label: int | None) -> None:
        """Fill an upright ellipse with centre (x, y) and half axes (rx, ry)."""
        centre, rx, ry = (round(x), round(y)), max(round(rx), 0), max(round(ry), 0)
        for plane, value in ((self.paint, (*colour, material)), (self.label, label)):
            if value is None:
                continue
            if rx == ry:  # a third of the time of an ellipse
                cv2.circle(plane, centre, rx, value, -1)
            else:
                cv2.ellipse(plane, centre, (rx, ry), 0, 0, 360, value, -1)

    def strokes(self, lines: np.ndarray, colour: Colour, material: int, label: int | None) -> None:
        """Open polylines, int32 [N, points, 2], one pixel thick."""
        # Thicker ones are laid side by side by the caller: OpenCV's own differ between versions 4 and 5.
        cv2.polylines(self.paint, list(lines), False, (*colour, material))
        if label is not None:
            cv2.polylines(self.label, list(lines), False, label)


def tint(dice: Dice, low: float, high: float, spread: float) -> Colour:
    """A greyish colour: one brightness from [low, high) and a deviation of up to ``spread`` for each channel."""
    grey = dice.between(low, high) - spread
    red, green, blue = (grey + 2 * spread * dice.random() for _ in range(3))
    return max(red, 0.0), max(green, 0.0), max(blue, 0.0)


def times(colour: Colour, factor: float) -> Colour:
    """The colour in weaker or stronger light."""
    red, green, blue = colour
    return min(red * factor, 255.0), min(green * factor, 255.0), min(blue * factor, 255.0)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``share`` of b in a."""
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share
