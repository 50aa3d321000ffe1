"""Images of any size within the memory that they may take: whole where that is enough, else in overlapping tiles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.engine import tiles
from hmsa_ext.engine.memory import Footprint, Reading, allowed, scoring, show_bytes
from hmsa_ext.engine.passes import run, with_mirrored
from hmsa_ext.engine.tiles import Blend
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.settings import FREE, Rule, SettingError, Spelling, read_number, validate

LEAST_TILE, MOST_OVERLAP, LEAST_MEMORY = 64, 0.5, 2**20
UNWATCHED = 2**20
"""Pixels, over all scales, up to which a photo is predicted whole without asking what that takes: about 1 GiB."""
ENOUGH = 4 * 2**30
"""Bytes: such photos are watched all the same where less than this is allowed."""
TILE_STEP = 64
"""Pixels that tiles are multiples of where the scales allow it: trunks divide sizes by 32, at scale 0.5 by 64."""
SHRINK = 0.9
"""Ratio of one size of tiles that is tried to the next."""
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


def are_sides(value: Any, least: int = 1) -> bool:
    """Whether a value is N or (height, width) in pixels."""
    sides = value if isinstance(value, tuple) else (value,)
    expected = 2 if isinstance(value, tuple) else 1
    return len(sides) == expected and all(isinstance(side, int) and side >= least for side in sides)


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


Sides = Annotated[int | tuple[int, int], Spelling("N|HxW", _read_sides, _show_sides)]
_TILE = Rule(lambda v: are_sides(v, LEAST_TILE), f"N or HxW in pixels, at least {LEAST_TILE}")
_OVERLAP = Rule(lambda v: 0 <= v <= MOST_OVERLAP, f"a share of the tile from 0 to {MOST_OVERLAP:g}")
_MEMORY = Rule(lambda v: v >= LEAST_MEMORY, "memory such as 4GB, 1.5GiB or 800MB; a number alone is GiB")
Memory = Annotated[int, Spelling("SIZE", _read_bytes, lambda v: show_bytes(v).replace(" ", ""))]


@dataclass(frozen=True)
class TileSettings:
    """Overlapping tiles for large images, in evaluation and prediction."""

    tile: Annotated[Sides | None, _TILE, FREE] = None
    """Take images in overlapping tiles of at most N or HxW pixels. Default: tiles only where the memory asks for
    them."""
    overlap: Annotated[float, _OVERLAP, FREE] = 0.25
    """Share of a tile that it has in common with the next one; across it the two are blended."""
    blend: Annotated[Blend, FREE] = "linear"
    """Weights of tiles where they overlap: linear ramps, gaussian (standard deviation: an eighth of the tile) or
    constant (the mean of the tiles)."""
    memory: Annotated[Memory | None, _MEMORY, FREE] = None
    """The most memory that an image may take beside the network's weights, such as 4GB. Default of predictions: half
    of the machine's memory on the CPU, 0.8 of the GPU's, shared by the processes of the machine. Evaluations have no
    default: their scores would depend on the machine."""

    def __post_init__(self) -> None:
        validate(self)

    @property
    def is_asked_for(self) -> bool:
        """Whether images may be taken in tiles without the default of predictions."""
        return self.tile is not None or self.memory is not None


@dataclass(frozen=True)
class Plan:
    """How an image of one size is taken.

    size: (height, width) that the network sees. layout: the tiles, None for the whole image at once. peak: bytes that
    this takes at most beside the network's weights, None where nobody looked. limit: bytes that it may take.
    """

    size: tuple[int, int]
    layout: tiles.Layout | None
    peak: int | None
    limit: int

    def __str__(self) -> str:
        height, width = self.size
        how = f"{height}x{width} at once"
        if self.layout is not None:
            tile = "x".join(map(str, self.layout.tile))
            how = f"{height}x{width} in {len(self.layout)} tiles of {tile}"
        needs = "" if self.peak is None else f", at most {show_bytes(self.peak)}"
        return f"{how}{needs} (limit {show_bytes(self.limit)})"


@dataclass(frozen=True)
class Around:
    """What an image takes beside the passes.

    reading: of its outputs, for a network's footprint. held: bytes per pixel of the image itself, there all the time.
    reserve: bytes for others. bands: whether the outputs of tiles are read band by band.
    """

    reading: Callable[[Footprint], Reading]
    held: int
    reserve: int = 0
    bands: bool = False


def scored(num_classes: int, scales: int, *, flip: bool, metrics: bool) -> Around:
    """What an evaluation has around its passes; ``metrics``: others than the confusion matrices.

    The image in float32, its mirror image, and the labels.
    """

    def reading(needs: Footprint) -> Reading:
        return scoring(
            num_classes, scales, needs.attention_channels, flip=flip, metrics=metrics, builds_logits=needs.builds_logits
        )

    return Around(reading, held=12 * (2 if flip else 1) + 1)


class Tiling:
    """Plans images of any size for a model, and runs it on them.

    >>> tiling = Tiling(model, device, TileSettings(memory=4 * 10**9), dtype=torch.float32)  # doctest: +SKIP
    >>> outputs = tiling.outputs(images, (0.5, 1.0, 2.0), around)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        settings: TileSettings | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings = settings or TileSettings()
        self._model, self._device, self._dtype = model, device, dtype
        self._footprints: dict[tuple[tuple[float, ...], bool], Footprint] = {}
        self.in_tiles = 0
        """Images that :meth:`outputs` took in tiles so far."""

    @property
    def limit(self) -> int:
        """Bytes that an image may take."""
        return allowed(self._device, self.settings.memory)

    def footprint(self, scales: Sequence[float], flip: bool) -> Footprint:
        """What the network needs at some scales; looked for once."""
        key = (tuple(sorted(scales)), flip)
        if key not in self._footprints:
            self._footprints[key] = Footprint(self._model, key[0], self._device, dtype=self._dtype, flip=flip)
        return self._footprints[key]

    def outputs(self, images: Tensor, scales: Sequence[float], around: Around, *, flip: bool = False) -> ScaleOutputs:
        """As :func:`hmsa_ext.engine.passes.run`, but in tiles where the settings ask for them.

        Of tiles the result has the maps, and their sizes, of the whole images. Where a tile covers the image it is the
        same to the last bit. Auxiliary logits, which evaluation does not read, are left out of blended maps.
        """
        if not self.settings.is_asked_for:
            return run(self._model, images, scales, self._device, dtype=self._dtype, flip=flip)
        size = (images.shape[-2], images.shape[-1])
        plan = self.plan(size, scales, flip, around, batch=images.shape[0])
        if plan.layout is None:
            return run(self._model, images, scales, self._device, dtype=self._dtype, flip=flip)
        self.in_tiles += images.shape[0]
        images = images.to(self._device, non_blocking=True)
        if flip:
            images = with_mirrored(images)

        def one(row: int, column: int, height: int, width: int) -> ScaleOutputs:
            tile = images[..., row : row + height, column : column + width]
            beyond = (0, width - tile.shape[-1], 0, height - tile.shape[-2])
            # The mean colour, which is 0 here, lies beyond the image, as where crops reach beyond it.
            tile = F.pad(tile, beyond) if any(beyond) else tile
            return run(self._model, tile, scales, self._device, dtype=self._dtype)

        found = self.footprint(scales, flip)
        assert found.strides is not None
        descending = sorted(scales, reverse=True)
        (band,) = tiles.blended(one, plan.layout, descending, found.strides, blend=self.settings.blend, whole=True)
        # Without the cells that lie beyond the image: the tiles end on a grid that all scales share.
        grids = found.grids(size)
        outputs = band.outputs
        logits = [z[..., :h, :w] for z, (h, w) in zip(outputs.logits, grids, strict=True)]
        weights = [a[..., :h, :w] for a, (h, w) in zip(outputs.attention, grids[1:], strict=bool(outputs.attention))]
        return replace(outputs, logits=logits, attention=weights, size=size)

    def plan(
        self,
        size: tuple[int, int],
        scales: Sequence[float],
        flip: bool,
        around: Around,
        *,
        network_size: tuple[int, int] | None = None,
        batch: int = 1,
        unstated: bool = False,
    ) -> Plan:
        """How images of a (height, width) are taken: the tiles, the memory.

        Args:
            size: of the image and of its labels.
            scales, flip: of the pass.
            around: what else there is.
            network_size: the size at which the network sees the image; ``size`` unless given.
            batch: images at a time.
            unstated: do not look what small images take, where there is enough for all of them.

        Raises :class:`hmsa_ext.settings.SettingError` where the memory that is allowed is too little, and for tiles
        that are asked for and do not fit the network.
        """
        chosen, limit = self.settings, self.limit
        height, width = network_size or size
        everything = height * width * sum(scale * scale for scale in scales) * (2 if flip else 1) * batch
        if unstated and chosen.tile is None and everything <= UNWATCHED and limit - around.reserve >= ENOUGH:
            return Plan((height, width), None, None, limit)

        needs = self.footprint(scales, flip)
        reads = around.reading(needs)
        shown = size[0] * size[1] * batch
        asked = chosen.tile if isinstance(chosen.tile, tuple) or chosen.tile is None else (chosen.tile, chosen.tile)
        if asked is None or (asked[0] >= height and asked[1] >= width):
            # No page of the results is touched before the network is done.
            after = needs.kept * height * width * batch + (reads.results + reads.meanwhile) * shown
            at_once = needs.resident(around.held * shown + max(needs.live((height, width), batch), after))
            least = at_once + around.reserve
            if least <= limit or (asked is not None and chosen.memory is None):
                return Plan((height, width), None, at_once, limit)
            if asked is not None:
                raise _too_little(limit, least, "for tiles of this size")
            if needs.strides is None:
                raise SettingError(
                    "memory", show_bytes(limit),
                    f"{show_bytes(least)} for the whole photo: the outputs of this network are at "
                    "no whole stride, so it cannot be cut into tiles; give more memory, or predict it smaller "
                    "(resize_to)",
                )  # fmt: skip
        if needs.strides is None:
            raise SettingError("tile", chosen.tile, "none: the logits of this network have no whole stride")
        descending = sorted(scales, reverse=True)
        step, margin = tiles.step_of(descending, needs.strides), tiles.margin_of(descending, needs.strides)
        grid = max(1, TILE_STEP // step)
        resized = (height, width) != size
        if resized:  # in any case: to a size whose maps end with the image
            height, width = (max(step, round(side / step) * step) for side in (height, width))
        banded = around.bands and not resized

        def layout_of(tile: tuple[int, int]) -> tiles.Layout:
            return tiles.layout((height, width), tile, chosen.overlap, step, grid=grid)

        def needed(layout: tiles.Layout) -> int:
            rows = min(layout.tile[0] + 2 * margin, layout.covered[0]) if banded else layout.covered[0]
            maps = needs.kept * rows * layout.covered[1] * batch
            of_photo = (around.held + reads.results) * shown + 3 * height * width * resized
            read = reads.meanwhile * (rows * width * batch if banded else shown)
            # The maps are there twice while rows are added to them, and where a band is cut out of them.
            tile = needs.live(layout.tile, batch)
            return needs.resident(of_photo + maps + max(tile, maps + read))

        if asked is not None:
            layout = layout_of(asked)
            peak = needed(layout)
            if chosen.memory is not None and peak + around.reserve > limit:
                raise _too_little(limit, peak + around.reserve, "for tiles of this size")
            return Plan((height, width), layout, peak, limit)
        side = max(height, width)
        while side > LEAST_TILE:
            side = max(LEAST_TILE, int(side * SHRINK))
            layout = layout_of((side, side))
            peak = needed(layout)
            if peak + around.reserve <= limit:
                return Plan((height, width), layout, peak, limit)
            least = min(least, peak + around.reserve)
        what = "for this photo; give more, predict it smaller (resize_to), or at fewer scales"
        raise _too_little(limit, least, what, "at least")


def _too_little(limit: int, needed: int, for_what: str, least: str = "") -> SettingError:
    return SettingError("memory", show_bytes(limit), f"{least} {show_bytes(needed)} {for_what}".strip())
