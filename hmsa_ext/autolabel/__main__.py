"""``hmsa autolabel SOURCE ... --model TEACHER --output OUT``, and commands about what it made:

hmsa autolabel report OUT     how sure the teacher is, where it is right, which thresholds keep a precision
hmsa autolabel export OUT     doubtful images for people who correct them, in COCO's or CVAT's formats
hmsa autolabel import OUT     what they corrected
hmsa autolabel merge OUT      one manifest of those of several machines

Each has ``--help``; ``python -m hmsa_ext.autolabel`` is the same. A source of the name of a command is ``./report``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {"report": "report", "export": "exporting", "import": "importing", "merge": "merge"}
"""The module of each command in this package."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, or labels; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else ""
    # Imported when asked for: one command does not pay for what another needs.
    module = importlib.import_module(f"hmsa_ext.autolabel.{COMMANDS.get(name, 'label')}")
    return module.main(arguments[1:] if name in COMMANDS else arguments)


if __name__ == "__main__":
    sys.exit(main())
