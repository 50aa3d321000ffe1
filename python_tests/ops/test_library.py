"""Loading the compiled library: where it is looked for, what errors say, which GPUs its kernels run on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hmsa_ext.ops import library


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    """An empty package folder in place of the real one."""
    folder = tmp_path / "hmsa_ext"
    folder.mkdir()
    monkeypatch.setattr(library, "_PACKAGE", folder)
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    monkeypatch.setattr(library, "build_info", library.build_info.__wrapped__)
    return folder


@pytest.fixture
def cuda_build(monkeypatch):
    """Gives the library CUDA kernels for sm 80 and 90 with PTX for 90, on a machine whose GPU is as the test says."""
    cuda = {"nvcc": "13.0.88", "archs": ["80", "90"], "ptx": ["90"], "flags": ""}
    facts = library.build_info() | {"cuda": cuda, "no_cuda": None}
    monkeypatch.setattr(library, "build_info", lambda: facts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def with_gpu(*capability: int) -> None:
        monkeypatch.setattr(library, "_capability", lambda index: capability)

    return with_gpu


def test_missing_library_is_explained(package: Path):
    with pytest.raises(ImportError, match=r"hmsa_ext has no compiled library: .*_C\.so does not exist.*pip install \."):
        library.load()


def test_library_that_does_not_load_says_what_it_was_built_for_and_what_is_here(package: Path, monkeypatch):
    with monkeypatch.context() as real:
        real.setattr(library, "_PACKAGE", Path(library.__file__).resolve().parents[1])
        facts = library.build_info()
    (package / "_build_info.json").write_text(json.dumps(facts))
    (package / "_C.so").write_bytes(b"not a library")
    with pytest.raises(ImportError) as caught:
        library.load()
    text = str(caught.value)
    assert "_C.so does not load" in text
    assert f"for torch >= 2.10 (headers of {facts['torch_headers']})" in text
    assert f"torch {torch.__version__}" in text
    assert "pip install --no-build-isolation --force-reinstall --no-deps ." in text


def test_sources_use_the_library_of_the_installed_package(package: Path, tmp_path: Path, monkeypatch):
    """``python -m hmsa_ext.train`` in a clone, after ``pip install .`` from it."""
    installed = tmp_path / "site-packages"
    (installed / "hmsa_ext").mkdir(parents=True)
    (installed / "hmsa_ext" / "_C.so").touch()
    stale = SimpleNamespace(locate_file=lambda name: tmp_path / "elsewhere" / name)
    real = SimpleNamespace(locate_file=lambda name: installed / name)
    monkeypatch.setattr(library.importlib.metadata, "distributions", lambda name: [stale, real])
    assert library.library_path() == package / "_C.so"  # not a source folder: no csrc beside the package
    (tmp_path / "csrc").mkdir()
    assert library.library_path() == installed / "hmsa_ext" / "_C.so"
    (package / "_C.so").touch()
    assert library.library_path() == package / "_C.so"


def test_cuda_tensor_in_a_cpu_build_names_the_command_that_helps(monkeypatch):
    facts = library.build_info() | {"cuda": None, "no_cuda": "nvcc was not found"}
    monkeypatch.setattr(library, "build_info", lambda: facts)
    assert not library.has_cuda_kernels()
    with pytest.raises(
        NotImplementedError, match=r"cuda:0, but .* without CUDA kernels \(nvcc was not found\).*HMSA_CUDA=1"
    ):
        library.require_kernels(torch.device("cuda", 0))


def test_gpu_that_the_kernels_were_not_built_for_names_the_command_that_helps(cuda_build):
    cuda_build(7, 5)
    with pytest.raises(
        NotImplementedError, match=r"compute capability 7\.5, .* 80, 90 .*HMSA_CUDA_ARCHS=75 pip install"
    ):
        library.require_kernels(torch.device("cuda", 0))


def test_gpu_that_the_kernels_were_built_for_is_accepted(cuda_build):
    cuda_build(9, 0)
    assert library.has_cuda_kernels()
    library.require_kernels(torch.device("cuda", 0))


def test_cpu_has_kernels_and_other_devices_do_not():
    library.require_kernels(torch.device("cpu"))
    with pytest.raises(NotImplementedError, match="mps"):
        library.require_kernels(torch.device("mps"))


@pytest.mark.parametrize(
    ("capability", "archs", "ptx", "runs"),
    [
        ((9, 0), ["80", "90"], [], True),
        ((8, 6), ["80"], [], True),  # a later minor version of the same major one
        ((8, 0), ["86"], [], False),
        ((9, 0), ["80"], [], False),  # machine code does not cross major versions
        ((9, 0), ["80"], ["80"], True),  # PTX does
        ((7, 5), ["80"], ["80"], False),
        ((9, 0), ["90a"], [], True),
        ((10, 0), ["90a"], ["90a"], False),  # code for 90a is for 9.0 alone
        ((12, 1), ["120"], [], True),
    ],
)
def test_kernels_run_on_gpus_as_cuda_promises(capability, archs, ptx, runs):
    assert library.runs_on(capability, archs, ptx) == runs
