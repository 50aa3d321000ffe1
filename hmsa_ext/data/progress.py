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


class Progress:
    """Progress on standard error: a bar with rate and time left on a terminal, a line every ten seconds elsewhere.

    count: number of results; None where nobody knows. what: name of the work ("checking the data"). unit: what is
    counted. quiet: show nothing.
    """

    def __init__(self, count: int | None, *, what: str, unit: str = "image", quiet: bool = False) -> None:
        self.done, self._count, self._what, self._unit = 0, count, what, unit
        self._bar = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(total=count, desc=what, unit=unit, leave=False, dynamic_ncols=True)
        self._lines = not quiet and self._bar is None
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self) -> None:
        """One more result is there."""
        self.done += 1
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update()
        elif self._lines and now - self._last > SECONDS_BETWEEN_LINES and self.done != self._count:
            self._last = now
            print(self._line(now - self._begin), file=sys.stderr, flush=True)

    def within(self, part: int, parts: int, what: str) -> None:
        """Part ``part`` of ``parts`` of the next result is there: "tile 5 of 24"."""
        text = f"{what} {part} of {parts}"
        if self._bar is not None:
            self._bar.set_postfix_str(text if part < parts else "")
        elif self._lines and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            of = "" if self._count is None else f" of {self._count}"
            print(f"{self._what}: {self.done}{of} {self._unit}s, {text} of the next", file=sys.stderr, flush=True)

    def print(self, text: str) -> None:
        """Prints a line on standard error, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        of = "" if self._count is None else f" of {self._count}"
        line = f"{self._what}: {self.done}{of} {self._unit}s, {self.done / seconds:.3g} a second"
        if self._count is None:
            return line
        return f"{line}, {duration((self._count - self.done) * seconds / self.done)} left"


def report(results: Iterable[Result], count: int, *, what: str, quiet: bool = False) -> Iterator[Result]:
    """Yields the results, and shows how many there are so far: see :class:`Progress`."""
    with Progress(count, what=what, quiet=quiet) as progress:
        for result in results:
            yield result
            progress.step()


def duration(seconds: float) -> str:
    """Seconds as ``41s``, ``4m10s`` or ``2h05m``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reader_threads(threads: int | None = None) -> int:
    """How many threads read files at a time: ``threads``, or one per usable core, at most 16."""
    return threads or min(usable_cores(), 16)
