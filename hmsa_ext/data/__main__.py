"""Commands about data: ``hmsa data scan | stats``, each with ``--help``; also ``python -m hmsa_ext.data``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import hmsa_ext

COMMANDS = {
    "scan": "look at every file of a data set and list everything that is wrong",
    "stats": "class frequencies, and how they change under class-uniform sampling",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the commands and returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    usage = "\n".join(["usage: hmsa data COMMAND ...", *(f"  {name:<6} {text}" for name, text in COMMANDS.items())])
    if arguments and arguments[0] in COMMANDS:
        # Imported here, so that one command does not load the imports of the other.
        return importlib.import_module(f"hmsa_ext.data.{arguments[0]}").main(arguments[1:])
    if arguments in (["-h"], ["--help"]):
        print(usage)
        return 0
    if arguments == ["--version"]:
        print(f"hmsa_ext {hmsa_ext.__version__}")
        return 0
    got = repr(arguments[0]) if arguments else "none"
    print(f"{usage}\nerror: expected one of {', '.join(COMMANDS)}, got {got}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
