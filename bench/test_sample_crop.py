"""sample_crop against what training scripts do: a crop of 512x1024 from a frame of 1024x2048, on one thread.

    pytest bench/test_sample_crop.py --benchmark-json crops.json && python -m bench.table crops.json

The frame is decoded already. The published order is: resize the whole frame with Pillow (bicubic, the label map to the
nearest), crop, change colours (ImageEnhance, as torchvision's ColorJitter does on Pillow's images), blur, convert to a
float tensor, normalise. The other competitor crops first and resizes with OpenCV: linear, or by areas where ours
antialiases. All take turns, round by round, in one process; medians count. Needs Pillow. On a GPU ours is timed alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

import hmsa_ext
from bench.conftest import DEVICES
from hmsa_ext.data.opencv import cv2
from hmsa_ext.ops import reference_crop

FRAME, SIZE = (1024, 2048), (512, 1024)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOTHING, JITTER, SIGMA = (1.0, 1.0, 1.0, 0.0), (1.2, 0.8, 1.1, 0.1), 1.3
VARIANTS = {"plain": (), "antialias, jitter": ("jitter",), "antialias, jitter, blur": ("jitter", "blur")}
ROUNDS = 15


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_sample_crop(benchmark, scale, variant, device):
    parts = VARIANTS[variant]
    runs = {"hmsa": ours(scale, parts, device)}
    if device == "cpu":
        runs = {"pillow": pillow(scale, parts), "opencv": opencv(scale, parts), **runs}
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        for run in runs.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in runs}

        def timed(name: str) -> None:
            begin = time.perf_counter()
            runs[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)

        def others() -> None:
            for name in runs:
                if name != "hmsa":
                    timed(name)

        benchmark.pedantic(timed, args=("hmsa",), setup=others, rounds=ROUNDS)
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    benchmark.extra_info["case"] = {"scale": scale, "variant": variant}
    benchmark.extra_info["device"] = device
    benchmark.extra_info["results"] = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def frame() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (*FRAME, 3), dtype=np.uint8), random.integers(0, 19, FRAME, dtype=np.uint8)


def box(scale: float) -> tuple[int, int, int, int]:
    """The middle of the frame that becomes a crop when the frame is resized by ``scale``."""
    tall, wide = (round(side / scale) for side in SIZE)
    y, x = (FRAME[0] - tall) // 2, (FRAME[1] - wide) // 2
    return y, x, y + tall, x + wide


def ours(scale: float, parts: tuple[str, ...], device: str) -> Callable[[], object]:
    image, label = (torch.from_numpy(x).to(device) for x in frame())
    boxes = torch.tensor([[0, *box(scale)]])
    flip = torch.tensor([False])
    jitter = torch.tensor([JITTER if "jitter" in parts else NOTHING])
    options = {"antialias": bool(parts), "blur": torch.tensor([SIGMA]) if "blur" in parts else None}
    return lambda: hmsa_ext.sample_crop([image], [label], boxes, flip, jitter, SIZE, MEAN, STD, **options)


def pillow(scale: float, parts: tuple[str, ...]) -> Callable[[], object]:
    pytest.importorskip("PIL", reason="the published order of work needs Pillow")
    from PIL import Image, ImageEnhance, ImageFilter

    image, label = (Image.fromarray(x) for x in frame())
    size = (round(FRAME[1] * scale), round(FRAME[0] * scale))
    x, y = (size[0] - SIZE[1]) // 2, (size[1] - SIZE[0]) // 2
    place = (x, y, x + SIZE[1], y + SIZE[0])

    def turn_hue(crop):
        hue, saturation, value = crop.convert("HSV").split()
        turned = np.array(hue) + np.uint8(round(JITTER[3] * 255))  # wraps
        return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")

    def run():
        crop = image.resize(size, Image.Resampling.BICUBIC).crop(place)
        target = label.resize(size, Image.Resampling.NEAREST).crop(place)
        if "jitter" in parts:
            changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for change, factor in zip(changes, JITTER[:3], strict=True):
                crop = change(crop).enhance(factor)
            crop = turn_hue(crop)
        if "blur" in parts:
            crop = crop.filter(ImageFilter.GaussianBlur(SIGMA))
        return normalised(np.array(crop)), torch.from_numpy(np.array(target))

    return run


def opencv(scale: float, parts: tuple[str, ...]) -> Callable[[], object]:
    image, label = frame()
    y0, x0, y1, x1 = box(scale)
    rows = y0 + (2 * np.arange(SIZE[0]) + 1) * (y1 - y0) // (2 * SIZE[0])
    columns = x0 + (2 * np.arange(SIZE[1]) + 1) * (x1 - x0) // (2 * SIZE[1])
    way = cv2.INTER_AREA if parts and scale < 1 else cv2.INTER_LINEAR

    def run():
        crop = image[y0:y1, x0:x1]
        if "jitter" in parts:
            inside = torch.from_numpy(cv2.mean(crop)[:3] * np.ones((1, 1, 3))).permute(2, 0, 1)
            matrix, offset = reference_crop.colour_change(inside, torch.ones(1, 1), JITTER)
            crop = cv2.transform(crop, np.hstack([matrix.numpy(), np.full((3, 1), offset.item())]))
        crop = cv2.resize(crop, SIZE[::-1], interpolation=way)
        if "blur" in parts:
            crop = cv2.GaussianBlur(crop, (0, 0), SIGMA)
        return normalised(crop), torch.from_numpy(label[rows][:, columns])

    return run


def normalised(image: np.ndarray) -> torch.Tensor:
    """As torchvision's ToTensor and Normalize do it."""
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div_(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return tensor.sub_(mean).div_(std)
