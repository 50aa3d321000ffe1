"""Outlines of the regions of a label map, as polygons that hold exactly the pixels of the region.

The outlines run along the borders between pixels: the pixel in row y and column x is the square from (x, y) to
(x + 1, y + 1). Corners are whole numbers. COCO's rasteriser and every other one that asks for the centres of pixels
fill such a polygon without an error.

COCO has no holes in polygons. A hole is joined to the outline above it by a cut of no width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import IGNORE_LABEL

# Edges go clockwise around a pixel, which lies on their right: along its top, right, bottom and left side.
_OUTWARD = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # rows and columns to the pixel on the other side
_FORWARD = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])  # and along the edge
_START = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])  # from the pixel to the corner where its edge begins


@dataclass(frozen=True, eq=False)
class Region:
    """Connected pixels of one class; pixels that touch at a corner only are not connected.

    label: the class number.
    polygon: int64 [N, 2], x and y of the corners, clockwise on the screen.
    pixels: how many pixels it has.
    box: left, top, width and height in pixels.
    """

    label: int
    polygon: np.ndarray
    pixels: int
    box: tuple[int, int, int, int]


def regions(label: np.ndarray) -> list[Region]:
    """The regions of a label map, class numbers and 255 for no class, uint8 [H, W]; by class, then from the top."""
    parts, found = _parts(label)
    loops = _loops(parts)
    polygons: dict[int, np.ndarray] = {}
    for part, of_part in loops.items():
        polygons[part] = _corners(_joined(parts, part, of_part) if len(of_part) > 1 else of_part[0])
    return [Region(number, polygons[part], pixels, box) for part, (number, pixels, box) in found.items()]


def _parts(label: np.ndarray) -> tuple[np.ndarray, dict[int, tuple[int, int, tuple[int, int, int, int]]]]:
    """The number of the region of each pixel, 0 for none, int32 [H, W], and class, pixels and box of each region."""
    parts = np.zeros(label.shape, np.int32)
    found: dict[int, tuple[int, int, tuple[int, int, int, int]]] = {}
    for number in np.unique(label[label != IGNORE_LABEL]):
        mask = (label == number).astype(np.uint8)
        count, own, facts, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        start = len(found)
        parts = np.where(mask, own + start, parts)
        for k in range(1, count):
            left, top, width, height, pixels = facts[k].tolist()
            found[start + k] = (int(number), pixels, (left, top, width, height))
    return parts, found


def _loops(parts: np.ndarray) -> dict[int, list[np.ndarray]]:
    """The closed outlines of each region, int64 [N, 2], x and y of every corner of pixels that they pass."""
    padded = np.pad(parts, 1)
    rows, columns, sides = [], [], []
    for side, (down, right) in enumerate(_OUTWARD):
        other = padded[1 + down : 1 + down + parts.shape[0], 1 + right : 1 + right + parts.shape[1]]
        y, x = np.nonzero((parts != other) & (parts > 0))
        rows.append(y)
        columns.append(x)
        sides.append(np.full(len(y), side))
    y, x, side = (np.concatenate(lists) for lists in (rows, columns, sides))
    if not len(y):
        return {}
    # An edge is found by its pixel and side.
    numbers = np.zeros((4, *parts.shape), np.int64)
    numbers[side, y, x] = np.arange(len(y))
    own = parts[y, x]
    ahead_y, ahead_x = y + _FORWARD[side, 0], x + _FORWARD[side, 1]
    beside_y, beside_x = ahead_y + _OUTWARD[side, 0], ahead_x + _OUTWARD[side, 1]
    # Where the pixel ahead is of another region the outline turns right, around its own pixel. Else it goes straight
    # on, unless the pixel beside that one belongs to the region as well: then it turns left, around that one.
    turns = padded[ahead_y + 1, ahead_x + 1] != own
    straight = ~turns & (padded[beside_y + 1, beside_x + 1] != own)
    following = np.empty(len(y), np.int64)
    following[turns] = numbers[(side[turns] + 1) % 4, y[turns], x[turns]]
    following[straight] = numbers[side[straight], ahead_y[straight], ahead_x[straight]]
    left = ~turns & ~straight
    following[left] = numbers[(side[left] + 3) % 4, beside_y[left], beside_x[left]]
    corners = np.stack([x + _START[side, 1], y + _START[side, 0]], 1)

    found: dict[int, list[np.ndarray]] = {}
    chain, seen = following.tolist(), np.zeros(len(y), bool)
    # The first edge of a region from the top is on its outer outline: that one comes first.
    for first in np.lexsort((side, x, y)).tolist():
        if seen[first]:
            continue
        loop = [first]
        while chain[loop[-1]] != first:
            loop.append(chain[loop[-1]])
        seen[loop] = True
        found.setdefault(int(own[first]), []).append(corners[loop])
    return found


def _joined(parts: np.ndarray, part: int, loops: list[np.ndarray]) -> np.ndarray:
    """One closed line of an outer outline and those of the holes in it, each joined by a cut upwards."""
    points = [tuple(point) for loop in loops for point in loop.tolist()]
    following: list[int] = []
    tops = []
    for loop in loops:
        start = len(following)
        following += [*range(start + 1, start + len(loop)), start]
        tops.append(start + int(np.lexsort((loop[:, 0], loop[:, 1]))[0]))
    at = {point: number for number, point in enumerate(points)}
    # From the top: what a cut meets is then joined to the outer outline already.
    for top in sorted(tops[1:], key=lambda number: (points[number][1], points[number][0])):
        x, y = points[top]
        meets = y - 1
        while meets > 0 and parts[meets - 1, x - 1] == part == parts[meets - 1, x]:
            meets -= 1
        above = at[(x, meets)]
        # above -> top -> ... around the hole ... -> top again -> above again -> what followed.
        again = len(points)
        points += [(x, y), (x, meets)]
        following += [again + 1, following[above]]
        last = top
        while following[last] != top:
            last = following[last]
        following[last] = again
        following[above] = top
    line, number = [0], following[0]
    while number != 0:
        line.append(number)
        number = following[number]
    return np.array([points[number] for number in line])


def _corners(loop: np.ndarray) -> np.ndarray:
    """The points of a closed line at which it changes its direction."""
    before = np.sign(loop - np.roll(loop, 1, 0))
    after = np.sign(np.roll(loop, -1, 0) - loop)
    return loop[(before != after).any(1)]
