"""class_tile_centroids against the published way, on a rendered street scene and on noise, the worst that can come.

    pytest bench/test_tile_centroids.py -s --benchmark-json centroids.json && python -m bench.table centroids.json

One map of 1024x2048 in tiles of 1024, 19 classes. The published way uses one core, ours one and all of them; they take
turns, and medians count. Needs scipy.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
import torch

from hmsa_ext.data.synthetic import Synthetic
from hmsa_ext.ops import class_tile_centroids

SIZE, TILE, CLASSES = (1024, 2048), 1024, 19
ROUNDS = 9


def street() -> torch.Tensor:
    return torch.as_tensor(np.asarray(Synthetic("train", size=SIZE, length=1)[0].label)).byte()


def noise() -> torch.Tensor:
    return torch.randint(0, CLASSES, SIZE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("threads", ["one thread", "all threads"])
@pytest.mark.parametrize("make", [street, noise], ids=["street", "noise"])
def test_centroids(benchmark, make, threads):
    pytest.importorskip("scipy")
    from bench import published_centroids

    labels = make()
    array, batch = labels.numpy(), labels[None]
    times = {"hmsa": [], "published": []}

    def timed(name, function):
        start = time.perf_counter()
        result = function()
        times[name].append(time.perf_counter() - start)
        return result

    def ours():
        return timed("hmsa", lambda: class_tile_centroids(batch, TILE, CLASSES))

    def published():
        return timed("published", lambda: published_centroids.class_tile_centres(array, TILE, CLASSES))

    def take_turns():
        published()

    counts, centres = (result[0].numpy() for result in ours())
    # Not the same bits: scipy adds coordinates that are counted from the corner of the tile.
    np.testing.assert_allclose(centres, published(), rtol=1e-12, atol=1e-9)
    for j in range(counts.shape[1]):
        part = array[:TILE, j * TILE : (j + 1) * TILE]
        assert np.array_equal(counts[0, j], np.bincount(part.ravel(), minlength=256)[:CLASSES])

    before = torch.get_num_threads()
    if threads == "one thread":
        torch.set_num_threads(1)
    try:
        benchmark.pedantic(ours, setup=take_turns, rounds=ROUNDS)
        benchmark.extra_info["threads"] = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    ms = {name: 1e3 * statistics.median(seconds[1:]) for name, seconds in times.items()}
    benchmark.extra_info |= {"device": "cpu", "labels": make.__name__, "ms": ms}
    print(f"\n{make.__name__}, {threads}: {ms['hmsa']:.3f} ms, published {ms['published']:.0f} ms", end=", ")
    print(f"{ms['published'] / ms['hmsa']:.0f} times ours")
