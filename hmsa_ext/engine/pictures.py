"""One labelled picture per validation image: what went in, what came out of every scale, and who was trusted where."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from hmsa_ext.data import ClassTable, Dataset, collate, cut, denormalise, whole_piece
from hmsa_ext.engine import evaluation
from hmsa_ext.engine.device import evaluation_mode
from hmsa_ext.engine.metrics import ATTENTION, MEAN, Predictions
from hmsa_ext.models import ScaleOutputs

TILE_WIDTH = (320, 640)  # pixels: smaller images are enlarged, larger ones reduced
MARGIN, TITLE_HEIGHT = 12, 26
PAPER, INK, FAINT = (250, 250, 250), (40, 40, 40), (130, 130, 130)
WRONG, IGNORED = (225, 45, 45), (20, 20, 20)


def draw(
    model: nn.Module,
    dataset: Dataset,
    count: int,
    scales: Sequence[float],
    folder: Path,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    flip: bool = False,
    long_edge: int = 0,
) -> list[Path]:
    """Draws ``count`` images, evenly spread over ``dataset``, one PNG each in ``folder``; returns the files.

    Three rows: input, truth, result of the attention, its errors; result of each scale alone and of the mean; share
    of each scale in the result, per pixel. Then the legend. ``long_edge``: see :func:`hmsa_ext.data.evaluation_loader`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    count = min(count, len(dataset))
    with evaluation_mode(model):
        for index in (i * len(dataset) // count for i in range(count)):
            batch = cut(collate([whole_piece(dataset[index], long_edge)]))
            image, truth, (name,) = denormalise(batch.images[0]), batch.labels[0].numpy(), batch.names
            outputs = evaluation.run(model, batch.images, scales, device, dtype=dtype, flip=flip)
            read = Predictions(outputs, batch.labels, batch.names, flip=flip)
            predictions = {way: read.labels(way)[0].cpu().numpy() for way in read.ways}
            shares = scale_shares(outputs)
            shares = {s: evaluation.unmirrored(m, flip=flip)[0, 0].float().cpu().numpy() for s, m in shares.items()}
            picture = compose(image, truth, predictions, shares, dataset.classes, name)
            files.append(folder / f"{Path(name).name}.png")
            if not cv2.imwrite(str(files[-1]), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
                raise OSError(f"cannot write {files[-1]}")
    return files


def scale_shares(outputs: ScaleOutputs) -> dict[float, Tensor]:
    """How much of the fused logits comes from each scale: maps [B, 1, H, W] that add up to 1, by ascending scale.

    The attention says how much a scale takes from what all larger scales left. Down the chain, the share of a scale is
    its own attention times ``1 - attention`` of every smaller one; the largest scale has what is left.
    """
    left: Tensor | None = None
    shares = {}
    for index in reversed(range(1, len(outputs.scales))):
        attention = outputs.attention_map(index - 1).float().mean(1, keepdim=True)
        shares[outputs.scales[index]] = attention if left is None else left * attention
        left = 1 - attention if left is None else left * (1 - attention)
    if left is None:
        left = outputs.logits[0].new_ones(outputs.logits[0].shape[0], 1, *outputs.size)
    return {**shares, outputs.scales[0]: left}


def compose(
    image: np.ndarray,
    truth: np.ndarray,
    predictions: dict[str, np.ndarray],
    shares: dict[float, np.ndarray],
    classes: ClassTable,
    name: str,
) -> np.ndarray:
    """The picture as uint8 RGB. ``image`` [H, W, 3], ``truth`` and ``predictions`` [H, W] labels, ``shares`` [H, W]."""
    zoom = _zoom(image.shape[1])
    fused = predictions[ATTENTION]
    valid = truth != classes.ignore_label
    right = (fused == truth)[valid].mean() if valid.any() else math.nan
    rows = [
        [
            ("input", _photo(image, zoom)),
            ("truth", _labels(truth, classes, zoom)),
            ("attention over all scales", _labels(fused, classes, zoom)),
            (f"errors of it: {100 * (1 - right):.1f} % of the pixels", _errors(image, truth, fused, classes, zoom)),
        ],
        [
            (f"scale {way} alone" if way != MEAN else "mean of the scales", _labels(p, classes, zoom))
            for way, p in predictions.items()
            if way != ATTENTION
        ],
        [(f"share of scale {s} in the attention", _heat(m, zoom)) for s, m in shares.items()],
    ]
    height, width = rows[0][0][1].shape[:2]
    columns = max(len(row) for row in rows)
    page_width = MARGIN + columns * (width + MARGIN)
    legend = _legend(classes, page_width)
    row_height = TITLE_HEIGHT + height + MARGIN
    page = np.full((36 + len(rows) * row_height + len(legend), page_width, 3), PAPER, np.uint8)
    _write(page, name, MARGIN, 25, scale=0.6)
    for r, row in enumerate(rows):
        top = 36 + r * row_height
        for c, (title, tile) in enumerate(row):
            left = MARGIN + c * (width + MARGIN)
            _write(page, title, left, top + 17)
            page[top + TITLE_HEIGHT : top + TITLE_HEIGHT + height, left : left + width] = tile
        if r == len(rows) - 1 and len(row) < columns:
            _scale_bar(page, MARGIN + len(row) * (width + MARGIN), top + TITLE_HEIGHT, width, height)
    page[len(page) - len(legend) :] = legend
    return page


def _zoom(width: int) -> float:
    smallest, largest = TILE_WIDTH
    if width < smallest:
        return math.ceil(smallest / width)
    return min(1.0, largest / width)


def _resized(picture: np.ndarray, zoom: float, interpolation: int) -> np.ndarray:
    if zoom == 1:
        return picture
    size = max(1, round(picture.shape[1] * zoom)), max(1, round(picture.shape[0] * zoom))
    return cv2.resize(picture, size, interpolation=interpolation)


def _photo(image: np.ndarray, zoom: float) -> np.ndarray:
    return _resized(image, zoom, cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)


def _labels(labels: np.ndarray, classes: ClassTable, zoom: float) -> np.ndarray:
    palette = np.full((256, 3), IGNORED, np.uint8)
    palette[: classes.num_classes] = classes.colours
    return palette[_resized(labels.astype(np.uint8), zoom, cv2.INTER_NEAREST)]


def _errors(image: np.ndarray, truth: np.ndarray, fused: np.ndarray, classes: ClassTable, zoom: float) -> np.ndarray:
    """A pale grey photo with the wrong pixels in red and the ignored ones in black."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    pale = np.repeat(170 + grey // 3, 3, axis=2).astype(np.uint8)
    ignored = truth == classes.ignore_label
    pale[(fused != truth) & ~ignored] = WRONG
    pale[ignored] = IGNORED
    return _resized(pale, zoom, cv2.INTER_AREA if zoom < 1 else cv2.INTER_NEAREST)


def _heat(share: np.ndarray, zoom: float) -> np.ndarray:
    """Values 0..1 as colours, dark to bright, in the same map for every picture."""
    values = np.clip(share * 255 + 0.5, 0, 255).astype(np.uint8)
    values = _resized(values, zoom, cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    return cv2.cvtColor(cv2.applyColorMap(values, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def _scale_bar(page: np.ndarray, left: int, top: int, width: int, height: int) -> None:
    """The colours of the shares, 0 to 1, drawn into the page beside the last map."""
    bar_width, bar_height = 18, max(20, height - 24)
    ramp = np.linspace(1, 0, bar_height, dtype=np.float32)[:, None].repeat(bar_width, axis=1)
    top += (height - bar_height) // 2
    page[top : top + bar_height, left : left + bar_width] = _heat(ramp, 1)
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + round((1 - value) * (bar_height - 1))
        cv2.line(page, (left + bar_width, y), (left + bar_width + 5, y), INK, 1)
        _write(page, f"{value:g}", left + bar_width + 10, y + 5)
    _write(page, "share in the result", left + bar_width + 52, top + bar_height // 2 + 5, colour=FAINT)


def _legend(classes: ClassTable, width: int) -> np.ndarray:
    """Rows of colour fields with the class names, as wide as the page."""
    entries = [
        *zip(classes.names, classes.colours, strict=True),
        ("ignored", np.array(IGNORED)),
        ("wrong", np.array(WRONG)),
    ]
    entry_width = 44 + max(_text_width(name) for name, _ in entries)
    per_row = max(1, (width - 2 * MARGIN) // entry_width)
    rows = math.ceil(len(entries) / per_row)
    strip = np.full((rows * 26 + 10, width, 3), PAPER, np.uint8)
    for i, (name, colour) in enumerate(entries):
        x, y = MARGIN + (i % per_row) * entry_width, 4 + (i // per_row) * 26
        cv2.rectangle(strip, (x, y), (x + 22, y + 16), tuple(int(v) for v in colour), cv2.FILLED)
        cv2.rectangle(strip, (x, y), (x + 22, y + 16), FAINT, 1)
        _write(strip, name, x + 30, y + 13)
    return strip


def _text_width(text: str, scale: float = 0.45) -> int:
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]


def _write(
    page: np.ndarray, text: str, x: int, y: int, *, scale: float = 0.45, colour: tuple[int, int, int] = INK
) -> None:
    # OpenCV's letters are ASCII; other characters would come out as question marks anyway.
    text = text.encode("ascii", "replace").decode()
    cv2.putText(page, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)
