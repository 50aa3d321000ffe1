"""How far a long look at files is: a bar on a terminal, a line now and then elsewhere."""

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
    """Pass the results on, showing on standard error how far they are.

    count: how many results there will be.
    what: what is being done ("checking the data").
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
