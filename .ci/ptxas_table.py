"""Registers, spills, shared memory and occupancy of every CUDA kernel, from what ``nvcc -Xptxas -v`` printed.

    python .ci/ptxas_table.py build/cmake/cuda/*.log             # prints the table, checks it against the limits
    python .ci/ptxas_table.py --update build/cmake/cuda/*.log    # writes the limits that these logs need

One line per kernel, architecture and arithmetic (float for float32, float16 and bfloat16; double for float64, which
exists for gradcheck and may spill); instantiations of a template share a line with the largest value of each column.
``ptxas_limits.json`` beside this file has the most registers and bytes of spills that each may have. More than that, or
a kernel without limits, ends with status 1.

Occupancy is the share of a multiprocessor's threads that can be resident, by registers and static shared memory for
blocks of 256 threads, which is what the kernels are launched with. Dynamic shared memory is chosen at launch: ptxas
does not know it, and it may lower the share.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LOGS = "build/cmake/cuda/*.log"
LIMITS = Path(__file__).with_name("ptxas_limits.json")
BLOCK_THREADS = 256
KINDS = ("float", "double")


@dataclasses.dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor holds (CUDA C++ Programming Guide, technical specifications per compute capability)."""

    threads: int
    blocks: int
    shared_bytes: int
    registers: int = 65536
    registers_granularity: int = 256  # of a warp
    reserved_shared_bytes: int = 1024  # of a block


MULTIPROCESSORS = {
    "80": Multiprocessor(2048, 32, 164 * 1024),
    "86": Multiprocessor(1536, 16, 100 * 1024),
    "87": Multiprocessor(1536, 16, 164 * 1024),
    "89": Multiprocessor(1536, 24, 100 * 1024),
    "90": Multiprocessor(2048, 32, 228 * 1024),
    "100": Multiprocessor(2048, 32, 228 * 1024),
    "103": Multiprocessor(2048, 32, 228 * 1024),
    "120": Multiprocessor(1536, 24, 100 * 1024),
    "121": Multiprocessor(1536, 24, 100 * 1024),
}


@dataclasses.dataclass
class Usage:
    """The largest figures of the instantiations that share a line."""

    instances: int = 0
    registers: int = 0
    stack: int = 0
    spills: int = 0  # bytes stored and loaded, by the kernel and the functions it calls
    shared: int = 0

    def add(self, other: Usage) -> None:
        self.instances += other.instances
        for field in ("registers", "stack", "spills", "shared"):
            setattr(self, field, max(getattr(self, field), getattr(other, field)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="*", type=Path, help="what nvcc printed")
    parser.add_argument("--limits", type=Path, default=LIMITS, help="default: %(default)s")
    parser.add_argument("--update", action="store_true", help="write the limits instead of checking them")
    options = parser.parse_args(arguments)
    if not options.logs:
        print("no logs of nvcc: no CUDA kernels were compiled")
        return 0
    usage = read_logs(options.logs)
    if not usage:
        print(f"nothing of ptxas in {', '.join(map(str, options.logs))}", file=sys.stderr)
        return 1
    print("\n".join(table(usage)))
    if options.update:
        options.limits.write_text(json.dumps(limits_of(usage), indent=2) + "\n", encoding="utf-8")
        print(f"limits written to {options.limits}")
        return 0
    limits = json.loads(options.limits.read_text(encoding="utf-8")) if options.limits.exists() else {}
    complaints = check(usage, limits)
    for complaint in complaints:
        print(f"ptxas: {complaint}", file=sys.stderr)
    if complaints:
        print(f"or, if it has to be so, new limits: python .ci/ptxas_table.py --update {LOGS}", file=sys.stderr)
        return 1
    print(f"all within {options.limits.name}")
    return 0


Key = tuple[str, str, str]  # kernel, kind of arithmetic, architecture


def read_logs(paths: list[Path]) -> dict[Key, Usage]:
    entries = [entry for path in paths for entry in _entries(path.read_text(encoding="utf-8", errors="replace"))]
    demangled = _demangle([mangled for mangled, _, _ in entries])
    usage: dict[Key, Usage] = {}
    for (_, arch, numbers), name in zip(entries, demangled, strict=True):
        usage.setdefault((*name_and_kind(name), arch), Usage()).add(numbers)
    return usage


def table(usage: dict[Key, Usage]) -> list[str]:
    header = ("kernel", "arithmetic", "arch", "instances", "registers", "stack", "spill bytes", "shared", "occupancy")
    rows = [header]
    for (name, kind, arch), entry in sorted(usage.items(), key=lambda item: (item[0][0], KINDS.index(item[0][1]))):
        figures = (entry.instances, entry.registers, entry.stack, entry.spills, entry.shared, occupancy(entry, arch))
        rows.append((name, kind, arch, *map(str, figures)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    spilling = sum(1 for entry in usage.values() if entry.spills)
    lines.append(f"{len(usage)} lines, {spilling} with spills")
    lines.append(f"occupancy: by registers and static shared memory, {BLOCK_THREADS} threads; dynamic: not known here")
    return lines


def occupancy(usage: Usage, arch: str) -> str:
    """Share of a multiprocessor's threads, in percent; ``?`` for an architecture that is not in our table."""
    chip = MULTIPROCESSORS.get(arch.removeprefix("sm_").rstrip("af"))
    if chip is None:
        return "?"
    warps = BLOCK_THREADS // 32
    per_warp = -(-usage.registers * 32 // chip.registers_granularity) * chip.registers_granularity
    blocks = min(
        chip.threads // BLOCK_THREADS,
        chip.blocks,
        chip.registers // per_warp // warps if per_warp else chip.blocks,
        chip.shared_bytes // (usage.shared + chip.reserved_shared_bytes),
    )
    return f"{100 * blocks * BLOCK_THREADS // chip.threads} %"


# ---- limits ------------------------------------------------------------------------------------------------------

Limits = dict[str, dict[str, dict[str, int]]]  # kernel -> arithmetic -> {"registers", "spill bytes"}


def limits_of(usage: dict[Key, Usage]) -> Limits:
    limits: Limits = {}
    for (name, kind, _), entry in sorted(usage.items()):
        limit = limits.setdefault(name, {}).setdefault(kind, {"registers": 0, "spill bytes": 0})
        limit["registers"] = max(limit["registers"], entry.registers)
        limit["spill bytes"] = max(limit["spill bytes"], entry.spills)
    return limits


def check(usage: dict[Key, Usage], limits: Limits) -> list[str]:
    """What is wrong, one sentence each."""
    complaints = []
    for (name, kind, arch), entry in sorted(usage.items()):
        limit = limits.get(name, {}).get(kind)
        if limit is None:
            complaints.append(f"{name} ({kind} arithmetic, {arch}) has no limits")
            continue
        for what, got in (("registers", entry.registers), ("spill bytes", entry.spills)):
            if got > limit[what]:
                complaints.append(f"{name} ({kind} arithmetic, {arch}): {got} {what}; expected at most {limit[what]}")
    return complaints


# ---- reading -----------------------------------------------------------------------------------------------------


def _entries(log: str) -> Iterator[tuple[str, str, Usage]]:
    """Mangled name, architecture and figures of each entry function of a log."""
    for block in re.split(r"(?=ptxas info\s*: Compiling entry function)", log)[1:]:
        name, arch = re.match(r".*?'([^']+)' for '([^']+)'", block).groups()

        def numbers(pattern: str, text: str = block) -> list[int]:
            return [int(number) for number in re.findall(pattern, text)]

        # Figures of the functions that a kernel calls follow its own.
        yield (
            name,
            arch,
            Usage(
                instances=1,
                registers=max(numbers(r"Used (\d+) registers"), default=0),
                stack=max(numbers(r"(\d+) bytes (?:cumulative stack size|stack frame)"), default=0),
                spills=sum(numbers(r"(\d+) bytes spill (?:stores|loads)")),
                shared=max(numbers(r"(\d+) bytes smem"), default=0),
            ),
        )


def _demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def name_and_kind(demangled: str) -> tuple[str, str]:
    """``void a::(anonymous namespace)::kernel<double, 4>(...)`` -> ``("kernel", "double")``."""
    text = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    head, _, rest = text.partition("<") if "<" in text.partition("(")[0] else (text.partition("(")[0], "", "")
    depth, arguments = 1, ""
    for character in rest:
        depth += {"<": 1, ">": -1}.get(character, 0)
        if depth == 0:
            break
        arguments += character
    return head.rpartition("::")[2], "double" if re.search(r"\bdouble\b", arguments) else "float"


if __name__ == "__main__":
    sys.exit(main())
