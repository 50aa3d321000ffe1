"""The cases and the workers of the benchmarks, and the facts that a report keeps."""

from __future__ import annotations

import pytest
import torch

from bench import cases, competitors, record
from bench.crew import Crew

CASES = {"test_headline": cases.headline, "test_shape": cases.shapes, "test_end": cases.ends}
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-size",
        type=cases.parse_size,
        default=cases.HEADLINE_SIZE,
        metavar="HxW",
        help="size of the headline's output (1024x2048); those of the table over shapes follow it",
    )
    parser.addoption(
        "--time-crop",
        type=cases.parse_size,
        metavar="HxW",
        help="test_paper_table: crop of the steps that are timed (256x512; on a GPU 512x1024)",
    )
    parser.addoption(
        "--time-rounds",
        type=cases.parse_rounds,
        metavar="N",
        help="test_paper_table: rounds of steps that are timed (3; on a GPU 11); 0: no times, only what is counted",
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    return competitors.left_out("cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    size = metafunc.config.option.bench_size
    chosen = CASES[metafunc.function.__name__](size)
    pairs = [(case, direction) for direction in cases.DIRECTIONS for case in chosen if direction in case.directions]
    ids = [
        f"{case.name}-{direction}" if case.op == "fuse_scales" else f"{case.op}, {case.name}-{direction}"
        for case, direction in pairs
    ]
    metafunc.parametrize(("case", "direction"), pairs, ids=ids)
    metafunc.parametrize("crew", DEVICES, indirect=True, scope="session")


@pytest.fixture(scope="session")
def crew(request: pytest.FixtureRequest):
    workers = Crew(request.param)
    yield workers
    workers.close()


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info.clear()
    machine_info.update(record.machine())


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    record.strip(output_json)
