"""Crop and length of a training that follow from the data, each with its reason in words.

``train`` and ``data stats`` call the same functions, so that they cannot differ.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hmsa_ext.data.augment import PUBLISHED_ZOOM, Augment, resized_size
from hmsa_ext.data.headers import read_header
from hmsa_ext.data.types import DataError, Dataset

MOST_IMAGES = 200  # looked at for a typical size
CROP_AREA = 512 * 512
CROP_STEP = 32  # the trunks divide sizes by it
CROPS = 20_000  # of a whole training
FEWEST_EPOCHS, MOST_EPOCHS = 10, 200


def typical_size(dataset: Dataset, *, count: int = MOST_IMAGES) -> tuple[int, int]:
    """Median (height, width) in pixels of up to ``count`` images, evenly spread over the data set.

    Of files the headers are read, of other data sets the label maps. Files that cannot be read do not count. Raises
    DataError when none can be read.
    """
    length = len(dataset)
    places = sorted({k * length // min(count, length) for k in range(min(count, length))})
    files, sizes, trouble = getattr(dataset, "files", None), [], None
    for place in places:
        try:
            sizes.append(read_header(files(place)[0]).size if files is not None else dataset.label(place).shape)
        except DataError as error:
            trouble = error
    if not sizes:
        raise DataError("no image to take the size of the crops from: all have problems") from trouble
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def fit_crop(size: tuple[int, int]) -> tuple[tuple[int, int], str]:
    """Crop (height, width) for images of a typical (height, width), and the reason.

    The crop is the typical image, shrunk in proportion to at most 512 * 512 pixels; both sides are then rounded down to
    multiples of 32, and are at least 32.

    >>> fit_crop((1024, 2048))
    ((352, 704), 'the median image is 1024x2048; at most 262144 pixels in its proportions, multiples of 32')
    >>> fit_crop((360, 480))[0]
    (352, 480)
    """
    height, width = size
    factor = min(1.0, math.sqrt(CROP_AREA / (height * width)))
    sides = [max(CROP_STEP, int(side * factor + 1e-6) // CROP_STEP * CROP_STEP) for side in size]
    limit = f"at most {CROP_AREA} pixels in its proportions, " if factor < 1 else ""
    return (sides[0], sides[1]), f"the median image is {height}x{width}; {limit}multiples of {CROP_STEP}"


def fit_zoom(size: tuple[int, int], crop: tuple[int, int]) -> tuple[tuple[float, float], str]:
    """(smallest, largest) zoom for crops of images of a typical (height, width), and the reason.

    The smallest zoom is that at which the typical image just fills the crop, but at least 0.5 and at most 1.
    The largest zoom is 2, as published.

    >>> fit_zoom((1024, 2048), (352, 704))[0], fit_zoom((360, 480), (352, 480))[0]
    ((0.5, 2.0), (1.0, 2.0))
    """
    smallest, largest = PUBLISHED_ZOOM
    filled = max(side / whole for side, whole in zip(crop, size, strict=True))
    low = math.ceil(100 * min(max(smallest, filled), 1.0)) / 100
    return (low, largest), f"at {low:g} the median image still fills the crop; {largest:g} as published"


def fit_augment(augment: Augment, dataset: Dataset) -> tuple[Augment, str]:
    """The options with a crop and a zoom, and the reason for them.

    With a crop of the user's only the zoom is filled in where there is none, as published. Raises DataError when no
    image can be read.
    """
    if augment.crop is not None:
        return replace(augment, scale=augment.zoom), "as set"
    size = resized_size(*typical_size(dataset), augment.long_edge)
    crop, reason = fit_crop(size)
    zoom = augment.scale
    if zoom is None:
        zoom, why = fit_zoom(size, crop)
        reason += f"; zoom {zoom[0]:g} to {zoom[1]:g}: {why}"
    return replace(augment, crop=crop, scale=zoom), reason


def fit_epochs(images: int) -> tuple[int, str]:
    """Number of epochs for so many training images, and the reason.

    Enough for 20,000 crops in all, within 10 to 200 epochs: small data sets get more passes.

    >>> fit_epochs(367)
    (55, '20000 crops of 367 images, within 10 to 200 epochs')
    >>> fit_epochs(60)[0], fit_epochs(2975)[0]
    (200, 10)
    """
    epochs = min(max(math.ceil(CROPS / max(images, 1)), FEWEST_EPOCHS), MOST_EPOCHS)
    return epochs, f"{CROPS} crops of {images} images, within {FEWEST_EPOCHS} to {MOST_EPOCHS} epochs"
