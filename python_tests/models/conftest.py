"""Fixtures for tests against the published networks: where the reference files are, and the weights behind them."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the reference files: ``$HMSA_SHARED/reference``, or ``shared/reference`` beside the repository."""
    shared = os.environ.get("HMSA_SHARED") or Path(__file__).resolve().parents[3] / "shared"
    folder = Path(shared) / "reference"
    if not folder.is_dir():
        pytest.skip(
            f"no reference files: {folder} is not a folder; set HMSA_SHARED to the folder that holds 'reference'"
        )
    return folder


@pytest.fixture(autouse=True)
def full_precision_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN from TF32, whose three digits are fewer than these tests compare."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def golden_fill() -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The weights of the golden files for a state dict: each entry drawn from a generator seeded by its name."""
    return _golden_fill


def _golden_fill(state: dict[str, Tensor]) -> dict[str, Tensor]:
    filled = {}
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("running_var"):
            new = torch.rand(value.shape, generator=generator) * 0.5 + 0.75
        elif name.endswith("running_mean"):
            new = torch.randn(value.shape, generator=generator) * 0.1
        elif value.dim() == 4:
            new = torch.randn(value.shape, generator=generator) * (1.2 / value[0].numel()) ** 0.5
        elif name.endswith("weight"):
            new = torch.rand(value.shape, generator=generator) * 0.4 + 0.5
        else:
            new = torch.randn(value.shape, generator=generator) * 0.1
        filled[name] = new
    return filled
