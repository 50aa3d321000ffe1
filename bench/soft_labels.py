"""Soft labels as an experiment: the two most probable classes of each pixel instead of one, see docs/autolabel.md.

    python -m bench.soft_labels write --model RUN --camvid-list @FILE --output OUT
    hmsa train --data bench.soft_labels:Soft --root DATA --soft-labels OUT --extra-classes all ...

``write`` predicts each image at scales 0.5 and 1 with flip, and stores four PNG files of 8 bits: the first and the
second class, and their probabilities. It prints the bytes per megapixel that this and hard labels take. A second call
goes on where the first one was stopped.

``Soft`` is a data source whose extra images have a label map that is drawn at each reading: at every pixel
independently the first class with probability q1 = p1 / (p1 + p2), else the second. This stands for training on the
distribution q = (q1, q2) itself. The cross-entropy of a distribution t and the network's log-probabilities L is
-sum_c t_c L_c, which is linear in t. A drawn label is a distribution T that is 1 at one class, and its mean is
E[T] = q. So at fixed weights E[-sum_c T_c L_c] = -sum_c q_c L_c, and the same holds for the gradient, since the draw
does not depend on the weights. The mean over the labelled pixels keeps this, since every pixel is labelled in every
draw. Class weights would not, since their sum over the drawn labels is the divisor. Losses that are not linear in the
target (RMI, bootstrapping) have no such reading. The gradient of a step has more variance than that of q.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch.utils.data import get_worker_info

import hmsa_ext
from hmsa_ext import command_line
from hmsa_ext.data import ClassTable, DataError, Dataset, Sample
from hmsa_ext.data.description import SPLITS
from hmsa_ext.data.files import read_image, read_label
from hmsa_ext.data.sets.folder import Folder
from hmsa_ext.data.source import First, Root, check, check_split
from hmsa_ext.files import OutputError, replacing, writable_folder, write_text
from hmsa_ext.prediction.marks import encode_png
from hmsa_ext.prediction.sources import find_sources
from hmsa_ext.settings import FREE, Metavar

SCALES = (0.5, 1.0)
PLANES = ("first", "second", "first_probability", "second_probability")
"""Folders of the files: class numbers, and probabilities times 255, rounded to the nearest."""
HARD = ("first", "first_probability")
"""What hard labels with their probabilities would be: two files of the same kind."""
FACTS = "soft.json"
CITYSCAPES_PIXELS = 19998 * 1024 * 2048
"""Of the images of train_extra."""
CITYSCAPES_CLASSES = 19


# ---- writing ----------------------------------------------------------------------------------------------------


def write(model: str, names: Sequence[str], output: str) -> dict[str, Any]:
    """Writes the soft labels of some images, and soft.json, which says what they are.

    model: a run folder or checkpoint.
    names: sources as ``hmsa predict`` takes them; photos only.
    output: the folder; what another model left there is an error.

    Returns the content of soft.json. Raises :class:`hmsa_ext.HmsaError`.
    """
    predictor = hmsa_ext.load(model, "cpu", scales=SCALES, flip=True)
    items = find_sources(names, output=Path(output))
    others = [item.shown for item in items if item.kind != "photo"]
    if others:
        raise DataError(f"camvid_list: expected photos alone, got {', '.join(others[:5])}")
    folder = writable_folder(output, "output")
    facts: dict[str, Any] = {
        "weights": predictor.trained.digest,
        "scales": list(SCALES),
        "flip": True,
        "classes": predictor.classes.to_dict(),
        "images": {str(item.place): str(Path(item.path).absolute()) for item in items},
    }
    before = read_facts(folder) if (folder / FACTS).exists() else None
    differing = [] if before is None else [key for key in facts if before.get(key) != facts[key]]
    if differing:
        raise OutputError(f"output: {folder} holds soft labels that differ in {', '.join(differing)}; take another one")
    write_text(folder / FACTS, json.dumps(facts, indent=1))  # without "bytes": not complete
    pixels, sizes = 0, dict.fromkeys(PLANES, 0)
    for number, (place, image) in enumerate(facts["images"].items(), 1):
        files = _files(folder, place)
        if not all(file.exists() for file in files):
            logits = predictor.predict(image, logits=True).logits
            assert logits is not None, "they were asked for"
            for file, plane in zip(files, top_two(logits), strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as stream:
                    stream.write(encode_png(plane))
        pixels += read_label(files[0]).size
        for plane, file in zip(PLANES, files, strict=True):
            sizes[plane] += file.stat().st_size
        if number % 20 == 0 or number == len(items):
            print(f"{number} of {len(items)} images", flush=True)
    facts |= {"pixels": pixels, "bytes": sizes}
    write_text(folder / FACTS, json.dumps(facts, indent=1))
    return facts


def top_two(logits: np.ndarray) -> tuple[np.ndarray, ...]:
    """The planes of an image, uint8 [H, W] each, in the order of ``PLANES``.

    logits: float32 [C, H, W] of two classes or more. Probabilities are rounded to the nearest 1 / 255: rounding down,
    as for thresholds, would take more from the second class than from the first.
    """
    probabilities = torch.from_numpy(logits).softmax(0)
    values, classes = probabilities.topk(2, dim=0)
    stored = (values * 255).round()
    return tuple(plane.to(torch.uint8).numpy() for plane in (*classes, *stored))


def storage(facts: Mapping[str, Any]) -> dict[str, float]:
    """Bytes per megapixel by what is stored, as measured, and computed for a float32 of every class of Cityscapes."""
    megapixels, sizes = facts["pixels"] / 1e6, facts["bytes"]
    return {
        "hard labels": sizes["first"] / megapixels,
        "hard labels and their probabilities": sum(sizes[plane] for plane in HARD) / megapixels,
        "two classes and their probabilities": sum(sizes.values()) / megapixels,
        "19 float32 per pixel": CITYSCAPES_CLASSES * 4 * 1e6,
    }


def storage_table(facts: Mapping[str, Any]) -> str:
    """The storage in words; the last column takes as many bytes per pixel for all of Cityscapes' train_extra."""
    lines = [f"{'stored':36}{'bytes per Mpx':>15}{'GB for 19998 images of 1024x2048':>34}"]
    for name, size in storage(facts).items():
        lines.append(f"{name:36}{size:15,.0f}{size * CITYSCAPES_PIXELS / 1e15:34,.1f}")
    return "\n".join(lines)


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of soft.json. Raises DataError where there is none."""
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"soft_labels: {folder / FACTS} cannot be read: {error}") from error


def _files(folder: Path, place: str) -> tuple[Path, ...]:
    return tuple(folder / plane / f"{place}.png" for plane in PLANES)


# ---- reading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Soft:
    """Your own images and label maps, and more images whose labels are drawn from two classes of a teacher."""

    splits: ClassVar = (*SPLITS, "soft")
    needs: ClassVar = Folder.needs

    root: Root = None
    """Folder of the data set, as for the data set "folder"."""
    soft_labels: Annotated[str | None, Metavar("FOLDER"), FREE] = None
    """Folder that "python -m bench.soft_labels write" wrote: its images are extra images for the training."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def extra_split(self) -> str | None:
        """The split of the extra images, where there are some."""
        return None if self.soft_labels is None else "soft"

    def open(self, split: str, *, length: int | None = None) -> Dataset:
        """One split, or its first ``length`` images. Raises DataError with everything that is wrong."""
        check_split(self, split)
        if split != "soft":
            return Folder(self.root).open(split, length=length)
        if self.soft_labels is None:
            raise DataError("soft_labels: got none, expected the folder of the soft labels")
        classes = Folder(self.root).open("train").classes
        images = SoftImages(Path(self.soft_labels).expanduser(), classes)
        return images if length is None else First(images, length)


class SoftImages:
    """Images whose label maps are drawn anew at each reading: see the text of the module.

    A draw is a function of the image, of how often this process read it before, and of the number of the worker. So a
    run gives the same crops each time with as many workers. A resumed run counts from 0 again: it continues with other
    draws than the run would have made.

    folder: that which :func:`write` wrote.
    classes: those of the data set, which the labels have to have too.

    Raises DataError for labels of other classes, and for a folder whose writing was not finished.
    """

    identity = "first of two classes"

    def __init__(self, folder: Path, classes: ClassTable) -> None:
        facts = read_facts(folder)
        names = facts["classes"]["names"]
        if tuple(names) != classes.names:
            raise DataError(f"soft_labels: {folder} has the classes {', '.join(names)}; expected those of the data set")
        if "bytes" not in facts:
            raise DataError(f"soft_labels: {folder} is not complete; write it to the end first")
        self.folder, self.classes = folder, classes
        self.places, self.images = list(facts["images"]), [Path(path) for path in facts["images"].values()]
        self._reads = [0] * len(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        read, self._reads[index] = self._reads[index], self._reads[index] + 1
        worker = get_worker_info()
        rng = draw_rng(index, read, 0 if worker is None else worker.id)
        image, planes = read_image(self.images[index]), self._planes(index)
        if planes[0].shape != image.shape[:2]:
            raise DataError(_sizes_differ(self.files(index)[1], planes[0].shape, image.shape[:2]))
        return Sample(image, draw(planes, rng), self.places[index])

    def label(self, index: int) -> np.ndarray:
        """The more probable class of each pixel, uint8 [H, W]: what an index counts. Nothing is drawn."""
        return read_label(self.files(index)[1])

    def files(self, index: int) -> tuple[Path, ...]:
        """The image, and the four files of its labels."""
        return (self.images[index], *_files(self.folder, self.places[index]))

    def inspect(self, index: int) -> tuple[np.ndarray | None, list[str]]:
        """The map of :meth:`label`, None where the item cannot be used, and its problems in words."""
        try:
            first, shape = self._planes(index)[0], read_image(self.images[index]).shape[:2]
        except DataError as error:
            return None, [str(error)]
        if first.shape != shape:
            return None, [_sizes_differ(self.files(index)[1], first.shape, shape)]
        return first, []

    def _planes(self, index: int) -> list[np.ndarray]:
        files = self.files(index)[1:]
        planes = [read_label(file) for file in files]
        for file, plane in zip(files, planes, strict=True):
            if plane.dtype != np.uint8 or plane.shape != planes[0].shape:
                raise DataError(
                    f"{file}: expected uint8 {list(planes[0].shape)}, got {plane.dtype} {list(plane.shape)}"
                )
        for file, plane in zip(files[:2], planes[:2], strict=True):
            if plane.max() >= self.classes.num_classes:
                raise DataError(f"{file}: expected classes below {self.classes.num_classes}, got {plane.max()}")
        return planes


def draw(planes: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A label map, uint8 [H, W]: at each pixel the first class with probability p1 / (p1 + p2), else the second.

    planes: as :func:`top_two` gives them.
    """
    first, second, p1, p2 = planes
    total = p1.astype(np.float32) + p2
    return np.where(rng.random(first.shape, np.float32) * total < p1, first, second)


def draw_rng(image: int, read: int, worker: int = 0) -> np.random.Generator:
    """The random numbers of one reading of one image."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((image, read, worker))))


def _sizes_differ(file: Path, label: tuple[int, ...], image: tuple[int, ...]) -> str:
    return f"{file}: the label map is {label[1]}x{label[0]} pixels, its image {image[1]}x{image[0]}"


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write"])
    parser.add_argument("--model", required=True, help="run folder or checkpoint of the teacher")
    parser.add_argument("--camvid-list", required=True, help="@FILE with the name of an image on each line")
    parser.add_argument("--output", required=True, help="folder of the soft labels")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    facts = write(given.model, [given.camvid_list], given.output)
    print(storage_table(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
