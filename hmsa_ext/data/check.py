"""A look at every item of a data set before hours are spent on it."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from hmsa_ext.data.types import DataError, Dataset

SHOWN = 10
SECONDS_BETWEEN_LINES = 10.0


def check(dataset: Dataset, *, threads: int | None = None, quiet: bool = False) -> None:
    """Look at every item of the data set: sizes, label values, damaged files.

    Shows a progress bar on a terminal and plain lines elsewhere, both on standard error.

    threads: how many; one per core that this process may use, at most 16, unless given.
    quiet: show nothing.

    Raises DataError that lists the problems (the first ten, and how many there are), each with its file, what was found
    and what was expected.
    """
    count = len(dataset)
    if count == 0:
        raise DataError("the data set is empty: expected at least 1 image")
    inspect = getattr(dataset, "inspect", None) or (lambda index: inspect_sample(dataset, index))
    problems, start = [], time.monotonic()
    with ThreadPoolExecutor(threads or min(_cores(), 16)) as pool:
        for found in _report(pool.map(inspect, range(count)), count, quiet):
            problems.extend(found)
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        text = "\n  ".join([*problems[:SHOWN], *more])
        raise DataError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {count} images:\n  {text}")
    if not quiet:
        print(f"checked {count} images in {time.monotonic() - start:.1f} s: no problems", file=sys.stderr)


def inspect_sample(dataset: Dataset, index: int) -> list[str]:
    """The problems of one item of a data set without ``inspect``, found by loading it."""
    try:
        sample = dataset[index]
    except DataError as error:
        return [str(error)]
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
    classes = dataset.classes
    wrong = [
        value for value in np.flatnonzero(counts) if value >= classes.num_classes and value != classes.ignore_label
    ]
    if wrong:
        found = ", ".join(f"{value} in {counts[value]} pixels" for value in wrong)
        problems.append(
            f"{name}: values that are no class: {found}. "
            f"Expected 0..{classes.num_classes - 1}, or {classes.ignore_label} for ignored"
        )
    return problems


def _report(results, count: int, quiet: bool):
    """Pass the results on, showing how far they are."""
    if quiet:
        yield from results
    elif sys.stderr.isatty():
        yield from tqdm(results, total=count, desc="checking the data", unit="image", leave=False)
    else:
        last = time.monotonic()
        for done, result in enumerate(results, 1):
            yield result
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"checked {done} of {count} images", file=sys.stderr)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
