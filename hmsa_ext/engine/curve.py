"""The curve of a run: loss and validation mIoU over the steps, from its metrics.jsonl.

python -m hmsa_ext.engine.curve RUN      # writes RUN/curve.png
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 720, 300
MARGIN = 46
LOSS, VALIDATION = (60, 60, 60), {"1.0": (200, 130, 30), "mean": (40, 150, 40), "attention": (30, 30, 200)}  # BGR


def draw(folder: Path) -> Path:
    """Draws ``curve.png`` of a run folder; returns its path. The loss is on the left axis, mIoU in % on the right."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # A value that was not finite is null in the file: a loss gone wrong, a mIoU where nothing was labelled.
    training = [(r["step"], r["loss"]) for r in records if r["kind"] == "train" and r["loss"] is not None]
    validation = [r for r in records if r["kind"] == "validation"]
    if not training:
        raise ValueError(f"{folder / 'metrics.jsonl'} has no training steps to draw")
    page = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    last = max(step for step, _ in training)
    losses = [loss for _, loss in training]
    # From 0, or from below it where the loss (that of RMI, say) goes there; never an empty range.
    loss_range = (min(0.0, *losses) * 1.05, max(losses) * 1.05 if max(losses) > 0 else 1.0)
    points = {
        name: [(r["step"], 100 * r[key]) for r in validation if r.get(key := f"miou_{name}") is not None]
        for name in VALIDATION
    }
    points = {name: found for name, found in points.items() if found}
    top_miou = max((value for found in points.values() for _, value in found), default=0.0) * 1.1 or 100.0
    miou_range = (0.0, top_miou)

    _axes(page, last, loss_range, miou_range if points else None)
    _line(page, training, last, loss_range, LOSS)
    for k, (name, found) in enumerate(points.items()):
        _line(page, found, last, miou_range, VALIDATION[name], marked=True)
        label = {"attention": "mIoU, attention", "mean": "mIoU, mean of logits"}.get(name, f"mIoU, scale {name}")
        _text(page, label, (WIDTH - 230, HEIGHT - MARGIN - 12 - 16 * k), VALIDATION[name])
    _text(page, "training loss", (MARGIN + 12, MARGIN - 12), LOSS)
    path = folder / "curve.png"
    cv2.imwrite(str(path), page)
    return path


def _place(step: float, value: float, last: float, limits: tuple[float, float]) -> tuple[int, int]:
    low, high = limits
    x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
    y = HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN)
    return round(x), round(y)


def _line(page, points, last, limits, colour, *, marked: bool = False) -> None:
    places = [_place(step, value, last, limits) for step, value in points]
    cv2.polylines(page, [np.array(places, np.int32)], False, colour, 1, cv2.LINE_AA)
    for place in places if marked else []:
        cv2.circle(page, place, 3, colour, -1, cv2.LINE_AA)


def _axes(page, last: int, losses: tuple[float, float], miou: tuple[float, float] | None) -> None:
    cv2.rectangle(page, (MARGIN, MARGIN), (WIDTH - MARGIN, HEIGHT - MARGIN), (180, 180, 180), 1)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        loss = losses[0] + share * (losses[1] - losses[0])
        x, y = _place(share * last, loss, last, losses)
        cv2.line(page, (MARGIN, y), (WIDTH - MARGIN, y), (235, 235, 235), 1)
        _text(page, f"{share * last:.0f}", (x - 12, HEIGHT - MARGIN + 18))
        _text(page, f"{loss:.2f}", (6, y + 4))
        if miou is not None:
            _text(page, f"{share * miou[1]:.0f} %", (WIDTH - MARGIN + 6, y + 4))
    _text(page, "step", (WIDTH // 2 - 14, HEIGHT - 8))


def _text(page, text: str, place: tuple[int, int], colour=(60, 60, 60)) -> None:
    cv2.putText(page, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hmsa_ext.engine.curve RUN")
    print(draw(Path(sys.argv[1])))
