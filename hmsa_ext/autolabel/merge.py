"""Makes one manifest of those of several machines that shared the work; images whose labels are gone are left out.

    hmsa autolabel merge OUT

Bring the folders of the machines together first: their files never collide. (report, export and train read several
manifests as they are; this command is for what they refuse, and to have one file.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from hmsa_ext import command_line
from hmsa_ext.data.automatic.combining import merge
from hmsa_ext.files import OutputError
from hmsa_ext.settings import Positional

PROG = "hmsa autolabel merge"


@dataclass(frozen=True)
class Merge:
    """The folder of automatic labels."""

    folder: Annotated[str | None, Positional("OUT")] = None
    """Folder of automatic labels."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    command = command_line.parse(Merge(), arguments, prog=PROG, description=__doc__ or "")
    assert command.folder is not None
    try:
        manifest = merge(command.folder)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"folder: {command.folder}: the manifest cannot be written: {error}") from error
    print(f"{manifest.folder}: one manifest of {len(manifest.records)} images")
    return 0
