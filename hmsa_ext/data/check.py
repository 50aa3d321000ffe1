"""A check of every item of a data set, before hours are spent on training."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hmsa_ext.data.label_table import describe_values
from hmsa_ext.data.progress import reader_threads, report
from hmsa_ext.data.types import ClassTable, DataError, Dataset, Sample

SHOWN = 10


def check(dataset: Dataset, *, threads: int | None = None, quiet: bool = False) -> None:
    """Checks every item of the data set: sizes, label values, damaged files.

    Shows a progress bar on a terminal and plain lines elsewhere, both on standard error.

    threads: see :func:`hmsa_ext.data.progress.reader_threads`.
    quiet: show nothing.

    Raises DataError that lists the first ten problems and their number, each with its file, the value found and the
    value expected.
    """
    count = len(dataset)
    if count == 0:
        raise DataError("the data set is empty: expected at least 1 image")
    problems, start = [], time.monotonic()
    with ThreadPoolExecutor(reader_threads(threads)) as pool:
        results = pool.map(lambda index: inspect_item(dataset, index), range(count))
        for _, found in report(results, count, what="checking the data", quiet=quiet):
            problems.extend(found)
    if problems:
        raise DataError(problem_report(problems, count))
    if not quiet:
        print(f"checked {count} images in {time.monotonic() - start:.1f} s: no problems", file=sys.stderr)


def inspect_item(dataset: Dataset, index: int) -> tuple[np.ndarray | None, list[str]]:
    """The label map of one item, None where it cannot be used, and the problems of the item in words.

    A data set on disk decodes the label files once, and does not decode the image.
    """
    inspect = getattr(dataset, "inspect", None)
    if inspect is not None:
        return inspect(index)
    try:
        sample = dataset[index]
    except DataError as error:
        return None, [str(error)]
    problems = sample_problems(sample, dataset.classes)
    return (None if problems else sample.label), problems


def sample_problems(sample: Sample, classes: ClassTable) -> list[str]:
    """The problems of a sample, in words."""
    image, label, name = sample.image, sample.label, sample.name
    problems = []
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        problems.append(f"{name}: expected an image uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if label.dtype != np.uint8 or label.ndim != 2:
        problems.append(f"{name}: expected a label map uint8 [H, W], got {label.dtype} {list(label.shape)}")
        return problems
    if image.shape[:2] != label.shape:
        problems.append(
            f"{name}: the label map is {label.shape[1]}x{label.shape[0]} pixels, "
            f"its image {image.shape[1]}x{image.shape[0]}"
        )
    counts = np.bincount(label.ravel(), minlength=256)
    wrong = classes.num_classes + np.flatnonzero(counts[classes.num_classes : classes.ignore_label])
    if len(wrong):
        problems.append(
            f"{name}: values that are no class: {describe_values(wrong, counts[wrong])}. "
            f"Expected 0..{classes.num_classes - 1}, or {classes.ignore_label} for ignored"
        )
    return problems


def problem_report(problems: Sequence[str], images: int) -> str:
    """A text that lists the first ten problems, with the number of problems and of images."""
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    text = "\n  ".join([*problems[:SHOWN], *more])
    return f"{len(problems)} problem{'s' * (len(problems) > 1)} in {images} image{'s' * (images != 1)}:\n  {text}"
