"""The street scenes: the same everywhere, with every class, wide regions and thin structures."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from hmsa_ext import data
from hmsa_ext.data.street_canvas import (
    BUILDING,
    FENCE,
    GRASS,
    PAVEMENT,
    PEDESTRIAN,
    POLE,
    ROAD,
    SIGN,
    SKY,
    TREE,
    VOID,
    Dice,
)


@pytest.fixture(scope="module")
def scenes() -> list[data.Sample]:
    dataset = data.build("synthetic", "train", length=40)
    return [dataset[index] for index in range(len(dataset))]


def digest(sample: data.Sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.label.tobytes()).hexdigest()


def share(scenes: list[data.Sample], value: int) -> float:
    return float(np.mean([(scene.label == value).mean() for scene in scenes]))


def test_default_lengths_and_size():
    assert len(data.build("synthetic", "train")) == 600
    assert len(data.build("synthetic", "val")) == 60
    sample = data.build("synthetic", "val")[0]
    assert sample.image.shape == (128, 256, 3)
    assert sample.label.shape == (128, 256)
    assert sample.image.dtype == sample.label.dtype == np.uint8


def test_a_scene_is_the_same_in_another_process_and_another_order(scenes):
    code = (
        "import hashlib; from hmsa_ext import data; d = data.build('synthetic', 'train', length=9);"
        "print(*[hashlib.sha256(s.image.tobytes() + s.label.tobytes()).hexdigest() for s in (d[7], d[2])])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == [digest(scenes[7]), digest(scenes[2])]


def test_a_scene_depends_on_seed_split_and_index(scenes):
    def scene(split: str, index: int, seed: int) -> str:
        return digest(data.build("synthetic", split, seed=seed)[index])

    assert scene("train", 0, 0) == digest(scenes[0])
    assert len({scene("train", 0, 0), scene("train", 0, 1), scene("val", 0, 0), scene("train", 1, 0)}) == 4


def test_train_and_val_share_no_scene(scenes):
    val = data.build("synthetic", "val", length=40)
    assert not {digest(scene) for scene in scenes} & {digest(val[index]) for index in range(40)}


def test_random_bytes_are_those_of_the_generator_on_any_machine():
    # Fixed numbers: what Philox and SeedSequence give is promised never to change.
    assert Dice((3, 1, 4)).bytes((5,)).tolist() == [229, 197, 191, 193, 154]


def test_scenes_are_those_of_any_other_machine():
    """Drawn without the OpenCV functions that differ between versions: one digest for every machine."""
    total = hashlib.sha256()
    for split in ("train", "val"):
        dataset = data.build("synthetic", split, length=12)
        for index in range(12):
            total.update(dataset[index].image.tobytes())
            total.update(dataset[index].label.tobytes())
    assert total.hexdigest() == "c90e9479de114f28c6871fbf7fe318d2ce0853efef5deb6ca1bca7ed889212ea"


def test_every_class_occurs_and_labels_are_in_range(scenes):
    classes = data.Synthetic.classes
    assert classes.num_classes >= 8
    values = set(np.unique(np.stack([scene.label for scene in scenes])).tolist())
    assert values == {*range(classes.num_classes), classes.ignore_label}


def test_ignored_pixels_are_some_but_few(scenes):
    assert 0.01 < share(scenes, VOID) < 0.15


def test_wide_regions_cover_most_and_thin_structures_little(scenes):
    wide = sum(share(scenes, value) for value in (ROAD, PAVEMENT, GRASS, BUILDING, SKY, TREE))
    thin = [share(scenes, value) for value in (POLE, SIGN, FENCE, PEDESTRIAN)]
    assert wide > 0.75
    assert all(0.001 < value < 0.05 for value in thin)


@pytest.mark.parametrize("value", [POLE, FENCE])
def test_thin_structures_are_one_to_three_pixels_wide(scenes, value):
    masks = np.stack([scene.label == value for scene in scenes]).astype(np.uint8)
    # Opening with a 4x4 square keeps only what is four pixels wide: a few posts seen side by side, crossing bars.
    kept = sum(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((4, 4), np.uint8)).sum() for mask in masks)
    assert kept < 0.05 * masks.sum()


def test_half_the_size_loses_thin_structures_and_keeps_wide_regions(scenes):
    """Masks to a grid of the given stride and back: 8, 4 and 2 are a head at stride 4 at scales 0.5, 1 and 2."""

    def survives(value: int, stride: int) -> float:
        inter = union = 0
        for scene in scenes:
            mask = (scene.label == value).astype(np.float32)
            small = cv2.resize(mask, (256 // stride, 128 // stride), interpolation=cv2.INTER_AREA)
            back = cv2.resize(small, (256, 128), interpolation=cv2.INTER_LINEAR) > 0.5
            inter, union = inter + (back & (mask > 0)).sum(), union + (back | (mask > 0)).sum()
        return inter / union

    for value in (ROAD, SKY, BUILDING):
        assert survives(value, 8) > 0.85
    for value in (POLE, FENCE):
        assert survives(value, 8) < 0.1
        assert survives(value, 2) > 1.5 * survives(value, 4)


def test_road_and_pavement_cannot_be_told_by_their_colour(scenes):
    """The means of the two surfaces overlap from scene to scene: neither is regularly the brighter one."""
    brighter = []
    for scene in scenes:
        road, pavement = scene.label == ROAD, scene.label == PAVEMENT
        if min(road.sum(), pavement.sum()) > 300:
            brighter.append(scene.image[road].mean() > scene.image[pavement].mean())
    assert len(brighter) >= 15
    assert 0.15 < np.mean(brighter) < 0.85


def test_other_sizes_are_drawn_at_their_own_resolution():
    dataset = data.build("synthetic", "train", size=(192, 320), length=2)
    assert dataset[1].image.shape == (192, 320, 3)
    assert dataset[1].label.shape == (192, 320)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split": "test"}, r"split: expected one of \['train', 'val'\], got 'test'"),
        ({"split": "train", "size": (32, 256)}, "size: got 32,256, expected HxW of at least 64x64 pixels"),
        ({"split": "train", "length": 0}, "length: expected at least 1 scene, got 0"),
        ({"split": "train", "seed": -1}, "seed: got -1, expected a number not below 0"),
        ({"split": "train", "root": "/tmp"}, "root: synthetic has no such option; got '/tmp'"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(data.DataError, match=text):
        data.build("synthetic", **options)


def test_indices_outside_raise():
    with pytest.raises(IndexError, match=r"index: expected 0\.\.1, got 2"):
        data.build("synthetic", "train", length=2)[2]
