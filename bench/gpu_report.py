"""Prints a GPU run as Markdown: ``python -m bench.gpu_report bench/results/<date>-<machine>-gpu.jsonl``.

First how the parts ended and what failed, then the times. *Floor*: the bytes of every input and every result, each
once, at the bandwidth of a large copy that the same run measured. *Share*: the floor over ours by graph replay. Where a
file holds several runs of a day, the latest figure counts. A file that a kill cut short is read as far as it goes.
"""

from __future__ import annotations

import dataclasses
import sys

from bench import json_lines
from bench.cases import OPS, Case
from bench.commands import markdown
from bench.memory_methods import Row
from bench.memory_table import BASES


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.gpu_report RESULTS.jsonl")
    print("\n".join(report(json_lines.read(sys.argv[1]))))


def report(entries: list[dict]) -> list[str]:
    lines = [machine_line(entry) for entry in entries if entry["kind"] == "run"]
    for title, rows in (
        ("Parts", parts(entries)),
        ("Failed", failures(entries)),
        ("Checks against float64", checks(entries)),
        ("Times, in microseconds", times(entries)),
        ("Training steps and evaluations", pipeline(entries)),
        ("Kernels", kernels(entries)),
    ):
        if len(rows) > 1:
            lines += ["", f"## {title}", "", *markdown(rows)]
    return lines


def machine_line(run: dict) -> str:
    card = run.get("card", {})
    what = str(card.get("name") or run.get("processor"))
    facts = [what, f"driver {card['driver_version']}"] if "driver_version" in card else [what]
    facts += [f"torch {run.get('torch')}", f"CUDA {run.get('cuda_of_torch')}", f"commit {str(run.get('commit'))[:7]}"]
    stale = run.get("library", {}).get("built_from_these_sources") is False
    return ", ".join([*facts, run.get("time", ""), *(["LIBRARY BUILT FROM OTHER SOURCES"] if stale else [])])


def parts(entries: list[dict]) -> list[list[str]]:
    ends: dict[str, list[str]] = {}
    for entry in entries:
        if entry["kind"] == "part":
            end = "still running when the file ends" if entry["end"] == "began" else entry["end"]
            ends[entry["name"]] = [entry["name"], end, str(entry.get("seconds", entry.get("why", "")))]
    return [["part", "end", "seconds"], *ends.values()]


def failures(entries: list[dict]) -> list[list[str]]:
    """Everything that went wrong, in the order in which it did."""
    rows = [["kind", "what", "why"]]
    for entry in entries:
        wrong = entry.get("error") or "; ".join(entry.get("wrong", []))
        if entry["kind"] == "tool" and entry.get("errors"):
            wrong = f"{entry['summary']}: {entry['found'][:3]}"
        if wrong:
            what = " ".join(str(entry[key]) for key in ("op", "case", "name", "by", "direction") if _text(entry, key))
            rows.append([entry["kind"], what, " ".join(str(wrong).split()).replace("|", "\\|")[:300]])
    return rows


def checks(entries: list[dict]) -> list[list[str]]:
    rows: dict[tuple[str, str], list] = {}
    for entry in entries:
        if "ok" not in entry or "op" not in entry:
            continue
        count = rows.setdefault((entry["kind"], entry["op"]), [0, 0, 0.0])
        count[0] += 1
        count[1] += entry["ok"]
        half = any(name in str(entry["case"]) for name in ("float16", "float64"))
        if not half:
            inexact = [e for name, e in entry.get("errors", {}).items() if not name.startswith("same bits")]
            count[2] = max([count[2], *inexact])
    header = ["kind", "op", "cases", "right", "largest relative error in float32"]
    return [header, *([*key, str(n), str(ok), f"{worst:.1e}"] for key, (n, ok, worst) in rows.items())]


def times(entries: list[dict]) -> list[list[str]]:
    copies = [e["gigabytes_per_second"] for e in entries if e["kind"] == "copy" and "us" in e]
    bandwidth = max(copies, default=None)
    found: dict[tuple[str, str], dict] = {}
    for entry in entries:
        if entry["kind"] == "time" and "us" in entry:
            case = Case.from_json(entry["case"])
            row = found.setdefault(
                (f"`{OPS[case.op].function}`, {case.name}", entry["direction"]), {"bytes": entry["bytes"]}
            )
            row[entry["by"], entry["how"]] = entry
    header = ["what", "direction", "floor", "ours, graph", "share", "ours, events", "host", "eager, graph"]
    rows = [[*header, "eager, events", "compile, events", "times eager"]]
    for (what, direction), row in found.items():
        floor = row["bytes"] / bandwidth / 1e3 if bandwidth else None
        ours, eager = row.get(("hmsa", "graph")), row.get(("eager", "graph"))
        if not (ours and eager):  # some eager formulations cannot be captured
            ours_too, eager_too = row.get(("hmsa", "events")), row.get(("eager", "events"))
        else:
            ours_too, eager_too = ours, eager
        events = row.get(("hmsa", "events"))
        rows.append(
            [
                what,
                direction,
                _us(floor),
                _us(ours and ours["us"]),
                f"{100 * floor / ours['us']:.0f} %" if ours and floor else "",
                _us(events and events["us"]),
                _us(events and events.get("host_us")),
                *(_us(row.get(key) and row[key]["us"]) for key in (("eager", "graph"), ("eager", "events"))),
                _us(row.get(("compile", "events")) and row["compile", "events"]["us"]),
                f"{eager_too['us'] / ours_too['us']:.1f}" if ours_too and eager_too else "",
            ]
        )
    if bandwidth:
        rows[0][2] = f"floor ({bandwidth:.0f} GB/s)"
    return rows


def pipeline(entries: list[dict]) -> list[list[str]]:
    """Memory and time of whole steps, beside those of ours as it comes."""
    found = {Row.from_json(entry): entry for entry in entries if entry["kind"] == "pipeline" and "ms" in entry}
    rows = [["job", "network", "image", "dtype", "by", "allocated GB", "reserved GB", "ms", "times ours"]]
    for row, entry in found.items():
        base = found.get(dataclasses.replace(row, method=BASES[row.job]))
        rows.append(
            [
                *(row.job, f"`{row.network}`", "x".join(map(str, row.size)), row.dtype, row.how.label),
                *(f"{entry[key] / 1e9:.2f}" for key in ("peak_bytes", "reserved_bytes")),
                f"{entry['ms']:.1f}",
                "" if base is None else f"{entry['ms'] / base['ms']:.2f}",
            ]
        )
    return rows


def kernels(entries: list[dict]) -> list[list[str]]:
    """All launches of a kernel in one call together."""
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for entry in entries:
        if entry["kind"] == "kernel":
            total = sums.setdefault((str(entry["case"]), entry["kernel"]), {"launches": 0})
            total["launches"] += 1
            for name in ("ns", "bytes_read", "bytes_written", "warp_instructions", "thread_instructions"):
                total[name] = total.get(name, 0.0) + (entry.get(name) or 0.0)
            total["registers"] = entry.get("registers") or 0
    rows = [["call", "kernel", "launches", "us", "MB moved", "million warp instructions", "lanes busy", "registers"]]
    for (case, kernel), total in sums.items():
        moved = (total["bytes_read"] + total["bytes_written"]) / 1e6
        lanes = total["thread_instructions"] / (32 * total["warp_instructions"]) if total["warp_instructions"] else 0
        rows.append(
            [
                *(case, f"`{kernel}`", str(total["launches"]), _us(total["ns"] / 1e3), f"{moved:.1f}"),
                *(f"{total['warp_instructions'] / 1e6:.2f}", f"{100 * lanes:.0f} %", f"{total['registers']:.0f}"),
            ]
        )
    return rows


def _text(entry: dict, key: str) -> bool:
    return isinstance(entry.get(key), str)


def _us(us: float | None) -> str:
    return "" if us is None else f"{us:.0f}" if us >= 100 else f"{us:.1f}"


if __name__ == "__main__":
    main()
