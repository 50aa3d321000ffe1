"""Progress of long work on files: a bar on a terminal, a line every ten seconds elsewhere. How many threads read."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0

Result = TypeVar("Result")


def report(results: Iterable[Result], count: int, *, what: str, quiet: bool = False) -> Iterator[Result]:
    """Yields the results, and shows on standard error how many there are so far.

    count: number of results.
    what: name of the work ("checking the data").
    quiet: show nothing.
    """
    if quiet:
        yield from results
    elif sys.stderr.isatty():
        yield from tqdm(results, total=count, desc=what, unit="image", leave=False)
    else:
        last = time.monotonic()
        for done, result in enumerate(results, 1):
            yield result
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"{what}: {done} of {count} images", file=sys.stderr)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reader_threads(threads: int | None = None) -> int:
    """How many threads read files at a time: ``threads``, or one per usable core, at most 16."""
    return threads or min(usable_cores(), 16)
