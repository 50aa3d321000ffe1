"""Overlapping tiles, also called sliding windows, whose outputs are blended before they are fused.

A network gives logits and attention at the stride of its heads, which is a sixteenth of the pixels. These small maps
are what is blended: each tile adds its own with weights that sum to one where tiles overlap. The result is one
:class:`ScaleOutputs` like that of a whole image, and the fused ops read it as any other. So no tile is argmaxed alone,
and no full-resolution logits exist where the combination needs none.

The maps of a large image need not be kept either. Rows of tiles are finished from top to bottom, and each yields a band
of rows that no further tile changes.

The weights of two tiles across their overlap, by ``blend``:

- ``linear``: ramps from 0 to 1.
- ``gaussian``: a Gaussian around the centre of each tile with a standard deviation of an eighth of its side, as nnU-Net
  has it (Isensee et al. 2021), divided by the sum of both.
- ``constant``: 1/2 each, the mean of the tiles, as the slide mode of mmsegmentation has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models import ScaleOutputs

Blend = Literal["linear", "gaussian", "constant"]
"""How the weights of tiles run across their overlaps."""
SIGMAS_PER_TILE = 8
"""Standard deviations of the Gaussian in the side of a tile."""
MOST_STEP = 512
"""Pixels: scales whose maps meet no earlier have no common grid."""
LARGE = 8
"""Cells of the grid that a tile has to have along a side to lie on it; of fewer the overlap would be no part."""


@dataclass(frozen=True)
class Layout:
    """Where the tiles of an image lie, in pixels of the image at scale 1.0.

    size: (height, width) of the image, rounded up to whole logits at every scale. rows, columns: first row of each row
    of tiles, and first column of each column. tile: (height, width) of every tile. overlap: (rows, columns) that
    neighbours share. The last tiles may reach beyond the image.
    """

    size: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    tile: tuple[int, int]
    overlap: tuple[int, int]

    @property
    def covered(self) -> tuple[int, int]:
        """(height, width) that the tiles cover together."""
        return self.rows[-1] + self.tile[0], self.columns[-1] + self.tile[1]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


@dataclass(frozen=True)
class Band:
    """Finished rows of a tiled image.

    outputs: those of some rows of the image, with ``margin`` rows above those that are finished. first, last: the
    finished rows, in pixels of the image.
    """

    outputs: ScaleOutputs
    margin: int
    first: int
    last: int


def step_of(scales: Sequence[float], strides: Sequence[int]) -> int:
    """The smallest number of pixels that is a whole number of logits at every scale.

    >>> step_of((2.0, 1.0, 0.5), (4, 4, 4)), step_of((1.0, 0.75), (4, 4))
    (8, 16)

    Raises ValueError where the scales have no such number up to 512.
    """
    step = 1
    for scale, stride in zip(scales, strides, strict=True):
        exact = Fraction(scale).limit_denominator(1000)
        needed = stride * exact.denominator
        step = math.lcm(step, needed // math.gcd(needed, exact.numerator))
        if abs(float(exact) - scale) > 1e-9 or step > MOST_STEP:
            raise ArgumentValueError(
                f"scales: tiles need scales that share a grid, such as multiples of 0.25; got {tuple(scales)}; predict "
                "whole photos (more memory, or resize_to), or choose other scales"
            )
    return step


def margin_of(scales: Sequence[float], strides: Sequence[int]) -> int:
    """Rows of the image beside a band that its pixels depend on, a multiple of :func:`step_of`.

    The maps of a row of tiles, and the bands that are cut out of them, have up to two margins more rows than the tiles.
    """
    # Two resizes look one pixel of their maps aside: at the smallest scale that is its stride, and then one pixel.
    reach = max((stride + 1) / scale for scale, stride in zip(scales, strides, strict=True))
    step = step_of(scales, strides)
    return math.ceil(reach / step) * step


def layout(size: tuple[int, int], tile: tuple[int, int], overlap: float, step: int, *, grid: int = 1) -> Layout:
    """Tiles of at most ``tile`` pixels for an image of (height, width) ``size``, evenly spread.

    step: a whole number of logits at every scale: see :func:`step_of`. grid: a number of steps that tiles lie on where
    they are large enough.

    >>> found = layout((1000, 500), (512, 512), 0.25, 8)
    >>> found.rows, found.columns, found.tile, found.overlap
    ((0, 296, 592), (0,), (424, 504), (128, 128))
    """
    starts, sides, shared = [], [], []
    for length, side in zip(size, tile, strict=True):
        unit = step * grid if side >= LARGE * step * grid else step
        side = max(unit, side // unit * unit)
        common = min(max(round(side * overlap / unit), overlap > 0), side // (2 * unit)) * unit
        if length <= side:
            side, count = -(-length // unit) * unit, 1
        else:
            # Fewer pixels beyond the image: tiles as small as their number allows.
            count = math.ceil((length - common) / (side - common))
            side = math.ceil(((length - common) / count + common) / unit) * unit
            side = max(side, 2 * common)
            count = math.ceil((length - common) / (side - common))
        starts.append(tuple(k * (side - common) for k in range(count)))
        sides.append(side)
        shared.append(common)
    whole = (-(-size[0] // step) * step, -(-size[1] // step) * step)
    return Layout(whole, starts[0], starts[1], (sides[0], sides[1]), (shared[0], shared[1]))


def blended(
    run: Callable[[int, int, int, int], ScaleOutputs],
    plan: Layout,
    scales: Sequence[float],
    strides: Sequence[int],
    *,
    blend: Blend = "linear",
    flip: bool = False,
    whole: bool = False,
) -> Iterator[Band]:
    """The blended outputs of all tiles, in bands from top to bottom.

    With L_t the logits (or attention) of tile t and w_t its weights, a map is ``sum_t w_t L_t`` with ``sum_t w_t = 1``.
    An attention that lies in [0, 1] stays there.

    Args:
        run: (first row, first column, height, width) of a tile, in pixels of the image -> its outputs, of one or more
            images.
        plan: see :func:`layout`.
        scales, strides: descending; the strides of the logits at each scale.
        blend: see the text of this module.
        flip: the second half of each batch are outputs for the mirrored tiles, still mirrored. The second half of the
            result are then maps of the mirrored image.
        whole: yield one band of everything.
    """
    height, width = plan.size
    margin = margin_of(scales, strides)
    cells = [Fraction(scale).limit_denominator(1000) / stride for scale, stride in zip(scales, strides, strict=True)]
    maps: list[Tensor] = []
    top = done = 0  # first row of the maps, and first row that was not yielded yet
    for number, row in enumerate(plan.rows):
        last_row = number == len(plan.rows) - 1
        bottom = plan.covered[0] if whole else row + plan.tile[0]
        for place, column in enumerate(plan.columns):
            outputs = run(row, column, *plan.tile)
            parts, combination = [*outputs.logits, *outputs.attention], outputs.combination
            of_scale = [*range(len(scales)), *range(1, 1 + len(outputs.attention))]
            if place == 0 and not (whole and maps):
                maps = [
                    _extended(old, part, cells[k], (bottom - top, plan.covered[1]))
                    for old, part, k in zip(maps or [None] * len(parts), parts, of_scale, strict=True)
                ]
            for target, part, k in zip(maps, parts, of_scale, strict=True):
                _add(target, part, cells[k], plan, (number, place), top, blend, flip=flip)
            del outputs, parts, part, target  # nothing of a tile stays while the next one runs
        finished = height if last_row else plan.rows[number + 1] - margin
        if (whole and not last_row) or finished <= done:
            continue
        above = max(0, done - margin)
        below = height if last_row else plan.rows[number + 1]
        cut = [
            _shown(
                m[..., int((above - top) * cells[k]) : int((below - top) * cells[k]), :], int(width * cells[k]), flip
            )
            for m, k in zip(maps, of_scale, strict=True)
        ]
        size = (below - above, width)
        found = ScaleOutputs(cut[: len(scales)], cut[len(scales) :], None, tuple(scales), size, combination)
        del cut
        yield Band(found, done - above, done, finished)
        del found
        done = finished
        keep = max(0, done - margin)
        maps = [m[..., int((keep - top) * cells[k]) :, :] for m, k in zip(maps, of_scale, strict=True)]
        top = keep


def _extended(old: Tensor | None, part: Tensor, cell: Fraction, size: tuple[int, int]) -> Tensor:
    """The map with zeros below for the rows of the next tiles; a new one where there is none."""
    rows, columns = int(size[0] * cell), int(size[1] * cell)
    new = part.new_zeros(*part.shape[:2], rows, columns)
    if old is not None:
        new[..., : old.shape[-2], :] = old
    return new


def _shown(maps: Tensor, columns: int, flip: bool) -> Tensor:
    """The columns that show the image; of mirrored maps, which begin beyond it, the last ones."""
    if maps.shape[-1] == columns or not flip:
        return maps[..., :columns]
    straight, mirrored = maps.chunk(2)
    return torch.cat([straight[..., :columns], mirrored[..., maps.shape[-1] - columns :]])


def _add(
    target: Tensor, part: Tensor, cell: Fraction, plan: Layout, place: tuple[int, int], top: int, blend: Blend, *,
    flip: bool,
) -> None:  # fmt: skip
    """Adds a tile's map, weighted, where the tile lies; the mirrored half of a batch at the mirrored place."""
    height, width = part.shape[-2:]
    expected = tuple(int(side * cell) for side in plan.tile)
    if (height, width) != expected:
        raise ArgumentValueError(
            f"network: expected logits of {expected[0]} x {expected[1]} for a tile of {plan.tile[0]} x "
            f"{plan.tile[1]} pixels, got {height} x {width}; take whole images (more memory, or resize_to)"
        )
    down = _weights(blend, height, int(plan.overlap[0] * cell), place[0], len(plan.rows), part)
    across = _weights(blend, width, int(plan.overlap[1] * cell), place[1], len(plan.columns), part)
    row, column = int((plan.rows[place[0]] - top) * cell), int(plan.columns[place[1]] * cell)
    rows = slice(row, row + height)
    straight = part.shape[0] // 2 if flip else part.shape[0]
    target[:straight, :, rows, column : column + width] += part[:straight] * (down[:, None] * across)
    if flip:
        column = target.shape[-1] - column - width
        target[straight:, :, rows, column : column + width] += part[straight:] * (down[:, None] * across.flip(0))


def _weights(blend: Blend, length: int, overlap: int, number: int, count: int, like: Tensor) -> Tensor:
    """Weights along one side of tile ``number``: rising and falling across the overlaps, 1 elsewhere and at borders.

    No more than two tiles overlap along a side. The weights of a tile in two dimensions are the product of those along
    its sides: so are the two-dimensional Gaussian, and its sum over all tiles.
    """
    weights = torch.ones(length, dtype=torch.float64)
    rise = _rise(blend, length, overlap)
    if number > 0:
        weights[:overlap] = rise
    if number < count - 1:
        weights[length - overlap :] = 1 - rise
    return weights.to(like)


def _rise(blend: Blend, length: int, overlap: int) -> Tensor:
    """The weights of a tile across the overlap with the tile before it, float64 [overlap]."""
    places = torch.arange(overlap, dtype=torch.float64)
    if blend == "linear":
        return (places + 0.5) / max(overlap, 1)
    if blend == "constant":
        return torch.full_like(places, 0.5)
    if blend != "gaussian":
        raise ArgumentValueError(f"blend: expected linear, gaussian or constant, got {blend!r}")

    def exponent(place: Tensor) -> Tensor:
        return -0.5 * ((place - (length - 1) / 2) * SIGMAS_PER_TILE / length) ** 2

    # exp(a) / (exp(a) + exp(b)), where b is the exponent of the tile before at the same place.
    return torch.sigmoid(exponent(places) - exponent(places + length - overlap))
