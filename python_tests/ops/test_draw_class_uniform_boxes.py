"""draw_class_uniform_boxes: equal to plain Python bit by bit, and what its draws promise, with fixed seeds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch.library import opcheck

from hmsa_ext.ops import draw_class_uniform_boxes, reference_sampling

# Centroids, items of the classes, sizes of the images.
Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# Random123's known answers: counter, key (low word first), result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def make_tables(
    classes: int, centroids: int, images: int, *, seed: int = 0, largest: int = 300, items: int = 20
) -> Tables:
    """Random tables; only classes that have centroids have items."""
    generator = torch.Generator().manual_seed(seed)

    def integers(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=generator)

    sizes = 1 + integers(largest, images, 2)
    c, image = integers(classes, centroids).sort().values, integers(images, centroids)
    points = (torch.rand((centroids, 2), generator=generator) * sizes[image]).long()
    table = torch.cat([c[:, None], image[:, None], points], 1)
    of_class = integers(items, classes) * (torch.bincount(c, minlength=classes) > 0)
    return table, torch.cat([integers(items, 1), of_class]), sizes


def on(device, tables: Iterable[torch.Tensor]) -> Tables:
    centroids, class_items, image_sizes = (table.to(device) for table in tables)
    return centroids, class_items, image_sizes


def draw(tables: Tables, crop=(64, 96), **changes):
    arguments = {"scale": (0.5, 2.0), "uniform_images": len(tables[2]), "seed": 3, "epoch": 1, "first": 0}
    arguments |= {"count": int(tables[1].sum())} | changes
    return draw_class_uniform_boxes(*tables, crop, **arguments)


def draw_plainly(tables: Tables, crop=(64, 96), **changes):
    arguments = {"scale": (0.5, 2.0), "uniform_images": len(tables[2]), "seed": 3, "epoch": 1, "first": 0}
    arguments |= {"count": int(tables[1].sum())} | changes
    return reference_sampling.draw_class_uniform_boxes(*tables, crop, **arguments)


def assert_same(got, wanted) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == torch.int64
        assert torch.equal(ours.cpu(), theirs.cpu())


def assert_even(counts: list[int], sigmas: float = 4.0) -> None:
    """Chi-square of counts that ought to be equal, by Wilson and Hilferty's normal approximation."""
    expected, freedom = sum(counts) / len(counts), len(counts) - 1
    chi_square = sum((count - expected) ** 2 for count in counts) / expected
    normal = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert abs(normal) < sigmas, counts


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_reference_philox_gives_the_known_answers(counter, key, wanted):
    assert reference_sampling.philox(counter, key[0] + (key[1] << 32)) == list(wanted)


# ---- equal to plain Python -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("long_edge", [0, 500])
@pytest.mark.parametrize("crop", [(1, 1), (64, 96), (400, 30)])
def test_equals_plain_python(device, crop, long_edge):
    for seed in range(4):
        tables = make_tables(5, 40, 7, seed=seed)
        changes = {"seed": seed * 2**61 + seed, "epoch": 2**32 - 1 - seed, "attempt": seed, "long_edge": long_edge}
        got = draw(on(device, tables), crop, **changes)
        assert got[0].device.type == device.type
        assert_same(got, draw_plainly(tables, crop, **changes))


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    classes=strategies.integers(1, 9),
    centroids=strategies.integers(1, 30),
    images=strategies.integers(1, 9),
    largest=strategies.sampled_from([1, 5, 40, 3000]),
    crop=strategies.tuples(strategies.integers(1, 2000), strategies.integers(1, 2000)),
    scales=strategies.tuples(strategies.floats(1e-3, 1e3), strategies.floats(1e-3, 1e3)),
    numbers=strategies.tuples(*[strategies.integers(0, most) for most in (2**63 - 1, 2**32 - 1, 2**32 - 1, 4000)]),
)
def test_any_tables_equal_plain_python_on_the_cpu(classes, centroids, images, largest, crop, scales, numbers):
    seed, epoch, attempt, long_edge = numbers
    tables = make_tables(classes, centroids, images, seed=seed % 1000, largest=largest, items=6)
    changes = {"scale": sorted(scales), "seed": seed, "epoch": epoch, "attempt": attempt, "long_edge": long_edge}
    assert_same(draw(tables, crop, **changes), draw_plainly(tables, crop, **changes))


def test_extreme_scales_stay_within_bounds(device):
    tables = make_tables(3, 20, 4, items=4)
    for scale in ((1e-300, 1e-300), (1e300, 1.7e308), (5e-324, 1.0)):
        for long_edge in (0, 2**63 - 1):
            got = draw(on(device, tables), scale=scale, long_edge=long_edge)
            assert_same(got, draw_plainly(tables, scale=scale, long_edge=long_edge))


def test_any_strides_are_read(device):
    tables = on(device, make_tables(4, 30, 6))
    wanted = draw(tables)
    transposed = (tables[0].T.contiguous().T, tables[1], tables[2].T.contiguous().T)
    gaps = on(device, (table.repeat_interleave(3, 0)[::3] for table in tables))
    assert_same(draw(transposed), wanted)
    assert_same(draw(gaps), wanted)


def test_any_part_of_an_epoch_equals_that_part_of_the_whole(device):
    tables = on(device, make_tables(5, 50, 8))
    boxes, classes = draw(tables)
    total = len(boxes)
    for first, count in ((0, 1), (total - 1, 1), (7, 20), (total, 0), (3, total - 3)):
        assert_same(draw(tables, first=first, count=count), (boxes[first:][:count], classes[first:][:count]))


def test_same_bits_for_every_number_of_threads():
    tables = make_tables(5, 50, 8, items=200)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = draw(tables)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert_same(draw(tables), wanted)
    finally:
        torch.set_num_threads(before)


# ---- what the draws promise ----------------------------------------------------------------------------------------


def whole_images(images: int, items: int, side: int = 50) -> Tables:
    """Tables without classes: an epoch of images at random."""
    return torch.zeros((0, 4), dtype=torch.int64), torch.tensor([items]), torch.full((images, 2), side)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 1000, 4096, 4097])
def test_each_image_comes_once_before_any_comes_twice(device, size):
    """Orders of the items and of the images are permutations, of any size."""
    for seed in range(3):
        boxes, classes = draw(on(device, whole_images(size, size)), seed=seed)
        assert sorted(boxes[:, 0].tolist()) == list(range(size))
        assert (classes == -1).all()
        boxes, _ = draw(on(device, whole_images(size, 2 * size + size // 2)), seed=seed)
        times = Counter(boxes[:, 0].tolist())
        assert sum(times.values()) == 2 * size + size // 2
        assert set(times.values()) <= {2, 3}


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 16])
def test_orders_of_images_are_even(size):
    """The first two images, over many epochs: every ordered pair is as frequent as every other."""
    tables = whole_images(size, size)
    pairs = Counter()
    for epoch in range(200 * size * (size - 1)):
        boxes, _ = draw(tables, epoch=epoch, count=2)
        pairs[tuple(boxes[:, 0].tolist())] += 1
    assert len(pairs) == size * (size - 1)
    assert_even(list(pairs.values()))


def test_classes_have_their_items_and_centroids_come_once_before_any_comes_twice(device):
    table, items, sizes = make_tables(6, 60, 9)
    items = torch.tensor([11, 5, 0, 31, 8, 1, 13])
    boxes, classes = draw(on(device, (table, items, sizes)), crop=(1, 1), scale=(1.0, 1.0))
    drawn = Counter(classes.tolist())
    assert [drawn[c] for c in range(-1, 6)] == items.tolist()
    for c in range(6):
        # Boxes of one pixel are the centroids themselves.
        times = Counter(map(tuple, boxes[classes == c][:, :3].tolist()))
        members = Counter(map(tuple, table[table[:, 0] == c][:, 1:].tolist()))
        each, more = divmod(int(items[1 + c]), members.total())
        for member, same in members.items():
            assert each * same <= times[member] <= (each + (more > 0)) * same


def test_boxes_contain_their_centroid_and_lie_in_the_image_if_they_fit(device):
    tables = make_tables(1, 30, 9, largest=200)
    table, sizes = tables[0], tables[2]
    tables = on(device, (table, torch.tensor([300, 300]), sizes))
    boxes, classes = (x.cpu() for x in draw(tables, crop=(60, 90), scale=(0.3, 3.0)))
    image, starts, ends = boxes[:, 0], boxes[:, 1:3], boxes[:, 3:]
    room = sizes[image] - (ends - starts)
    assert (starts >= room.clamp(max=0)).all()
    assert (starts <= room.clamp(min=0)).all()
    for index in (classes == 0).nonzero().flatten().tolist():
        points = table[table[:, 1] == image[index], 2:]
        assert ((points >= starts[index]) & (points < ends[index])).all(1).any()


def test_scales_and_boxes_are_as_asked(device):
    """Sides of crop / scale, rounded; with a long edge, of images resized to it."""
    tables = on(device, whole_images(3, 3000, side=400))
    boxes, _ = draw(tables, crop=(100, 200), scale=(0.5, 2.0))
    heights, widths = boxes[:, 3] - boxes[:, 1], boxes[:, 4] - boxes[:, 2]
    assert 50 <= heights.min().item() <= 52
    assert 195 <= heights.max().item() <= 200
    assert ((widths - 2 * heights).abs() <= 1).all()
    scales = [100 / h for h in heights.tolist()]
    assert_even([sum(0.5 + 0.15 * k <= s < 0.65 + 0.15 * k for s in scales) for k in range(10)], sigmas=5)
    resized, _ = draw(tables, crop=(100, 200), scale=(0.5, 2.0), long_edge=800)
    assert ((resized[:, 3] - resized[:, 1] - heights / 2).abs() <= 1).all()


def after_all_rounds(points: list[tuple[int, ...]], half_bits: int) -> torch.Tensor:
    """Where a Feistel network with random functions takes tuples of distinct numbers: the matrix of probabilities."""
    number, values = {point: i for i, point in enumerate(points)}, range(1 << half_bits)
    step = torch.zeros(len(points), len(points), dtype=torch.float64)
    for point in points:
        halves = [divmod(place, 1 << half_bits) for place in point]
        rights = sorted({right for _, right in halves})
        for outputs in itertools.product(values, repeat=len(rights)):  # of the round's function, where it is asked
            function = dict(zip(rights, outputs, strict=True))
            to = tuple((right << half_bits) + (left ^ function[right]) for left, right in halves)
            step[number[point], number[to]] += len(values) ** -len(rights)
    return torch.linalg.matrix_power(step, reference_sampling.ROUNDS)


@pytest.mark.parametrize(
    ("points", "half_bits", "bound"),
    [(list(itertools.permutations(range(4))), 1, 4e-4), (list(itertools.permutations(range(16), 2)), 2, 7e-4)],
    ids=["all orders of 4", "two places of 16"],
)
def test_the_rounds_of_the_network_are_enough(points, half_bits, bound):
    """Worked out exactly: the total variation from even, for each beginning."""
    away = (after_all_rounds(points, half_bits) - 1 / len(points)).abs().sum(1) / 2
    assert away.max().item() < bound


@pytest.mark.parametrize("point", [None, (3, 28)])
@pytest.mark.parametrize("crop", [(20, 12), (45, 47)])
def test_starts_are_even_over_their_range(device, crop, point):
    """Image 30 x 30 and boxes that fit or do not; with a centroid, only the starts that contain it."""
    table = torch.tensor([[0, 0, *(point or (0, 0))]])
    items = torch.tensor([20000, 0] if point is None else [0, 20000])
    tables = on(device, (table, items, torch.tensor([[30, 30]])))
    boxes, _ = draw(tables, crop, scale=(1.0, 1.0))
    for axis in range(2):
        allowed = range(min(0, 30 - crop[axis]), max(0, 30 - crop[axis]) + 1)
        if point is not None:
            allowed = [start for start in allowed if start <= point[axis] < start + crop[axis]]
        counts = Counter(boxes[:, 1 + axis].tolist())
        assert sorted(counts) == list(allowed)
        if len(counts) > 1:
            assert_even(list(counts.values()))
    if point is None:  # the axes have random numbers of their own
        assert len({tuple(row) for row in boxes[:, 1:3].tolist()}) > 100


def test_seeds_epochs_and_attempts_differ(device):
    tables = on(device, make_tables(4, 200, 50))
    wanted, classes = draw(tables)
    for change in ({"seed": 4}, {"seed": 3 + (1 << 32)}, {"epoch": 2}):
        boxes, others = draw(tables, **change)
        assert (boxes != wanted).any(1).float().mean().item() > 0.9
        assert (others != classes).any()
    previous = wanted
    for attempt in (1, 2):
        boxes, others = draw(tables, attempt=attempt)
        assert torch.equal(others, classes)
        assert (boxes != previous).any(1).float().mean().item() > 0.9
        assert (boxes[:, 0] != previous[:, 0]).float().mean().item() > 0.8
        previous = boxes


def test_attempts_go_through_all_images(device):
    tables = on(device, whole_images(7, 5))
    seen = {draw(tables, first=2, count=1, attempt=attempt)[0][0, 0].item() for attempt in range(7)}
    assert seen == set(range(7))


# ---- torch ---------------------------------------------------------------------------------------------------------


@pytest.mark.compile
def test_opcheck_and_compile(device):
    tables = on(device, make_tables(4, 30, 6))
    keywords = {"scale": [0.5, 2.0], "uniform_images": 6, "seed": 1, "epoch": 2, "first": 3, "count": 9}
    opcheck(torch.ops.hmsa.draw_class_uniform_boxes, (*tables, [32, 48]), keywords)
    compiled = torch.compile(draw_class_uniform_boxes, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*tables, (32, 48), **keywords), draw_class_uniform_boxes(*tables, (32, 48), **keywords))


# ---- errors --------------------------------------------------------------------------------------------------------

TABLES = (
    torch.tensor([[0, 0, 3, 4], [0, 1, 2, 2], [2, 1, 9, 9]]),
    torch.tensor([2, 2, 0, 2]),
    torch.tensor([[20, 30], [10, 10]]),
)


def with_row(index: int, *row: int) -> torch.Tensor:
    table = TABLES[0].clone()
    table[index] = torch.tensor(row)
    return table


BAD_NUMBERS = {
    "crop": ({"crop": (0, 5)}, "crop is 0x5; expected sides of 1 to"),
    "no least scale": ({"scale": (0.0, 1.0)}, "scale is 0 to 1; expected 0 < least <= largest, both finite"),
    "scales in order": ({"scale": (2.0, 1.0)}, "scale is 2 to 1; expected 0 < least"),
    "no scale": ({"scale": (1.0, math.nan)}, "scale is 1 to nan; expected"),
    "endless scale": ({"scale": (1.0, math.inf)}, "scale is 1 to inf; expected"),
    "one scale": ({"scale": (1.0,)}, r"scale has 1 entries; expected \(least, largest\)"),
    "uniform_images": ({"uniform_images": 3}, "uniform_images is 3; expected 0 to 2, the number of images"),
    "seed": ({"seed": -1}, "seed is -1; expected 0 to"),
    "epoch": ({"epoch": -1}, "epoch is -1; expected 0 to 4294967295"),
    "late epoch": ({"epoch": 1 << 32}, "epoch is 4294967296; expected 0 to 4294967295"),
    "attempt": ({"attempt": -1}, "attempt is -1; expected 0 to 4294967295"),
    "long_edge": ({"long_edge": -1}, "long_edge is -1; expected 0 to"),
    "first": ({"first": -1}, "first is -1; expected 0 to"),
    "count": ({"count": -1}, "count is -1; expected 0 to"),
    "dtype": ({0: TABLES[0].int()}, "centroids is int32; expected int64"),
    "sizes' dtype": ({2: TABLES[2].float()}, "image_sizes is float32; expected int64"),
    "centroids": ({0: TABLES[0][:, :3]}, r"centroids has shape \[3, 3\]; expected \[M, 4\]: class, image, y, x"),
    "class_items": ({1: TABLES[1][:, None]}, r"class_items has shape \[4, 1\]; expected \[1 \+ K\]"),
    "no class_items": ({1: TABLES[1][:0]}, r"class_items has shape \[0\]; expected \[1 \+ K\] with K of at most"),
    "image_sizes": ({2: TABLES[2].flatten()}, r"image_sizes has shape \[4\]; expected \[I, 2\]: height, width"),
}
BAD_TABLES = {
    "too many": ({"first": 4, "count": 3}, "first is 4 and count 3; expected a part of the epoch's 6 items"),
    "negative items": ({1: torch.tensor([2, 2, -1, 2])}, r"class_items\[2\] is -1; expected 0 or more"),
    "endless epoch": ({1: torch.tensor([1 << 62] * 4)}, "class_items has a sum of more than 4294967296"),
    "no images": ({"uniform_images": 0}, r"class_items\[0\] is 2, but uniform_images is 0"),
    "class in between": (
        {1: torch.tensor([2, 2, 1, 1])},
        r"class_items\[2\] is 1, but centroids has none of class 1; expected no items of it, or a centroid",
    ),
    "last class": ({0: TABLES[0][:2]}, r"class_items\[3\] is 2, but centroids has none of class 2"),
    "first class": ({0: TABLES[0][2:]}, r"class_items\[1\] is 2, but centroids has none of class 0"),
    "no centroids": ({0: TABLES[0][:0]}, r"class_items\[1\] is 2, but centroids has none of class 0"),
    "order": ({0: TABLES[0].flip(0)}, r"centroids\[1\] has class 0 after class 2; expected rows sorted by class"),
    "class": ({0: with_row(2, 3, 1, 9, 9)}, r"centroids\[2\] has class 3; expected 0 to 2"),
    "negative class": ({0: with_row(2, -1, 1, 9, 9)}, r"centroids\[2\] has class -1; expected 0 to 2"),
    "image": ({0: with_row(2, 2, 2, 9, 9)}, r"centroids\[2\] has image 2; expected 0 to 1"),
    "point": (
        {0: with_row(2, 2, 1, 9, 10)},
        r"centroids\[2\] has y, x = 9, 10; expected a pixel of image 1, which is 10x10",
    ),
    "size": ({2: torch.tensor([[20, 30], [0, 10]])}, r"image_sizes\[1\] is 0x10; expected sides of 1 to"),
}


def draw_with(change: dict, device="cpu"):
    tables = on(device, (change.get(i, TABLES[i]) for i in range(3)))
    keywords = {"crop": (8, 8), "scale": (0.5, 2.0), "uniform_images": 2, "seed": 0, "epoch": 0, "first": 0, "count": 6}
    return draw_class_uniform_boxes(*tables, **keywords | {k: v for k, v in change.items() if isinstance(k, str)})


@pytest.mark.parametrize("case", BAD_NUMBERS)
def test_bad_numbers_and_shapes_are_named(device, case):
    change, message = BAD_NUMBERS[case]
    with pytest.raises(RuntimeError, match=f"^draw_class_uniform_boxes: {message}"):
        draw_with(change, device)


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_named_on_the_cpu(case):
    change, message = BAD_TABLES[case]
    with pytest.raises(RuntimeError, match=f"^draw_class_uniform_boxes: {message}"):
        draw_with(change)


@pytest.mark.gpu
@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_give_rows_of_minus_one_on_a_gpu(case):
    boxes, classes = draw_with(BAD_TABLES[case][0], "cuda")
    missing = (boxes == -1).all(1)
    assert missing.any()
    assert (classes[missing] == -1).all()
    assert (boxes[~missing][:, 0] >= 0).all()


@pytest.mark.gpu
def test_devices_that_differ_are_named():
    message = "centroids is on cpu, image_sizes on cuda:0; expected one device"
    with pytest.raises(RuntimeError, match=message):
        draw_with({2: TABLES[2].cuda()})
