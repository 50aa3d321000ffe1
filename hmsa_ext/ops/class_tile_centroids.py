"""``hmsa::class_tile_centroids``: the public Python function and the declaration of the op.

The kernels, the schema and the checks are in ``csrc/ops/class_tile_centroids.cpp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmsa_ext.ops import arguments, library, reference_sampling, registration
from hmsa_ext.ops.schema import Arguments

_NAME = "class_tile_centroids"
_LARGEST_SIDE = 1 << 20


def class_tile_centroids(labels: Tensor, tile: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """How many pixels of each class each tile of a label map has, and where their mean lies.

    What class-uniform sampling is built on (Zhu et al. 2019, "Improving semantic segmentation via video propagation
    and label relaxation", section 3.4): a crop around a centroid has that class in it.

    Args:
        labels: uint8 [B, H, W], at any strides; sides of at most 2^20.
        tile: side of the square tiles in pixels. Those at the right and the bottom edge are as large as what is left
            of the map, so that every pixel lies in one; a map smaller than a tile is one tile.
        num_classes: K, 1 to 256. Labels from K on (such as 255, the ignored one) are not counted.

    Returns:
        Counts int64 [B, Ty, Tx, K] with Ty = ceil(H / tile) and Tx = ceil(W / tile), and centres float64
        [B, Ty, Tx, K, 2]: y and x in pixels of the map, each the mean of the pixels' indices (of rows 3 and 4 it is
        3.5); NaN where the tile has no pixel of the class. Sums are integers and exact, so that the results are the
        same bits on every device.

    Raises:
        TypeError: for labels that are no tensor.
        RuntimeError: for a dtype, shape, tile or number of classes that does not fit; it names what came and what was
            expected.

    >>> counts, centres = class_tile_centroids(torch.tensor([[[0, 0, 1], [0, 0, 1]]]).byte(), 2, 2)
    >>> counts.tolist()
    [[[[4, 0], [0, 2]]]]
    >>> centres[0, 0, 1, 1].tolist()
    [0.5, 2.0]
    """
    arguments.tensor(_NAME, "labels", labels, (torch.uint8,), "[B, H, W]")
    if not library.has_kernels(_NAME, labels.device):
        return reference_sampling.class_tile_centroids(labels, tile, num_classes)
    return _op(labels, tile, num_classes)


# ---- declaration ------------------------------------------------------------------------------------------------


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    expect, shape = arguments.expect, arguments.shape_of(a.labels)
    arguments.tensor(_NAME, "labels", a.labels, (torch.uint8,), "[B, H, W]")
    expect([a.labels.dim() == 3], lambda: f"{_NAME}: labels has shape {shape}; expected [B, H, W]")
    expect(
        [side <= _LARGEST_SIDE for side in a.labels.shape[1:]],
        lambda: f"{_NAME}: labels has shape {shape}; expected sides of at most {_LARGEST_SIDE}",
    )
    expect([a.tile >= 1], lambda: f"{_NAME}: tile is {a.tile}; expected at least 1")
    expect([1 <= a.num_classes <= 256], lambda: f"{_NAME}: num_classes is {a.num_classes}; expected 1 to 256")
    batch, height, width = a.labels.shape
    cells = (batch, (height + a.tile - 1) // a.tile, (width + a.tile - 1) // a.tile, a.num_classes)
    counts = a.labels.new_empty(cells, dtype=torch.int64)
    return counts, a.labels.new_empty((*cells, 2), dtype=torch.float64)


_op = registration.declare(_NAME, fake=_fake, doc=class_tile_centroids.__doc__)
