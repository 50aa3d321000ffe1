"""The part of a benchmark run that the repository keeps: facts of the machine and the medians."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Of the processor's flags, those that decide what the kernels can do.
FLAGS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_fp16")
FLAGS += ("amx_tile", "asimd", "sve", "bf16")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def machine() -> dict:
    """What the times depend on. No host names, no paths."""
    from hmsa_ext import info

    facts = info.collect()
    system, library = facts["system"], facts["library"]
    return {
        "processor": system["processor"],
        "flags": [flag for flag in FLAGS if flag in _cpu_flags()],
        "instruction sets": system["instruction sets"],
        "row primitives": system["row primitives"],
        "processors": system["processors"],
        "threads": system["threads"],
        "memory": system["memory"],
        "huge pages": _huge_pages(),
        "glibc": " ".join(platform.libc_ver()),
        "kernel": platform.release(),
        "preloaded": [Path(name).name for name in os.environ.get("LD_PRELOAD", "").split()],  # another allocator?
        "devices": facts["devices"],
        "versions": facts["versions"],
        "compiler": library["compiler"],
        "cxx_flags": library["cxx_flags"],
        "cuda": library["cuda"],
    }


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    found = (value.split() for key, _, value in (line.partition(":") for line in lines) if key.strip() in _FLAG_KEYS)
    return set(next(found, []))


_FLAG_KEYS = ("flags", "Features")  # x86, Arm


def _huge_pages() -> str | None:
    """``always``, ``madvise`` or ``never``."""
    try:
        text = _HUGE_PAGES.read_text(encoding="utf-8")
    except OSError:
        return None
    return text[text.index("[") + 1 : text.index("]")]


def strip(report: dict) -> None:
    """Reduces the report of pytest-benchmark to the facts that tests added and the state of the tree."""
    commit = report.get("commit_info") or {}
    report["commit_info"] = {key: commit.get(key) for key in ("id", "time", "dirty")}
    report["datetime"] = report["datetime"][:10]
    report["benchmarks"] = [
        {
            "name": test["name"],
            "group": test["name"].partition("[")[0].removeprefix("test_"),
            **test["extra_info"],
        }
        for test in report["benchmarks"]
    ]
    report.pop("machine_info_hash", None)
