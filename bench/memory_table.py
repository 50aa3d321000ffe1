"""The tables of bench.memory: growth over the size of the image, what was measured, what fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import memory_fits
from bench.commands import markdown
from bench.memory_methods import DTYPES, METHODS, NETWORKS, SIZES, Row

Entries = Sequence[dict[str, Any]]
Table = list[list[str]]

BASES = {"training": "none", "evaluation": "whole"}
"""Methods whose time the others are held against."""


SUMMARY_NETWORK, SUMMARY_SIZE = "hrnet_w48_ocr", (1024, 2048)
OPERATIONS = (SUMMARY_NETWORK, SUMMARY_SIZE, "float32")
"""Network, size and dtype of the rows whose operations are counted, too."""
SUMMARY = (
    ("training step, float32", "training", "none", "float32"),
    ("training step, float32, recompute modules", "training", "modules", "float32"),
    ("training step, float32, recompute all", "training", "all", "float32"),
    ("training step, bfloat16, recompute all", "training", "all", "bfloat16"),
    ("evaluation at 0.5, 1, 2, float32", "evaluation", "whole", "float32"),
    ("evaluation at 0.5, 1, 2, bfloat16", "evaluation", "whole", "bfloat16"),
)


def tables(entries: Entries) -> list[Table]:
    """All tables, without those that have no row."""
    found = [summary(entries)]
    found += [growth(entries, job, network, dtype) for job in METHODS for network in NETWORKS for dtype in DTYPES]
    found += [operations(entries), *(measured(entries, job) for job in METHODS)]
    found.append(fits(entries))
    return [table for table in found if len(table) > 1]


def summary(entries: Entries) -> Table:
    """Six rows for those who read no further: ours, the published formulation, and the published one checkpointed.

    *Times as long*: a step beside one without recomputation, where both were run.
    """
    known = {Row.from_json(entry): entry for entry in entries}
    size = "x".join(map(str, SUMMARY_SIZE))
    head = [f"`{SUMMARY_NETWORK}`, {size}", "hmsa_ext, GB", "published, GB", "times less", "checkpointed, GB"]
    rows = [[*head, "times as long"]]
    for label, job, method, dtype in SUMMARY:
        ours, published, checkpoint, base = (
            known.get(Row(job, name, SUMMARY_NETWORK, SUMMARY_SIZE, dtype), {})
            for name in (method, "published", "checkpoint", BASES[job])
        )
        if "counted" not in ours or "counted" not in published:
            continue
        times = published["counted"]["live_peak_bytes"] / ours["counted"]["live_peak_bytes"]
        long = (
            f"{ours['measured']['ms'] / base['measured']['ms']:.2f}"
            if "measured" in ours and "measured" in base
            else ""
        )
        rows.append(
            [
                label,
                f"**{gigabytes(ours['counted'])}**",
                gigabytes(published["counted"]),
                f"{times:.1f}",
                gigabytes(checkpoint["counted"]) if "counted" in checkpoint else "",
                long,
            ]
        )
    return rows


def growth(entries: Entries, job: str, network: str, dtype: str) -> Table:
    """Live GB by method and size of the image."""
    rows = [[f"{job}, `{network}`, {dtype}: live GB", *("x".join(map(str, size)) for size in SIZES)]]
    for method, how in METHODS[job].items():
        known = {
            tuple(entry["size"]): gigabytes(entry["counted"])
            for entry in entries
            if (entry["job"], entry["method"], entry["network"], entry["dtype"]) == (job, method, network, dtype)
            and "counted" in entry
        }
        if any(size in known for size in SIZES):
            rows.append([how.label, *(known.get(size, "") for size in SIZES)])
    return rows


def operations(entries: Entries) -> Table:
    """TFLOP of one network and size, beside those of ours as it comes."""
    network, size, _ = OPERATIONS
    found = {
        (entry["job"], entry["method"]): entry["counted"]["flops"]
        for entry in entries
        if "flops" in entry.get("counted", {})
    }
    rows = [[f"`{network}`, {'x'.join(map(str, size))}: operations", "by", "TFLOP", "times hmsa_ext"]]
    for job, methods in METHODS.items():
        base = found.get((job, BASES[job]))
        for method, how in methods.items():
            count = found.get((job, method))
            if how.budget is None and count is not None and base is not None:
                rows.append([job, how.label, f"{count / 1e12:.2f}", f"{count / base:.2f}"])
    return rows


def measured(entries: Entries, job: str) -> Table:
    """Time and resident memory of what was run, beside the live bytes that were counted."""
    known = {Row.from_json(entry): entry for entry in entries if "measured" in entry and entry["job"] == job}
    rows = [
        [f"{job}: measured", "image", "dtype", "by", "live GB", "resident GB", "resident / live", "ms", "times ours"]
    ]
    for row, entry in known.items():
        facts, counted = entry["measured"], entry["counted"]
        base = known.get(Row(job, BASES[job], row.network, row.size, row.dtype))
        resident, live = facts["resident_bytes"], counted.get("live_peak_bytes")
        rows.append(
            [
                f"`{row.network}`",
                "x".join(map(str, row.size)),
                row.dtype,
                row.how.label,
                gigabytes(counted),
                "" if resident is None else f"{resident / 1e9:.2f}",
                "" if resident is None or live is None else f"{resident / live:.2f}",
                f"{facts['ms']:.0f}",
                "" if base is None else f"{facts['ms'] / base['measured']['ms']:.2f}",
            ]
        )
    return rows


def fits(entries: Entries) -> Table:
    """The largest training crop by memory."""
    rows = [["training: largest crop", "by", "dtype", *(f"{memory} GB" for memory in memory_fits.MEMORIES)]]
    found = memory_fits.known(entries)
    for network in NETWORKS[::-1]:
        for method, how in METHODS["training"].items():
            for dtype in DTYPES:
                largest = found.get((method, network, dtype), {})
                if largest:
                    crops = [memory_fits.named(largest[m]) if m in largest else "" for m in memory_fits.MEMORIES]
                    rows.append([f"`{network}`", how.label, dtype, *crops])
    return rows


def updated(page: str, entries: Entries) -> str:
    """The text of a page whose tables are those of today. Which is which the first cell of the head says."""
    new = {table[0][0]: markdown(table) for table in tables(entries)}
    lines: list[str] = []
    table: list[str] | None = None
    inside = False
    for line in page.split("\n"):
        if line.startswith("|") and not inside:
            table = new.get(line.strip("| ").partition(" | ")[0])
            lines += table or []
        inside = line.startswith("|")
        if not (inside and table):
            lines.append(line)
    return "\n".join(lines)


def gigabytes(counted: dict[str, Any]) -> str:
    """Live GB; of torch.compile, of which only a lower bound is known, that it is one."""
    if "live_peak_bytes" in counted:
        return f"{counted['live_peak_bytes'] / 1e9:.2f}"
    return f"> {counted['held_bytes'] / 1e9:.2f}"
