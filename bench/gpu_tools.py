"""Command lines of NVIDIA's tools, and readers of their output."""

from __future__ import annotations

import csv
import glob
import io
import re
import shutil
from collections.abc import Iterable, Sequence

# Of Nsight Compute: few, so that a kernel is run again once or twice only.
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "bytes_read",
    "dram__bytes_write.sum": "bytes_written",
    "smsp__inst_executed.sum": "warp_instructions",
    "smsp__thread_inst_executed.sum": "thread_instructions",
    "smsp__issue_active.avg.per_cycle_active": "issued_per_cycle",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_active_percent",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "shared_wavefronts",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads",
    "launch__occupancy_limit_shared_mem": "blocks_by_shared_memory",
    "launch__shared_mem_per_block_dynamic": "dynamic_shared_bytes",
    "launch__shared_mem_per_block_static": "static_shared_bytes",
}
FEWER = tuple(METRICS)[:5]  # where this version does not know one of them
MARKER = "spin_kernel"  # of torch.cuda._sleep: the kernels behind it are those of the next call
_UNITS = {  # of the raw page, which scales large values
    **{"nsecond": 1, "ns": 1, "usecond": 1e3, "us": 1e3, "msecond": 1e6, "ms": 1e6, "second": 1e9, "s": 1e9},
    **{"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "byte/block": 1, "Kbyte/block": 1e3},
}
_ELSEWHERE = {
    "ncu": ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu"),
    "compute-sanitizer": ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/*/compute-sanitizer"),
}


def find(tool: str) -> str | None:
    """The tool on PATH, or where NVIDIA's packages put it."""
    return shutil.which(tool) or next((path for place in _ELSEWHERE[tool] for path in sorted(glob.glob(place))), None)


def ncu(program: Sequence[str], metrics: Iterable[str] = METRICS, tool: str = "ncu") -> list[str]:
    """What profiles the calls that ``program`` marks; the clocks are left as they are."""
    return [
        *(tool, "--profile-from-start", "off", "--clock-control", "none", "--target-processes", "all"),
        *("--metrics", ",".join(metrics), "--csv", "--page", "raw", "--print-units", "base"),
        *program,
    ]


def sanitizer(name: str, program: Sequence[str], tool: str = "compute-sanitizer") -> list[str]:
    """``name``: memcheck or racecheck. Only kernels of this package are looked at: PyTorch's would take most of the
    time. The options are those of the versions 2025.3 and 2026.4."""
    return [
        *(tool, "--tool", name, "--error-exitcode", "9", "--print-limit", "20"),
        *("--kernel-name", f"kns={KERNELS}", "--target-processes", "all"),
        *program,
    ]


KERNELS = "hmsa"  # part of the mangled name of each kernel of this package


def read_ncu(text: str, cases: Sequence[str]) -> Iterable[dict]:
    """A dict for each kernel of the raw page as CSV, whatever the tool and the program print around it.

    ``cases`` names the calls in their order: each begins with the marker's kernel.
    """
    lines = text.splitlines()
    header = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        return
    rows = list(csv.DictReader(io.StringIO("\n".join(line for line in lines[header:] if line.startswith('"')))))
    units, call = rows[0] if rows else {}, -1
    for row in rows[1:]:
        kernel = row.get("Kernel Name", "")
        if MARKER in kernel:
            call += 1
            continue
        figures = {name: _number(row.get(metric), units.get(metric)) for metric, name in METRICS.items()}
        case = cases[call] if 0 <= call < len(cases) else None
        yield {"case": case, "kernel": short_name(kernel), **figures}


def short_name(kernel: str) -> str:
    """The name of a kernel without what it takes, its template's arguments included."""
    name = kernel.split("(anonymous namespace)::")[-1] if "(anonymous namespace)::" in kernel else kernel
    return re.split(r"[<(]", re.sub(r"^void ", "", name))[0]


def _number(value: str | None, unit: str | None) -> float | None:
    try:
        return float((value or "").replace(",", "")) * _UNITS.get(unit or "", 1)
    except ValueError:
        return None


def read_sanitizer(text: str) -> dict:
    """Its summary, None where it was ended before it wrote one, and the first lines of what it found."""
    said = [line for line in text.splitlines() if line.startswith("=========")]
    summary = next((line for line in reversed(said) if "SUMMARY" in line), None)
    found = [line.strip("= ") for line in said if "SUMMARY" not in line and line.strip("= ")]
    if summary is None:
        return {"summary": None, "errors": None, "found": found[:30]}
    errors = re.search(r"(\d+) (?:error|hazard)", summary)
    return {"summary": summary.strip("= "), "errors": int(errors[1]) if errors else None, "found": found[:30]}
