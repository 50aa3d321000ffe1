"""Resident memory of a training on the CPU, step by step, by allocator.

    python -m bench.resident                                    # the main job, 600 steps of each; prints a table
    python -m bench.resident --json resident.json -- --iterations 1300 --config camvid-hierarchical --root CamVid

The allocators are glibc's, whose free memory ``hmsa train`` gives back to the system, the same left as it comes, and
those of other libraries that the system has. What follows ``--`` are flags of ``hmsa train``. Each way trains in a
process of its own, one after the other, on one thread; all compute the same. Resident memory and time of the processor
are read from outside, by /proc of Linux, when a record appears in the log of the run. Other processes on the machine
change the time a little and memory not at all.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import record
from bench.commands import aligned, command_parser
from bench.meters import process_status
from hmsa_ext.engine.logging import METRICS, read_records
from hmsa_ext.files import write_text

WAYS = {"given back": {}, "as it comes": {"MALLOC_ARENA_TEST": "8"}}
"""Environment of each way. The variable has the value that glibc has by itself: a choice of the user, with which
:func:`hmsa_ext.engine.allocator.follow_live_tensors` leaves everything as it is."""
LIBRARIES = ("tcmalloc_minimal", "jemalloc")
"""Allocators that are loaded before the C library where they are installed, each as it comes."""
SECONDS = 0.2
SHOWN = 12
"""Rows of the printed table."""


@dataclass(frozen=True)
class Sample:
    """A moment of a training: steps done, bytes resident then and at most so far, seconds of the processor so far."""

    step: int
    resident: int
    peak: int
    cpu_seconds: float


def ways() -> dict[str, dict[str, str]]:
    """Environment of each way that this system has."""
    files = {name: ctypes.util.find_library(name) for name in LIBRARIES}
    return WAYS | {name: {"LD_PRELOAD": file} for name, file in files.items() if file is not None}


def train(flags: Sequence[str], environment: dict[str, str]) -> list[Sample]:
    """Trains in a new process; a sample for each record of its log."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "hmsa_ext.train", "--threads", "1", *flags, "--output", str(output)]
        own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        with subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                time.sleep(SECONDS)
                done = [r["step"] for r in _records(output) if r["kind"] == "train"]
                if done and (not samples or done[-1] > samples[-1].step):
                    sample = _sample(process.pid, done[-1])
                    samples += [sample] if sample is not None else []
    if process.returncode:
        raise SystemExit(f"the training ended with status {process.returncode}")
    return samples


def _records(run: Path) -> list[dict]:
    try:
        return read_records(run / METRICS)
    except FileNotFoundError:
        return []


def _sample(process: int, step: int) -> Sample | None:
    try:
        resident, peak = (process_status(key, process) for key in ("VmRSS", "VmHWM"))
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, LookupError):  # the process has just ended
        return None
    ticks = int(fields[11]) + int(fields[12])  # utime and stime; the name of the process is cut off
    return Sample(step, resident, peak, ticks / os.sysconf("SC_CLK_TCK"))


def table(found: dict[str, list[Sample]]) -> str:
    """Rows by step: resident and peak MB of each way, and its seconds of the processor."""
    rows = [("step", *(f"{what}, {way}" for way in found for what in ("MB", "peak MB", "s")))]
    steps = sorted(set.intersection(*({s.step for s in samples} for samples in found.values())))
    at = {way: {s.step: s for s in samples} for way, samples in found.items()}
    for step in steps[:: max(1, len(steps) // SHOWN)]:
        cells = [at[way][step] for way in found]
        rows.append((f"{step}", *(
            cell for s in cells for cell in (f"{s.resident / 1e6:.0f}", f"{s.peak / 1e6:.0f}", f"{s.cpu_seconds:.0f}")
        )))  # fmt: skip
    return aligned(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, flags = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = command_parser("python -m bench.resident", __doc__)
    parser.add_argument("--json", metavar="FILE", help="also write all samples as JSON")
    parser.add_argument("--way", action="append", choices=[*WAYS, *LIBRARIES], help="only this one; may be repeated")
    options = parser.parse_args(own)
    if options.json and not Path(options.json).resolve().parent.is_dir():
        parser.error(f"argument --json: there is no folder for {options.json}")
    if not sys.platform.startswith("linux"):
        parser.error(f"resident memory is read from /proc of Linux; this system is {sys.platform}")
    here = ways()
    missing = [way for way in options.way or () if way not in here]
    if missing:
        parser.error(f"argument --way: this system has no library {missing[0]}")
    found = {way: train(flags, here[way]) for way in options.way or here}
    print(table(found))
    if options.json:
        named = [word for word in flags if "/" not in word]  # no paths
        content = {"machine": record.machine(), "flags": named}
        content["samples"] = {way: [asdict(s) for s in samples] for way, samples in found.items()}
        write_text(Path(options.json), json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
