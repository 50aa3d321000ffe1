"""Runs NVIDIA's tools over the ops and appends what they found to the file of JSON lines.

    python -m bench.gpu_profile ncu --lines FILE --output FILE.csv
    python -m bench.gpu_profile memcheck --lines FILE
    python -m bench.gpu_profile racecheck --lines FILE

In a dry run the tool's command line is written down, and the program that it would watch runs without it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import gpu_times, gpu_tools
from bench.commands import command_parser
from bench.json_lines import JsonLines


def main() -> int:
    parser = command_parser("python -m bench.gpu_profile", __doc__)
    parser.add_argument("tool", choices=("ncu", "memcheck", "racecheck"))
    parser.add_argument("--lines", required=True, help="file to append to")
    parser.add_argument("--output", type=Path, help="file for what ncu prints")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    program = "ncu" if options.tool == "ncu" else "compute-sanitizer"
    path = gpu_tools.find(program)
    if path is None and not options.dry:
        JsonLines(options.lines).append("tool", name=options.tool, error=f"{program} was not found")
        print(f"{program} was not found", flush=True)
        return 127
    tool = path or program
    return profile(options, tool) if options.tool == "ncu" else sanitize(options, tool)


def profile(options: argparse.Namespace, tool: str) -> int:
    """One process for each group of calls: what a kill ends is one group."""
    lines, whole = JsonLines(options.lines), True
    for group in gpu_times.PROFILES:
        program = [sys.executable, "-m", "bench.gpu_times", "--suite", "profile", "--group", group]
        program += ["--lines", options.lines]
        cases = [item.name for item in gpu_times.profiled(group)]
        for metrics in (tuple(gpu_tools.METRICS), gpu_tools.FEWER):
            printed, status = run(gpu_tools.ncu(program, metrics, tool), program, lines, options, group)
            kernels = list(gpu_tools.read_ncu(printed, cases))
            if options.output and not options.dry:
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(printed)
            for kernel in kernels:
                lines.append("kernel", group=group, **kernel)
            print(f"{group}: {len(kernels)} kernels, exit status {status}", flush=True)
            if kernels or options.dry:
                break
        whole = whole and status == 0 and (bool(kernels) or options.dry)
    return 0 if whole else 1


def sanitize(options: argparse.Namespace, tool: str) -> int:
    lines = JsonLines(options.lines)
    program = [sys.executable, "-m", "bench.gpu_checks", "--small", "--here", "--kind", options.tool]
    program += ["--lines", options.lines]
    if options.dry and options.tool == "racecheck":
        program += ["--op", "argmax"]  # memcheck's dry run has been through all of them
    # Without PyTorch's cache each tensor is an allocation of its own, so that a step past its end is seen.
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    printed, status = run(gpu_tools.sanitizer(options.tool, program, tool), program, lines, options)
    if not options.dry:
        lines.append("tool", name=options.tool, status=status, **gpu_tools.read_sanitizer(printed))
    return status


def run(
    command: Sequence[str], program: Sequence[str], lines: JsonLines, options: argparse.Namespace, group: str = ""
) -> tuple[str, int]:
    """What the command printed, which is passed on line by line, and its exit status."""
    lines.append("command", name=options.tool, group=group, command=_portable(command))
    if options.dry:
        command = [*program, "--dry"]
    printed = []
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", bufsize=1
    )
    assert child.stdout is not None  # a pipe
    for line in child.stdout:
        printed.append(line)
        if not line.startswith('"'):  # the table of ncu is for the file
            print(line, end="", flush=True)
    return "".join(printed), child.wait()


def _portable(command: Sequence[str]) -> list[str]:
    """The command without what only this machine has."""
    return [Path(part).name if part.startswith("/") else part for part in command]


if __name__ == "__main__":
    sys.exit(main())
