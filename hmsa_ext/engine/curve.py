"""The curve of a run: loss and validation mIoU over the steps, from its metrics.jsonl.

python -m hmsa_ext.engine.curve RUN      # writes RUN/curve.png
"""

import json
import math
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
    training = [(r["step"], r["loss"]) for r in records if r["kind"] == "train" and math.isfinite(r["loss"])]
    validation = [r for r in records if r["kind"] == "validation"]
    if not training:
        raise ValueError(f"{folder / 'metrics.jsonl'} has no training steps to draw")
    page = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    last = max(step for step, _ in training)
    top_loss = max(loss for _, loss in training) * 1.05
    names = [name for name in VALIDATION if any(f"miou_{name}" in r for r in validation)]
    top_miou = max((r[f"miou_{n}"] for n in names for r in validation), default=0.0) * 110 or 100.0

    _axes(page, last, top_loss, top_miou if names else None)
    _line(page, training, last, top_loss, LOSS)
    for k, name in enumerate(names):
        points = [(r["step"], 100 * r[f"miou_{name}"]) for r in validation if f"miou_{name}" in r]
        _line(page, points, last, top_miou, VALIDATION[name], marked=True)
        label = {"attention": "mIoU, attention", "mean": "mIoU, mean of logits"}.get(name, f"mIoU, scale {name}")
        _text(page, label, (WIDTH - 230, HEIGHT - MARGIN - 12 - 16 * k), VALIDATION[name])
    _text(page, "training loss", (MARGIN + 12, MARGIN - 12), LOSS)
    path = folder / "curve.png"
    cv2.imwrite(str(path), page)
    return path


def _place(step: float, value: float, last: float, top: float) -> tuple[int, int]:
    x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
    y = HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)
    return round(x), round(y)


def _line(page, points, last, top, colour, *, marked: bool = False) -> None:
    places = [_place(step, value, last, top) for step, value in points]
    cv2.polylines(page, [np.array(places, np.int32)], False, colour, 1, cv2.LINE_AA)
    for place in places if marked else []:
        cv2.circle(page, place, 3, colour, -1, cv2.LINE_AA)


def _axes(page, last: int, top_loss: float, top_miou: float | None) -> None:
    cv2.rectangle(page, (MARGIN, MARGIN), (WIDTH - MARGIN, HEIGHT - MARGIN), (180, 180, 180), 1)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place(share * last, share * top_loss, last, top_loss)
        cv2.line(page, (MARGIN, y), (WIDTH - MARGIN, y), (235, 235, 235), 1)
        _text(page, f"{share * last:.0f}", (x - 12, HEIGHT - MARGIN + 18))
        _text(page, f"{share * top_loss:.2f}", (6, y + 4))
        if top_miou is not None:
            _text(page, f"{share * top_miou:.0f} %", (WIDTH - MARGIN + 6, y + 4))
    _text(page, "step", (WIDTH // 2 - 14, HEIGHT - 8))


def _text(page, text: str, place: tuple[int, int], colour=(60, 60, 60)) -> None:
    cv2.putText(page, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hmsa_ext.engine.curve RUN")
    print(draw(Path(sys.argv[1])))
