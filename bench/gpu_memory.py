"""Memory and time of training steps and evaluations on a GPU: ours, the published formulation, checkpoints.

    python -m bench.gpu_memory --lines FILE                    # HRNet-W48-OCR, 1024x2048, in the order of worth
    python -m bench.gpu_memory --lines FILE --suite compile    # torch.compile of the training step: minutes each

A row is one of bench.memory. ``peak_bytes`` is the most that PyTorch's allocator had handed out
(``torch.cuda.max_memory_allocated``), network and image among it, workspace of libraries too; ``reserved_bytes`` is
what it had taken from the card. Times are of the device, by events around one call.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from typing import Any

import torch

from bench import memory_methods, supervise
from bench.commands import command_parser
from bench.gpu_checks import healthy
from bench.json_lines import JsonLines
from bench.memory_methods import Row

SECONDS = {"memory": 30.0, "compile": 420.0}  # for one row, the process's start included
ROUNDS = 3
SIZE, NETWORK = (1024, 2048), "hrnet_w48_ocr"
DRY_SIZE, DRY_NETWORK = (64, 128), "hrnet_w18_ocr"


def main() -> int:
    parser = command_parser("python -m bench.gpu_memory", __doc__)
    parser.add_argument("--lines", required=True, help="file to append to")
    parser.add_argument("--suite", choices=SECONDS, default="memory")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU, which has no such meter of memory")
    options = parser.parse_args()
    lines, rows = JsonLines(options.lines), suite(options.suite, options.dry)
    names = [row.name for row in rows]
    if options.first is None:
        command = [sys.executable, "-m", "bench.gpu_memory", *sys.argv[1:]]
        bad = []

        def failed(name: str, why: str) -> None:
            bad.append(lines.append("pipeline", name=name, error=why))
            print(f"{name}: {why}", flush=True)

        whole = supervise.supervise(command, names, SECONDS[options.suite], failed)
        return 1 if bad or not whole else 0
    device = "cpu" if options.dry else "cuda"
    named = list(zip(names, rows, strict=True))
    supervise.run_items(named, options.first, lambda row: measure(row, device, lines), lambda: healthy(device))
    return 0


def suite(name: str, dry: bool) -> list[Row]:
    """The rows, most valuable first; in a dry run tiny ones, and none that is compiled."""
    methods = [("training", "all"), ("training", "none"), ("evaluation", "whole"), ("training", "modules")]
    methods += [("training", "published"), ("evaluation", "published"), ("training", "checkpoint")]
    methods += [("evaluation", "tiles")]
    if name == "compile":
        methods = [("training", f"compile-{budget:g}") for budget in memory_methods.BUDGETS[1:]]
    if dry:
        methods = [("training", "all"), ("evaluation", "published")]
    dtypes = memory_methods.DTYPES[:1] if dry or name == "compile" else memory_methods.DTYPES[::-1]
    network, size = (DRY_NETWORK, DRY_SIZE) if dry else (NETWORK, SIZE)
    return [Row(job, method, network, size, dtype) for job, method in methods for dtype in dtypes]


def measure(row: Row, device: str, lines: JsonLines) -> None:
    """Appends what a row takes, or the exception that prevented it."""
    try:
        figures = figures_of(row, device)
    except Exception as error:
        lines.append("pipeline", name=row.name, **row.to_json(), error=f"{type(error).__name__}: {str(error)[:500]}")
        print(f"{row.name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return
    lines.append("pipeline", **row.to_json(), **figures)
    print(f"{row.name}: {figures['ms']:.1f} ms, {figures['peak_bytes'] / 1e9:.2f} GB", flush=True)


def figures_of(row: Row, device: str) -> dict[str, Any]:
    """Milliseconds and bytes of a row, behind one call that warms up; no bytes on the CPU."""
    on_gpu = device == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    work = memory_methods.prepare(row, device)
    with memory_methods.compiling(row):
        begin = time.perf_counter()
        work.run()
        if on_gpu:
            torch.cuda.synchronize()
        first = time.perf_counter() - begin
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        each = [_milliseconds(work, on_gpu) for _ in range(ROUNDS)]
    return {
        "ms": statistics.median(each),
        "rounds_ms": [round(ms, 3) for ms in each],
        "first_call_s": round(first, 3),
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else 0,
    }


def _milliseconds(work: memory_methods.Work, on_gpu: bool) -> float:
    if not on_gpu:
        started = time.perf_counter()
        work.run()
        return 1e3 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work.run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


if __name__ == "__main__":
    sys.exit(main())
