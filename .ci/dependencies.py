"""Prints the packages that the project and its tests import, one requirement a line, from pyproject.toml."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

try:
    tomllib = importlib.import_module("tomllib")
except ImportError:  # Python 3.10
    tomllib = importlib.import_module("pip._vendor.tomli")

text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
project = tomllib.loads(text)["project"]
requirements = [*project["dependencies"], *project["optional-dependencies"]["test"]]
# The torch of a check is chosen by the check; cmake and ninja are programs.
print("\n".join(r for r in requirements if re.split(r"[^\w-]", r)[0] not in ("torch", "cmake", "ninja")))
