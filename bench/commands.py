"""Shared by the commands of this package: parsers and printed tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def command_parser(program: str, documentation: str | None) -> argparse.ArgumentParser:
    """A parser for ``program``, described by the first line of its module's ``documentation``."""
    return argparse.ArgumentParser(prog=program, description=(documentation or "").partition("\n")[0])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column begins at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]
