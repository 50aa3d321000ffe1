"""``hmsa::draw_class_uniform_boxes``: the form for people and fake tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmsa_ext.ops import dispatch, reference_sampling

_op = torch.ops.hmsa.draw_class_uniform_boxes.default


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
        RuntimeError: for shapes, dtypes, devices, numbers or tables that do not fit (rows out of order, a class with
            items but no centroid, a centroid outside its image ...); it names what came and what was expected. On CUDA
            the tables' values are not looked at, since that would make the GPU wait: an item that they have no place
            for gets a row of -1 and class -1.

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
    arguments = {"scale": scale, "uniform_images": uniform_images, "seed": seed, "epoch": epoch}
    arguments |= {"first": first, "count": count, "attempt": attempt, "long_edge": long_edge}
    if not dispatch.has_kernels("draw_class_uniform_boxes", centroids.device):
        return reference_sampling.draw_class_uniform_boxes(centroids, class_items, image_sizes, crop, **arguments)
    return _op(centroids, class_items, image_sizes, crop, **arguments)


@torch.library.register_fake("hmsa::draw_class_uniform_boxes")
def _fake(
    centroids,
    class_items,
    image_sizes,
    crop,
    *,
    scale,
    uniform_images,
    seed,
    epoch,
    first,
    count,
    attempt=0,
    long_edge=0,
):
    return centroids.new_empty((count, 5)), centroids.new_empty((count,))
