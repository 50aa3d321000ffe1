"""Prints what pyproject.toml asks for, one requirement a line: the dependencies and those of the extra ``test``."""

from __future__ import annotations

import importlib
from pathlib import Path

try:
    tomllib = importlib.import_module("tomllib")
except ImportError:  # Python 3.10
    tomllib = importlib.import_module("pip._vendor.tomli")

text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
project = tomllib.loads(text)["project"]
requirements = [*project["dependencies"], *project["optional-dependencies"]["test"]]
print("\n".join(r for r in requirements if not r.startswith("torch>=")))  # one torch is there already
