"""How often each class is seen, and how the sampling changes that.

    hmsa data stats --data camvid --root CamVid --crop 360x480 --plot frequencies.png
    hmsa data stats --data folder --root MINE --sampling rare_class --sampling-temperature 0.02

For each class: its share of the labelled pixels, the number of images that have it, its share of the pixels of the
training crops, and the part of the crops that have it. Crops are counted for images at random and for the chosen
sampling. Training with the same settings draws the same crops; their boxes are counted in the label maps.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np

from hmsa_ext import command_line
from hmsa_ext.data.augment import Augment
from hmsa_ext.data.commands import flags_of_others, older_length, older_version, required_data
from hmsa_ext.data.index import ClassIndex
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.progress import reader_threads, report
from hmsa_ext.data.sampling import Sampling
from hmsa_ext.data.settings import DataSettings, recipe
from hmsa_ext.data.training_set import TrainingSet, open_training
from hmsa_ext.data.types import ClassTable
from hmsa_ext.files import Output
from hmsa_ext.settings import POSITIVE, SEED, Flag, Metavar, options, to_dict, validate
from hmsa_ext.settings import replace as replace_settings
from hmsa_ext.tables import text_table

PAPER, INK, FAINT, RULE = (255, 255, 255), (40, 40, 40), (120, 120, 120), (225, 225, 225)
BAR_HEIGHT, ROW_HEIGHT, NAME_WIDTH, PLOT_WIDTH, NUMBER_WIDTH = 13, 46, 190, 620, 150
UNIFORM_BAR = (170, 170, 170)


@dataclass(frozen=True, eq=False)
class CropCounts:
    """The classes in the crops of some epochs.

    share: float64 [K], mean share of each class among the labelled pixels of a crop.
    presence: float64 [K], part of the crops that have the class.
    crops: number of crops counted.
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
    with ThreadPoolExecutor(reader_threads()) as pool:
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
    return text_table(head, rows)


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
        text = f"{100 * uniform.share[c]:.2f} to {100 * sampled.share[c]:.2f} %"
        _write(picture, text, (NAME_WIDTH + PLOT_WIDTH + 10, y + 12), 0.4, INK)
        _write(picture, factor, (NAME_WIDTH + PLOT_WIDTH + 10, y + 28), 0.4, FAINT)
    return picture


def _write(picture: np.ndarray, text: str, place: tuple[int, int], size: float, colour: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


PROG = "hmsa data stats"
_OLDER = {
    "share": ["--sampling-share"],
    "class-weights": ["--sampling-weights"],
    "temperature": ["--sampling-temperature"],
    "tile": ["--sampling-tile"],
    "no-cache": ["--cache", "none"],
    "version": older_version,
}


@dataclass(frozen=True)
class StatsSettings:
    """The crops to count, and files for the figures."""

    data: DataSettings = field(default_factory=DataSettings)
    sampling: Sampling = field(default_factory=Sampling)
    crops: Augment = field(default_factory=Augment)
    split: Annotated[str, Metavar("NAME")] = "train"
    """Split of the data set."""
    seed: Annotated[int, SEED] = 0
    """Seed of the crops; training with the same seed draws the same crops."""
    count_epochs: Annotated[int, POSITIVE, Flag("count-epochs", was=("epochs",))] = 1
    """Epochs of crops to count."""
    plot: Annotated[str | None, Metavar("FILE"), Flag("plot", was=("picture",))] = None
    """Draw the shares into this PNG."""
    json: Annotated[str | None, Metavar("FILE")] = None
    """Write the figures to this file as JSON; "-" is standard output."""

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    def of(cls, name: Any) -> StatsSettings:
        """The defaults for a data set, with its recipe: those of training."""
        defaults = cls(DataSettings.of(name))
        known = {option.name for option in options(defaults)}
        return replace_settings(defaults, {key: value for key, value in recipe(name).items() if key in known})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_command, arguments)


def _command(arguments: list[str]) -> int:
    defaults = StatsSettings.of(required_data(arguments, "stats"))
    description = (__doc__ or "").rstrip()
    others = flags_of_others(defaults.data.name)
    older = {**_OLDER, **older_length(arguments)}
    count(command_line.parse(defaults, arguments, prog=PROG, description=description, older=older, elsewhere=others))
    return 0


def count(chosen: StatsSettings) -> None:
    """Counts and prints the figures, and writes plot and JSON. Raises DataError and OutputError."""
    plot = Output(chosen.plot, "plot") if chosen.plot else None
    file = Output(chosen.json, "json") if chosen.json else None
    training, reason = open_training(chosen.data, chosen.sampling, chosen.crops, seed=chosen.seed, split=chosen.split)
    plain = replace(training, sampler=training.sampler.with_sampling(Sampling("uniform")))
    uniform = count_crops(plain, epochs=chosen.count_epochs)
    sampled = count_crops(training, epochs=chosen.count_epochs)
    index, kind, crop = training.index, chosen.sampling.kind, training.sampler.crop
    say = sys.stderr if chosen.json == "-" else sys.stdout
    print(f"{len(index)} images; {training.sampler.describe()}", file=say)
    print(f"crops of {crop[0]}x{crop[1]} ({reason})\n", file=say)
    print(table(index, uniform, sampled, kind), file=say)
    print(
        f"\npixels %: of all labelled pixels. images: that have the class. uniform %, {kind} %: mean share of the "
        "pixels of a crop.\nfactor: between the two. in crops %, before %: crops that have the class, with "
        f"{kind} and with uniform sampling. {sampled.crops} crops each.",
        file=say,
    )
    if plot is not None:
        picture = cv2.cvtColor(draw(index, uniform, sampled, kind), cv2.COLOR_RGB2BGR)
        plot.write(cv2.imencode(".png", picture)[1].tobytes())
        print(f"drew {chosen.plot}", file=say)
    if file is not None:
        content = {
            "classes": list(index.classes.names), "images": (index.pixels > 0).sum(0).tolist(),
            "pixels": index.pixels.sum(0).tolist(), "plan": training.sampler.plan(0).tolist(), "sampling": kind,
            "crop": list(crop), "crop_reason": reason, "settings": to_dict(chosen),
            "crops": sampled.crops, "uniform_share": uniform.share.tolist(), "share": sampled.share.tolist(),
            "uniform_presence": uniform.presence.tolist(), "presence": sampled.presence.tolist(),
        }  # fmt: skip
        file.write(json.dumps(content, indent=1) + "\n")
