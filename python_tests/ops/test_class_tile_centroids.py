"""class_tile_centroids: counts and centres by hand and by plain PyTorch, bit by bit, whatever the strides and tiles."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch.library import opcheck

from bench.meters import LiveBytes, peak_memory
from hmsa_ext.ops import class_tile_centroids, reference_sampling

MEGABYTE = 1 << 20


def random_labels(shape, classes: int, device="cpu", *, seed: int = 0, run: int = 1) -> torch.Tensor:
    """Labels in runs of up to ``run`` pixels along the rows; a tenth of them is 255."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
    labels[torch.rand(shape, generator=generator) < 0.1] = 255
    if run > 1:
        starts = torch.rand(shape, generator=generator) < 1 / run
        starts[..., 0] = True
        columns = torch.arange(shape[-1]).expand(shape)
        labels = labels.gather(-1, torch.where(starts, columns, 0).cummax(-1).values)
    return labels.to(device)


def assert_same(labels: torch.Tensor, tile: int, classes: int) -> None:
    counts, centres = class_tile_centroids(labels, tile, classes)
    wanted_counts, wanted_centres = reference_sampling.class_tile_centroids(labels, tile, classes)
    assert counts.dtype == torch.int64
    assert centres.dtype == torch.float64
    assert counts.device == centres.device == labels.device
    assert torch.equal(counts, wanted_counts)
    assert centres.shape == wanted_centres.shape
    assert torch.equal(centres.nan_to_num(nan=-1), wanted_centres.nan_to_num(nan=-1))
    assert torch.equal(centres.isnan().any(-1), counts == 0)


def test_counts_and_centres_equal_those_by_hand(device):
    labels = torch.tensor([[[0, 0, 2], [1, 0, 2], [255, 1, 1]]], dtype=torch.uint8, device=device)
    counts, centres = class_tile_centroids(labels, 2, 3)
    assert counts.tolist() == [[[[3, 1, 0], [0, 0, 2]], [[0, 1, 0], [0, 1, 0]]]]
    assert centres[0, 0, 0, 0].tolist() == [1 / 3, 2 / 3]
    assert centres[0, 0, 0, 1].tolist() == [1.0, 0.0]
    assert centres[0, 0, 1, 2].tolist() == [0.5, 2.0]
    assert centres[0, 1, 1, 1].tolist() == [2.0, 2.0]
    assert centres[0, 1, 1, 0].isnan().all()


@pytest.mark.parametrize("tile", [1, 7, 8, 33, 64, 1000, 1 << 40])
@pytest.mark.parametrize("run", [1, 5, 40])
def test_tiles_and_runs(device, run, tile):
    assert_same(random_labels((2, 67, 75), 5, device, run=run), tile, 5)


@pytest.mark.parametrize("classes", [1, 2, 19, 255, 256])
def test_numbers_of_classes(device, classes):
    labels = torch.randint(0, 256, (1, 40, 45), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert_same(labels.to(device), 32, classes)


def test_every_pixel_of_strips_and_small_maps_is_counted(device):
    for size in ((1, 1), (5, 2000), (300, 3), (129, 130)):
        labels = torch.zeros((1, *size), dtype=torch.uint8, device=device)
        counts, centres = class_tile_centroids(labels, 128, 1)
        assert counts.shape == (1, -(-size[0] // 128), -(-size[1] // 128), 1)
        assert counts.sum().item() == size[0] * size[1]
        assert not centres.isnan().any()


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    shape=strategies.tuples(*[strategies.integers(1, 2), strategies.integers(1, 40), strategies.integers(1, 70)]),
    tile=strategies.integers(1, 80),
    classes=strategies.integers(1, 6),
    run=strategies.integers(1, 30),
    seed=strategies.integers(0, 1 << 30),
)
def test_any_map_on_the_cpu(shape, tile, classes, run, seed):
    assert_same(random_labels(shape, 6, seed=seed, run=run), tile, classes)


def test_any_strides_are_read(device):
    labels = random_labels((3, 40, 56), 5, device, run=9)
    transposed = labels.transpose(1, 2).contiguous().transpose(1, 2)
    gaps = labels.repeat_interleave(2, dim=2)[..., ::2]
    cut = torch.cat([labels, labels], 2)[:, 3:, 5:50]
    expanded = labels[:1].expand(3, -1, -1)
    for case in (transposed, gaps, cut, expanded, labels[:, :1].expand(-1, 40, -1)):
        assert_same(case, 16, 5)


def test_large_sums_are_exact(device):
    """A row of 2^20 columns: the sum of its columns is beyond 32 bits, and three rows of it are no whole bands."""
    labels = torch.full((1, 3, 1 << 20), 4, dtype=torch.uint8, device=device)
    counts, centres = class_tile_centroids(labels, 1 << 20, 5)
    assert counts[0, 0, 0, 4].item() == 3 << 20
    assert centres[0, 0, 0, 4].tolist() == [1.0, ((1 << 20) - 1) / 2]


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_nothing_has_no_tiles(device, shape):
    counts, centres = class_tile_centroids(torch.zeros(shape, dtype=torch.uint8, device=device), 3, 4)
    assert counts.shape == (shape[0], -(-shape[1] // 3), -(-shape[2] // 3), 4)
    assert centres.shape == (*counts.shape, 2)
    assert counts.numel() == 0


def test_same_bits_for_every_number_of_threads():
    labels = random_labels((2, 301, 231), 19, run=4)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert_same(labels, 200, 19)
            assert_same(labels, 16, 19)
    finally:
        torch.set_num_threads(before)


@pytest.mark.memory
def test_nothing_but_the_results_is_allocated(device):
    labels = random_labels((1, 2048, 2048), 19, device, run=20)

    def measure():
        torch.ops.hmsa.class_tile_centroids(labels, 512, 19)

    measure()
    with LiveBytes() as meter:
        measure()
    assert meter.peak <= MEGABYTE
    peak = peak_memory(measure, device)
    assert peak is None or peak <= MEGABYTE


@pytest.mark.compile
def test_opcheck_and_compile(device):
    full = random_labels((2, 21, 29), 2, device)  # every class in every tile: opcheck takes no NaN as another
    opcheck(torch.ops.hmsa.class_tile_centroids, (full, 8, 2))
    compiled = torch.compile(class_tile_centroids, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 17, 23), (1, 40, 9)):
        labels = random_labels(shape, 5, device)
        counts, centres = compiled(labels, 8, 5)
        wanted = reference_sampling.class_tile_centroids(labels, 8, 5)
        assert torch.equal(counts, wanted[0])
        assert torch.equal(centres.nan_to_num(nan=-1), wanted[1].nan_to_num(nan=-1))


BAD_INPUT = {
    "dtype": ((torch.zeros(1, 2, 3).long(), 2, 4), "labels is int64; expected uint8"),
    "shape": ((torch.zeros(2, 3).byte(), 2, 4), r"labels has shape \[2, 3\]; expected \[B, H, W\]"),
    "side": ((torch.zeros(1, 1, 1).byte().expand(1, 1, (1 << 20) + 1), 2, 4), r"expected sides of at most 1048576"),
    "tile": ((torch.zeros(1, 2, 3).byte(), 0, 4), "tile is 0; expected at least 1"),
    "no class": ((torch.zeros(1, 2, 3).byte(), 2, 0), "num_classes is 0; expected 1 to 256"),
    "classes": ((torch.zeros(1, 2, 3).byte(), 2, 257), "num_classes is 257; expected 1 to 256"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(device, case):
    (labels, *numbers), message = BAD_INPUT[case]
    with pytest.raises(RuntimeError, match=f"^class_tile_centroids: .*{message}"):
        class_tile_centroids(labels.to(device), *numbers)
