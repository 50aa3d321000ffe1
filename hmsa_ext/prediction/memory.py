"""How much memory a prediction takes, found without computing it, and how much it may take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hmsa_ext.engine.device import evaluation_mode
from hmsa_ext.engine.evaluation import run
from hmsa_ext.live_bytes import LiveBytes
from hmsa_ext.models import ScaleOutputs

PROBE = 512
"""Side in pixels of the image that the network is tried with: a multiple of all usual strides and divisors."""
SMALL_PROBE = 256
"""The same, where the network really has to run."""
SLACK = 1.1
FRAGMENTS = 256 * 2**20
"""The C library keeps what was freed in pieces that later tensors do not fit in, up to about as much as the tensors
that live, and gives back at once what is large. Tests of the marker ``memory`` hold the sum against resident memory."""
CONSTANT = 112 * 2**20
"""What a first prediction leaves: modules of PyTorch for fake tensors, and the code of convolutions."""
SHARE_OF_CPU, SHARE_OF_GPU = 0.5, 0.8


@dataclass(frozen=True)
class Footprint:
    """What a network needs for one image, and what it gives.

    per_pixel: bytes at the peak of live tensors for each pixel of the image at scale 1.0. All of it grows with the
    area: without gradients autocast keeps no weights. kept: bytes per pixel of the logits and attention that remain.
    strides: pixels of the image of a scale per pixel of its logits, by descending scale; None where they do not divide.
    attention_channels: of the widest attention map, 0 where there is none.
    builds_logits: whether full-resolution logits are built to combine the scales.
    """

    per_pixel: float
    kept: float
    strides: tuple[int, ...] | None
    attention_channels: int
    builds_logits: bool = False

    def live(self, pixels: int) -> int:
        """Bytes of the tensors that live at the peak of a pass over an image of so many pixels."""
        return int(self.per_pixel * pixels)

    def resident(self, live: float) -> int:
        """Bytes that the process grows by for so many bytes of tensors."""
        return int(live * SLACK + min(live, FRAGMENTS)) + CONSTANT


def footprint(
    model: nn.Module, scales: Sequence[float], device: torch.device, *, dtype: torch.dtype, flip: bool
) -> Footprint:
    """The :class:`Footprint` of a network at some scales.

    The network runs on fake tensors, which have sizes but no values: what lives at the same time is counted exactly,
    and nothing is computed. A network that cannot do that (it looks at values) runs on a small grey image instead.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            peak, outputs = _watched(model, scales, device, PROBE, dtype=dtype, flip=flip)
        side = PROBE
    except Exception:  # whatever code of others does not do with fake tensors
        peak, outputs = _watched(model, scales, device, SMALL_PROBE, dtype=dtype, flip=flip)
        side = SMALL_PROBE
    area = side * side
    kept = sum(t.numel() * t.element_size() for t in (*outputs.logits, *outputs.attention))
    channels = max((a.shape[1] for a in outputs.attention), default=0)
    return Footprint(peak / area, kept / area, _strides(outputs, side), channels, outputs.builds_logits)


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


def allowed(device: torch.device, wanted: int | None) -> int:
    """Bytes that a prediction may take: ``wanted``, or a share of the memory of the device.

    The share is of all memory, not of what is free now: the same photo is then cut into the same tiles every time.
    """
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * SHARE_OF_GPU)
    return int(_machine_memory() * SHARE_OF_CPU) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _watched(
    model: nn.Module, scales: Sequence[float], device: torch.device, side: int, *, dtype: torch.dtype, flip: bool
) -> tuple[int, ScaleOutputs]:
    """The peak of live bytes of one pass over an image of ``side`` pixels, and its outputs."""
    with evaluation_mode(model), LiveBytes() as watch:
        images = torch.zeros(1, 3, side, side, device=device)
        outputs = run(model, images, scales, device, dtype=dtype, flip=flip)
    return watch.peak, outputs


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
