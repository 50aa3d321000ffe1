"""Tiles: their layout, and that the blended outputs of tiles of one image are those of the image."""

from __future__ import annotations

import itertools

import pytest
import torch

from hmsa_ext import HmsaError
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.prediction import tiles

SCALES = (2.0, 1.0, 0.5)
STRIDES = (4, 4, 4)


def random_outputs(size, scales, strides, attention_channels, views) -> ScaleOutputs:
    """Outputs for an image of a (height, width) that is a whole number of logits at every scale."""

    def maps(channels, scale, stride):
        height, width = (int(side * scale / stride) for side in size)
        return torch.randn(views, channels, height, width, dtype=torch.float64)

    logits = [maps(5, *pair) for pair in zip(scales, strides, strict=True)]
    attention = [maps(attention_channels, *pair).sigmoid() for pair in zip(scales[1:], strides[1:], strict=True)]
    return ScaleOutputs(logits, attention, None, scales, size)


def shown(outputs, size) -> ScaleOutputs:
    """The outputs without what lies beyond the image: on the right, and on the left of mirrored ones."""

    def part(maps, covered):
        rows, columns = (
            side * inner // outer for side, inner, outer in zip(maps.shape[-2:], size, covered, strict=True)
        )
        return torch.cat([maps[:1, :, :rows, :columns], maps[1:, :, :rows, maps.shape[-1] - columns :]])

    logits, attention = ([part(m, outputs.size) for m in maps] for maps in (outputs.logits, outputs.attention))
    return ScaleOutputs(logits, attention, None, outputs.scales, size)


def tile_of(outputs, box, strides) -> ScaleOutputs:
    """What a network without context gives for a tile: a part of the maps; of mirrored maps the mirrored part."""
    row, column, height, width = box

    def part(maps, scale, stride):
        top, left, rows, columns = (int(x * scale / stride) for x in (row, column, height, width))
        right = maps.shape[-1] - left - columns
        mirrored = maps[1:, :, top : top + rows, right : right + columns]
        return torch.cat([maps[:1, :, top : top + rows, left : left + columns], mirrored])

    scales = outputs.scales
    logits = [part(*each) for each in zip(outputs.logits, scales, strides, strict=True)]
    attention = [part(*each) for each in zip(outputs.attention, scales[1:], strides[1:], strict=True)]
    return ScaleOutputs(logits, attention, None, scales, (height, width))


def bands_of(outputs, plan, strides, *, whole=False) -> list[tiles.Band]:
    seen = []

    def run(*box):
        seen.append(box)
        return tile_of(outputs, box, strides)

    found = list(tiles.blended(run, plan, outputs.scales, strides, whole=whole))
    assert len(seen) == len(set(seen)) == len(plan)
    return found


def joined(bands: list[tiles.Band], views: int) -> torch.Tensor:
    """The fused logits of the finished rows of all bands."""
    parts = []
    for band in bands:
        logits = band.outputs.fuse()
        if views == 2:
            logits = (logits[:1] + logits[1:].flip(-1)) / 2
        parts.append(logits[..., band.margin : band.margin + band.last - band.first, :])
    return torch.cat(parts, dim=-2)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("attention_channels", [1, 5])
@pytest.mark.parametrize(
    ("scales", "strides", "step"),
    [(SCALES, STRIDES, 8), ((1.0,), (4,), 4), ((1.0, 0.75), (4, 4), 16), ((1.5, 1.0, 0.25), (4, 4, 4), 16)],
)
def test_blended_tiles_of_one_image_are_that_image(scales, strides, step, attention_channels, whole, flip):
    assert tiles.step_of(scales, strides) == step
    plan = tiles.layout((250, 170), (96, 80), 0.3, step)
    assert len(plan.rows) > 2
    assert len(plan.columns) > 1
    outputs = random_outputs(plan.covered, scales, strides, attention_channels, 1 + flip)
    bands = bands_of(outputs, plan, strides, whole=whole)
    expected = shown(outputs, plan.size).fuse()
    if flip:
        expected = (expected[:1] + expected[1:].flip(-1)) / 2
    torch.testing.assert_close(joined(bands, 1 + flip), expected, rtol=1e-9, atol=1e-9)
    assert len(bands) == 1 if whole else len(bands) > 1


def constant_outputs(row, column, height, width) -> ScaleOutputs:
    def maps(channels, scale):
        return torch.ones(1, channels, int(height * scale) // 4, int(width * scale) // 4)

    return ScaleOutputs([maps(3, s) for s in SCALES], [maps(1, s) for s in SCALES[1:]], None, SCALES, (height, width))


def test_weights_sum_to_one_in_every_layout():
    """Constant maps stay constant, whatever the tiles; so do those of attention."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        height, width = (int(x) for x in torch.randint(8, 300, (2,), generator=generator))
        high, wide = (int(x) for x in torch.randint(16, 200, (2,), generator=generator))
        tile = high, wide
        overlap = float(torch.rand((), generator=generator)) / 2
        plan = tiles.layout((height, width), tile, overlap, 8)
        assert plan.covered[0] >= plan.size[0] >= height
        assert plan.covered[1] >= plan.size[1] >= width
        assert all(part <= max(side, 8) for part, side in zip(plan.tile, tile, strict=True))

        (band,) = tiles.blended(constant_outputs, plan, SCALES, STRIDES, whole=True)
        for maps in (*band.outputs.logits, *band.outputs.attention):
            torch.testing.assert_close(maps, torch.ones_like(maps), rtol=0, atol=1e-6)


def test_bands_follow_each_other_and_end_with_the_image():
    plan = tiles.layout((500, 64), (128, 64), 0.25, 8)
    bands = bands_of(random_outputs(plan.covered, SCALES, STRIDES, 1, 1), plan, STRIDES)
    assert bands[0].first == 0
    assert bands[-1].last == plan.size[0]
    assert all(a.last == b.first for a, b in itertools.pairwise(bands))
    # The rows that are kept do not grow with the image.
    assert max(band.outputs.size[0] for band in bands) < 2 * plan.tile[0]


def test_an_image_smaller_than_a_tile_is_one_tile():
    plan = tiles.layout((50, 30), (512, 512), 0.25, 8)
    assert (plan.rows, plan.columns, plan.tile) == ((0,), (0,), (56, 32))


def test_scales_without_a_common_grid_are_an_error_that_says_what_to_do():
    with pytest.raises(HmsaError, match=r"scales: tiles need scales that share a grid.*0\.613.*resize_to"):
        tiles.step_of((1.0, 0.613), (4, 4))


def test_a_network_with_maps_of_another_size_is_named():
    def run(row, column, height, width):
        return ScaleOutputs([torch.zeros(1, 3, height // 4 + 1, width // 4)], [], None, (1.0,), (height, width))

    with pytest.raises(HmsaError, match="network: expected logits of 16 x 16"):
        list(tiles.blended(run, tiles.layout((64, 64), (64, 64), 0.25, 8), (1.0,), (4,)))
