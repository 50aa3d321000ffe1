"""``hmsa::draw_class_uniform_boxes``: the public Python function and the declaration of the op.

The kernels, the schema and the checks are in ``csrc/ops/draw_class_uniform_boxes.cpp``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hmsa_ext.ops import arguments, library, reference_sampling, registration
from hmsa_ext.ops.schema import Arguments

_NAME = "draw_class_uniform_boxes"
_MOST_ROWS, _MOST_CLASSES, _LARGEST_SIDE = 1 << 32, 1 << 16, 1 << 30
_TABLES = {"centroids": "[M, 4]: class, image, y, x", "class_items": "[1 + K]", "image_sizes": "[I, 2]: height, width"}
_COLUMNS = {"centroids": 4, "image_sizes": 2}


def draw_class_uniform_boxes(
    centroids: Tensor,
    class_items: Tensor,
    image_sizes: Tensor,
    crop: Sequence[int],
    *,
    scale: Sequence[float],
    uniform_images: int,
    seed: int,
    epoch: int,
    first: int,
    count: int,
    attempt: int = 0,
    long_edge: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draws items of a class-uniform epoch: for each an image and the box of it that becomes the crop.

    An epoch has N = ``class_items.sum()`` items: so many from images at random, and so many around a centroid of each
    class, in a random order (Zhu et al. 2019, "Improving semantic segmentation via video propagation and label
    relaxation", section 3.4). Images, and the centroids of each class, come in a random order, each once before any
    comes twice. Item n depends on the tables, the sizes, ``seed``, ``epoch`` and ``attempt`` alone: it is the same
    whichever part of the epoch is drawn, on every device and in every process.

    Args:
        centroids: int64 [M, 4]: class, image, y and x in whole pixels; rows sorted by class.
        class_items: int64 [1 + K]: items of the epoch from images at random, and of each of the K classes.
        image_sizes: int64 [I, 2]: height and width of each image.
        crop: (height, width) of the crops that the boxes will become.
        scale: (least, largest): each item's scale is drawn evenly from this range. A box has crop / scale pixels a
            side, rounded, at least 1 (and at most 2^30).
        uniform_images: U; random images are the first U of the I.
        seed: 0 or more.
        epoch: 0 to 2^32 - 1.
        first: the first item to draw, of 0 to N - 1.
        count: how many items to draw.
        attempt: more than 0 gives another draw for the same place in the epoch, for a file that turned out unreadable:
            the same class, the next image or centroid in order, another scale and start.
        long_edge: if more than 0, scales are those of images resized such that their longer side has so many pixels.

    Returns:
        Boxes int64 [count, 5]: image, y0, x0, y1, x1 in its pixels, the end excluded; and the items' classes int64
        [count], -1 for images at random. A box lies inside its image if it fits; else it reaches outside, around it.
        Within that it is anywhere, evenly; those of a class contain the centroid.

    Raises:
        TypeError: for tables that are no tensors, and a crop whose sides are no integers.
        RuntimeError: for shapes, dtypes, devices, numbers or tables that do not fit (rows out of order, a class with
            items but no centroid, a centroid outside its image ...); it names what came and what was expected. On CUDA
            the tables' values are not checked, since that would make the GPU wait: an item without a place in the
            tables gets a row of -1 and class -1.

    The tables are checked in every call on the CPU, in time proportional to their length: draw many items at once.

    >>> centroids = torch.tensor([[0, 0, 5, 7], [1, 1, 90, 60]])
    >>> sizes = torch.tensor([[100, 200], [100, 200]])
    >>> boxes, classes = draw_class_uniform_boxes(
    ...     centroids, torch.tensor([2, 1, 1]), sizes, (64, 64), scale=(0.5, 2.0), uniform_images=2, seed=0, epoch=0,
    ...     first=0, count=4
    ... )
    >>> boxes.shape, sorted(classes.tolist())
    (torch.Size([4, 5]), [-1, -1, 0, 1])
    """
    numbers = {"uniform_images": uniform_images, "seed": seed, "epoch": epoch, "first": first, "count": count}
    numbers |= {"attempt": attempt, "long_edge": long_edge}
    for (name, shape), table in zip(_TABLES.items(), (centroids, class_items, image_sizes), strict=True):
        if not isinstance(table, Tensor):
            arguments.tensor(_NAME, name, table, (torch.int64,), shape)
    crop, scale = arguments.sides(_NAME, "crop", crop), arguments.numbers(_NAME, "scale", scale)
    function = _op
    if not library.has_kernels(_NAME, centroids.device):
        function = reference_sampling.draw_class_uniform_boxes
    return function(centroids, class_items, image_sizes, crop, scale=scale, **numbers)


# ---- declaration ------------------------------------------------------------------------------------------------


def _check_table(a: Arguments, name: str) -> None:
    table, first, columns = getattr(a, name), a.centroids, _COLUMNS.get(name)
    shape = arguments.shape_of(table)
    arguments.tensor(_NAME, name, table, (torch.int64,), _TABLES[name])
    fits = table.dim() == 1 if columns is None else table.dim() == 2 and table.shape[1] == columns
    arguments.expect([fits], lambda: f"{_NAME}: {name} has shape {shape}; expected {_TABLES[name]}")
    arguments.expect(
        [table.shape[0] <= _MOST_ROWS],
        lambda: f"{_NAME}: {name} has shape {shape}; expected at most {_MOST_ROWS} rows",
    )
    arguments.expect(
        [table.device == first.device],
        lambda: f"{_NAME}: centroids is on {first.device}, {name} on {table.device}; expected one device",
    )


def _check_numbers(a: Arguments) -> None:
    expect, number = arguments.expect, arguments.number
    crop, scale, images = a.crop, a.scale, a.image_sizes.shape[0]
    expect([len(crop) == 2], lambda: f"{_NAME}: crop has {len(crop)} entries; expected (height, width)")
    expect(
        [condition for side in crop for condition in (side >= 1, side <= _LARGEST_SIDE)],
        lambda: f"{_NAME}: crop is {crop[0]}x{crop[1]}; expected sides of 1 to {_LARGEST_SIDE}",
    )
    expect([len(scale) == 2], lambda: f"{_NAME}: scale has {len(scale)} entries; expected (least, largest)")
    expect(
        [0.0 < scale[0] <= scale[1], math.isfinite(scale[1])],
        lambda: (
            f"{_NAME}: scale is {number(scale[0])} to {number(scale[1])}; expected 0 < least <= largest, both finite"
        ),
    )
    expect(
        [a.uniform_images >= 0, a.uniform_images <= images],
        lambda: f"{_NAME}: uniform_images is {a.uniform_images}; expected 0 to {images}, the number of images",
    )
    ranges = {"seed": 2**63 - 1, "epoch": 2**32 - 1, "attempt": 2**32 - 1, "long_edge": 2**63 - 1}
    for name, largest in {**ranges, "first": _MOST_ROWS, "count": _MOST_ROWS}.items():
        value = getattr(a, name)
        expect(
            [0 <= value <= largest],
            lambda name=name, value=value, largest=largest: f"{_NAME}: {name} is {value}; expected 0 to {largest}",
        )


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    for name in _TABLES:
        _check_table(a, name)
    arguments.expect(
        [a.class_items.shape[0] >= 1, a.class_items.shape[0] <= 1 + _MOST_CLASSES],
        lambda: (
            f"{_NAME}: class_items has shape {arguments.shape_of(a.class_items)}; "
            f"expected [1 + K] with K of at most {_MOST_CLASSES}"
        ),
    )
    _check_numbers(a)
    return a.centroids.new_empty((a.count, 5)), a.centroids.new_empty((a.count,))


_op = registration.declare(_NAME, fake=_fake, doc=draw_class_uniform_boxes.__doc__)
