"""Small folders of automatic labels, and true labels beside them, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from hmsa_ext.data.automatic.manifest import (
    LEVELS,
    Layout,
    Manifest,
    counts_by_probability,
    free_values,
    pair_of,
    record_of,
    write_manifest,
)
from hmsa_ext.data.palette import distinct_colours
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable

PLACES = ("a/0001", "a/0002", "b/0001")
SIZE = (24, 32)


def class_table(number: int = 4, ids: Sequence[int] | None = None) -> ClassTable:
    """Classes c0, c1, ...; label files store 0, 1, ... for them unless ``ids`` says otherwise."""
    names = tuple(f"c{k}" for k in range(number))
    return ClassTable(names, distinct_colours(number), ids=tuple(ids) if ids is not None else tuple(range(number)))


def make_labels(
    folder: Path,
    *,
    classes: ClassTable | None = None,
    places: Sequence[str] = PLACES,
    size: tuple[int, int] = SIZE,
    layout: Layout = "plain",
    seed: int = 0,
    contents: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    images: Path | None = None,
) -> Manifest:
    """Writes images, pairs of label map and probabilities, and the manifest; returns the manifest.

    contents: class numbers and levels of places, uint8 [H, W] each. Those of other places are random: blocks of four
    pixels with a class of their own, levels of all kinds with many high ones.
    images: the folder of the images, PLACE.png; ``images`` beside the folder unless given.
    """
    classes = class_table() if classes is None else classes
    ids = classes.ids
    assert ids is not None
    images = folder.parent / "images" if images is None else images
    contents = contents or {}
    random = np.random.default_rng(seed)
    ignored, untouched = free_values(ids)
    records, histogram = {}, np.zeros((classes.num_classes, LEVELS), np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    for place in sorted(places):
        label, level = contents[place] if place in contents else _random_pair(random, classes.num_classes, size)
        files = pair_of(folder, place, layout)
        write_png(files[0], stored(label, classes, ignored))
        write_png(files[1], level)
        write_png(images / f"{place}.png", random.integers(0, 256, (*label.shape, 3), np.uint8))
        counts = counts_by_probability(label, level, classes.num_classes)
        records[place] = record_of(f"{place}.png", (label.shape[0], label.shape[1]), counts)
        histogram += counts
    made = {"model": "teacher", "weights_sha256": "0" * 64, "scales": [0.5, 1.0, 2.0], "flip": True}
    manifest = Manifest(classes, ignored, untouched, images.absolute(), made, records, histogram, layout, folder)
    write_manifest(manifest)
    return manifest


def make_truth(
    manifest: Manifest,
    folder: Path,
    *,
    suffix: str = "",
    places: Sequence[str] | None = None,
    is_right: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda label, level: level / (LEVELS - 1),
    ignored_share: float = 0.1,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Writes true label files PLACE + suffix + ".png"; returns class numbers, 255 for none, by place.

    is_right: the probability that an automatic label is right, of class numbers and levels; without it the teacher is
    calibrated. Pixels that are wrong have any other class.
    """
    random = np.random.default_rng(seed)
    number = manifest.classes.num_classes
    truths = {}
    for place in manifest.records if places is None else places:
        label, level = labels_of(manifest, place)
        other = (label + random.integers(1, max(number, 2), label.shape)) % number
        truth = np.where(random.random(label.shape) < is_right(label, level), label, other).astype(np.uint8)
        truth[random.random(label.shape) < ignored_share] = IGNORE_LABEL
        write_png(folder / f"{place}{suffix}.png", stored(truth, manifest.classes, manifest.ignored))
        truths[place] = truth
    return truths


def labels_of(manifest: Manifest, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers, 255 for none, and levels of a place, as the files have them, without the code under test."""
    ids = manifest.classes.ids
    assert ids is not None
    values, level = (
        cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        for file in (manifest.label_file(place), manifest.probability_file(place))
    )
    assert values is not None, place
    assert level is not None, place
    label = np.full(values.shape, IGNORE_LABEL, np.uint8)
    for number, value in enumerate(ids):
        label[values == value] = number
    return label, level


def stored(label: np.ndarray, classes: ClassTable, ignored: int) -> np.ndarray:
    """What label files store for class numbers and 255: uint8, or uint16 where a value needs it."""
    ids = classes.ids
    assert ids is not None
    values = np.full(256, ignored, np.uint8 if max(*ids, ignored) < 256 else np.uint16)
    values[: len(ids)] = ids
    return values[label]


def write_png(file: Path, content: np.ndarray) -> None:
    """Writes an array as a PNG file, with the folders that it lies in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), content)


def _random_pair(random: np.random.Generator, number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    blocks = random.integers(0, number, (-(-size[0] // 4), -(-size[1] // 4)), np.uint8)
    label = np.kron(blocks, np.ones((4, 4), np.uint8))[: size[0], : size[1]]
    return label, (255 * random.random(size) ** 0.4).astype(np.uint8)
