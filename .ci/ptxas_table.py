"""Registers, shared memory and spills of every CUDA kernel, from what ``nvcc -Xptxas -v`` printed.

    python .ci/ptxas_table.py build/cmake/cuda/*.log

One line per kernel and architecture, worst spills first, the many instantiations of a template folded into one line
with the largest value of each column.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("instances", "registers", "stack", "spill stores", "spill loads", "shared bytes")


def main(paths: list[str]) -> int:
    if not paths:
        print("no logs of nvcc: no CUDA kernels were compiled")
        return 0
    worst: dict[tuple[str, str], list[int]] = {}
    for path in paths:
        for mangled, arch, *numbers in kernels(Path(path).read_text(encoding="utf-8", errors="replace")):
            row = worst.setdefault((template_name(mangled), arch), [0] * len(COLUMNS))
            row[0] += 1
            row[1:] = [max(old, new) for old, new in zip(row[1:], numbers, strict=True)]
    if not worst:
        print(f"nothing of ptxas in {', '.join(paths)}", file=sys.stderr)
        return 1
    width = max(len(name) for name, _ in worst)
    print(f"{'kernel':<{width}}  {'arch':<7}  " + "  ".join(COLUMNS))
    for (name, arch), row in sorted(worst.items(), key=lambda entry: (-entry[1][3] - entry[1][4], entry[0])):
        cells = (f"{number:>{len(column)}}" for column, number in zip(COLUMNS, row, strict=True))
        print(f"{name:<{width}}  {arch:<7}  " + "  ".join(cells))
    spilling = sum(1 for row in worst.values() if row[3] or row[4])
    print(f"{len(worst)} kernels by architecture, {spilling} with spills")
    return 0


def kernels(log: str) -> Iterator[tuple[str, str, int, int, int, int, int]]:
    """Each entry function of a log: mangled name, architecture, registers, stack, spill stores, spill loads, shared."""
    for block in re.split(r"(?=ptxas info\s*: Compiling entry function)", log)[1:]:
        name, arch = re.match(r".*?'([^']+)' for '([^']+)'", block).groups()

        def number(pattern: str, text: str = block) -> int:
            found = re.search(pattern, text)
            return int(found.group(1)) if found else 0

        yield (
            name,
            arch,
            number(r"Used (\d+) registers"),
            number(r"(\d+) bytes stack frame"),
            number(r"(\d+) bytes spill stores"),
            number(r"(\d+) bytes spill loads"),
            number(r"(\d+) bytes smem"),
        )


def template_name(mangled: str) -> str:
    """The name of a kernel without its template arguments and parameters."""
    if shutil.which("c++filt") is None:
        return mangled
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.split(r"[<(]", name, maxsplit=1)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
