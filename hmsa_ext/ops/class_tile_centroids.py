"""``hmsa::class_tile_centroids``: the form for people and fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from hmsa_ext.ops import dispatch, reference_sampling

_op = torch.ops.hmsa.class_tile_centroids.default


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
        RuntimeError: for a dtype, shape, tile or number of classes that does not fit; it names what came and what was
            expected.

    >>> counts, centres = class_tile_centroids(torch.tensor([[[0, 0, 1], [0, 0, 1]]]).byte(), 2, 2)
    >>> counts.tolist()
    [[[[4, 0], [0, 2]]]]
    >>> centres[0, 0, 1, 1].tolist()
    [0.5, 2.0]
    """
    if not dispatch.has_kernels("class_tile_centroids", labels.device):
        return reference_sampling.class_tile_centroids(labels, tile, num_classes)
    return _op(labels, tile, num_classes)


@torch.library.register_fake("hmsa::class_tile_centroids")
def _fake(labels, tile, num_classes):
    batch, height, width = labels.shape
    cells = (batch, (height + tile - 1) // tile, (width + tile - 1) // tile, num_classes)
    return labels.new_empty(cells, dtype=torch.int64), labels.new_empty((*cells, 2), dtype=torch.float64)
