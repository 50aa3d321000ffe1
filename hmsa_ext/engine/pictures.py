"""One page for each of some images: photo, truth, prediction, errors, and what each scale contributed where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from hmsa_ext.data import ClassTable, Dataset, collate, cut, denormalise, whole_piece
from hmsa_ext.engine import evaluation
from hmsa_ext.engine.device import evaluation_mode
from hmsa_ext.engine.lettering import FAINT, INK, width_of, write
from hmsa_ext.engine.metrics import ATTENTION, MEAN, Predictions
from hmsa_ext.errors import HmsaError
from hmsa_ext.files import replacing
from hmsa_ext.models import ScaleOutputs

TILE_WIDTH = (320, 640)  # pixels: smaller images are enlarged, larger ones reduced
MARGIN, HEAD_HEIGHT, TITLE_HEIGHT, LEGEND_HEIGHT = 12, 36, 26, 26
PAPER = (250, 250, 250)
# Both are hatched, so that no class of a like colour is taken for them: (colour, colour of the lines).
WRONG, WRONG_LINES = (225, 45, 45), (120, 0, 0)
IGNORED, IGNORED_LINES = (20, 20, 20), (120, 120, 120)

_Panel = tuple[str, "np.ndarray | None"]
"""Title and picture; a panel without picture is the key of the shares' colours."""


class PictureError(HmsaError, OSError):
    """A picture that cannot be written."""


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
    """Writes the :func:`pages` of ``count`` images, as ``folder/<name of the image>.png``; returns the files.

    A name with folders in it (``cityA/0000``) keeps them. A second image of one name gets ``-2`` behind it. Raises
    :class:`PictureError` for a file that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for name, page in pages(model, dataset, count, scales, device, dtype=dtype, flip=flip, long_edge=long_edge):
        files.append(_place(folder, name, files))
        _write_png(files[-1], page)
    return files


def pages(
    model: nn.Module,
    dataset: Dataset,
    count: int,
    scales: Sequence[float],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    flip: bool = False,
    long_edge: int = 0,
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pages, uint8 RGB, of ``count`` images that are evenly spread over ``dataset``: see :func:`compose`.

    ``long_edge``: see :func:`hmsa_ext.data.evaluation_loader`. The model runs when the next page is asked for.
    """
    count = min(count, len(dataset))
    for index in (i * len(dataset) // count for i in range(count)):
        with evaluation_mode(model):  # not while the caller has the page
            batch = cut(collate([whole_piece(dataset[index], long_edge)]))
            image, truth, (name,) = denormalise(batch.images[0]), batch.labels[0].numpy(), batch.names
            outputs = evaluation.run(model, batch.images, scales, device, dtype=dtype, flip=flip)
            read = Predictions(outputs, batch.labels, batch.names, flip=flip)
            predictions = {way: read.labels(way)[0].cpu().numpy() for way in read.ways}
            maps = {s: evaluation.unmirrored(m, flip=flip) for s, m in scale_shares(outputs).items()}
            shares = {s: m[0, 0].float().cpu().numpy() for s, m in maps.items()}
        yield name, compose(image, truth, predictions, shares, dataset.classes, name)


def scale_shares(outputs: ScaleOutputs) -> dict[float, Tensor]:
    """How much of the fused logits comes from each scale: maps [B, 1, H, W] that add up to 1, by ascending scale.

    The attention of a scale weighs it against all larger scales together. The share of a scale in the result is
    therefore its own attention times ``1 - attention`` of every smaller scale; the largest scale has what is left.
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
    """The page as uint8 RGB. ``image`` [H, W, 3], ``truth`` and ``predictions`` [H, W] labels, ``shares`` [H, W].

    First row: the photo, the truth, the prediction of the attention and its errors. Second row: the prediction over the
    photo, and the predictions of each scale alone and of the mean. Third row: the share of each scale in the attention.
    With one scale all predictions are the same: one row, with the prediction over the photo as its fifth panel. Then
    the legend.
    """
    zoom = _zoom(image.shape[1])
    fused = predictions[ATTENTION]
    several = len(shares) > 1
    valid = truth != classes.ignore_label
    errors = "errors: nothing is labelled"
    if valid.any():
        errors = f"errors: {100 * (fused != truth)[valid].mean():.1f} % of the labelled pixels"
    over: _Panel = ("prediction over the photo", overlay(_photo(image, zoom), _enlarged(fused, zoom), classes.colours))
    rows: list[list[_Panel]] = [
        [
            ("photo", _photo(image, zoom)),
            ("truth", _labels(truth, classes, zoom)),
            ("prediction: attention over all scales" if several else "prediction", _labels(fused, classes, zoom)),
            (errors, _errors(image, (fused != truth) & valid, ~valid, zoom)),
        ]
    ]
    if several:
        alone = [(way, labels) for way, labels in predictions.items() if way != ATTENTION]
        titles = ["mean of the scales" if way == MEAN else f"scale {way} alone" for way, _ in alone]
        panels = [_labels(labels, classes, zoom) for _, labels in alone]
        rows.append([over, *zip(titles, panels, strict=True)])
        maps = [(f"share of scale {s} in the attention", _heat(m, zoom)) for s, m in shares.items()]
        rows.append([("share in the attention, per pixel", None), *maps])
    else:
        rows[0].append(over)
    return _page(rows, classes, name)


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """The photo under the colours of its labels: uint8 [H, W, 3].

    image: uint8 [H, W, 3]. labels: [H, W]; those without a colour (ignored) leave the photo as it is. colours: uint8
    [C, 3]. opacity: 0 shows the photo alone, 1 the colours alone.
    """
    has_colour = labels < len(colours)
    painted = colours[np.where(has_colour, labels, 0)].astype(np.float32)
    share = np.where(has_colour, np.float32(opacity), np.float32(0))[..., None]
    return (image * (1 - share) + painted * share + 0.5).astype(np.uint8)


def _page(rows: list[list[_Panel]], classes: ClassTable, name: str) -> np.ndarray:
    height, width = next(tile.shape[:2] for _, tile in rows[0] if tile is not None)
    page_width = MARGIN + max(len(row) for row in rows) * (width + MARGIN)
    legend = _legend(classes, page_width)
    row_height = TITLE_HEIGHT + height + MARGIN
    page = np.full((HEAD_HEIGHT + len(rows) * row_height + len(legend), page_width, 3), PAPER, np.uint8)
    write(page, name, MARGIN, 25, scale=0.6, width=page_width - 2 * MARGIN)
    for r, row in enumerate(rows):
        top = HEAD_HEIGHT + r * row_height + TITLE_HEIGHT
        for c, (title, tile) in enumerate(row):
            left = MARGIN + c * (width + MARGIN)
            write(page, title, left, top - 9, width=width)
            if tile is None:
                _share_key(page, left, top, width, height)
                continue
            page[top : top + height, left : left + width] = tile
            # A frame: areas of a class as light as the paper end somewhere, too.
            cv2.rectangle(page, (left - 1, top - 1), (left + width, top + height), FAINT, 1)
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


def _enlarged(labels: np.ndarray, zoom: float) -> np.ndarray:
    return _resized(labels.astype(np.uint8), zoom, cv2.INTER_NEAREST)


def _labels(labels: np.ndarray, classes: ClassTable, zoom: float) -> np.ndarray:
    palette = np.zeros((256, 3), np.uint8)
    palette[: classes.num_classes] = classes.colours
    labels = _enlarged(labels, zoom)
    ignored = (labels >= classes.num_classes)[..., None]
    return np.where(ignored, _hatch(labels.shape, IGNORED, IGNORED_LINES), palette[labels])


def _errors(image: np.ndarray, wrong: np.ndarray, ignored: np.ndarray, zoom: float) -> np.ndarray:
    """A pale grey photo with the wrong pixels in red and the ignored ones in black, both hatched."""
    pale = 170 + _photo(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), zoom)[..., None] // 3
    for mask, colours in ((wrong, (WRONG, WRONG_LINES)), (ignored, (IGNORED, IGNORED_LINES))):
        # Of a picture that is reduced, a pixel may be wrong in part.
        share = _resized(mask.astype(np.float32), zoom, cv2.INTER_AREA if zoom < 1 else cv2.INTER_NEAREST)[..., None]
        pale = pale * (1 - share) + _hatch(share.shape[:2], *colours) * share
    return (pale + 0.5).astype(np.uint8)


def _hatch(
    size: tuple[int, ...], colour: tuple[int, int, int], lines: tuple[int, int, int], distance: int = 8
) -> np.ndarray:
    """An area [H, W, 3] of one colour, with diagonal lines."""
    y, x = np.ogrid[: size[0], : size[1]]
    return np.where(((x + y) % distance < 2)[..., None], np.array(lines, np.uint8), np.array(colour, np.uint8))


def _heat(share: np.ndarray, zoom: float) -> np.ndarray:
    """Values 0..1 as colours, dark to bright, in the same map for every picture."""
    values = np.clip(share * 255 + 0.5, 0, 255).astype(np.uint8)
    values = _resized(values, zoom, cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    return cv2.cvtColor(cv2.applyColorMap(values, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def _share_key(page: np.ndarray, left: int, top: int, width: int, height: int) -> None:
    """The colours of the shares, 0 to 1, drawn into the place of a panel."""
    bar_width, bar_height = 18, max(20, height - 24)
    ramp = np.linspace(1, 0, bar_height, dtype=np.float32)[:, None].repeat(bar_width, axis=1)
    top += (height - bar_height) // 2
    left += width - 60  # beside the first map
    page[top : top + bar_height, left : left + bar_width] = _heat(ramp, 1)
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + round((1 - value) * (bar_height - 1))
        cv2.line(page, (left - 6, y), (left - 1, y), INK, 1)
        write(page, f"{value:g}", left - 12 - width_of(f"{value:g}"), y + 5)


def _legend(classes: ClassTable, width: int) -> np.ndarray:
    """Rows of colour fields with the class names, as wide as the page."""
    field = (16, 22)
    entries = [
        *((name, np.full((*field, 3), colour)) for name, colour in zip(classes.names, classes.colours, strict=True)),
        ("ignored", _hatch(field, IGNORED, IGNORED_LINES)),
        ("wrong", _hatch(field, WRONG, WRONG_LINES)),
    ]
    entry_width = min(44 + max(width_of(name) for name, _ in entries), width - 2 * MARGIN)
    per_row = max(1, (width - 2 * MARGIN) // entry_width)
    rows = math.ceil(len(entries) / per_row)
    strip = np.full((rows * LEGEND_HEIGHT + 14, width, 3), PAPER, np.uint8)
    for i, (name, colours) in enumerate(entries):
        x, y = MARGIN + (i % per_row) * entry_width, 8 + (i // per_row) * LEGEND_HEIGHT
        strip[y : y + field[0], x : x + field[1]] = colours
        cv2.rectangle(strip, (x - 1, y - 1), (x + field[1], y + field[0]), FAINT, 1)
        write(strip, name, x + 30, y + 13, width=entry_width - 34)
    return strip


def _place(folder: Path, name: str, taken: Sequence[Path]) -> Path:
    """The file for the page of an image, below ``folder`` whatever the name is."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..")] or ["image"]
    number = 1
    while True:
        file = folder.joinpath(*parts[:-1], parts[-1] + (f"-{number}" if number > 1 else "") + ".png")
        if file not in taken:
            return file
        number += 1


def _write_png(file: Path, page: np.ndarray) -> None:
    written, content = cv2.imencode(".png", cv2.cvtColor(page, cv2.COLOR_RGB2BGR))
    if not written:
        raise PictureError(f"{file}: a page of {page.shape[1]} x {page.shape[0]} pixels cannot be encoded")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            out.write(content.tobytes())
    except OSError as error:
        raise PictureError(f"{file}: cannot be written: {error.strerror or error}") from error
