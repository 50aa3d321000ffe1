"""Shared by the commands: the data set that a command line names, flags of other data sets, and an older flag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hmsa_ext import command_line
from hmsa_ext.data.by_name import NAMES, source_type
from hmsa_ext.data.settings import options_of_others


def required_data(arguments: Sequence[str], command: str) -> str:
    """The name of the data set on a command line about data, which has no default; "folder" to show the help of.

    Raises :class:`hmsa_ext.command_line.UsageError` without one.
    """
    name = command_line.peek(arguments, "data")
    if name is None:
        if not {"--help", "-h", "--version"} & set(arguments):
            names = [known for known in NAMES if command != "scan" or hasattr(source_type(known), "find")]
            raise command_line.UsageError(f"{command}: expected --data NAME, one of {', '.join(names)}; got none")
        name = "folder"
    return name


def older_version(value: str) -> list[str] | None:
    """The flag ``--version`` as it was: that of the labels of mapillary, when a version follows it."""
    return ["--vistas-version", value] if value.removeprefix("v") in ("1.2", "2.0") else None


def older_length(arguments: Sequence[str], default: str = "train") -> dict[str, Any]:
    """What ``--length`` was: the number of images of the split that a command is about, whichever it is."""
    if (command_line.peek(arguments, "split") or default) == "train":
        return {}
    return {"length": lambda value: ["--val-length", value]}


def flags_of_others(name: Any) -> dict[str, str]:
    """Flags that only other data sets have, each with the text of the error; for :func:`command_line.parse`."""
    return {option.replace("_", "-"): text for option, text in options_of_others(name).items()}
