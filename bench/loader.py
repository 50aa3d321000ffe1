"""How fast training data comes: images per second from disk to crops, and how much of it is decoding.

    python -m bench.loader --workers 2                       # prints a table
    python -m bench.loader --workers 2 --json loader.json
    python -m bench.loader --workers 8 --device cuda         # crops on the GPU, from pinned memory

Frames of 1024x2048 as PNG with labelIds beside them, in the layout of Cityscapes: generated street scenes with the
noise of a camera; the size of their files is printed, since decoding depends on it. Each figure is the median of some
rounds over all frames; the page cache is warm, so that the disk plays no part. One thread for each process.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bench import record
from bench.commands import aligned, command_parser
from hmsa_ext import data
from hmsa_ext.data.files import read_image
from hmsa_ext.data.opencv import cv2
from hmsa_ext.files import write_text

SIZE = (1024, 2048)
NOISE = 1.0  # standard deviation
CROP = (512, 1024)
LABEL_IDS = (7, 8, 22, 11, 23, 21, 17, 20, 13, 26, 24)  # of the classes of the generated scenes


def write_frames(root: Path, count: int) -> list[Path]:
    """Writes a training set of ``count`` frames in the layout of Cityscapes; returns its images."""
    images, labels = root / "leftImg8bit" / "train" / "bench", root / "gtFine" / "train" / "bench"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    scenes, rng = data.build("synthetic", "train", size=SIZE), np.random.default_rng(0)
    table = np.zeros(256, np.uint8)
    table[: len(LABEL_IDS)] = LABEL_IDS
    paths = [images / f"bench_{i:06d}_000000_leftImg8bit.png" for i in range(count)]
    for i, path in enumerate(paths):
        sample = scenes[i]
        noisy = sample.image + NOISE * rng.standard_normal(sample.image.shape, np.float32)
        image = np.clip(noisy, 0, 255).round().astype(np.uint8)
        cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        name = path.name.replace("leftImg8bit", "gtFine_labelIds")
        cv2.imwrite(str(labels / name), table[sample.label])
    return paths


def seconds_per_item(function: Callable[[int], object], count: int, rounds: int) -> float:
    """Median over the rounds of the mean time of an item."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for i in range(count):
            function(i)
        times.append((time.perf_counter() - begin) / count)
    return statistics.median(times)


def loader_rate(training: data.TrainingSet, workers: int, rounds: int, consume: Callable, wait: Callable) -> float:
    """Images per second: median over epochs, without the first batches, for which the workers had to start."""
    per_epoch = data.batches_per_epoch(training, batch_size=2)
    batches = iter(data.training_loader(training, batch_size=2, epoch=0, epochs=rounds + 1, workers=workers))
    rates = []
    for _ in range(rounds + 1):
        begin, images = time.perf_counter(), 0
        for decoded in itertools.islice(batches, per_epoch):
            consume(decoded)
            images += len(decoded)
        wait()
        rates.append(images / (time.perf_counter() - begin))
    return statistics.median(rates[1:])


def measure(root: Path, images: Sequence[Path], workers: int, rounds: int, device: str) -> dict[str, float]:
    """All figures, for the frames in ``root``; ``images`` are theirs."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def crop(decoded: data.DecodedBatch) -> None:
        data.cut(decoded.to(device))

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    dataset = data.build("cityscapes", "train", root=root)
    augment = data.Augment(CROP, blur=(0.15, 1.3))
    training = data.prepare(dataset, augment, seed=0, quiet=True)
    count = len(images)
    begin = time.perf_counter()
    data.build_index(dataset, tile=512, quiet=True)
    indexed = (time.perf_counter() - begin) / count
    (decoded, *_) = data.training_loader(training, batch_size=2, epoch=0)
    decoded = decoded.to(device)
    figures = {
        "png_megabytes": statistics.mean(path.stat().st_size for path in images) / 1e6,
        "image_ms": 1e3 * seconds_per_item(lambda i: read_image(images[i]), count, rounds),
        "label_ms": 1e3 * seconds_per_item(dataset.label, count, rounds),
        "crop_ms": 1e3 * seconds_per_item(lambda i: (data.cut(decoded), wait()), 10, rounds) / 2,
        "index_ms": 1e3 * indexed,
        "decoded_per_second": loader_rate(training, workers, rounds, lambda decoded: None, wait),
        "crops_per_second": loader_rate(training, workers, rounds, crop, wait),
        "alone_per_second": loader_rate(training, 0, rounds, crop, wait),
    }
    decoding = figures["image_ms"] + figures["label_ms"]
    figures["decoding_share"] = decoding * figures["decoded_per_second"] / (1e3 * workers)
    return figures


def table(figures: dict[str, float], workers: int, device: str) -> str:
    """The figures in words."""
    image = f"decode an image, {SIZE[0]}x{SIZE[1]} PNG of {figures['png_megabytes']:.1f} MB"
    return aligned(
        [
            (image, f"{figures['image_ms']:.1f} ms"),
            ("decode and map its label map", f"{figures['label_ms']:.1f} ms"),
            ("index a label map (all cores)", f"{figures['index_ms']:.1f} ms"),
            (f"crop {CROP[0]}x{CROP[1]}, all augmentations, {device}", f"{figures['crop_ms']:.1f} ms"),
            (f"decoded by {workers} workers", f"{figures['decoded_per_second']:.1f} images/s"),
            (f"decoded by {workers} workers and cropped", f"{figures['crops_per_second']:.1f} images/s"),
            ("decoded and cropped in one process", f"{figures['alone_per_second']:.1f} images/s"),
            ("share of the workers' time that is decoding", f"{100 * figures['decoding_share']:.1f} %"),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_parser("python -m bench.loader", __doc__)
    parser.add_argument("--workers", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--frames", type=int, default=24, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="crops are made there [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    if min(options.workers, options.rounds) < 1 or options.frames < 6:
        parser.error("expected at least 1 worker, 1 round and 6 frames")
    with tempfile.TemporaryDirectory() as folder:
        images = write_frames(Path(folder), options.frames)
        figures = measure(Path(folder), images, options.workers, options.rounds, options.device)
    print(table(figures, options.workers, options.device))
    if options.json:
        content = {"machine": record.machine(), "workers": options.workers, "device": options.device}
        content |= {"frames": options.frames, **figures}
        write_text(Path(options.json), json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
