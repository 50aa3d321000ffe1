"""Runs the parts of a GPU run in the order of their worth, each within its limit and all within theirs: bench/gpu.sh.

A part is a command in a process group of its own, which is ended as a whole when its time is up. What it printed is in
the log; its figures it appends to the file of JSON lines by itself. How it ended is a line there, too; so is a part for
which no time was left.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.commands import aligned, command_parser
from bench.json_lines import JsonLines

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 520  # of a run: device time comes in commands of ten minutes
GRACE = 3.0  # seconds between asking a part to end and ending it


@dataclasses.dataclass(frozen=True)
class Part:
    """``seconds``: its limit. ``least``: with less than that left it is not begun. ``asked``: only when named."""

    name: str
    seconds: int
    least: int
    command: Callable[[Run], list[str]]
    asked: bool = False
    environment: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass
class Run:
    """Where the results go, and whether it is a dry run."""

    lines: JsonLines
    stem: Path  # the files' names begin with it
    dry: bool

    def file(self, ending: str) -> str:
        return f"{self.stem}-{ending}"

    def module(self, name: str, *arguments: str) -> list[str]:
        dry = ["--dry"] if self.dry else []
        return [sys.executable, "-m", f"bench.{name}", "--lines", str(self.lines.path), *arguments, *dry]


def _tests(run: Run) -> list[str]:
    device, where, workers = "cuda", ["python_tests"], "8"
    if run.dry:
        device, workers = "cpu", "2"
        where = ["python_tests/ops/test_confusion_matrix.py", "-k", "any_shape or values_outside"]
    command = [sys.executable, "-m", "pytest", *where, "-p", "bench.pytest_lines", "--lines", str(run.lines.path)]
    command += ["--only-device", device, "-n", workers, "-q", "--timeout", "60", "--timeout-method", "thread"]
    return [*command, "-p", "no:cacheprovider", "-p", "no:benchmark", f"--junitxml={run.file('tests.xml')}"]


def _loader(run: Run) -> list[str]:
    workers, device = ("1", "cpu") if run.dry else ("8", "cuda")
    return [
        *(sys.executable, "-m", "bench.loader", "--workers", workers, "--device", device),
        *("--json", run.file("loader.json")),
    ]


def _benchmarks(run: Run) -> list[str]:
    return [
        *(sys.executable, "-m", "pytest", "bench", "-k", "cpu and bfloat16-forward" if run.dry else "cuda"),
        *("--bench-size", "64x128" if run.dry else "1024x2048", f"--benchmark-json={run.file('benchmarks.json')}"),
    ]


# Eight processes compute references on the CPU at a time: more threads than cores would get in each other's way.
_FEW_THREADS = (("OMP_NUM_THREADS", "2"),)
# Most valuable first. The limits add up to more than a run has: most parts end early and leave time to the others.
PARTS = (
    Part("checks", 120, 20, lambda run: run.module("gpu_checks"), environment=_FEW_THREADS),
    Part("times", 150, 20, lambda run: run.module("gpu_times")),
    Part("tests", 150, 30, _tests, environment=_FEW_THREADS),
    Part("memory", 70, 25, lambda run: run.module("gpu_memory")),
    Part("ncu", 80, 25, lambda run: run.module("gpu_profile", "ncu", "--output", run.file("ncu.csv"))),
    Part("memcheck", 80, 25, lambda run: run.module("gpu_profile", "memcheck")),
    Part("racecheck", 80, 25, lambda run: run.module("gpu_profile", "racecheck")),
    Part("compile", 120, 30, lambda run: run.module("gpu_times", "--suite", "compile")),
    Part("memory_compile", 480, 120, lambda run: run.module("gpu_memory", "--suite", "compile"), asked=True),
    Part("benchmarks", 480, 60, _benchmarks, asked=True),
    Part("loader", 120, 30, _loader, asked=True),
)


def main() -> int:
    parser = command_parser("bench/gpu.sh", __doc__)
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS], help="this part (repeatable)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="the same on the CPU, tiny, without a GPU's tools")
    parser.add_argument("--list", action="store_true", help="print the parts and their limits")
    parser.add_argument("--build", action="store_true", help="compile for a GPU elsewhere; takes no other argument")
    parser.add_argument("--started", type=float, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--only-check-arguments", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        parser.error("argument --build: expected alone, with no other argument")
    if not 0 < options.seconds < math.inf:
        parser.error(f"argument --seconds: expected more than 0, got {options.seconds:g}")
    if options.only_check_arguments:
        return 0
    if options.list:
        note = {True: "only when it is named", False: ""}
        print(aligned([(part.name, f"{part.seconds} s", note[part.asked]) for part in PARTS]))
        return 0
    until = time.monotonic() + options.seconds - (time.time() - (options.started or time.time()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part in course is ended as well
    chosen = [part for part in PARTS if part.name in options.part] if options.part else standard()
    run = begin(options.dry)
    whole = run_parts(chosen, run, until)
    subprocess.run([sys.executable, "-m", "bench.gpu_report", str(run.lines.path)], cwd=ROOT, check=False)
    return 0 if whole else 1


def standard() -> list[Part]:
    return [part for part in PARTS if not part.asked]


def begin(dry: bool) -> Run:
    """Opens the files and writes the first line. Exits where there is nothing to measure with."""
    folder = Path(os.environ.get("OUT") or ROOT / ("build/gpu-dry" if dry else "bench/results"))
    folder.mkdir(parents=True, exist_ok=True)
    # In a process of its own: this one never imports torch, so that no CUDA context of its own lies on the card.
    program = "import json; from bench import gpu_machine as m; "
    program += f"print('\\n' + json.dumps([m.stem({dry}), m.facts()]))"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        sys.exit(f"{found.stderr}\nbench/gpu.sh: no GPU that torch can use, or no library that loads: see above")
    machine, facts = json.loads(found.stdout.splitlines()[-1])
    stem = folder / f"{datetime.date.today().isoformat()}-{machine}"
    run = Run(JsonLines(f"{stem}-gpu.jsonl"), stem, dry)
    run.lines.append("run", time=datetime.datetime.now().isoformat(timespec="seconds"), dry=dry, **facts)
    library = facts["library"]
    print(f"results: {run.lines.path.name}; commit {facts['commit']}; library of {library['commit']}", flush=True)
    if library["built_from_these_sources"] is False:
        print("WARNING: the library was built from other sources than those here", flush=True)
    return run


def run_parts(parts: list[Part], run: Run, until: float) -> bool:
    """Whether every part ran and ended well. ``until`` is of ``time.monotonic()``."""
    ends = {}
    for part in parts:
        left = until - time.monotonic()
        if left < part.least:
            ends[part.name] = ("skipped", 0.0)
            why = f"{max(left, 0):.0f} s were left, it needs {part.least}"
            run.lines.append("part", name=part.name, end="skipped", why=why)
            print(f"=== {part.name}: skipped, {why}", flush=True)
            continue
        ends[part.name] = run_part(part, run, min(part.seconds, left))
    print("\n" + aligned([(name, end, f"{seconds:.1f} s") for name, (end, seconds) in ends.items()]))
    return all(end == "passed" for end, _ in ends.values())


def run_part(part: Part, run: Run, seconds: float) -> tuple[str, float]:
    """How the part ended, and after how long."""
    command = part.command(run)
    print(f"\n=== {part.name}, at most {seconds:.0f} s", flush=True)
    run.lines.append("part", name=part.name, end="began", limit_s=round(seconds, 1))
    started = time.monotonic()
    # On so small tensors a second thread only waits for its turn.
    environment = {"OMP_NUM_THREADS": "1"} if run.dry else dict(part.environment)
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with open(run.file("gpu.log"), "ab") as log:
        log.write(f"\n=== {part.name}\n".encode())
        reader = threading.Thread(target=_tee, args=(child.stdout, log), daemon=True)
        reader.start()
        try:
            status: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
            reader.join(GRACE)
    took = time.monotonic() - started
    end = "out of time" if status is None else "passed" if status == 0 else f"failed, status {status}"
    run.lines.append("part", name=part.name, end=end, status=status, seconds=round(took, 1))
    return end, took


def _tee(source, log) -> None:
    for line in iter(source.readline, b""):
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
        try:
            log.write(line)
            log.flush()
        except ValueError:  # the part is over, and something that it left behind still prints
            return


def _end(child: subprocess.Popen) -> None:
    """Ends the part and everything that it started."""
    for sign, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(child.pid, sign)
        except (ProcessLookupError, PermissionError):
            break
        try:
            child.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    child.poll()


if __name__ == "__main__":
    sys.exit(main())
