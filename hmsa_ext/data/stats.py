"""How often each class is seen, and how the sampling changes that.

    python -m hmsa_ext.data stats --data camvid --root CamVid --crop 360x480 --picture frequencies.png
    python -m hmsa_ext.data stats --data folder --root MINE --sampling rare_class --temperature 0.02

For each class: its share of the labelled pixels, the images that have it, and its share of the pixels of the training
crops and the part of the crops that have it, for images at random and for the sampling that was asked for. The crops
are those that training draws with the same seed; their boxes are counted in the label maps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_ext.data import by_name
from hmsa_ext.data.augment import Augment
from hmsa_ext.data.index import ClassIndex, cache_folder
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.progress import report, usable_cores
from hmsa_ext.data.sampling import KINDS, Sampling, parse_weights
from hmsa_ext.data.scan import add_data_options
from hmsa_ext.data.training_set import TrainingSet, prepare
from hmsa_ext.data.types import ClassTable, DataError
from hmsa_ext.files import replacing, write_text

PAPER, INK, FAINT, RULE = (255, 255, 255), (40, 40, 40), (120, 120, 120), (225, 225, 225)
BAR_HEIGHT, ROW_HEIGHT, NAME_WIDTH, PLOT_WIDTH, NUMBER_WIDTH = 13, 46, 190, 620, 150
UNIFORM_BAR = (170, 170, 170)


@dataclass(frozen=True, eq=False)
class CropCounts:
    """What the crops of some epochs hold.

    share: float64 [K], mean share of each class among the labelled pixels of a crop.
    presence: float64 [K], part of the crops that have the class.
    crops: how many were counted.
    """

    share: np.ndarray
    presence: np.ndarray
    crops: int


def count_crops(training: TrainingSet, *, epochs: int = 1, quiet: bool = False) -> CropCounts:
    """Counts the classes in the boxes of the first ``epochs`` epochs, on the label maps as they are."""
    dataset, sampler = training.dataset, training.sampler
    boxes = np.concatenate([sampler.draw(epoch)[0] for epoch in range(epochs)])
    number = sampler.index.classes.num_classes
    by_image = [np.flatnonzero(boxes[:, 0] == image) for image in np.unique(boxes[:, 0])]

    def count(rows: np.ndarray) -> np.ndarray:
        label = dataset.label(int(boxes[rows[0], 0]))
        return np.stack([_histogram(label, box, number) for box in boxes[rows, 1:]])

    counts = np.zeros((len(boxes), number))
    with ThreadPoolExecutor(min(usable_cores(), 16)) as pool:
        found = report(pool.map(count, by_image), len(by_image), what="counting crops", quiet=quiet)
        for rows, result in zip(by_image, found, strict=True):
            counts[rows] = result
    labelled = np.maximum(counts.sum(1, keepdims=True), 1)
    return CropCounts((counts / labelled).mean(0), (counts > 0).mean(0), len(boxes))


def _histogram(label: np.ndarray, box: np.ndarray, number: int) -> np.ndarray:
    y0, x0, y1, x1 = np.maximum(box, 0)
    return np.bincount(label[y0:y1, x0:x1].ravel(), minlength=256)[:number]


def table(index: ClassIndex, uniform: CropCounts, sampled: CropCounts, kind: str) -> str:
    """The figures as text, one line per class."""
    head = ["class", "pixels %", "images", "uniform %", f"{kind} %", "factor", "in crops %", "before %"]
    rows = []
    for c, name in enumerate(index.classes.names):
        factor = sampled.share[c] / uniform.share[c] if uniform.share[c] else float("nan")
        rows.append(
            [
                name, f"{100 * index.frequencies[c]:.2f}", str(int((index.pixels[:, c] > 0).sum())),
                f"{100 * uniform.share[c]:.2f}", f"{100 * sampled.share[c]:.2f}",
                f"{factor:.2f}" if factor == factor else "-",
                f"{100 * sampled.presence[c]:.0f}", f"{100 * uniform.presence[c]:.0f}",
            ]
        )  # fmt: skip
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def draw(index: ClassIndex, uniform: CropCounts, sampled: CropCounts, kind: str) -> np.ndarray:
    """The shares of the classes as bars, on a logarithmic axis: uint8 [H, W, 3], red, green, blue."""
    classes: ClassTable = index.classes
    shares = np.stack([uniform.share, sampled.share])
    decades = int(np.clip(np.ceil(-np.log10(shares[shares > 0].min(initial=1.0))), 1, 6))
    least = 10.0**-decades
    top, height = 84, ROW_HEIGHT * classes.num_classes
    picture = np.full((top + height + 34, NAME_WIDTH + PLOT_WIDTH + NUMBER_WIDTH, 3), 255, np.uint8)

    def across(share: float) -> int:
        return NAME_WIDTH + round(PLOT_WIDTH * (np.log10(max(share, least)) + decades) / decades)

    _write(picture, "Share of each class among the pixels of the training crops", (16, 28), 0.6, INK)
    _write(picture, f"grey: images at random    colour: {kind.replace('_', '-')} sampling", (16, 54), 0.45, FAINT)
    for decade in range(decades + 1):
        x = across(10.0**-decade)
        cv2.line(picture, (x, top - 6), (x, top + height), RULE, 1)
        _write(picture, f"{100 * 10.0**-decade:g} %", (x - 14, top + height + 20), 0.4, FAINT)
    for c, name in enumerate(classes.names):
        y = top + ROW_HEIGHT * c + 4
        _write(picture, name[:22], (16, y + 20), 0.48, INK)
        colour = tuple(int(value) for value in classes.colours[c])
        for k, (share, fill) in enumerate(((uniform.share[c], UNIFORM_BAR), (sampled.share[c], colour))):
            box = (NAME_WIDTH, y + k * (BAR_HEIGHT + 2)), (across(share), y + k * (BAR_HEIGHT + 2) + BAR_HEIGHT)
            cv2.rectangle(picture, *box, fill, cv2.FILLED)
            cv2.rectangle(picture, *box, FAINT, 1)
        factor = f"x {sampled.share[c] / uniform.share[c]:.2f}" if uniform.share[c] else ""
        text = f"{100 * uniform.share[c]:.2f} > {100 * sampled.share[c]:.2f} %"
        _write(picture, text, (NAME_WIDTH + PLOT_WIDTH + 10, y + 12), 0.4, INK)
        _write(picture, factor, (NAME_WIDTH + PLOT_WIDTH + 10, y + 28), 0.4, FAINT)
    return picture


def _write(picture: np.ndarray, text: str, place: tuple[int, int], size: float, colour: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.epochs < 1:
        raise DataError(f"epochs: expected at least 1, got {options.epochs}")
    for name in ("picture", "json"):  # said before the work, not after it
        path = getattr(options, name)
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise DataError(f"{name}: no folder {Path(path).parent}; expected a file in one that exists")
    own = {name: getattr(options, name) for name in by_name.OPTIONS}
    dataset = by_name.build(options.data, options.split, root=options.root, length=options.length, **own)
    augment = Augment(options.crop, options.scale_range, long_edge=options.long_edge)
    weights, kind = dict(options.class_weights or ()), options.sampling
    sampling = Sampling(kind, options.share, weights, options.temperature)
    cache = None if options.no_cache else cache_folder()
    training = prepare(dataset, augment, sampling, seed=options.seed, tile=options.tile, cache=cache)
    plain = replace(training, sampler=training.sampler.with_sampling(Sampling("uniform")))
    uniform = count_crops(plain, epochs=options.epochs)
    sampled = count_crops(training, epochs=options.epochs)
    index = training.index
    print(f"{len(index)} images; {training.sampler.describe()}\n")
    print(table(index, uniform, sampled, kind))
    print(
        f"\npixels %: of all labelled pixels. images: that have the class. uniform %, {kind} %: mean share of the "
        "pixels of a crop.\nfactor: between the two. in crops %, before %: crops that have the class, with "
        f"{kind} and with uniform sampling. {sampled.crops} crops each."
    )
    if options.picture:
        with replacing(Path(options.picture)) as file:
            picture = cv2.cvtColor(draw(index, uniform, sampled, kind), cv2.COLOR_RGB2BGR)
            file.write(cv2.imencode(".png", picture)[1].tobytes())
        print(f"drew {options.picture}")
    if options.json:
        content = {
            "classes": list(index.classes.names), "images": (index.pixels > 0).sum(0).tolist(),
            "pixels": index.pixels.sum(0).tolist(), "plan": training.sampler.plan(0).tolist(), "sampling": kind,
            "crops": sampled.crops, "uniform_share": uniform.share.tolist(), "share": sampled.share.tolist(),
            "uniform_presence": uniform.presence.tolist(), "presence": sampled.presence.tolist(),
        }  # fmt: skip
        write_text(Path(options.json), json.dumps(content, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hmsa_ext.data stats", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--data", required=True, choices=by_name.NAMES, help="data set")
    add("--root", metavar="PATH", help="its folder")
    add("--split", default="train", metavar="NAME", help="[%(default)s]")
    add("--length", type=int, metavar="N", help="only the first so many images")
    add_data_options(parser)
    add("--crop", type=_flag(_size, "HxW in pixels"), required=True, metavar="HxW", help="training crop in pixels")
    scales = _flag(_range, "LOW,HIGH")
    add("--scale-range", type=scales, default=(0.5, 2.0), metavar="X,X", help="random zoom [0.5,2.0]")
    add("--long-edge", type=int, default=0, metavar="N", help="longer side that images are resized to first; 0: none")
    add("--sampling", default="class_uniform", choices=KINDS, help="[%(default)s]")
    add("--share", type=float, default=0.5, metavar="X", help="part of the epoch drawn by class [%(default)s]")
    add(
        "--class-weights",
        type=_flag(parse_weights, "NAME:X,NAME:X"),
        metavar="NAME:X,...",
        help="factors of single classes",
    )
    add("--temperature", type=float, default=0.01, metavar="X", help="of rare_class [%(default)s]")
    add("--tile", type=int, default=0, metavar="N", help="tile of the centroids; 0: 1/4 of the crop's smaller side")
    add("--seed", type=int, default=0, metavar="N", help="[%(default)s]")
    add("--no-cache", action="store_true", help="read every label map, keep no index")
    add("--epochs", type=int, default=1, metavar="N", help="epochs of crops to count [%(default)s]")
    add("--picture", metavar="FILE", help="draw the shares into this PNG")
    add("--json", metavar="FILE", help="write the figures as JSON")
    return parser


def _flag(convert: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """A conversion for argparse whose error says what came and what was expected."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}") from None

    return converted


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def _range(text: str) -> tuple[float, float]:
    low, high = text.split(",")
    return float(low), float(high)
