"""The compiled library and the build that makes it: what it links, and how the build finds torch, nvcc and archs."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools.command.bdist_wheel import bdist_wheel

from hmsa_ext.ops import library
from python_tests.elf_reader import Elf
from python_tests.module_loader import load_module

ROOT = Path(__file__).resolve().parents[1]
# What any Linux with a C++ runtime has, and torch. Older C libraries have rt, pthread and dl as files of their own.
ALLOWED = re.compile(
    r"lib(torch_cpu|c10)\.so|libstdc\+\+\.so\.6|lib(gcc_s\.so\.1|c\.so\.6|m\.so\.6|rt\.so\.1|pthread\.so\.0|dl\.so\.2)"
    r"|ld-linux-.*\.so\.\d"
)


# _build_backend is on sys.path only while a build runs.
build_environment = load_module("build_environment", ROOT / "_build_backend" / "build_environment.py")
backend = load_module("backend", ROOT / "_build_backend" / "backend.py")


# ---- the library ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elf() -> Elf:
    return Elf(library.library_path())


def test_library_needs_only_torch_and_the_system(elf: Elf):
    assert "libtorch_cpu.so" in elf.needed
    assert [name for name in elf.needed if not ALLOWED.fullmatch(name)] == []


def test_library_uses_no_cpp_symbol_of_torch(elf: Elf):
    """The stable ABI is a C interface: a mangled name of at::, c10:: or torch:: would bind it to one torch."""
    wanted = [symbol.name for symbol in elf.symbols if not symbol.defined]
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in wanted)
    assert [name for name in wanted if name.startswith("_Z") and re.search(r"(2at|3c10|5torch|6caffe2)", name)] == []


def test_library_knows_nothing_of_python_and_of_the_cuda_runtime(elf: Elf):
    wanted = [symbol.name for symbol in elf.symbols if not symbol.defined]
    assert [name for name in wanted if re.match(r"_?Py[A-Z_]|cuda[A-Z]|__cuda", name)] == []


def test_library_exports_nothing(elf: Elf):
    assert [symbol.name for symbol in elf.symbols if symbol.defined and symbol.name] == []


def test_library_names_no_folder_of_the_machine_that_built_it(elf: Elf):
    assert b"site-packages" not in elf.data
    assert os.fsencode(ROOT / "csrc") not in elf.data


def test_build_facts_lie_beside_the_library_and_fit_it():
    info = library.build_info()
    assert library.library_path().with_name("_build_info.json").exists()
    assert info["torch_target"] == "2.10"
    assert (info["cuda"] is None) != (info["no_cuda"] is None)
    code = library.library_path().read_bytes()
    assert (b"nv_fatbin" in code) == (info["cuda"] is not None)


# ---- the backend ------------------------------------------------------------------------------------------------


def fake_torch(folder: Path, version: str) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(f"from typing import Optional\n__version__ = '{version}'\n")
    return folder


def test_torch_is_found_without_importing_it_and_old_ones_are_passed_over(tmp_path: Path):
    folders = [
        tmp_path / "empty",
        fake_torch(tmp_path / "old", "2.9.1"),
        fake_torch(tmp_path / "good", "2.13.0+cpu"),
        fake_torch(tmp_path / "later", "2.15.0"),
    ]
    found = build_environment.find_torch(folders)
    assert found == (tmp_path / "good" / "torch", "2.13.0+cpu")
    assert build_environment.find_torch(folders[:2]) is None


def test_development_versions_of_torch_count_as_their_release(tmp_path: Path):
    assert build_environment.find_torch([fake_torch(tmp_path, "2.16.0.dev20261101+cu130")]) is not None


def test_named_torch_folder_overrides_the_search_and_must_be_a_usable_torch(tmp_path: Path, monkeypatch):
    chosen = fake_torch(tmp_path / "chosen", "2.11.0") / "torch"
    monkeypatch.setenv("HMSA_TORCH_DIR", str(chosen))
    assert build_environment.find_torch().directory == chosen
    monkeypatch.setenv("HMSA_TORCH_DIR", str(fake_torch(tmp_path / "old", "2.9.1") / "torch"))
    with pytest.raises(
        RuntimeError, match=r"HMSA_TORCH_DIR: expected .* 2\.10 or newer, got .*old/torch \(torch 2\.9\.1\)"
    ):
        build_environment.find_torch()
    monkeypatch.setenv("HMSA_TORCH_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="no torch"):
        build_environment.find_torch()


def test_build_asks_for_no_second_torch_where_one_is_installed():
    assert [requirement for requirement in backend.missing() if requirement.startswith("torch")] == []


def test_build_asks_for_what_is_missing(monkeypatch):
    monkeypatch.setattr(backend, "find_torch", lambda: None)
    monkeypatch.setattr(backend, "find_tool", lambda name, minimum=(): None)
    assert backend.missing() == ["torch>=2.10", "cmake>=3.25", "ninja"]


def test_tool_that_does_not_run_or_is_too_old_is_passed_over(tmp_path: Path, monkeypatch):
    answers = {"broken": "exit 1", "old": "echo tool version 3.10.2", "good": "echo tool version 3.25.1"}
    for folder, answer in answers.items():
        (tmp_path / folder).mkdir()
        program(tmp_path / folder / "tool", answer)
    monkeypatch.setenv("PATH", os.pathsep.join(str(tmp_path / folder) for folder in answers))
    assert build_environment.find_tool("tool", (3, 25)) == str(tmp_path / "good" / "tool")
    assert build_environment.find_tool("tool", (4, 0)) is None


def test_wheel_is_for_any_python_on_this_platform(monkeypatch):
    monkeypatch.chdir(ROOT)
    from distutils.core import run_setup  # setuptools provides it

    distribution = run_setup("setup.py", stop_after="init")
    wheel = distribution.get_command_obj("bdist_wheel")
    wheel.ensure_finalized()
    assert isinstance(wheel, bdist_wheel)
    python, abi, platform = wheel.get_tag()
    assert (python, abi) == ("py3", "none")
    assert platform != "any"


# ---- the package ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the backend says of the package: ``hmsa_ext-*.dist-info`` and ``hmsa_ext.egg-info``."""
    folder = tmp_path_factory.mktemp("metadata")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        backend.prepare_metadata_for_build_wheel(str(folder))
    return folder


def test_console_script_hmsa_is_a_function_of_the_package(metadata: Path):
    distribution = importlib.metadata.PathDistribution(next(metadata.glob("*.dist-info")))
    (script,) = distribution.entry_points
    assert (script.group, script.name) == ("console_scripts", "hmsa")
    assert callable(script.load())


def test_packages_that_are_imported_are_asked_for(metadata: Path):
    """What the modules of the package import beside the standard library and torch comes with it, or is an extra."""
    distribution = importlib.metadata.PathDistribution(next(metadata.glob("*.dist-info")))
    asked = {re.split(r"[^\w-]", requirement)[0] for requirement in distribution.requires or []}
    names = {"cv2": "opencv-python-headless", "yaml": "pyyaml"}
    imported = set()
    for path in (ROOT / "hmsa_ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"hmsa_ext"}
    assert {"torch", "tyro", "cv2"} <= foreign
    assert {names.get(name, name) for name in foreign} <= asked


def test_source_distribution_has_every_file_of_the_repository(metadata: Path):
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a checkout, and git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {file for file in listed.split("\0") if file and (ROOT / file).exists()}
    packed = set((metadata / "hmsa_ext.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines())
    assert {file for file in tracked - packed if not file.startswith(".git")} == set()


# ---- CMake ------------------------------------------------------------------------------------------------------

FAKE_NVCC = """
case "$1" in
  --version) echo "Cuda compilation tools, release 12.4, V12.4.131" ;;
  --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\n' ;;
  --dryrun) printf '#$ TOP={top}\\n#$ LIBRARIES=  "-L{top}/lib"\\n' >&2 ;;
esac
"""


def program(path: Path, script: str) -> Path:
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(0o755)
    return path


class Configured:
    """Outcome of a CMake configuration: exit status, everything printed (lines joined), the facts it wrote."""

    def __init__(self, build: Path, status: int, text: str) -> None:
        self.status = status
        self.text = " ".join(text.split())
        self.facts = json.loads((build / "hmsa_ext" / "_build_info.json").read_text()) if status == 0 else None


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory):
    """Runs CMake's configuration of the repository with environment variables, in one folder for all tests here."""
    build = tmp_path_factory.mktemp("build")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    torch_dir = build_environment.find_torch().directory
    cmake = shutil.which("cmake", path=tools)
    assert cmake is not None, "pip install cmake"

    def run(**environment: str | Path) -> Configured:
        hidden = ("HMSA_CUDA", "HMSA_CUDA_ARCHS", "CUDACXX", "CUDA_HOME", "CUDA_PATH")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        done = subprocess.run(
            [cmake, "-S", ROOT, "-B", build, "-G", "Ninja", f"-DHMSA_TORCH_DIR={torch_dir}"],
            env=kept | {"PATH": tools} | {name: str(value) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Configured(build, done.returncode, done.stdout)

    return run


@pytest.fixture
def nvcc(tmp_path: Path) -> Path:
    """Answers questions as the nvcc of CUDA 12.4 would, for sm 75, 80 and 90; compiles nothing."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libcudart_static.a").touch()
    return program(tmp_path / "nvcc", FAKE_NVCC.replace("{top}", str(tmp_path)))


def test_missing_nvcc_makes_a_cpu_build_that_says_so(configure, tmp_path: Path):
    done = configure(CUDA_HOME=tmp_path)
    assert "CPU kernels only (nvcc was not found)" in done.text
    assert done.facts["cuda"] is None
    assert done.facts["no_cuda"] == "nvcc was not found"


def test_insisting_on_cuda_without_nvcc_is_an_error_that_says_what_to_install(configure, tmp_path: Path):
    done = configure(CUDA_HOME=tmp_path, HMSA_CUDA="1")
    assert done.status != 0
    for part in ("HMSA_CUDA=1", "nvcc was not found", "CUDA toolkit", "CUDA_HOME", 'pip install "cuda-toolkit[nvcc,'):
        assert part in done.text


def test_cuda_can_be_switched_off(configure, nvcc: Path):
    done = configure(CUDACXX=nvcc, HMSA_CUDA="0")
    assert done.facts["cuda"] is None
    assert done.facts["no_cuda"] == "HMSA_CUDA=0"


def test_other_values_of_the_cuda_switch_are_refused(configure):
    done = configure(HMSA_CUDA="yes")
    assert done.status != 0
    assert "HMSA_CUDA: expected 0, 1 or auto, got 'yes'" in done.text


@pytest.mark.parametrize(
    ("wish", "archs", "ptx"),
    [
        ("", ["80", "90"], ["90"]),  # of 80, 90, 100 and 120 this nvcc knows two
        ("80;90+PTX", ["80", "90"], ["90"]),
        ("7.5 9.0a", ["75", "90a"], []),
        ("75+PTX,80+PTX", ["75", "80"], ["75", "80"]),
    ],
)
def test_cuda_architectures_are_those_asked_for(configure, nvcc: Path, wish: str, archs: list[str], ptx: list[str]):
    done = configure(CUDACXX=nvcc, HMSA_CUDA="1", HMSA_CUDA_ARCHS=wish)
    assert done.status == 0, done.text
    assert done.facts["cuda"]["nvcc"] == "12.4.131"
    assert (done.facts["cuda"]["archs"], done.facts["cuda"]["ptx"]) == (archs, ptx)


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ("hopper", "HMSA_CUDA_ARCHS: expected architectures such as 80;90+PTX, got 'hopper'"),
        ("80;120", "HMSA_CUDA_ARCHS: nvcc 12.4.131 does not know 120; it knows 75, 80, 90"),
    ],
)
def test_cuda_architectures_that_cannot_be_built_are_refused(configure, nvcc: Path, wish: str, complaint: str):
    done = configure(CUDACXX=nvcc, HMSA_CUDA_ARCHS=wish)
    assert done.status != 0
    assert complaint in done.text
