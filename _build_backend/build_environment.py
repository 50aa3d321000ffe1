"""What a build finds on this machine: the torch whose headers it uses, and the cmake and ninja that it runs.

Nothing here imports torch, and nothing here compiles: CMakeLists.txt does. Run as a program, this file prints the
folder of the torch that a build would use.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MINIMUM_TORCH = (2, 10)
MINIMUM_CMAKE = (3, 25)


class Torch(NamedTuple):
    """An installed torch: its package folder, and its version as ``torch.__version__`` has it."""

    directory: Path
    version: str


def find_torch(folders: Iterable[str | Path] | None = None) -> Torch | None:
    """The first torch of at least version 2.10 among ``folders`` (default: ``torch_folders()``), or None.

    The library that is built uses the stable ABI only, so that it does not matter which of several it is: it loads in
    every torch from 2.10 on. ``HMSA_TORCH_DIR`` (a folder ``.../site-packages/torch``) overrides the search; a
    RuntimeError says so if that is not a usable torch.
    """
    chosen = os.environ.get("HMSA_TORCH_DIR")
    if folders is None and chosen:
        version = torch_version(Path(chosen))
        if version is None or not usable(version):
            raise RuntimeError(
                f"HMSA_TORCH_DIR: expected the folder of a torch package of version {dotted(MINIMUM_TORCH)} or newer, "
                f"got {chosen} ({'no torch' if version is None else 'torch ' + version})"
            )
        return Torch(Path(chosen).resolve(), version)
    for torch in installed_torches(torch_folders() if folders is None else folders):
        if usable(torch.version):
            return torch
    return None


def torch_folders() -> list[str]:
    """Where an installed torch may lie, most wanted first.

    pip builds in isolation with the user's interpreter and only hides its packages from ``sys.path``. The folders
    that ``sysconfig`` names are therefore still those of the environment that the wheel is for.
    """
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if venv_sees_system_packages():
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        folders += [sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    folders += [folder for folder in sys.path if folder]
    return list(dict.fromkeys(folders))


def installed_torches(folders: Iterable[str | Path]) -> Iterable[Torch]:
    """Every torch package directly in one of ``folders`` that has what a build needs."""
    for folder in folders:
        directory = Path(folder) / "torch"
        version = torch_version(directory)
        if version is not None:
            yield Torch(directory.resolve(), version)


def torch_version(directory: Path) -> str | None:
    """Version of the torch package in ``directory``, read from its text; None where there is none."""
    try:
        text = (directory / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found.group(1) if found else None


def usable(version: str) -> bool:
    """Whether a torch of this version has the stable ABI that the library is built for."""
    return numbers(version) >= MINIMUM_TORCH


def find_tool(name: str, minimum: tuple[int, ...] = ()) -> str | None:
    """Path of the first program ``name`` on PATH that runs and is at least version ``minimum``, or None.

    It has to be tried: the ``cmake`` that pip installs into an environment is a Python script, which cannot import
    its package while pip hides that environment for an isolated build.
    """
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        program = shutil.which(name, path=folder)
        if program is None:
            continue
        try:
            answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        found = re.search(r"\d+(\.\d+)+", answer.stdout)
        if answer.returncode == 0 and found and numbers(found.group(0)) >= minimum:
            return program
    return None


def venv_sees_system_packages() -> bool:
    """Whether the interpreter is that of a virtual environment made with ``--system-site-packages``."""
    try:
        text = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^include-system-site-packages\s*=\s*true", text, re.MULTILINE | re.IGNORECASE) is not None


def numbers(version: str) -> tuple[int, ...]:
    """``"2.13.0+cpu"`` -> ``(2, 13, 0)``."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group(0).split(".")) if release else ()


def dotted(version: tuple[int, ...]) -> str:
    """``(2, 10)`` -> ``"2.10"``."""
    return ".".join(str(part) for part in version)


def main() -> int:
    torch = find_torch()
    if torch is None:
        print(f"no torch >= {dotted(MINIMUM_TORCH)} beside {sys.executable}", file=sys.stderr)
        return 1
    print(torch.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
