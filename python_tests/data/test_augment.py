"""Training crops: geometry, colours, margins, errors."""

import numpy as np
import pytest

from hmsa_ext.data import Augment, Crop, Sample
from hmsa_ext.data.augment import FILL, change_colours, resize

PLAIN = {"colour": 0.0, "flip": False}


def blocks(height: int, width: int, cell: int, seed: int = 0) -> Sample:
    """Blocks of pure colour, each colour with its own label: image and label say the same."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 5, ((height + cell - 1) // cell, (width + cell - 1) // cell), dtype=np.uint8)
    label = np.kron(grid, np.ones((cell, cell), np.uint8))[:height, :width]
    palette = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], np.uint8)
    return Sample(palette[label], np.ascontiguousarray(label), "blocks")


def read_labels(image: np.ndarray) -> np.ndarray:
    """The label of each pixel from its colour."""
    palette = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), FILL], np.int32)
    distance = np.abs(image[:, :, None].astype(np.int32) - palette).sum(-1)
    return np.array([0, 1, 2, 3, 4, 255], np.uint8)[distance.argmin(-1)]


@pytest.mark.parametrize("seed", range(12))
def test_image_and_label_stay_aligned(seed):
    sample = blocks(97, 131, cell=16, seed=seed)
    crop = Augment((80, 112), scale=(0.5, 2.0), flip=True, colour=0.0)(sample, np.random.default_rng(seed))
    assert crop.image.shape == (80, 112, 3)
    assert crop.label.shape == (80, 112)
    wrong = read_labels(crop.image) != crop.label
    # Only next to the edge of a block, where bilinear colours mix, may the nearest colour be another.
    near_edge = np.zeros_like(wrong)
    across, along = crop.label[:, 1:] != crop.label[:, :-1], crop.label[1:] != crop.label[:-1]
    for step in (slice(None, -1), slice(1, None)):
        near_edge[:, step] |= across
        near_edge[step] |= along
    assert not (wrong & ~near_edge).any()
    assert wrong.mean() < 0.15


@pytest.mark.parametrize(("source", "target"), [(60, 120), (120, 60), (90, 120), (117, 83), (200, 50)])
def test_an_edge_lies_at_the_same_place_in_image_and_label(source, target):
    """The edge of a step, found in the image between pixels, and in the label to half a pixel."""
    for edge in range(source // 3, 2 * source // 3):
        label = np.zeros((8, source), np.uint8)
        label[:, edge:] = 1
        image, resized = resize(np.repeat(label[..., None] * 240, 3, 2), label, (8, target))
        in_image = target - image[4, :, 0].astype(float).sum() / 240
        in_label = target - float(resized[4].sum())
        exact = edge * target / source
        assert abs(in_image - exact) < 0.51
        assert abs(in_label - exact) <= 0.5 + 1e-9


def test_a_crop_at_scale_one_copies_pixels():
    sample = blocks(40, 60, cell=5)
    crop = Augment((20, 30), **PLAIN).cut(sample, Crop((7, 11, 27, 41)))
    assert np.array_equal(crop.image, sample.image[7:27, 11:41])
    assert np.array_equal(crop.label, sample.label[7:27, 11:41])


def test_a_flip_mirrors_both():
    sample = blocks(40, 60, cell=5)
    crop = Augment((40, 60), **PLAIN).cut(sample, Crop((0, 0, 40, 60), flip=True))
    assert np.array_equal(crop.image, sample.image[:, ::-1])
    assert np.array_equal(crop.label, sample.label[:, ::-1])


def test_outside_the_image_is_mean_colour_and_ignored():
    sample = blocks(20, 30, cell=5)
    augment = Augment((40, 50), **PLAIN)
    crop = augment.cut(sample, Crop((-10, -5, 30, 45), jitter=(1.2, 0.8, 1.1, 0.1)))
    inside = np.zeros((40, 50), bool)
    inside[10:30, 5:35] = True
    assert np.array_equal(crop.label == 255, ~inside)
    assert np.array_equal(crop.label[10:30, 5:35], sample.label)
    assert (crop.image[~inside] == FILL).all()


def test_a_small_image_lies_wholly_inside_its_crop():
    sample = blocks(20, 30, cell=5)
    for seed in range(20):
        crop = Augment((40, 50), scale=(1, 1), **PLAIN)(sample, np.random.default_rng(seed))
        assert (crop.label != 255).sum() == 20 * 30


def test_scales_and_places_cover_their_range():
    augment, rng = Augment((50, 100), scale=(0.5, 2.0)), np.random.default_rng(0)
    crops = [augment.draw(120, 240, rng) for _ in range(400)]
    tall = np.array([crop.box[2] - crop.box[0] for crop in crops])
    assert 25 <= tall.min() <= 26
    assert 95 <= tall.max() <= 100
    assert {crop.flip for crop in crops} == {True, False}
    inside = [crop for crop in crops if crop.box[2] - crop.box[0] <= 120]
    assert all(crop.box[0] >= 0 and crop.box[2] <= 120 and crop.box[3] <= 240 for crop in inside)
    assert {crop.box[0] == 120 - (crop.box[2] - crop.box[0]) for crop in inside} == {True, False}
    jitter = np.array([crop.jitter for crop in crops])
    assert np.allclose(jitter.min(0), (0.75, 0.75, 0.75, -0.25), atol=0.01)
    assert np.allclose(jitter.max(0), (1.25, 1.25, 1.25, 0.25), atol=0.01)


def test_options_do_not_shift_the_random_numbers():
    full, plain = Augment((50, 100), blur=2.0), Augment((50, 100), **PLAIN)
    boxes = [augment.draw(120, 240, np.random.default_rng(5)).box for augment in (full, plain)]
    assert boxes[0] == boxes[1]


def test_equal_generators_give_equal_crops_and_leave_the_sample_alone():
    sample = blocks(90, 120, cell=7)
    before = sample.image.copy(), sample.label.copy()
    augment = Augment((64, 64), blur=1.5)
    first, second = (augment(sample, np.random.default_rng(9)) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.label, second.label)
    assert np.array_equal(sample.image, before[0])
    assert np.array_equal(sample.label, before[1])


def test_colour_changes_follow_their_definition():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 180, (16, 16, 3), dtype=np.uint8)
    weights = np.array([0.299, 0.587, 0.114])
    luma = image @ weights
    # One count of tolerance: OpenCV rounds to nearest, to even or not.
    assert np.abs(change_colours(image, (1.2, 1, 1, 0)) - image * 1.2).max() <= 1
    expected = luma.mean() + 0.8 * (image - luma.mean())
    assert np.abs(change_colours(image, (1, 0.8, 1, 0)) - expected).max() <= 1
    expected = luma[..., None] + 0.5 * (image - luma[..., None])
    assert np.abs(change_colours(image, (1, 1, 0.5, 0)) - expected).max() <= 1
    turned = change_colours(image, (1, 1, 1, 0.25))
    inside = ((turned > 0) & (turned < 255)).all(-1)  # where nothing was clipped
    assert inside.mean() > 0.5
    assert np.abs(turned @ weights - luma)[inside].max() < 2
    assert change_colours(image, (1, 1, 1, 0)) is image


def test_grey_stays_grey_under_hue_and_saturation():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    assert np.abs(change_colours(grey, (1, 1, 0.6, 0.2)).astype(int) - grey).max() <= 1


def test_blur_softens_the_image_and_not_the_label():
    sample = blocks(64, 64, cell=4)
    crop = Augment((64, 64), **PLAIN, blur=2.0).cut(sample, Crop((0, 0, 64, 64), sigma=1.5))
    assert crop.image.std() < 0.8 * sample.image.std()
    assert np.array_equal(crop.label, sample.label)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop": (0, 10)}, "crop: expected"),
        ({"crop": (10, 10), "scale": (2.0, 0.5)}, "scale: expected"),
        ({"crop": (10, 10), "colour": 1.5}, r"colour: expected 0\.\.0\.5, got 1\.5"),
        ({"crop": (10, 10), "blur": -1.0}, "blur: expected"),
        ({"crop": (10, 10), "ignore_label": 300}, r"ignore_label: expected 0\.\.255, got 300"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        Augment(**options)


def test_an_image_that_does_not_fit_its_label_is_refused():
    sample = Sample(np.zeros((10, 12, 3), np.uint8), np.zeros((10, 11), np.uint8), "odd")
    with pytest.raises(ValueError, match=r"sample odd: expected an image \[10, 11, 3\].*got \[10, 12, 3\]"):
        Augment((4, 4))(sample, np.random.default_rng(0))
