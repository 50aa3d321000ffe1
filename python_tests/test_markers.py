"""The markers choose the tests that they name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.slow
def test_long():
    pass

@pytest.mark.gpu
def test_two_devices():
    pass

@pytest.mark.compile
def test_compiled():
    pass

def test_device(device):
    pass
"""


@pytest.mark.parametrize(
    ("chosen", "passed", "skipped"),
    [("", 2, 1), ("slow or compile", 2, 0), ("not gpu", 2, 0)],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_marker_chooses_and_slow_tests_are_asked_for(pytester: pytest.Pytester, chosen: str, passed: int, skipped: int):
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nmarkers = slow\n    gpu\n    compile\n")
    found = pytester.inline_run("-p", "no:cacheprovider", "-p", "no:xdist", "-m", chosen).listoutcomes()
    assert [len(outcome) for outcome in found] == [passed, skipped, 0]
