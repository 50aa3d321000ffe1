"""Tiles: their layout, and that the blended outputs of tiles of one image are those of the image."""

from __future__ import annotations

import itertools

import pytest
import torch

from hmsa_ext import HmsaError
from hmsa_ext.engine import tiles
from hmsa_ext.models import ScaleOutputs

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


BLENDS: tuple[tiles.Blend, ...] = ("linear", "gaussian", "constant")


def bands_of(outputs, plan, strides, *, whole=False, blend: tiles.Blend = "linear", flip=False) -> list[tiles.Band]:
    seen = []

    def run(*box):
        seen.append(box)
        return tile_of(outputs, box, strides)

    found = list(tiles.blended(run, plan, outputs.scales, strides, blend=blend, flip=flip, whole=whole))
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


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("attention_channels", [1, 5])
@pytest.mark.parametrize(
    ("scales", "strides", "step"),
    [(SCALES, STRIDES, 8), ((1.0,), (4,), 4), ((1.0, 0.75), (4, 4), 16), ((1.5, 1.0, 0.25), (4, 4, 4), 16)],
)
def test_blended_tiles_of_one_image_are_that_image(scales, strides, step, attention_channels, whole, flip, blend):
    assert tiles.step_of(scales, strides) == step
    plan = tiles.layout((250, 170), (96, 80), 0.3, step)
    assert len(plan.rows) > 2
    assert len(plan.columns) > 1
    outputs = random_outputs(plan.covered, scales, strides, attention_channels, 1 + flip)
    bands = bands_of(outputs, plan, strides, whole=whole, blend=blend, flip=flip)
    expected = shown(outputs, plan.size).fuse()
    if flip:
        expected = (expected[:1] + expected[1:].flip(-1)) / 2
    torch.testing.assert_close(joined(bands, 1 + flip), expected, rtol=1e-9, atol=1e-9)
    assert len(bands) == 1 if whole else len(bands) > 1


def constant_outputs(row, column, height, width) -> ScaleOutputs:
    def maps(channels, scale):
        return torch.ones(1, channels, int(height * scale) // 4, int(width * scale) // 4)

    return ScaleOutputs([maps(3, s) for s in SCALES], [maps(1, s) for s in SCALES[1:]], None, SCALES, (height, width))


@pytest.mark.parametrize("blend", BLENDS)
def test_weights_sum_to_one_in_every_layout(blend):
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

        (band,) = tiles.blended(constant_outputs, plan, SCALES, STRIDES, blend=blend, whole=True)
        for maps in (*band.outputs.logits, *band.outputs.attention):
            torch.testing.assert_close(maps, torch.ones_like(maps), rtol=0, atol=1e-6)


def test_a_batch_without_mirror_images_is_blended_image_by_image():
    plan = tiles.layout((250, 170), (96, 80), 0.3, 8)
    outputs = random_outputs(plan.covered, SCALES, STRIDES, 1, 3)

    def run(row, column, height, width):
        def part(maps, scale):
            top, left, rows, columns = (int(x * scale / 4) for x in (row, column, height, width))
            return maps[..., top : top + rows, left : left + columns]

        logits = [part(m, s) for m, s in zip(outputs.logits, SCALES, strict=True)]
        attention = [part(m, s) for m, s in zip(outputs.attention, SCALES[1:], strict=True)]
        return ScaleOutputs(logits, attention, None, SCALES, (height, width))

    (band,) = tiles.blended(run, plan, SCALES, STRIDES, whole=True)
    for found, given, scale in zip(band.outputs.logits, outputs.logits, SCALES, strict=True):
        rows, columns = (int(side * scale / 4) for side in plan.size)
        torch.testing.assert_close(found, given[..., :rows, :columns], rtol=1e-9, atol=1e-9)


def weights_of_two(blend: tiles.Blend, length: int, overlap: int) -> torch.Tensor:
    """Weights of the second of two tiles in a row, from what a tile of ones beside a tile of zeros becomes."""
    plan = tiles.Layout((4, 4 * (2 * length - overlap)), (0,), (0, 4 * (length - overlap)), (4, 4 * length),
                        (0, 4 * overlap))  # fmt: skip

    def run(row, column, height, width):
        return ScaleOutputs(
            [torch.full((1, 1, 1, length), float(column > 0), dtype=torch.float64)], [], None, (1.0,), (height, width)
        )

    (band,) = tiles.blended(run, plan, (1.0,), (4,), blend=blend, whole=True)
    return band.outputs.logits[0][0, 0, 0]


def test_the_weights_are_those_that_the_names_say():
    length, overlap = 20, 6
    first, second = length - overlap, slice(length - overlap, length)
    for blend in BLENDS:
        weights = weights_of_two(blend, length, overlap)
        assert weights[:first].eq(0).all(), blend
        assert weights[length:].eq(1).all(), blend
        torch.testing.assert_close(weights[second], 1 - weights[second].flip(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        weights_of_two("linear", length, overlap)[second], (torch.arange(6.0, dtype=torch.float64) + 0.5) / 6
    )
    assert weights_of_two("constant", length, overlap)[second].eq(0.5).all()
    # As nnU-Net makes it: a Gaussian for each tile, and what the tiles add up to is divided by what these add up to.
    gaussian = torch.exp(-0.5 * ((torch.arange(float(length), dtype=torch.float64) - 9.5) / (length / 8)) ** 2)
    expected = gaussian[:overlap] / (gaussian[:overlap] + gaussian[-overlap:])
    torch.testing.assert_close(weights_of_two("gaussian", length, overlap)[second], expected, rtol=1e-9, atol=1e-12)


def test_a_blend_of_another_name_is_an_error():
    plan = tiles.layout((64, 200), (64, 64), 0.25, 8)
    with pytest.raises(HmsaError, match="blend: expected linear, gaussian or constant, got 'cosine'"):
        list(tiles.blended(constant_outputs, plan, SCALES, STRIDES, blend="cosine"))  # type: ignore[arg-type]


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
