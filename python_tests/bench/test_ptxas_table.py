"""The check of registers and spills in CI, on logs as nvcc writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from python_tests.module_loader import load_module

SCRIPT = Path(__file__).parents[2] / ".ci" / "ptxas_table.py"
pytestmark = pytest.mark.skipif(shutil.which("c++filt") is None, reason="names of kernels are read by c++filt")

ENTRY = """\
ptxas info    : Compiling entry function '{name}' for '{arch}'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {stack} bytes cumulative stack size, {shared} bytes smem
ptxas info    : Compile time = 12.3 ms
ptxas info    : Function properties for _ZN4hmsa6calledEv
    0 bytes stack frame, {called} bytes spill stores, 0 bytes spill loads
"""
FLOAT = "_ZN4hmsa4cuda12_GLOBAL__N_16kernelINS_8BFloat16ELi4EEEvT_"
DOUBLE = "_ZN4hmsa4cuda12_GLOBAL__N_16kernelIdLi4EEEvT_"


@pytest.fixture(scope="module")
def ptxas():
    return load_module("ptxas_table", SCRIPT)


@pytest.fixture
def paths(tmp_path):
    def write(**changes) -> list[str]:
        figures = {"arch": "sm_90", "stack": 0, "stores": 0, "loads": 0, "registers": 64, "shared": 1024, "called": 0}
        figures |= changes
        log = ENTRY.format(name=FLOAT, **figures)
        log += ENTRY.format(name=DOUBLE, **(figures | {"registers": 128, "stores": 40}))
        (tmp_path / "kernel.log").write_text("ptxas info    : 0 bytes gmem\n" + log)
        return ["--limits", str(tmp_path / "limits.json"), str(tmp_path / "kernel.log")]

    return write


def test_arithmetic_is_told_by_template_arguments(ptxas):
    cases = {
        "void a::(anonymous namespace)::k<double, 4>(a::P<double>)": ("k", "double"),
        "void a::(anonymous namespace)::k<a::Half, float>(double*)": ("k", "float"),
        "void a::k<a::Outer<double>, true>(int)": ("k", "double"),
        "a::plain(float*)": ("plain", "float"),
    }
    for demangled, wanted in cases.items():
        assert ptxas.name_and_kind(demangled) == wanted


def test_limits_hold_or_are_named(ptxas, paths, capsys, tmp_path):
    assert ptxas.main(paths()) == 1
    assert "kernel (float arithmetic, sm_90) has no limits" in capsys.readouterr().err
    assert ptxas.main(["--update", *paths()]) == 0
    limits = json.loads((tmp_path / "limits.json").read_text())
    assert limits == {
        "kernel": {"double": {"registers": 128, "spill bytes": 40}, "float": {"registers": 64, "spill bytes": 0}}
    }
    assert ptxas.main(paths()) == 0
    assert ptxas.main(paths(registers=60)) == 0
    capsys.readouterr()
    assert ptxas.main(paths(registers=65)) == 1
    assert "kernel (float arithmetic, sm_90): 65 registers; expected at most 64" in capsys.readouterr().err
    for spill in ("loads", "called"):
        assert ptxas.main(paths(**{spill: 8})) == 1
        assert "kernel (float arithmetic, sm_90): 8 spill bytes; expected at most 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "wanted"),
    [
        ("sm_90", 32, 0, "100 %"),
        ("sm_90", 33, 0, "75 %"),  # 40 registers are given: 1280 for a warp, 51 warps, 6 blocks of 8
        ("sm_90", 64, 0, "50 %"),
        ("sm_90", 80, 272, "37 %"),
        ("sm_90", 255, 0, "12 %"),
        ("sm_80", 32, 40 * 1024, "50 %"),  # 164 KiB hold four blocks
        ("sm_86", 40, 0, "100 %"),
        ("sm_90a", 64, 0, "50 %"),
        ("sm_75", 64, 0, "?"),
    ],
)
def test_occupancy(ptxas, arch, registers, shared, wanted):
    assert ptxas.occupancy(ptxas.Usage(1, registers, 0, 0, shared), arch) == wanted


def test_logs_without_kernels(ptxas, tmp_path, capsys):
    assert ptxas.main([]) == 0
    (tmp_path / "empty.log").write_text("nothing\n")
    assert ptxas.main([str(tmp_path / "empty.log")]) == 1


def test_every_kernel_of_the_project_has_limits(ptxas):
    kernels = set()
    for source in (SCRIPT.parents[1] / "csrc" / "ops" / "cuda").glob("*.cu*"):
        text = source.read_text(encoding="utf-8")
        for part in text.split("__global__")[1:]:
            declarator = part.partition("{")[0]
            words = declarator.replace("__launch_bounds__", "").split("(")
            kernels |= {word.split()[-1] for word in words if word.split() and word.split()[-1].endswith("_kernel")}
    assert kernels
    assert kernels <= json.loads(ptxas.LIMITS.read_text(encoding="utf-8")).keys()
