"""The curve of a run: loss and validation mIoU over the steps, from its metrics.jsonl.

python -m hmsa_ext.engine.curve RUN      # writes RUN/curve.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmsa_ext.engine.lettering import width_of, write
from hmsa_ext.engine.logging import METRICS, read_records
from hmsa_ext.engine.metrics import title_of
from hmsa_ext.errors import HmsaError
from hmsa_ext.files import replacing

WIDTH, HEIGHT = 720, 300
MARGIN = 46
TEXT = 0.4
LOSS, VALIDATION_LOSS = (60, 60, 60), (150, 110, 150)  # BGR
VALIDATION = {"1.0": (200, 130, 30), "mean": (40, 150, 40), "attention": (30, 30, 200)}

_MOST = 1e100  # no number beyond this can be drawn; NaN and infinity are beyond it, too

_Points = Sequence[tuple[int, float]]


class CurveError(HmsaError, ValueError):
    """A run of which no curve can be drawn."""


def draw(folder: Path) -> Path:
    """Draws ``curve.png`` of a run folder; returns its path. The losses are on the left axis, mIoU in % on the right.

    Raises :class:`CurveError` for a run without a training step.
    """
    path = folder / METRICS
    try:
        records = read_records(path)
    except OSError as error:
        raise CurveError(f"{path}: cannot be read: {error.strerror or error}") from error
    training = _points(records, "train", "loss")
    if not training:
        raise CurveError(f"{path} has no training steps to draw")
    validation_loss = _points(records, "validation", "loss")
    colours = VALIDATION | dict.fromkeys(_other_fusions(records), VALIDATION["attention"])  # a run has one fusion
    found = {name: _points(records, "validation", f"miou_{name}") for name in colours}
    miou = {name: [(step, 100 * value) for step, value in points] for name, points in found.items() if points}
    last = max(1, *(step for points in (training, validation_loss, *miou.values()) for step, _ in points))
    losses = [loss for _, loss in (*training, *validation_loss)]
    # From 0, or from below it where the loss (that of RMI, say) goes there; never an empty range.
    loss_range = (min(0.0, *losses) * 1.05, max(losses) * 1.05 if max(losses) > 0 else 1.0)
    miou_range = (0.0, max((value for points in miou.values() for _, value in points), default=0.0) * 1.1 or 100.0)

    page = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    _axes(page, last, loss_range, miou_range if miou else None)
    _line(page, training, last, loss_range, LOSS)
    labels = [("training loss", LOSS)]
    if validation_loss:
        _line(page, validation_loss, last, loss_range, VALIDATION_LOSS, marked=True)
        labels.append(("validation loss", VALIDATION_LOSS))
    for name, points in miou.items():
        _line(page, points, last, miou_range, colours[name], marked=True)
        way = {"1.0": "scale 1.0", "mean": "mean of logits"}.get(name, title_of(name))
        labels.append((f"mIoU, {way}", colours[name]))
    left = MARGIN
    for label, colour in labels:
        write(page, label, left, MARGIN - 12, scale=TEXT, colour=colour)
        left += width_of(label, TEXT) + 18
    written, content = cv2.imencode(".png", page)
    assert written  # a page of this size always can be
    with replacing(folder / "curve.png") as file:
        file.write(content.tobytes())
    return folder / "curve.png"


def _other_fusions(records: Sequence[dict[str, Any]]) -> list[str]:
    """The ways of validations that are neither a scale alone nor in VALIDATION, such as "max"."""
    names = {name.removeprefix("miou_") for record in records for name in record if name.startswith("miou_")}
    return sorted(name for name in names if name not in VALIDATION and not name[:1].isdigit())


def _points(records: Sequence[dict[str, Any]], kind: str, name: str) -> list[tuple[int, float]]:
    """Steps and values, without the undefined ones: a loss gone wrong, a mIoU where nothing was labelled."""
    points = []
    for record in records:
        value = record.get(name)
        if record["kind"] != kind or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if abs(value) < _MOST:
            points.append((record["step"], value))
    return points


def _place(step: float, value: float, last: float, limits: tuple[float, float]) -> tuple[int, int]:
    low, high = limits
    x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
    y = HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN)
    return round(x), round(y)


def _line(
    page: np.ndarray,
    points: _Points,
    last: int,
    limits: tuple[float, float],
    colour: tuple[int, int, int],
    *,
    marked: bool = False,
) -> None:
    places = [_place(step, value, last, limits) for step, value in points]
    cv2.polylines(page, [np.array(places, np.int32)], False, colour, 1, cv2.LINE_AA)
    for place in places if marked else []:
        cv2.circle(page, place, 3, colour, -1, cv2.LINE_AA)


def _axes(page: np.ndarray, last: int, losses: tuple[float, float], miou: tuple[float, float] | None) -> None:
    cv2.rectangle(page, (MARGIN, MARGIN), (WIDTH - MARGIN, HEIGHT - MARGIN), (180, 180, 180), 1)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        loss = losses[0] + share * (losses[1] - losses[0])
        x, y = _place(share * last, loss, last, losses)
        cv2.line(page, (MARGIN, y), (WIDTH - MARGIN, y), (235, 235, 235), 1)
        write(page, f"{share * last:.0f}", x - 12, HEIGHT - MARGIN + 18, scale=TEXT)
        write(page, f"{loss:.2f}", 6, y + 4, scale=TEXT)
        if miou is not None:
            digits = 0 if miou[1] >= 10 else 1
            write(page, f"{share * miou[1]:.{digits}f} %", WIDTH - MARGIN + 4, y + 4, scale=TEXT)
    write(page, "step", WIDTH // 2 - 14, HEIGHT - 8, scale=TEXT)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hmsa_ext.engine.curve RUN")
    try:
        print(draw(Path(sys.argv[1])))
    except HmsaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
