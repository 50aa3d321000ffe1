"""Training crops: looks, and what a batch of crops is made of."""

import numpy as np
import pytest
import torch

from hmsa_ext.data import Augment, Looks, Sample, collate, cut, denormalise, piece_of
from hmsa_ext.data.augment import resized_size


def blocks(height: int, width: int, cell: int, seed: int = 0) -> Sample:
    """Blocks of pure colour, each colour with its own label: image and label say the same."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 5, ((height + cell - 1) // cell, (width + cell - 1) // cell), dtype=np.uint8)
    label = np.kron(grid, np.ones((cell, cell), np.uint8))[:height, :width]
    palette = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], np.uint8)
    return Sample(palette[label], np.ascontiguousarray(label), "blocks")


def crop(sample: Sample, box, size, looks: Looks | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One crop as a picture and a label map."""
    batch = cut(collate([piece_of(sample, box, looks or Looks(), size)]))
    return denormalise(batch.images[0]), batch.labels[0].numpy()


def test_a_crop_at_scale_one_copies_pixels():
    sample = blocks(40, 60, cell=5)
    image, label = crop(sample, (7, 11, 27, 41), (20, 30))
    assert np.array_equal(image, sample.image[7:27, 11:41])
    assert np.array_equal(label, sample.label[7:27, 11:41])


def test_a_flip_mirrors_both():
    sample = blocks(40, 60, cell=5)
    image, label = crop(sample, (0, 0, 40, 60), (40, 60), Looks(flip=True))
    assert np.array_equal(image, sample.image[:, ::-1])
    assert np.array_equal(label, sample.label[:, ::-1])


def test_outside_the_image_is_mean_colour_and_ignored():
    sample = blocks(20, 30, cell=5)
    looks = Looks(jitter=(1.2, 0.8, 1.1, 0.1))
    batch = cut(collate([piece_of(sample, (-10, -5, 30, 45), looks, (40, 50))]))
    inside = torch.zeros(40, 50, dtype=torch.bool)
    inside[10:30, 5:35] = True
    assert torch.equal(batch.labels[0] == 255, ~inside)
    assert torch.equal(batch.labels[0, 10:30, 5:35], torch.from_numpy(sample.label))
    assert batch.images[0][:, ~inside].abs().max() < 1e-5  # normalised, the mean colour is zero


@pytest.mark.parametrize("box", [(-9, -9, 11, 11), (30, 50, 60, 70), (35, 10, 45, 20), (-5, -5, 45, 65)])
def test_a_piece_gives_the_crop_that_the_whole_picture_would(box):
    sample, size, looks = blocks(40, 60, cell=3), (17, 23), Looks(True, (1.2, 0.7, 1.3, 0.1), 0.9)
    piece = piece_of(sample, box, looks, size)
    assert piece.image.shape[0] * piece.image.shape[1] <= (box[2] - box[0]) * (box[3] - box[1])
    batch = collate([piece])
    batch.images, batch.labels = [torch.from_numpy(sample.image)], [torch.from_numpy(sample.label)]
    batch.boxes = torch.tensor([(0, *box)])
    whole, part = cut(batch), cut(collate([piece]))
    assert torch.equal(whole.images, part.images)
    assert torch.equal(whole.labels, part.labels)


def test_looks_cover_their_range():
    augment, rng = Augment((50, 100), blur=(0.15, 1.3)), np.random.default_rng(0)
    looks = [augment.draw_looks(rng) for _ in range(400)]
    assert {look.flip for look in looks} == {True, False}
    jitter = np.array([look.jitter for look in looks])
    assert np.allclose(jitter.min(0), (0.75, 0.75, 0.75, -0.25), atol=0.01)
    assert np.allclose(jitter.max(0), (1.25, 1.25, 1.25, 0.25), atol=0.01)
    blur = np.array([look.blur for look in looks])
    assert (blur >= 0.15).all()
    assert (blur <= 1.3).all()
    assert np.ptp(blur) > 1.1


def test_options_do_not_shift_the_random_numbers():
    full, plain = Augment((50, 100), blur=(0.0, 2.0)), Augment((50, 100), colour=0.0)
    looks = [augment.draw_looks(np.random.default_rng(5)) for augment in (full, plain)]
    assert looks[0].flip == looks[1].flip
    assert looks[1] == Looks(looks[0].flip)


@pytest.mark.parametrize(
    ("size", "long_edge", "expected"),
    [
        ((100, 200), 0, (100, 200)),
        ((3024, 4032), 2177, (1633, 2177)),
        ((200, 100), 50, (50, 25)),
        ((1, 999), 9, (1, 9)),
    ],
)
def test_the_long_edge_keeps_the_shape(size, long_edge, expected):
    assert resized_size(*size, long_edge) == expected


def test_what_makes_no_batch_and_no_size_is_refused():
    pieces = [piece_of(blocks(8, 8, 2), (0, 0, 4, 4), Looks(), size) for size in ((4, 4), (5, 4))]
    with pytest.raises(ValueError, match=r"pieces: expected at least one, all of one size, got sizes \[\]"):
        collate([])
    with pytest.raises(
        ValueError, match=r"pieces: expected at least one, all of one size, got sizes \[\(4, 4\), \(5, 4"
    ):
        collate(pieces)
    with pytest.raises(ValueError, match="long_edge: expected pixels from 0 up, got -1"):
        resized_size(4, 4, -1)


def test_a_sample_whose_parts_differ_in_size_is_refused():
    sample = Sample(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6), np.uint8), "odd")
    with pytest.raises(
        ValueError, match=r"sample odd: expected an image \[4, 6, 3\] as its label map has it, got \[4, 5"
    ):
        piece_of(sample, (0, 0, 2, 2), Looks(), (2, 2))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop": (0, 10)}, "crop: got 0,10, expected HxW in pixels"),
        ({"crop": (10, 10), "scale": (2.0, 0.5)}, "scale: got 2.0,0.5, expected SMALLEST,LARGEST with 0 < SMALLEST"),
        ({"crop": (10, 10), "colour": 1.5}, r"colour: got 1\.5, expected a number from 0 to 0\.5"),
        ({"crop": (10, 10), "blur": (-1.0, 2.0)}, "blur: got -1.0,2.0, expected SMALLEST,LARGEST from 0 to 4"),
        ({"crop": (10, 10), "blur": (0.0, 9.0)}, "blur: got 0.0,9.0, expected SMALLEST,LARGEST from 0 to 4"),
        ({"crop": (10, 10), "long_edge": -1}, "long_edge: got -1, expected a number not below 0"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        Augment(**options)
