"""How the live bytes of bench.memory grow over the size of the image: both axes logarithmic, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.memory_methods import METHODS, SIZES
from hmsa_ext.autolabel.report_plot import FRAME, GAP, GRID, LEFT, PAPER, SIDE, TEXT, TITLE, TOP, Diagram
from hmsa_ext.engine.legend import MARGIN, Entry, strip
from hmsa_ext.engine.lettering import FAINT, width_of, write
from hmsa_ext.files import replacing

NETWORK, DTYPE = "hrnet_w48_ocr", "float32"
COLOURS = {
    "published": (150, 60, 60),
    "checkpoint": (225, 150, 40),
    "none": (60, 60, 60),
    "modules": (40, 130, 200),
    "all": (30, 150, 60),
    "whole": (30, 150, 60),
    "tiles": (40, 130, 200),
}
MARKS = (1, 2, 4, 8, 16, 32, 64)  # GB
"""Labelled lines of the upright axis."""
WIDER = 1.12
"""The axes reach so many times beyond the outermost points."""


def write_growth(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Draws the growth into a PNG file."""
    written, content = cv2.imencode(".png", cv2.cvtColor(draw(entries), cv2.COLOR_RGB2BGR))
    assert written  # a page of this size always can be
    with replacing(path) as file:
        file.write(content.tobytes())


def draw(entries: Sequence[dict[str, Any]]) -> np.ndarray:
    """The page, uint8 [H, W, 3], red, green, blue: training on the left, evaluation on the right.

    Raises ValueError where no row of the network was counted.
    """
    points = {job: points_of(entries, job) for job in METHODS}
    values = [value for lines in points.values() for line in lines.values() for _, value in line]
    if not values:
        raise ValueError(f"expected rows of {NETWORK} in {DTYPE} that were counted, got none")
    up = (min(values) / WIDER, max(values) * WIDER)
    width = LEFT + len(points) * SIDE + (len(points) - 1) * GAP + 36
    page = np.full((TOP + SIDE + 64, width, 3), PAPER, np.uint8)
    strips = []
    for number, (job, lines) in enumerate(points.items()):
        diagram = Diagram(page, LEFT + number * (SIDE + GAP), TOP)
        axes = Axes(diagram, (_megapixels(SIZES[0]) / WIDER, _megapixels(SIZES[-1]) * WIDER), up)
        axes.frame(f"Live GB of {'a training step' if job == 'training' else 'an evaluation'}")
        # Ours last, above the others.
        for method in sorted(lines, key=lambda name, job=job: METHODS[job][name].ours):
            across, heights = (np.array(numbers, float) for numbers in zip(*lines[method], strict=True))
            thickness, marked = (2, 4) if METHODS[job][method].ours else (1, 3)
            diagram.line(
                np.array([axes.across(x) for x in across]),
                np.array([axes.up(y) for y in heights]),
                COLOURS[method],
                thickness,
                marked=marked,
            )
        entry = [Entry(METHODS[job][method].label, COLOURS[method]) for method in lines]
        strips.append((f"{job.capitalize()}:", strip(entry, width)))
    parts = [page]
    for title, below in strips:
        head = np.full((22, width, 3), PAPER, np.uint8)
        write(head, title, MARGIN, 18, scale=TEXT, colour=FAINT)
        parts += [head, np.where(below == below[-1, -1], np.uint8(255), below)]
    return np.concatenate(parts)


def points_of(entries: Sequence[dict[str, Any]], job: str) -> dict[str, list[tuple[float, float]]]:
    """By method: megapixels and live GB, ascending. What torch.compile takes is not known, and left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for method in METHODS[job]:
        line = [
            (_megapixels(entry["size"]), entry["counted"]["live_peak_bytes"] / 1e9)
            for entry in entries
            if (entry["job"], entry["method"], entry["network"], entry["dtype"]) == (job, method, NETWORK, DTYPE)
            and tuple(entry["size"]) in SIZES
            and "live_peak_bytes" in entry.get("counted", {})
        ]
        if line:
            found[method] = sorted(line)
    return found


@dataclass(frozen=True)
class Axes:
    """Logarithmic axes of a diagram: megapixels across, GB up."""

    diagram: Diagram
    pixels: tuple[float, float]
    gigabytes: tuple[float, float]

    def across(self, value: float) -> float:
        return _share(value, self.pixels)

    def up(self, value: float) -> float:
        return _share(value, self.gigabytes)

    def frame(self, title: str) -> None:
        """Frame, grid, numbers and texts."""
        page, x, y = self.diagram.page, self.diagram.x, self.diagram.y
        for mark in MARKS:
            if self.gigabytes[0] <= mark <= self.gigabytes[1]:
                row = round(y + (1 - self.up(mark)) * SIDE)
                cv2.line(page, (x, row), (x + SIDE, row), GRID, 1)
                write(page, str(mark), x - 10 - width_of(str(mark), TEXT), row + 5, scale=TEXT)
        for size in SIZES:
            column = round(x + self.across(_megapixels(size)) * SIDE)
            cv2.line(page, (column, y), (column, y + SIDE), GRID, 1)
            name = "x".join(map(str, size))
            write(page, name, column - width_of(name, 0.36) // 2, y + SIDE + 18, scale=0.36)
        cv2.rectangle(page, (x, y), (x + SIDE, y + SIDE), FRAME, 1)
        write(page, title, x, y - 18, scale=TITLE)
        below = f"image, one of {NETWORK}, {DTYPE}"
        write(page, below, x + (SIDE - width_of(below, TEXT)) // 2, y + SIDE + 42, scale=TEXT, colour=FAINT)


def _share(value: float, limits: tuple[float, float]) -> float:
    return math.log(value / limits[0]) / math.log(limits[1] / limits[0])


def _megapixels(size: Sequence[int]) -> float:
    return size[0] * size[1] / 1e6
