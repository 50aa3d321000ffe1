"""The ops of class-uniform sampling in plain PyTorch and plain Python: slow, obviously right, equal bit by bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor


def class_tile_centroids(labels: Tensor, tile: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Counts int64 [B, Ty, Tx, K] and centres float64 [B, Ty, Tx, K, 2] (y, x; NaN where there is no pixel)."""
    batch, height, width = labels.shape
    rows, columns = -(-height // tile), -(-width // tile)
    counts = torch.zeros((batch, rows, columns, num_classes), dtype=torch.int64, device=labels.device)
    sums = torch.zeros((batch, rows, columns, num_classes, 2), dtype=torch.int64, device=labels.device)
    for i in range(rows):
        for j in range(columns):
            part = labels[:, i * tile : (i + 1) * tile, j * tile : (j + 1) * tile]
            y = i * tile + torch.arange(part.shape[1], device=labels.device)[:, None]
            x = j * tile + torch.arange(part.shape[2], device=labels.device)
            for c in range(num_classes):
                mask = part == c
                counts[:, i, j, c] = mask.sum((1, 2))
                sums[:, i, j, c, 0] = (mask * y).sum((1, 2))
                sums[:, i, j, c, 1] = (mask * x).sum((1, 2))
    return counts, sums.double() / counts.double()[..., None]


# Last word of Philox's counter: what the number is for. The others: place or item, epoch, repetition or attempt.
ITEM_ORDER, BOX_SCALE, BOX_START, IMAGE_ORDER, CLASS_ORDER = range(5)
MOST_BOX_SIDE = 1 << 30


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
    """Boxes int64 [count, 5] (image, y0, x0, y1, x1) and classes int64 [count], -1 for images at random."""
    items, sizes = class_items.tolist(), image_sizes.tolist()
    of_class: list[list[list[int]]] = [[] for _ in items[1:]]
    for c, *place in centroids.tolist():
        of_class[c].append(place)

    def chosen(k: int, members: Sequence, stream: int):
        """The k-th item's of the members: each once in a random order before any twice."""
        place = (k % len(members) + attempt) % len(members)
        return members[permuted(place, len(members), seed, epoch, k // len(members), stream)]

    boxes, classes = [], []
    for n in range(first, first + count):
        k = permuted(n, sum(items), seed, epoch, 0, ITEM_ORDER)
        c = -1
        while k >= items[1 + c]:
            k -= items[1 + c]
            c += 1
        if c == -1:
            image, point = chosen(k, range(uniform_images), IMAGE_ORDER), None
        else:
            image, *point = chosen(k, of_class[c], CLASS_ORDER + c)
        s = uniform(philox((n, epoch, attempt, BOX_SCALE), seed)[:2], *scale)
        if long_edge > 0:
            s *= long_edge / max(sizes[image])
        random = philox((n, epoch, attempt, BOX_START), seed)
        starts, ends = [], []
        for axis in range(2):
            side = min(max(math.floor(crop[axis] / s + 0.5), 1), MOST_BOX_SIDE)
            least, largest = min(0, sizes[image][axis] - side), max(0, sizes[image][axis] - side)
            if point is not None:
                least, largest = max(least, point[axis] - side + 1), min(largest, point[axis])
            starts.append(least + (wide(random[2 * axis : 2 * axis + 2]) * (largest - least + 1) >> 64))
            ends.append(starts[-1] + side)
        boxes.append([image, *starts, *ends])
        classes.append(c)
    as_table = {"dtype": torch.int64, "device": centroids.device}
    return torch.tensor(boxes, **as_table).reshape(count, 5), torch.tensor(classes, **as_table)


ROUNDS = 12  # of the Feistel network, as in csrc/core/permutation.h


def permuted(place: int, size: int, seed: int, epoch: int, turn: int, stream: int) -> int:
    """Element ``place`` of a random permutation of [0, size): a Feistel network over the next power of 4,
    again and again until the number is below ``size``."""
    bits = 0
    while 4**bits < size:
        bits += 1
    while True:
        left, right = divmod(place, 1 << bits)
        for r in range(ROUNDS):
            random = philox((right + (r << 16), epoch, turn, stream), seed)[0]
            left, right = right, left ^ random % (1 << bits)
        place = (left << bits) + right
        if place < size:
            return place


def philox(counter: Sequence[int], key: int) -> list[int]:
    """Philox4x32-10: four words of 32 random bits from a counter of four words and a key of 64 bits."""
    a, b, c, d = counter
    low, high = key % 2**32, key >> 32
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = second >> 32 ^ b ^ low, second % 2**32, first >> 32 ^ d ^ high, first % 2**32
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def wide(words: Sequence[int]) -> int:
    """Two words as one number, the first the upper half."""
    return (words[0] << 32) + words[1]


def uniform(words: Sequence[int], least: float, largest: float) -> float:
    """u * (largest - least) + least for u in [0, 1) of 53 bits, rounded once."""
    return float(Fraction(wide(words) >> 11, 1 << 53) * Fraction(largest - least) + Fraction(least))
