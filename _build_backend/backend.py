"""PEP 517 build backend: setuptools, which asks for torch, cmake and ninja only where they are missing.

Naming torch in ``[build-system] requires`` would make every isolated build download a second torch of several
gigabytes. The library is built against the stable ABI, so any torch will do, and the one that is installed is best.
"""

from __future__ import annotations

from build_environment import MINIMUM_CMAKE, MINIMUM_TORCH, dotted, find_tool, find_torch
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    """What a wheel build needs that is not here."""
    return build_meta.get_requires_for_build_wheel(config_settings) + missing()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    """What an editable build needs that is not here."""
    return build_meta.get_requires_for_build_editable(config_settings) + missing()


def missing() -> list[str]:
    """Requirements, beyond setuptools, that this machine does not meet yet."""
    requirements = []
    if find_torch() is None:
        requirements.append(f"torch>={dotted(MINIMUM_TORCH)}")
    if find_tool("cmake", MINIMUM_CMAKE) is None:
        requirements.append(f"cmake>={dotted(MINIMUM_CMAKE)}")
    if find_tool("ninja") is None:
        requirements.append("ninja")
    return requirements
