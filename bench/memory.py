"""Memory of training steps and evaluations: ours, the published formulation, checkpoints, torch.compile.

    python -m bench.memory --json R.json                          # counts what is missing, a few seconds a row
    python -m bench.memory --json R.json --fits                   # counts what fits memories from 8 to 80 GB
    python -m bench.memory --json R.json --method compile-0.5     # torch.compile: minutes a row, only when named
    python -m bench.memory --json R.json --measure --network hrnet_w18_ocr --size 512x1024    # runs them
    python -m bench.memory --json R.json --list                   # the rows, what is known, how long a run would take
    python -m bench.memory --json R.json --table                  # the tables as Markdown
    python -m bench.memory --json R.json --page docs/memory.md    # puts those of today into a page
    python -m bench.memory --json R.json --plot docs/memory/growth.png

Rows are counted on fake tensors, by one storage meter for all: exact, and the same on every machine. A row that is
measured runs in a process of its own, one warm-up and ``--rounds`` rounds. *Resident* is the most memory that was
resident beyond what the libraries take. The file is written after each row. A row that is there is left alone, unless
``--again`` is given: so a command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from bench import memory_fits, memory_methods, memory_plot, memory_table, meters, record
from bench.cases import parse_size
from bench.commands import aligned, command_parser, markdown
from bench.gpu_machine import commit
from bench.memory_methods import DTYPES, METHODS, NETWORKS, Row
from hmsa_ext.engine import allocator
from hmsa_ext.files import write_text

ROOT = Path(__file__).resolve().parents[1]


class Record:
    """The file of a run: what is known of each row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._machine: dict[str, Any] | None = None
        self.rows: dict[Row, dict[str, Any]] = {}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            self._machine = found["machine"]
            self.rows = {Row.from_json(entry): entry for entry in found["rows"]}

    def add(self, row: Row, what: str, facts: dict[str, Any]) -> None:
        """Adds facts that were ``counted`` or ``measured``, and writes the file."""
        entry = self.rows.setdefault(row, row.to_json())
        entry[what] = {**facts, "commit": commit()}
        machine = self._machine or record.machine()
        if what == "measured":  # times are those of this machine, whoever counted
            machine = record.machine()
        self._machine = machine
        report = {"machine": machine, "date": datetime.date.today().isoformat(), "rows": list(self.rows.values())}
        write_text(self.path, json.dumps(report, indent=1) + "\n")

    def get(self, row: Row, what: str) -> dict[str, Any] | None:
        return self.rows.get(row, {}).get(what)

    def counted(self, row: Row, *, again: bool = False) -> dict[str, Any]:
        """What is counted of a row; it is counted where it is not yet known."""
        known = self.get(row, "counted")
        if known is None or again:
            known = memory_methods.count(row)
            if (row.network, row.size, row.dtype) == memory_table.OPERATIONS:
                known["flops"] = memory_methods.operations(row)
            self.add(row, "counted", known)
            print(f"{row.name}: {memory_table.gigabytes(known)} GB", flush=True)
        return known


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Runs a row in a process of its own.

    Returns:
        ``ms``, the median of ``rounds_ms``, without a warm-up round; ``resident_bytes``, the most memory that was
        resident beyond ``libraries_bytes``, which were resident before there was a network. Both are None where the
        system does not tell. ``gives_back``: whether freed memory was given back to the system, see
        :func:`hmsa_ext.engine.allocator.follow_live_tensors`.
    """
    command = [sys.executable, "-m", "bench.memory", "--row", json.dumps(row.to_json()), "--rounds", str(rounds)]
    child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode != 0:
        raise RuntimeError(f"{row.name}: its process ended with status {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])


def run_alone(row: Row, rounds: int) -> dict[str, Any]:
    """What :func:`measure` returns; in this process, which should be new."""
    # As the commands do.
    often = row.job == "evaluation" or row.how.recompute != "none"
    following = allocator.follow_live_tensors(allocator.OFTEN if often else allocator.SELDOM)
    with following if row.how.ours else nullcontext(enter_result=False) as gives_back:
        libraries = _resident("VmRSS")
        work, milliseconds = memory_methods.prepare(row), []
        with memory_methods.compiling(row):
            for _ in range(1 + rounds):
                begin = time.perf_counter()
                work.run()
                milliseconds.append(1e3 * (time.perf_counter() - begin))
        peak = _resident("VmHWM")
    return {
        "ms": round(statistics.median(milliseconds[1:]), 1),
        "rounds_ms": [round(ms, 1) for ms in milliseconds[1:]],
        "resident_bytes": None if peak is None or libraries is None else peak - libraries,
        "libraries_bytes": libraries,
        "gives_back": gives_back,
        "threads": torch.get_num_threads(),
    }


def _resident(key: str) -> int | None:
    try:
        return meters.process_status(key)
    except (OSError, LookupError):
        return None


def operations_per_second() -> float:
    """Of a convolution as a trunk has them, for estimates of the time of a row."""
    layer, x = torch.nn.Conv2d(64, 64, 3, padding=1), torch.rand(1, 64, 128, 256)
    times = []
    with torch.no_grad():
        for _ in range(5):
            begin = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - begin)
    return 2 * 9 * 64 * 64 * 128 * 256 / statistics.median(times)


def estimate(row: Row, rounds: int) -> tuple[float, float]:
    """Seconds of :func:`measure` at the speed of a convolution, and the operations of one round.

    The work beside convolutions comes on top, and the compiler's own time.
    """
    operations = memory_methods.operations(row)
    return operations * (1 + rounds) / operations_per_second(), operations


# ---- the command -------------------------------------------------------------------------------------------------


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """The rows that the options name; those of torch.compile only where their method is named."""
    compiled = any(name.startswith("compile") for name in options.method)
    wanted = {
        "job": options.job,
        "method": options.method,
        "network": options.network,
        "size": options.size,
        "dtype": options.dtype,
    }
    known = memory_methods.every_row(compiled=compiled)
    for size in options.size:  # sizes of one's own as well
        if size not in memory_methods.SIZES:
            known += [
                Row(row.job, row.method, row.network, size, row.dtype)
                for row in known
                if row.size == memory_methods.SIZES[0]
            ]
    return [row for row in known if all(not values or getattr(row, key) in values for key, values in wanted.items())]


def list_rows(rows: Sequence[Row], found: Record) -> None:
    """Prints the rows with what is known of each."""
    lines = [["row", "GB", "measured ms"]]
    for row in rows:
        counted, measured = found.get(row, "counted"), found.get(row, "measured")
        lines.append(
            [row.name, memory_table.gigabytes(counted) if counted else "", f"{measured['ms']:.0f}" if measured else ""]
        )
    print(aligned(lines))


def print_tables(found: Record) -> None:
    """All tables of a file as Markdown."""
    for table in memory_table.tables(list(found.rows.values())):
        print("\n".join(["", *markdown(table)]))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m bench.memory", __doc__)
    parser.add_argument("--json", metavar="FILE", help="file of the rows: read, and written after each row")
    parser.add_argument("--job", action="append", default=[], choices=list(METHODS), help="(repeatable)")
    methods = sorted({name for methods in METHODS.values() for name in methods})
    parser.add_argument("--method", action="append", default=[], choices=methods, help="(repeatable)")
    parser.add_argument("--network", action="append", default=[], choices=NETWORKS, help="(repeatable)")
    parser.add_argument(
        "--size", action="append", default=[], type=_size, metavar="HxW", help="of the image (repeatable)"
    )
    parser.add_argument("--dtype", action="append", default=[], choices=DTYPES, help="(repeatable)")
    parser.add_argument("--measure", action="store_true", help="run the rows: time and resident memory")
    parser.add_argument("--rounds", type=int, default=3, help="of --measure, beside the warm-up [%(default)s]")
    parser.add_argument("--again", action="store_true", help="also rows that are known")
    parser.add_argument("--fits", action="store_true", help="count the largest crops that fit usual memories")
    parser.add_argument("--list", action="store_true", help="print the rows and do nothing")
    parser.add_argument("--table", action="store_true", help="print the tables of the file")
    parser.add_argument("--page", metavar="FILE", help="replace the tables of a page, such as docs/memory.md")
    parser.add_argument("--plot", metavar="FILE", help="draw the growth over the size of the image, as PNG")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser


def _size(text: str) -> tuple[int, int]:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"argument --rounds: expected at least 1, got {options.rounds}")
    if options.row is not None:
        print(json.dumps(run_alone(Row.from_json(json.loads(options.row)), options.rounds)))
        return
    if options.json is None:
        parser.error("argument --json: expected the file of the rows")
    path = Path(options.json)
    if not path.resolve().parent.is_dir():
        parser.error(f"argument --json: there is no folder for {options.json}")
    found, rows = Record(path), chosen_rows(options)
    if not rows:
        parser.error("arguments --job and --method: expected a method of the job, such as --job training --method all")
    if options.list:
        list_rows(rows, found)
    elif options.table:
        print_tables(found)
    elif options.page is not None:
        page = Path(options.page)
        write_text(page, memory_table.updated(page.read_text(encoding="utf-8"), list(found.rows.values())))
    elif options.plot is not None:
        memory_plot.write_growth(Path(options.plot), list(found.rows.values()))
    elif options.fits:
        count_fits(rows, found, again=options.again)
    elif options.measure:
        measure_rows(rows, found, options.rounds, again=options.again)
    else:
        for row in rows:
            found.counted(row, again=options.again)


def count_fits(rows: Sequence[Row], found: Record, *, again: bool) -> None:
    """Counts crops until it is known which is the largest that fits each of the usual memories."""
    renewed: set[Row] = set()

    def facts(row: Row) -> dict[str, Any]:
        anew = again and row not in renewed
        renewed.add(row)
        return found.counted(row, again=anew)

    kinds = {(row.method, row.network, row.dtype): row for row in rows if row.job == "training"}
    for row in kinds.values():
        if row.how.budget is None:
            for memory in memory_fits.MEMORIES:
                largest = memory_fits.search(row, memory, facts)
                print(
                    f"{row.method}, {row.network}, {row.dtype}, {memory} GB: {memory_fits.named(largest)}", flush=True
                )


def measure_rows(
    rows: Sequence[Row],
    found: Record,
    rounds: int,
    *,
    again: bool,
    run: Callable[[Row, int], dict[str, Any]] = measure,
) -> None:
    """Runs each row that is not known, and says before how long it will take about."""
    missing = [row for row in rows if again or found.get(row, "measured") is None]
    seconds = {}
    for row in missing:
        seconds[row], _ = estimate(row, rounds)
        print(f"{row.name}: about {seconds[row]:.0f} s, without its slower parts", flush=True)
    print(f"{len(missing)} rows: at least {sum(seconds.values()):.0f} s", flush=True)
    for row in missing:
        found.counted(row)
        facts = run(row, rounds)
        found.add(row, "measured", facts)
        resident = facts["resident_bytes"]
        shown = "unknown" if resident is None else f"{resident / 1e9:.2f} GB"
        print(f"{row.name}: {facts['ms']:.0f} ms, resident {shown}", flush=True)


if __name__ == "__main__":
    main()
