"""Of pytest: the tests of one device, each failure appended to a file of JSON lines as it happens.

    python -m pytest python_tests -p bench.pytest_lines --lines FILE --only-device cuda -n 8

JUnit's file is written when everything is over, which a kill prevents. A worker whose CUDA context was spoilt by an
illegal access ends itself behind the test, so that pytest-xdist replaces it and the tests behind it are not blamed.
"""

from __future__ import annotations

import os
import sys
import time

import pytest

from bench.json_lines import JsonLines

EVERY = 100  # tests between two lines that say how far the run is


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lines", help="file of JSON lines to append to")
    parser.addoption("--only-device", help="run the variants of this device alone")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker())
    elif config.option.lines:
        config.pluginmanager.register(Recorder(JsonLines(config.option.lines)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("--only-device")
    if device:
        chosen = [item for item in items if belongs(item, device)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


def belongs(item: pytest.Item, device: str) -> bool:
    if device == "cuda":
        return item.get_closest_marker("gpu") is not None  # see python_tests/conftest.py
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return str(parameters.get("device")) == device


class Recorder:
    """In the process that talks to the user: it hears of the tests of all workers."""

    def __init__(self, lines: JsonLines) -> None:
        self.lines = lines
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.started = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        self.counts[report.outcome] += 1
        if report.failed:
            why = str(getattr(report.longrepr, "reprcrash", None) or report.longrepr)[-600:]
            self.lines.append("test", name=report.nodeid, when=report.when, ok=False, error=why)
        if sum(self.counts.values()) % EVERY == 0:
            self._tell()

    def pytest_sessionfinish(self) -> None:
        self._tell(finished=True)

    def _tell(self, finished: bool = False) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        self.lines.append("tests", **self.counts, seconds=seconds, finished=finished)


class Worker:
    """In a worker of pytest-xdist."""

    failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        if self.failed and "torch" in sys.modules and _cuda_is_spoilt():
            os._exit(3)
        self.failed = False


def _cuda_is_spoilt() -> bool:
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return False
    try:
        torch.cuda.synchronize()
        return torch.ones(2, device="cuda").sum().item() != 2
    except Exception:
        return True
