"""Packaging: calls CMake (CMakeLists.txt knows how to compile) and makes a wheel that no Python version is bound to.

Environment: HMSA_CUDA (0, 1 or auto), HMSA_CUDA_ARCHS (such as "80;90+PTX"), HMSA_TORCH_DIR, HMSA_BUILD_DIR (the folder
of CMake's build; build/cmake), CXX, CUDA_HOME, MAX_JOBS.
Everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build_backend"))
from build_environment import MINIMUM_CMAKE, MINIMUM_TORCH, dotted, find_tool, find_torch  # noqa: E402

BUILD_INFO = "_build_info.json"


class CMakeBuild(build_ext):
    """Builds ``hmsa_ext/_C.so`` and ``hmsa_ext/_build_info.json`` with CMake, incrementally."""

    def build_extension(self, ext: Extension) -> None:
        built = compile_library(ROOT / (os.environ.get("HMSA_BUILD_DIR") or "build/cmake"))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(built / target.name, target)
        replace_file(built / BUILD_INFO, target.parent / BUILD_INFO)
        print(banner(json.loads((built / BUILD_INFO).read_text(encoding="utf-8"))), flush=True)

    def copy_extensions_to_source(self) -> None:
        """Editable installs: the library and its build facts go beside the sources."""
        package = self.package_among_sources()
        for built in map(Path, self.get_outputs()):
            replace_file(built, package / built.name)

    def get_ext_filename(self, fullname: str) -> str:
        """No Python ABI in the name: the library does not know Python, torch loads it."""
        return str(Path(*fullname.split("."))) + ".so"

    def get_outputs(self) -> list[str]:
        libraries = [Path(self.build_lib, self.get_ext_filename(ext.name)) for ext in self.extensions]
        return [str(path) for library in libraries for path in (library, library.with_name(BUILD_INFO))]

    def get_output_mapping(self) -> dict[str, str]:
        package = self.package_among_sources()
        return {output: str(package / Path(output).name) for output in self.get_outputs()} if self.inplace else {}

    def package_among_sources(self) -> Path:
        """The folder of hmsa_ext that ``build_py`` takes the Python files from."""
        command = self.get_finalized_command("build_py")
        assert isinstance(command, build_py)
        return Path(command.get_package_dir("hmsa_ext"))


class CleanBuildPy(build_py):
    """``build/lib`` outlives a build; without this, files that were deleted since would still get into the wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "hmsa_ext", ignore_errors=True)
        super().run()


class AnyPythonWheel(bdist_wheel):
    """``py3-none-<platform>``: compiled code inside, but none of it uses the Python C API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def compile_library(build: Path) -> Path:
    """Configure and build with CMake; returns the folder of the result."""
    torch = find_torch()
    if torch is None:
        raise SystemExit(
            f"hmsa_ext: no torch >= {dotted(MINIMUM_TORCH)} was found beside {sys.executable}. Install one first, "
            "or leave out --no-build-isolation, or set HMSA_TORCH_DIR to the folder of a torch package."
        )
    cmake = find_tool("cmake", MINIMUM_CMAKE)
    ninja = find_tool("ninja")
    if cmake is None or ninja is None:
        raise SystemExit(
            f"hmsa_ext: the build needs cmake >= {dotted(MINIMUM_CMAKE)} and ninja on PATH: pip install cmake ninja"
        )
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,  # always: the one of the last isolated build is gone
        "HMSA_BUILD_TESTS": "OFF",
        "HMSA_TORCH_DIR": str(torch.directory),
        "HMSA_CUDA": os.environ.get("HMSA_CUDA", ""),
        "HMSA_CUDA_ARCHS": os.environ.get("HMSA_CUDA_ARCHS", ""),
    }
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    run(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *definitions)
    run(cmake, "--build", str(build), "--target", "_C", "--parallel", str(jobs()))
    return build / "hmsa_ext"


def run(*command: str) -> None:
    """Run a build step; a failure ends the build with the command, below what the step printed."""
    sys.stdout.flush()
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise SystemExit(f"hmsa_ext: the build failed (exit status {status}): {' '.join(command)}")


def jobs() -> int:
    """Compilers at a time: MAX_JOBS, or one per processor that this process may use."""
    wish = os.environ.get("MAX_JOBS", "")
    if wish:
        if not wish.isdigit() or int(wish) < 1:
            raise SystemExit(f"MAX_JOBS: expected a positive number, got {wish!r}")
        return int(wish)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def replace_file(source: Path, target: Path) -> None:
    """Copy, then rename: processes that have the old library loaded keep it whole."""
    copy = target.with_name(target.name + ".new")
    shutil.copyfile(source, copy)
    copy.chmod(0o755 if target.suffix == ".so" else 0o644)
    os.replace(copy, target)


def banner(info: dict) -> str:
    """One line that describes the build."""
    kernels = f"CPU kernels ({', '.join(info['simd'])})"
    if info["cuda"] is None:
        kernels += f", no CUDA kernels ({info['no_cuda']}; HMSA_CUDA=1 insists on them)"
    else:
        cuda = info["cuda"]
        kernels += (
            f" and CUDA kernels (sm {', '.join(cuda['archs'])}; PTX {', '.join(cuda['ptx'])}; nvcc {cuda['nvcc']})"
        )
    return (
        f"hmsa_ext {info['version']}: {kernels}, {info['compiler']}, "
        f"headers of torch {info['torch_headers']}, for torch >= {info['torch_target']}"
    )


setup(
    ext_modules=[Extension("hmsa_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": CleanBuildPy, "bdist_wheel": AnyPythonWheel},
)
