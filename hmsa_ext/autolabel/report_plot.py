"""The report on automatic labels as one page: what passes at each threshold, and precision against probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hmsa_ext.autolabel.calibration import BINS, Calibration, at_or_above, calibration, ratio, verdict
from hmsa_ext.data.automatic.manifest import LEVELS
from hmsa_ext.data.opencv import cv2
from hmsa_ext.engine.legend import MARGIN, Entry, strip
from hmsa_ext.engine.lettering import FAINT, INK, width_of, write

if TYPE_CHECKING:
    from hmsa_ext.autolabel.report import Report

PAPER, GRID, FRAME, BAR = (255, 255, 255), (232, 232, 232), (170, 170, 170), (226, 226, 226)
TITLE, TEXT = 0.55, 0.45
SIDE = 420
"""Pixels along the edges of a diagram."""
LEFT, TOP, GAP, BELOW = 64, 64, 92, 56
NOTED = 0.9
"""The legend says how much of each class passes here."""
_FINE = 3  # bits behind the point of places: lines end between pixels


def as_png(found: Report) -> bytes:
    """The page as a PNG file."""
    written, content = cv2.imencode(".png", cv2.cvtColor(draw(found), cv2.COLOR_RGB2BGR))
    assert written  # a page of this size always can be
    return content.tobytes()


def draw(found: Report) -> np.ndarray:
    """The page, uint8 [H, W, 3], red, green, blue. The right diagram is there where the truth is known."""
    classes, histogram = found.manifest.classes, found.manifest.histogram
    pixels = histogram.sum(1)
    shares = ratio(at_or_above(histogram), pixels[:, None])
    noted = ratio(found.passing(NOTED), pixels)
    # As in the diagram: the class of which most passes on top.
    order = sorted(np.flatnonzero(pixels).tolist(), key=lambda k: (-noted[k], k))
    diagrams = 1 if found.agreement is None else 2
    width = LEFT + diagrams * SIDE + (diagrams - 1) * GAP + 36
    entries = [Entry(classes.names[k], classes.colours[k], note=f"{100 * noted[k]:.0f} %") for k in order]
    entries.append(Entry("all classes", INK, note=f"{100 * _all(histogram, found):.0f} %"))
    below = strip(entries, width)
    page = np.full((TOP + SIDE + BELOW + 20, width, 3), PAPER, np.uint8)

    left = Diagram(page, LEFT, TOP)
    left.frame("Pixels that pass a threshold, in %", "threshold of the probability")
    levels = np.arange(LEVELS) / (LEVELS - 1)
    # Below the others, so that it hides none.
    left.line(levels, ratio(at_or_above(histogram.sum(0)), pixels.sum()), INK, 4)
    for k in order[::-1]:
        left.line(levels, shares[k], _colour(classes.colours[k]), 2)
    if found.agreement is not None:
        agreement = found.agreement
        of_class = calibration(agreement.labelled, agreement.right)
        whole = calibration(agreement.labelled.sum(0), agreement.right.sum(0))
        right = Diagram(page, LEFT + SIDE + GAP, TOP)
        _reliability(right, found, order, of_class, whole)
    note = f"Passing at {NOTED:g}, classes as in the diagram from its top:"
    write(page, note, MARGIN, page.shape[0] - 6, scale=TEXT, colour=FAINT)
    return np.concatenate([page, np.where(below == below[-1, -1], np.uint8(255), below)])


def _all(histogram: np.ndarray, found: Report) -> float:
    return float(found.passing(NOTED).sum() / max(histogram.sum(), 1))


def _reliability(diagram: Diagram, found: Report, order: list[int], of_class: Calibration, whole: Calibration) -> None:
    """Bars of all classes, a diagonal for a calibrated teacher, and lines of the classes."""
    for part in np.flatnonzero(whole.pixels >= found.least_pixels):
        diagram.bar(part / BINS, (part + 1) / BINS, float(whole.precision[part]))
    text = ""
    if whole.pixels.any():
        text = f": {verdict(float(whole.error), float(whole.excess))} (ECE {whole.error:.3f})"
    diagram.frame(f"Precision in %{text}", "probability")
    diagram.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), FRAME, 1)
    for k in order[::-1]:
        seen = of_class.pixels[k] >= found.least_pixels
        colour = _colour(found.manifest.classes.colours[k])
        diagram.line(of_class.probability[k][seen], of_class.precision[k][seen], colour, 1, marked=2)
    seen = whole.pixels >= found.least_pixels
    diagram.line(whole.probability[seen], whole.precision[seen], INK, 3, marked=5)


def _colour(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


@dataclass(frozen=True, eq=False)
class Diagram:
    """A square of a page, uint8 [H, W, 3], with both axes from 0 to 1."""

    page: np.ndarray
    x: int
    y: int

    def frame(self, title: str, below: str) -> None:
        """Frame, grid, numbers in % of the upright axis, and texts. Drawn over bars and below lines."""
        for tenth in range(0, 11, 2):
            x, y = self._place(tenth / 10, tenth / 10)
            cv2.line(self.page, (x, self.y), (x, self.y + SIDE), GRID, 1)
            cv2.line(self.page, (self.x, y), (self.x + SIDE, y), GRID, 1)
            number, percent = f"{tenth / 10:g}", f"{10 * tenth}"
            write(self.page, number, x - width_of(number, TEXT) // 2, self.y + SIDE + 20, scale=TEXT)
            write(self.page, percent, self.x - 10 - width_of(percent, TEXT), y + 5, scale=TEXT)
        cv2.rectangle(self.page, (self.x, self.y), (self.x + SIDE, self.y + SIDE), FRAME, 1)
        write(self.page, title, self.x, self.y - 18, scale=TITLE)
        middle = self.x + (SIDE - width_of(below, TEXT)) // 2
        write(self.page, below, middle, self.y + SIDE + 42, scale=TEXT, colour=FAINT)

    def line(
        self, across: np.ndarray, up: np.ndarray, colour: tuple[int, int, int], thickness: int, marked: int = 0
    ) -> None:
        """A line through points, float64 [N] each, without those that are NaN. marked: radius of a dot at each."""
        known = ~np.isnan(up)
        if not known.any():
            return
        across, up = across[known], up[known]
        places = np.stack([self.x + across * SIDE, self.y + (1 - up) * SIDE], 1)
        fine = np.round(places * 2**_FINE).astype(np.int32)
        cv2.polylines(self.page, [fine], False, colour, thickness, cv2.LINE_AA, _FINE)
        for place in fine if marked else []:
            cv2.circle(self.page, tuple(place.tolist()), marked * 2**_FINE, colour, -1, cv2.LINE_AA, _FINE)

    def bar(self, begin: float, end: float, height: float) -> None:
        """A bar that stands on the lower edge."""
        (x0, y0), (x1, y1) = self._place(begin, height), self._place(end, 0)
        cv2.rectangle(self.page, (x0 + 1, y0), (x1 - 1, y1), BAR, cv2.FILLED)

    def _place(self, across: float, up: float) -> tuple[int, int]:
        return round(self.x + across * SIDE), round(self.y + (1 - up) * SIDE)
