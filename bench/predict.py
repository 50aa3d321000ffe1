"""How fast photos become label files: images per second, the share of each part, and the memory that it takes.

    python -m bench.predict                                   # prints a table for each network
    python -m bench.predict --json predict.json
    python -m bench.predict --network hrnet_small_ocr --images 8 --rounds 5
    python -m bench.predict --device cuda --images 32

The photos are generated street scenes with the noise of a camera, as JPEG files; the networks have random weights. The
ways to predict them take turns, so that a slow moment meets them all; a ratio is the median over the rounds of the
ratios within one round. The page cache is warm. The ways are:

- ``hmsa_ext``: ``hmsa predict``, which writes labels; photos are read and files written beside the network.
- ``hmsa_ext, overlay``: the same, labels and overlay.
- ``plain``: the loop that scripts have. It reads with OpenCV, normalises, runs the network at each scale on a resized
  image, resizes logits and attention to the image, blends them as published, takes the softmax and its maximum, and
  writes a PNG. One thing after the other.

The parts are timed in a pass of their own, one after the other: their sum is the time of a photo.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bench import record
from bench.commands import aligned, command_parser
from bench.meters import peak_memory
from hmsa_ext import data, models, ops
from hmsa_ext.data.by_name import class_table
from hmsa_ext.data.photos import read_photo
from hmsa_ext.engine.device import arithmetic
from hmsa_ext.engine.trained import TrainedModel, weights_digest
from hmsa_ext.files import write_text
from hmsa_ext.models import ModelSettings, ScaleOutputs
from hmsa_ext.models.ocr_network import OCRNetwork
from hmsa_ext.normalisation import MEAN, STD
from hmsa_ext.ops import reference
from hmsa_ext.prediction.batch import predict_all
from hmsa_ext.prediction.outputs import Outputs
from hmsa_ext.prediction.predictor import Predictor
from hmsa_ext.prediction.settings import PictureSettings
from hmsa_ext.prediction.sources import find_sources

SIZE = (512, 1024)
NOISE = 1.0  # standard deviation
SCALES = (0.5, 1.0, 2.0)
IMAGES = {"hrnet_small_ocr": 8, "hrnet_w48_ocr": 2}  # by network
ROUNDS = {"hrnet_small_ocr": 5, "hrnet_w48_ocr": 2}
OURS, OVERLAY, PLAIN = "hmsa_ext", "hmsa_ext, overlay", "plain"
REST = "what lies between"
PARTS = ("decode", "resize and normalise", "trunk", "heads", "fuse and argmax", "encode", REST)


@dataclass
class Work:
    """One network and the photos that it predicts."""

    predictor: Predictor
    photos: list[Path]
    scratch: Path

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.predictor.device.type == "cuda":
            torch.cuda.synchronize()


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Writes ``count`` JPEG files of ``size`` (height, width) to ``folder``; returns them."""
    scenes, rng = data.build("synthetic", "train", size=size), np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{i:03d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        image = scenes[i].image
        noisy = image + NOISE * rng.standard_normal(image.shape, np.float32)
        pixels = np.clip(noisy, 0, 255).round().astype(np.uint8)
        cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return paths


def random_predictor(network: str, device: str, dtype: str, scales: Sequence[float]) -> Predictor:
    """A predictor of a network with random weights and the classes of Cityscapes."""
    torch.manual_seed(0)
    classes = class_table("cityscapes")
    assert classes is not None
    model = models.build(network, classes.num_classes)
    trained = TrainedModel(
        model, Path(network), classes.num_classes, classes, None, None, weights_digest(model), ModelSettings()
    )
    return Predictor(trained, device, dtype=dtype, scales=scales)


def network_of(predictor: Predictor) -> OCRNetwork:
    """The network of :func:`random_predictor`."""
    assert isinstance(predictor.model, OCRNetwork)
    return predictor.model


# ---- the ways ---------------------------------------------------------------------------------------------------


def ours(work: Work, *kinds: str) -> None:
    """Files of these kinds of all photos, by the part of ``hmsa predict`` that does the work."""
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        outputs = Outputs(Path(folder), work.predictor, PictureSettings(write=kinds))
        items = find_sources([str(path) for path in work.photos], output=Path(folder))
        summary = predict_all(work.predictor, items, outputs, quiet=True)
    assert summary.predicted == len(work.photos)


def plain(work: Work) -> None:
    """Label files of all photos, as scripts make them."""
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        for path in work.photos:
            labels, _ = plain_labels(work.predictor, path)
            assert cv2.imwrite(str(Path(folder) / f"{path.stem}.png"), labels)


def plain_labels(predictor: Predictor, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence of a photo by way of logits at full resolution: uint8 and float32 [H, W]."""
    model, device, image = network_of(predictor), predictor.device, cv2.imread(str(path))
    assert image is not None
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32) / 255
    image = (image - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    images = torch.from_numpy(image.transpose(2, 0, 1)[None]).to(device)
    size = (images.shape[2], images.shape[3])
    logits, attention = [], []
    with torch.inference_mode(), arithmetic(device, predictor.dtype):
        for scale in reversed(predictor.scales):
            resized = reference.resize(images, reference.grid_size(size, scale))
            of_scale, _, features = model.forward_one_scale(resized)
            logits.append(of_scale.float())
            if scale != predictor.scales[-1]:
                assert model.scale_attn is not None
                attention.append(model.scale_attn(features).float())
        fused = reference.fuse_scales(logits, attention, predictor.scales[::-1], size)
        confidence, labels = F.softmax(fused, 1).max(1)
        return labels[0].byte().cpu().numpy(), confidence[0].cpu().numpy()


WAYS: dict[str, Callable[[Work], None]] = {
    OURS: lambda work: ours(work, "labels"),
    OVERLAY: lambda work: ours(work, "labels", "overlay"),
    PLAIN: plain,
}


# ---- the figures ------------------------------------------------------------------------------------------------


def rates(work: Work, rounds: int) -> dict[str, dict[str, Any]]:
    """Of each way images per second, how many times as long as ours it takes, the processor's time of an image, and the
    peak memory.

    Other work on the machine takes from the first two; the processor's time hardly depends on it.
    """
    first = Work(work.predictor, work.photos[:1], work.scratch)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    busy: dict[str, list[float]] = {name: [] for name in WAYS}
    peaks: dict[str, list[int | None]] = {name: [] for name in WAYS}

    def timed(name: str) -> None:
        begin, busy_before = time.perf_counter(), time.process_time()
        WAYS[name](work)
        work.wait()
        seconds[name].append(time.perf_counter() - begin)
        busy[name].append(time.process_time() - busy_before)

    for way in WAYS.values():  # one-time costs do not count
        way(first)
    for _ in range(rounds):
        for name in WAYS:
            peaks[name].append(peak_memory(lambda name=name: timed(name), work.predictor.device))
    count = len(work.photos)
    return {
        name: {
            "images_per_second": count / statistics.median(of_way),
            "times_ours": statistics.median(a / b for a, b in zip(of_way, seconds[OURS], strict=True)),
            "processor_seconds": statistics.median(busy[name]) / count,
            "seconds_by_round": [round(value, 3) for value in of_way],
            "peak_memory_bytes": max((peak for peak in peaks[name] if peak is not None), default=None),
        }
        for name, of_way in seconds.items()
    }


class Clock:
    """Seconds of named parts; a part within another one counts in both."""

    def __init__(self, work: Work) -> None:
        self.seconds: dict[str, float] = dict.fromkeys((*PARTS, "network", "all"), 0.0)
        self._work = work

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time until the block ends."""
        self._work.wait()
        begin = time.perf_counter()
        yield
        self._work.wait()
        self.seconds[name] += time.perf_counter() - begin

    @contextlib.contextmanager
    def calls(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Times every call of a function of a module or class meanwhile."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(part):
                return function(*arguments, **named)

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, function)

    @contextlib.contextmanager
    def module(self, module: nn.Module, part: str) -> Iterator[None]:
        """Times every call of a module meanwhile."""
        open_parts = contextlib.ExitStack()
        before = module.register_forward_pre_hook(lambda *_: open_parts.enter_context(self.part(part)))
        after = module.register_forward_hook(lambda *_: open_parts.close())
        try:
            yield
        finally:
            before.remove()
            after.remove()


def shares(work: Work, rounds: int) -> dict[str, float]:
    """Milliseconds of each part of a photo, one after the other: medians over the rounds of means over the photos."""
    found: list[dict[str, float]] = []
    predictor = work.predictor
    for _ in range(rounds):
        clock = Clock(work)
        with tempfile.TemporaryDirectory(dir=work.scratch) as folder, contextlib.ExitStack() as timed:
            timed.enter_context(clock.calls(ops, "sample_crop", "resize and normalise"))
            timed.enter_context(clock.calls(ScaleOutputs, "argmax", "fuse and argmax"))
            timed.enter_context(clock.module(predictor.model, "network"))
            timed.enter_context(clock.module(network_of(predictor).backbone, "trunk"))
            outputs = Outputs(Path(folder), predictor, PictureSettings(write=("labels",)))
            for item in find_sources([str(path) for path in work.photos], output=Path(folder)):
                with clock.part("all"):
                    with clock.part("decode"):
                        photo = read_photo(item.path)
                    prediction = predictor.predict_photo(photo)
                    with clock.part("encode"):
                        outputs.write(item, prediction, ("labels",))
        spent = clock.seconds
        spent["heads"] = spent.pop("network") - spent["trunk"]  # and the resized images of the scales
        spent[REST] = spent.pop("all") - sum(spent.values())
        found.append({part: 1e3 * spent[part] / len(work.photos) for part in PARTS})
    return {part: statistics.median(of_round[part] for of_round in found) for part in PARTS}


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """All figures of one network."""
    ways = rates(work, rounds)
    stated = work.predictor.plan(SIZE, stated=True).peak
    return {
        "images": len(work.photos),
        "rounds": rounds,
        "ways": ways,
        "part_ms": shares(work, rounds),
        "stated_peak_bytes": stated,
    }


def table(network: str, figures: dict[str, Any]) -> str:
    """The figures of one network in two tables."""
    rows = [[f"{network}, {figures['images']} photos", "images/s", "times ours", "processor s", "peak MB"]]
    for name, way in figures["ways"].items():
        peak = way["peak_memory_bytes"]
        memory = "-" if peak is None else f"{peak / 1e6:.0f}"
        busy = f"{way['processor_seconds']:.3g}"
        rows.append([name, f"{way['images_per_second']:.3g}", f"{way['times_ours']:.2f}", busy, memory])
    total = sum(figures["part_ms"].values())
    parts = [["part of a photo", "ms", "%"]]
    parts += [[name, f"{ms:.1f}", f"{100 * ms / total:.1f}"] for name, ms in figures["part_ms"].items()]
    return f"{aligned(rows)}\n\n{aligned(parts)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_parser("python -m bench.predict", __doc__)
    parser.add_argument("--network", choices=tuple(IMAGES), help="one network instead of all")
    parser.add_argument("--images", type=int, help=f"photos of {SIZE[0]}x{SIZE[1]} [8, of hrnet_w48_ocr 2]")
    parser.add_argument("--rounds", type=int, help="[5, of hrnet_w48_ocr 2]")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="[%(default)s]")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="[%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    for name in ("images", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name}: expected at least 1, got {value}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda is asked for, but no GPU is visible")
    if options.json and not Path(options.json).resolve().parent.is_dir():
        parser.error(f"argument --json: there is no folder for {options.json}")
    load = os.getloadavg()[0]
    content: dict[str, Any] = {"machine": record.machine(), "load_before": round(load, 2), "device": options.device}
    content |= {"size": SIZE, "scales": SCALES, "networks": {}}
    with tempfile.TemporaryDirectory() as folder:
        for network in [options.network] if options.network else IMAGES:
            photos = write_photos(Path(folder) / network, options.images or IMAGES[network], SIZE)
            work = Work(random_predictor(network, options.device, options.dtype, SCALES), photos, Path(folder))
            figures = measure(work, options.rounds or ROUNDS[network])
            content["dtype"] = str(work.predictor.dtype).removeprefix("torch.")
            content["networks"][network] = figures
            print(table(network, figures), flush=True)
    if options.json:
        write_text(Path(options.json), json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
