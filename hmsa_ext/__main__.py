"""``hmsa COMMAND ...``, also ``python -m hmsa_ext COMMAND ...``: every command of the package by one name."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import hmsa_ext

COMMANDS = {
    "train": ("hmsa_ext.train", "train a model, evaluate it and draw what it does"),
    "evaluate": ("hmsa_ext.evaluate", "score a model at several scales"),
    "predict": ("hmsa_ext.predict", "labels and pictures of photos, folders and videos"),
    "autolabel": (
        "hmsa_ext.autolabel.__main__",
        "labels of unlabelled images for training, their report, and their review",
    ),
    "data": ("hmsa_ext.data.__main__", "data scan: what is wrong with a data set; data stats: how often classes occur"),
    "info": ("hmsa_ext.info", "versions, what was built, devices, kernels"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    lines = ["usage: hmsa COMMAND ...", *(f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items())]
    lines.append("hmsa COMMAND --help shows the options of a command, hmsa --version the version.")
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        # Imported when asked for: one command does not pay for what another needs.
        return importlib.import_module(COMMANDS[name][0]).main(arguments[1:])
    if name in ("-h", "--help"):
        print("\n".join(lines))
        return 0
    if name == "--version":
        print(f"hmsa_ext {hmsa_ext.__version__}")
        return 0
    close = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    print(
        "\n".join([*lines, f"error: got {name or 'no command'!r}, expected one of {', '.join(COMMANDS)}{hint}"]),
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
