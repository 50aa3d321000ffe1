"""A file of JSON lines to which several processes append, and which a kill at any moment leaves readable."""

from __future__ import annotations

import json
import os
from pathlib import Path


class JsonLines:
    """Appends one object a line.

    Each line is a single write to a file opened for appending, so that lines of different processes do not mix, and it
    is on the disk when :meth:`append` returns.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, kind: str, **fields: object) -> dict:
        """Adds ``{"kind": kind, **fields}`` and returns it."""
        entry = {"kind": kind, **fields}
        line = json.dumps(entry, allow_nan=True, default=str) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)
        return entry


def read(path: str | Path) -> list[dict]:
    """All whole lines; a last one that was cut off by a kill is left out."""
    entries = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries
