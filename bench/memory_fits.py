"""The largest training crop that fits a memory, of crops in steps of 128 x 256."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from bench.memory_methods import Row

MEMORIES = (8, 12, 16, 24, 80)  # GB, of 10^9 bytes
SHARE = 0.8
"""Of the memory, for live tensors and the optimizer's state. The rest is for what no count of tensors sees: workspace
of convolutions, fragments of the allocator, the driver's own memory."""
STEP = (128, 256)
KNOWN = (4, 8)  # steps whose bytes say about where to look


def crop(steps: int) -> tuple[int, int]:
    """(height, width) of so many steps."""
    return steps * STEP[0], steps * STEP[1]


def needed(facts: dict[str, Any]) -> float:
    """Bytes of memory for a step with these ``counted`` facts: SGD with momentum keeps one number per parameter."""
    return (facts["live_peak_bytes"] + facts["parameter_bytes"]) / SHARE


def search(row: Row, memory: int, facts: Callable[[Row], dict[str, Any]]) -> int:
    """Steps of the largest crop that fits ``memory`` GB, 0 where none does.

    ``facts(row)`` counts. The bytes grow with the crop, about linearly with its area: two crops say where to look, and
    from there the neighbours decide.
    """

    def fits(steps: int) -> bool:
        return needed(facts(dataclasses.replace(row, size=crop(steps)))) <= 1e9 * memory

    (few, low), (many, high) = ((steps, needed(facts(dataclasses.replace(row, size=crop(steps))))) for steps in KNOWN)
    each = (high - low) / (many**2 - few**2)
    area = few**2 + (1e9 * memory - low) / each
    steps = max(1, math.floor(math.sqrt(max(area, 1))))
    while steps > 0 and not fits(steps):
        steps -= 1
    while fits(steps + 1):
        steps += 1
    return steps


def known(entries: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], dict[int, int]]:
    """Steps of the largest crop by method, network and dtype, and there by memory, as far as the counts tell.

    A crop is the largest where it fits and the next one was counted and does not.
    """
    counts: dict[tuple[str, str, str], dict[int, float]] = {}
    for entry in entries:
        steps = entry["size"][0] // STEP[0]
        if entry["job"] == "training" and tuple(entry["size"]) == crop(steps) and _is_counted(entry):
            key = (entry["method"], entry["network"], entry["dtype"])
            counts.setdefault(key, {})[steps] = needed(entry["counted"])
    found: dict[tuple[str, str, str], dict[int, int]] = {}
    for key, needs in counts.items():
        for memory in MEMORIES:
            fitting = [steps for steps, need in needs.items() if need <= 1e9 * memory]
            largest = max(fitting, default=0)
            if largest + 1 in needs:
                found.setdefault(key, {})[memory] = largest
    return found


def _is_counted(entry: dict[str, Any]) -> bool:
    return "live_peak_bytes" in entry.get("counted", {})


def named(steps: int) -> str:
    """The crop of so many steps, or that there is none."""
    return "x".join(map(str, crop(steps))) if steps else "none"
