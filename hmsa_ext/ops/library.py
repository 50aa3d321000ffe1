"""The compiled library ``hmsa_ext/_C.so``: loading it, what it was built for, and which kernels it has.

The library knows nothing of Python and uses torch's stable ABI only, so that one file loads in every torch from 2.10
on, with or without CUDA. ``_build_info.json`` lies beside it; CMake writes both.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import sys
import warnings
from pathlib import Path
from typing import TypedDict

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


class CudaBuild(TypedDict):
    """How the CUDA kernels were built: compute capabilities are written as nvcc writes them, ``"90"`` or ``"90a"``."""

    nvcc: str
    archs: list[str]
    ptx: list[str]
    flags: str


class BuildInfo(TypedDict):
    """What the library was built for, with and from. ``no_cuda`` is the reason where ``cuda`` is None."""

    version: str
    system: str
    torch_headers: str
    torch_target: str
    compiler: str
    cxx_flags: str
    simd: list[str]
    cuda: CudaBuild | None
    no_cuda: str | None


@functools.cache
def load() -> Path:
    """Load the library, which registers the ops ``torch.ops.hmsa.*``; returns its path. Later calls do nothing.

    Raises ImportError that says what the library was built for, what is here and how to rebuild it.
    """
    path = library_path()
    if not path.exists():
        raise ImportError(
            f"hmsa_ext has no compiled library: {path} does not exist. Build it, in the source folder of hmsa_ext, "
            "with: pip install .    (pip install -e . to work on the sources)"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} does not load: {error}\n"
            f"  built: {_described(_read_build_info(path))}\n"
            f"  here:  torch {torch.__version__}, {platform.system()} {platform.machine()}\n"
            f"  rebuild it, in the source folder of hmsa_ext: {_REBUILD}"
        ) from error
    return path


def library_path() -> Path:
    """Where the library is: beside the package.

    ``python -m hmsa_ext...`` in a source folder runs the sources even where the package was installed from them;
    then it is the installed package's library.
    """
    beside = _PACKAGE / "_C.so"
    if not beside.exists() and (_PACKAGE.parent / "csrc").is_dir():
        for distribution in importlib.metadata.distributions(name="hmsa_ext"):
            installed = Path(str(distribution.locate_file("hmsa_ext/_C.so")))
            if installed.exists():
                return installed
    return beside


@functools.cache
def build_info() -> BuildInfo:
    """What the library was built for, with and from. Raises ImportError where there is no library."""
    info = _read_build_info(library_path())
    if info is None:
        raise ImportError(f"no {library_path().with_name('_build_info.json')}: rebuild hmsa_ext with: {_REBUILD}")
    return info


def has_cuda_kernels() -> bool:
    """Whether the library has CUDA kernels, whatever this machine and this torch have."""
    return build_info()["cuda"] is not None


def require_kernels(device: torch.device) -> None:
    """Raise NotImplementedError, with the command that helps, unless the library has kernels that run on ``device``.

    Nothing is checked while ``torch.compile`` traces: what it builds calls the op, and the op answers for itself.
    """
    if device.type == "cpu" or torch.compiler.is_compiling():
        return
    if device.type != "cuda":
        raise NotImplementedError(f"hmsa_ext has kernels for CPU and CUDA, but a tensor is on {device}")
    cuda = build_info()["cuda"]
    if cuda is None:
        raise NotImplementedError(
            f"a tensor is on {device}, but hmsa_ext was built without CUDA kernels ({build_info()['no_cuda']}). "
            f"Build them, in the source folder of hmsa_ext: HMSA_CUDA=1 {_REBUILD}"
        )
    if not torch.cuda.is_available():
        return  # no GPU, no torch with CUDA: only fake tensors can be there
    major, minor = _capability(device.index)
    if not runs_on((major, minor), cuda["archs"], cuda["ptx"]):
        raise NotImplementedError(
            f"{device} has compute capability {major}.{minor}, but the CUDA kernels of hmsa_ext were built for "
            f"{', '.join(cuda['archs'])} (PTX: {', '.join(cuda['ptx']) or 'none'}). Build them for it, in the source "
            f"folder of hmsa_ext: HMSA_CUDA=1 HMSA_CUDA_ARCHS={major}{minor} {_REBUILD}"
        )


def has_kernels(op: str, device: torch.device) -> bool:
    """Whether the library computes ``op`` on ``device``. On CUDA it must (else NotImplementedError says how to build
    it). Devices that it has no kernels for get False and one warning."""
    if device.type in ("cpu", "meta"):
        return True
    if device.type == "cuda":
        require_kernels(device)
        return True
    _say_once(op, device.type)
    return False


@functools.cache
def _say_once(op: str, device_type: str) -> None:
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("hmsa_ext"):
        level, frame = level + 1, frame.f_back  # the warning names the line of the caller outside of the package
    text = f"hmsa_ext has no {op} kernel for {device_type}: running it in plain PyTorch"
    warnings.warn(text, stacklevel=level)


def runs_on(capability: tuple[int, int], archs: list[str], ptx: list[str]) -> bool:
    """Whether a GPU of this compute capability runs machine code for ``archs`` or PTX for ``ptx``.

    Machine code runs on its own and on later minor versions; PTX on everything later; code for ``90a`` on 9.0 only.
    """
    for arch in archs:
        major, minor = _split(arch)
        if capability == (major, minor) or (arch.isdigit() and capability[0] == major and capability[1] >= minor):
            return True
    return any(capability >= _split(arch) if arch.isdigit() else capability == _split(arch) for arch in ptx)


def _split(arch: str) -> tuple[int, int]:
    """``"120a"`` -> ``(12, 0)``."""
    digits = arch.rstrip("af")
    return int(digits[:-1]), int(digits[-1])


@functools.cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _read_build_info(library: Path) -> BuildInfo | None:
    try:
        return json.loads(library.with_name("_build_info.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _described(info: BuildInfo | None) -> str:
    if info is None:
        return "unknown (no _build_info.json beside it)"
    return (
        f"hmsa_ext {info['version']} for torch >= {info['torch_target']} (headers of {info['torch_headers']}), "
        f"{info['system']}, {info['compiler']}, "
        + (f"nvcc {info['cuda']['nvcc']}" if info["cuda"] else f"without CUDA ({info['no_cuda']})")
    )
