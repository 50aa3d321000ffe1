"""Benchmarks use as many threads as the machine has cores, and record what machine it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    from hmsa_ext import info

    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    facts = info.collect()
    facts["library"].pop("path", None)  # of this machine alone
    machine_info["hmsa_ext"] = facts
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cores"] = os.cpu_count()
    machine_info["huge_pages"] = huge_pages.read_text().strip() if huge_pages.exists() else None
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
