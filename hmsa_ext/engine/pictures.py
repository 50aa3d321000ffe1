"""One page for each of some images: photo, truth, prediction, errors, and what each scale contributed where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import torch
from torch import nn

from hmsa_ext.data import ClassTable, Dataset, collate, cut, denormalise, whole_piece
from hmsa_ext.engine.device import evaluation_mode
from hmsa_ext.engine.legend import IGNORED, IGNORED_LINES, WRONG, WRONG_LINES, Entry, occurring
from hmsa_ext.engine.metrics import MEAN, Predictions, title_of
from hmsa_ext.engine.out_of_memory import LESS_TO_EVALUATE, explained, shown_scales
from hmsa_ext.engine.panels import (
    Panel,
    compose_page,
    errors_panel,
    labels_panel,
    overlay_panel,
    photo_panel,
    shares_panel,
    zoom_of,
)
from hmsa_ext.engine.passes import unmirrored
from hmsa_ext.engine.tiling import TileSettings, Tiling, scored
from hmsa_ext.errors import HmsaError
from hmsa_ext.files import replacing
from hmsa_ext.models import ScaleOutputs


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
    tiles: TileSettings | None = None,
) -> list[Path]:
    """Writes the :func:`pages` of ``count`` images, as ``folder/<name of the image>.png``; returns the files.

    A name with folders in it (``cityA/0000``) keeps them. A second image of one name gets ``-2`` behind it. Raises
    :class:`PictureError` for a file that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    found = pages(model, dataset, count, scales, device, dtype=dtype, flip=flip, long_edge=long_edge, tiles=tiles)
    for name, page in found:
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
    tiles: TileSettings | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pages, uint8 RGB, of ``count`` images that are evenly spread over ``dataset``: see :func:`compose`.

    ``long_edge``: see :func:`hmsa_ext.data.evaluation_loader`; ``tiles``: see
    :func:`hmsa_ext.engine.evaluation.evaluate`. The model runs when the next page is asked for.
    """
    tiling = Tiling(model, device, tiles, dtype=dtype)
    around = scored(dataset.classes.num_classes, len(scales), flip=flip, metrics=False)
    count = min(count, len(dataset))
    for index in (i * len(dataset) // count for i in range(count)):
        with evaluation_mode(model):  # not while the caller has the page
            batch = cut(collate([whole_piece(dataset[index], long_edge)]))
            image, truth, (name,) = denormalise(batch.images[0]), batch.labels[0].numpy(), batch.names
            what = f"a picture of {name} ({image.shape[0]}x{image.shape[1]}) at {shown_scales(scales, flip=flip)}"
            with explained(what, LESS_TO_EVALUATE):
                outputs = tiling.outputs(batch.images, scales, around, flip=flip)
                read = Predictions(outputs, batch.labels, batch.names, flip=flip, with_confidence=False)
                predictions = {way: read.labels(way)[0].cpu().numpy() for way in read.ways}
                shares = share_maps(outputs, flip=flip)
                del outputs, read
        yield name, compose(image, truth, predictions, shares, dataset.classes, name)


def share_maps(outputs: ScaleOutputs, *, flip: bool = False) -> dict[float, np.ndarray]:
    """:meth:`ScaleOutputs.shares` of the first image as float32 [H, W]; empty where the combination has none."""
    maps = outputs.shares() or {}
    return {s: unmirrored(m, flip=flip)[0, 0].cpu().numpy() for s, m in maps.items()}


def compose(
    image: np.ndarray,
    truth: np.ndarray,
    predictions: dict[str, np.ndarray],
    shares: dict[float, np.ndarray],
    classes: ClassTable,
    name: str,
) -> np.ndarray:
    """The page as uint8 RGB. ``image`` [H, W, 3], ``truth`` and ``predictions`` [H, W] labels, ``shares`` [H, W].

    ``predictions`` by way: each scale alone, the mean, and last the network's own fusion.
    First row: the photo, the truth, the prediction of the fusion and its errors. Second row: the prediction over the
    photo, and the predictions of each scale alone and of the mean. Third row: the share of each scale in the attention,
    where there is one. With one scale all predictions are the same: one row, with the prediction over the photo as its
    fifth panel. Then the legend.
    """
    zoom = zoom_of(image.shape[1])
    *others, way = predictions
    fused = predictions[way]
    several = len([name for name in predictions if name[0].isdigit()]) > 1
    valid = truth != classes.ignore_label
    errors = "errors: nothing is labelled"
    if valid.any():
        errors = f"errors: {100 * (fused != truth)[valid].mean():.1f} % of the labelled pixels"
    over: Panel = ("prediction over the photo", overlay_panel(image, fused, classes, zoom))
    rows: list[list[Panel]] = [
        [
            ("photo", photo_panel(image, zoom)),
            ("truth", labels_panel(truth, classes, zoom)),
            (
                f"prediction: {title_of(way)} over all scales" if several else "prediction",
                labels_panel(fused, classes, zoom),
            ),
            (errors, errors_panel(image, (fused != truth) & valid, ~valid, zoom)),
        ]
    ]
    if several:
        titles = ["mean of the scales" if name == MEAN else f"scale {name} alone" for name in others]
        panels = [labels_panel(predictions[name], classes, zoom) for name in others]
        rows.append([over, *zip(titles, panels, strict=True)])
        if len(shares) > 1:
            rows.append(_share_panels(shares, zoom))
    else:
        rows[0].append(over)
    return compose_page(rows, _all_entries(classes), name)


def shares_page(
    image: np.ndarray,
    labels: np.ndarray,
    shares: dict[float, np.ndarray],
    classes: ClassTable,
    name: str,
    confidence: np.ndarray | None = None,
) -> np.ndarray:
    """The page of a prediction without truth, as uint8 RGB.

    image: uint8 [H, W, 3]. labels: [H, W], the prediction. shares: by scale, float [H, W]: see :func:`share_maps`.
    confidence: [H, W], 0 to 1, in the colours of the shares.
    First row: the photo, the prediction over it, the prediction alone, its confidence. Second row, with several
    shares: that of each scale in the attention. The legend has the classes that occur.
    """
    zoom = zoom_of(image.shape[1])
    rows: list[list[Panel]] = [
        [
            ("photo", photo_panel(image, zoom)),
            ("prediction over the photo", overlay_panel(image, labels, classes, zoom)),
            ("prediction", labels_panel(labels, classes, zoom)),
        ]
    ]
    if confidence is not None:
        rows[0].append(("confidence", shares_panel(confidence, zoom)))
    if len(shares) > 1:
        rows.append(_share_panels(shares, zoom))
    return compose_page(rows, occurring(classes, labels), name)


def _share_panels(shares: dict[float, np.ndarray], zoom: float) -> list[Panel]:
    maps = [(f"share of scale {s} in the attention", shares_panel(m, zoom)) for s, m in shares.items()]
    return [("share in the attention, per pixel", None), *maps]


def _all_entries(classes: ClassTable) -> list[Entry]:
    named = [Entry(name, colour) for name, colour in zip(classes.names, classes.colours, strict=True)]
    return [*named, Entry("ignored", IGNORED, IGNORED_LINES), Entry("wrong", WRONG, WRONG_LINES)]


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
