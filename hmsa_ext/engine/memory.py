"""How much memory a pass takes, found without computing it, and how much it may take."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hmsa_ext.engine.device import evaluation_mode
from hmsa_ext.engine.passes import run
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.fake_tensors import RememberingFakes
from hmsa_ext.live_bytes import LiveBytes
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.models.joined_maps import two_strips_alone

PROBE = 512
"""Side in pixels of the image that the network is tried with: a multiple of all usual strides and divisors."""
SMALL_PROBE = 256
"""The same, where the network really has to run."""
PROBES = (SMALL_PROBE, PROBE, 1024, 1472, 2048)
"""Sides of the images that tell what others take. Beyond the last one the memory of our networks is proportional."""
SLACK = 1.1
FRAGMENTS = 256 * 2**20
"""The C library keeps what was freed in pieces that later tensors do not fit in, up to about as much as the tensors
that live, and gives back at once what is large. Tests of the marker ``memory`` hold the sum against resident memory."""
CONSTANT = 144 * 2**20
"""What a first image leaves: modules of PyTorch for fake tensors and what these remember, the code of convolutions."""
PER_METRIC = 64
"""Bytes per pixel of what a metric keeps meanwhile: for the calibration six maps of float64."""
SHARE_OF_CPU, SHARE_OF_GPU = 0.5, 0.8


class Footprint:
    """What a network needs for one image at some scales, and what it gives.

    The network runs on fake tensors, which have sizes but no values: what lives at the same time is counted exactly,
    and nothing is computed. A network that cannot do that (it looks at values) runs on a small grey image instead, and
    is taken to need as much for each pixel of any image.

    kept: bytes per pixel of the image of the logits and attention that remain. strides: pixels of the image of a scale
    per pixel of its logits, by descending scale; None where they do not divide. attention_channels: of the widest
    attention map, 0 where there is none. builds_logits: whether full-resolution logits are built to combine the scales.
    """

    def __init__(
        self, model: nn.Module, scales: Sequence[float], device: torch.device, *, dtype: torch.dtype, flip: bool
    ) -> None:
        self._model, self._scales, self._device, self._dtype, self._flip = model, tuple(scales), device, dtype, flip
        self._peaks: dict[int, int] = {}
        self._rounds_up: tuple[bool, ...] | None = None
        self._fake = True
        try:
            peak, outputs = self._pass(PROBE)
            self._side = PROBE
        except Exception:  # whatever code of others does not do with fake tensors
            self._fake = False
            peak, outputs = self._pass(SMALL_PROBE)
            self._side = SMALL_PROBE
        area = self._side * self._side
        self._peaks[self._side] = peak
        self.kept = sum(t.numel() * t.element_size() for t in (*outputs.logits, *outputs.attention)) / area
        self.attention_channels = max((a.shape[1] for a in outputs.attention), default=0)
        self.strides = _strides(outputs, self._side)
        self.builds_logits = outputs.builds_logits

    def live(self, size: tuple[int, int], batch: int = 1) -> int:
        """Bytes of the tensors that live at the peak of a pass over ``batch`` images of (height, width) ``size``.

        At most these, found from one or two passes over images of a few sizes: a network that works in strips needs
        less for each pixel of a larger image, and never less for a larger image. A pass of a large network over fake
        tensors takes seconds; a folder of photos takes as many as there are probes, whatever their sizes are.
        """
        pixels = size[0] * size[1] * batch
        if not self._fake:
            return int(self._peak(self._side) / self._side**2 * pixels)
        smaller = [side for side in PROBES if side * side <= pixels][-1:]
        larger = [side for side in PROBES if side * side >= pixels][:1]
        bounds = [self._peak(side) / side**2 * pixels for side in smaller] + [self._peak(side) for side in larger]
        return int(min(bounds))

    def _peak(self, side: int) -> int:
        """Bytes at the peak of a pass over a square image; one of our probes is tried once."""
        if side not in self._peaks:
            try:
                self._peaks[side], _ = self._pass(side)
            except Exception:  # code of others that takes images of the first size, but not of this one
                self._peaks[side] = int(self._peaks[PROBE] * max(1.0, (side / PROBE) ** 2))
        return self._peaks[side]

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) of the logits of a whole image at each scale, by descending scale.

        Raises ValueError for a network whose logits have no whole stride.
        """
        if self.strides is None:
            raise ArgumentValueError("network: the logits have no whole stride; expected one that divides the image")
        descending = sorted(self._scales, reverse=True)
        cells = list(zip(descending, self.strides, strict=True))
        if all(int(side * scale) % stride == 0 for side in size for scale, stride in cells):
            return [(int(size[0] * scale) // stride, int(size[1] * scale) // stride) for scale, stride in cells]
        if self._rounds_up is None:
            side = SMALL_PROBE - 3  # no multiple of a stride, nor are most of its multiples
            _, outputs = self._pass(side)
            self._rounds_up = tuple(
                logits.shape[-1] > int(side * scale) // stride
                for logits, scale, stride in zip(outputs.logits, outputs.scales, self.strides, strict=True)
            )
        found = []
        for (scale, stride), rounds_up in zip(cells, self._rounds_up, strict=True):
            height, width = (int(side * scale) for side in size)
            more = stride - 1 if rounds_up else 0
            found.append(((height + more) // stride, (width + more) // stride))
        return found

    def resident(self, live: float) -> int:
        """Bytes that the process grows by for so many bytes of tensors."""
        return int(live * SLACK + min(live, FRAGMENTS)) + CONSTANT

    def _pass(self, side: int) -> tuple[int, ScaleOutputs]:
        """The peak of live bytes of one pass over a square image, and its outputs."""
        fake = RememberingFakes() if self._fake else contextlib.nullcontext()
        with warnings.catch_warnings(), fake, two_strips_alone(), evaluation_mode(self._model), LiveBytes() as watch:
            warnings.simplefilter("ignore")
            images = torch.zeros(1, 3, side, side, device=self._device)
            outputs = run(self._model, images, self._scales, self._device, dtype=self._dtype, flip=self._flip)
        return watch.peak, outputs


@dataclass(frozen=True)
class Reading:
    """Bytes per pixel that reading the outputs of a photo takes: those of its results, and those of maps meanwhile."""

    results: int
    meanwhile: int


def reading(
    num_classes: int,
    scales: int,
    attention_channels: int,
    *,
    flip: bool,
    logits: bool,
    per_scale: bool,
    builds_logits: bool = False,
) -> Reading:
    """What reading takes of a photo at so many ``scales``; ``builds_logits``: see :class:`Footprint`."""
    number, views = (1 if num_classes <= 256 else 4), (2 if flip else 1)
    label = number + 4  # and its confidence
    # Without attention, of each view: the combination so far, the logits of two scales, their probabilities, the new
    # combination. For a mean only its constant weights, at the stride of the heads.
    results, meanwhile = label, views if attention_channels == 0 and scales > 1 else 0
    if builds_logits:
        meanwhile += 4 * num_classes * views * 5
    if logits:
        results += 4 * num_classes
        # Of both views the fused logits, then the mirrored ones turned back and the sum, then the sum and its half.
        meanwhile += 4 * num_classes * (4 if flip else 1)
    if per_scale:
        results += label * scales
        # The shares of all scales, an attention map, and what is left for the larger scales, before and after it.
        shares = 4 * views * (scales + attention_channels + 3)
        meanwhile = max(meanwhile, shares, label)
    return Reading(results, meanwhile + label)


def scoring(
    num_classes: int, scales: int, attention_channels: int, *, flip: bool, metrics: bool, builds_logits: bool = False
) -> Reading:
    """What an evaluation takes of an image: labels of each scale alone, the mean and the combination.

    metrics: whether there are others than the confusion matrices. They may read confidences, which are kept too.
    """
    ways = scales + 2 if scales > 1 else 1
    label = (1 if num_classes <= 256 else 4) + (4 if metrics else 0)
    one = reading(
        num_classes, scales, attention_channels, flip=flip, logits=False, per_scale=False, builds_logits=builds_logits
    )
    return Reading(label * ways, max(one.meanwhile, PER_METRIC if metrics else 0))


def show_bytes(count: float) -> str:
    """Bytes in words: ``"1.5 GiB"``, ``"320 MiB"``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def allowed(device: torch.device, wanted: int | None) -> int:
    """Bytes that an image may take: ``wanted``, or a share of the memory of the device.

    The share is of all memory, not of what is free now: the same photo is then cut into the same tiles every time.
    """
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * SHARE_OF_GPU)
    return int(_machine_memory() * SHARE_OF_CPU) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _strides(outputs: ScaleOutputs, side: int) -> tuple[int, ...] | None:
    found = []
    for scale, logits in zip(outputs.scales, outputs.logits, strict=True):
        height, width = logits.shape[-2:]
        grid = int(side * scale)
        # Where the grid is no multiple of the stride, the last logit is left out or is of a part.
        near = (grid // height, -(-grid // height))
        fitting = [stride for stride in near if stride and height in (grid // stride, -(-grid // stride))]
        if height != width or not fitting:
            return None
        found.append(fitting[0])
    return tuple(found)


def _machine_memory() -> int:
    """Bytes of memory that this process could use: of the machine, or of the container that it runs in."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 * 2**30
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(file).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return found
