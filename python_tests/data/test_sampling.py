"""Epochs: what is in them by plan, and that everybody draws the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmsa_ext import data
from python_tests.data.picture_sets import Blocks


def sampler(dataset=None, sampling: data.Sampling | None = None, *, crop=(16, 16), scale=(1.0, 1.0), **options):
    index = data.build_index(dataset or Blocks(), tile=16, quiet=True)
    return data.EpochSampler(index, sampling or data.Sampling(), crop=crop, scale=scale, seed=3, **options)


def synthetic_index(images: int, classes: int, pixels=None) -> data.ClassIndex:
    """An index of images that do not exist: every class once in every image."""
    table = data.ClassTable(tuple(f"c{k}" for k in range(classes)), np.zeros((classes, 3), np.uint8))
    grid = np.stack(np.meshgrid(np.arange(classes), np.arange(images), indexing="ij"), -1).reshape(-1, 2)
    centroids = np.column_stack([grid, np.full((len(grid), 2), 50)])
    pixels = np.full((images, classes), 100) if pixels is None else np.tile(pixels, (images, 1))
    return data.ClassIndex(64, table, np.full((images, 2), 100), pixels, centroids, {})


def test_the_plan_for_cityscapes_is_the_published_one():
    index = synthetic_index(2975, 19)
    plan = data.EpochSampler(index, data.Sampling(), crop=(64, 64), scale=(1, 1), seed=0).plan(0)
    assert plan.tolist() == [1493] + [78] * 19


def test_a_whole_number_of_items_is_not_rounded_below():
    for images in range(20, 400, 20):
        plan = data.EpochSampler(synthetic_index(images, 10), data.Sampling(), crop=(9, 9), scale=(1, 1), seed=0).plan(
            0
        )
        assert plan.tolist() == [images // 2] + [images // 20] * 10


def test_classes_that_do_not_occur_leave_their_part_to_the_others():
    plan = sampler().plan(0)
    assert plan.sum() == 20
    assert plan.tolist() == [11, 3, 3, 3, 0]
    assert "none: never" in sampler().describe()


def test_every_crop_of_a_class_holds_its_centroid_and_mostly_the_class():
    dataset, drawn = Blocks(), sampler()
    boxes, classes = drawn.draw(0)
    assert np.bincount(classes + 1, minlength=5).tolist() == drawn.plan(0).tolist()
    centroids = drawn.index.centroids
    for (image, y0, x0, y1, x1), number in zip(boxes, classes, strict=True):
        if number < 0:
            continue
        own = centroids[(centroids[:, 0] == number) & (centroids[:, 1] == image), 2:]
        assert ((own >= (y0, x0)) & (own < (y1, x1))).all(1).any()
        if number == 2:
            assert (dataset.label(image)[max(y0, 0) : y1, max(x0, 0) : x1] == 2).any()


def test_an_epoch_too_short_for_its_classes_says_so():
    drawn = sampler(Blocks(5))
    assert drawn.plan(0).tolist() == [5, 0, 0, 0, 0]
    assert "class-uniform sampling has no effect: the share of each class is less than one item" in drawn.describe()
    assert "no effect" not in sampler(Blocks(5), data.Sampling("uniform")).describe()


def test_weights_change_the_part_of_a_class():
    plan = sampler(Blocks(100), data.Sampling(weights={"rare": 3.0, "ground": 0.0})).plan(0)
    assert plan.tolist() == [51, 0, 12, 37, 0]


def test_rare_class_sampling_follows_its_formula():
    index = synthetic_index(1000, 3, pixels=np.array([9000, 900, 100]))
    sampling = data.Sampling("rare_class", temperature=0.5)
    plan = data.EpochSampler(index, sampling, crop=(9, 9), scale=(1, 1), seed=0).plan(0)
    parts = np.exp((1 - np.array([0.9, 0.09, 0.01])) / 0.5)
    assert plan[1:].tolist() == np.floor(500 * parts / parts.sum()).tolist()
    sharp = data.EpochSampler(index, data.Sampling("rare_class", temperature=1e-6), crop=(9, 9), scale=(1, 1), seed=0)
    assert sharp.plan(0).tolist() == [500, 0, 0, 500]


def test_a_uniform_epoch_has_every_image_once():
    for drawn in (sampler(sampling=data.Sampling("uniform")), sampler(sampling=data.Sampling(share=0.0))):
        boxes, classes = drawn.draw(4)
        assert sorted(boxes[:, 0].tolist()) == list(range(20))
        assert (classes == -1).all()


def test_sampling_by_class_ends_with_the_epoch_that_says_so():
    drawn = sampler(sampling=data.Sampling(epochs=2))
    assert [bool(drawn.plan(epoch)[1:].any()) for epoch in range(4)] == [True, True, False, False]
    assert sorted(drawn.draw(2)[0][:, 0].tolist()) == list(range(20))


def test_extra_images_come_for_the_chosen_classes_only():
    extra = data.build_index(Blocks(10), tile=16, quiet=True)
    drawn = sampler(Blocks(100), data.Sampling(extra_classes=("rare",)), extra=extra)
    assert len(drawn) == 100
    from_extra = np.concatenate([classes[boxes[:, 0] >= 100] for boxes, classes in map(drawn.draw, range(20))])
    assert len(from_extra) > 0
    assert (from_extra == 2).all()
    assert max(drawn.draw(0)[0][:, 0]) < 110
    ended = drawn.with_sampling(data.Sampling(extra_classes=("rare",), epochs=1))
    assert (ended.draw(1)[0][:, 0] < 100).all()


def test_images_with_problems_are_never_drawn():
    class Damaged(Blocks):
        def label(self, index):
            if index in (0, 7):
                raise data.DataError(f"label {index}: the file is damaged")
            return super().label(index)

    index = data.build_index(Damaged(), tile=16, quiet=True, skip_damaged=True)
    drawn = data.EpochSampler(index, data.Sampling(), crop=(16, 16), scale=(1, 1), seed=3)
    assert len(drawn) == 18
    seen = {image for epoch in range(10) for image in drawn.draw(epoch)[0][:, 0].tolist()}
    assert seen == set(range(20)) - {0, 7}


def test_a_part_of_an_epoch_is_the_slice_of_the_whole():
    drawn = sampler(Blocks(50), scale=(0.5, 2.0))
    boxes, classes = drawn.draw(3)
    for first, count in ((0, 1), (7, 20), (49, 1), (50, 0)):
        part = drawn.draw(3, first, count)
        assert np.array_equal(part[0], boxes[first : first + count])
        assert np.array_equal(part[1], classes[first : first + count])
    assert not np.array_equal(boxes, drawn.draw(4)[0])


def test_another_process_draws_the_same_epoch():
    code = """
import json
from python_tests.data.test_sampling import sampler
boxes, classes = sampler(scale=(0.5, 2.0)).draw(5)
print(json.dumps([boxes.tolist(), classes.tolist()]))
"""
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    boxes, classes = sampler(scale=(0.5, 2.0)).draw(5)
    assert json.loads(output) == [boxes.tolist(), classes.tolist()]


def test_another_attempt_keeps_the_class():
    drawn = sampler(Blocks(50))
    boxes, classes = drawn.draw(0)
    for place in range(50):
        again, number = drawn.draw(0, place, 1, attempt=1)
        assert number[0] == classes[place]
        assert not np.array_equal(again[0], boxes[place])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "balanced"}, "kind: got 'balanced', expected one of class_uniform, rare_class, uniform"),
        ({"share": 1.5}, "share: got 1.5, expected a number from 0 to 1"),
        ({"weights": {"a": -1.0}}, "weights: got {'a': -1.0}, expected NAME:X,NAME:X with numbers not below 0"),
        ({"temperature": 0.0}, r"temperature: got 0\.0, expected a number above 0"),
        ({"epochs": -1}, "epochs: got -1, expected a number not below 0"),
    ],
)
def test_bad_samplings_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        data.Sampling(**options)


def test_a_bad_seed_is_named():
    with pytest.raises(ValueError, match="seed: expected a number from 0 up, got -1"):
        data.EpochSampler(synthetic_index(5, 2), data.Sampling(), crop=(9, 9), scale=(1, 1), seed=-1)


def test_classes_that_do_not_exist_are_named():
    with pytest.raises(data.DataError, match="sampling_weights: no class 'rar'; expected some of ground, common, rare"):
        sampler(sampling=data.Sampling(weights={"rar": 2.0}))
    with pytest.raises(data.DataError, match="extra_classes: no class 'x'"):
        sampler(sampling=data.Sampling(extra_classes=("x",)))
