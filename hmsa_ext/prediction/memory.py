"""How much memory a prediction takes, found without computing it, and how much it may take."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hmsa_ext.engine.device import evaluation_mode
from hmsa_ext.engine.evaluation import run
from hmsa_ext.models import ScaleOutputs

PROBE = 512
"""Side in pixels of the image that the network is tried with: a multiple of all usual strides and divisors."""
SMALL_PROBE = 256
"""The same, where the network really has to run."""
SLACK, CONSTANT = 1.15, 160 * 2**20
"""Beyond the live tensors convolutions take memory of their own: measured on the CPU 5 to 10 % and some 130 MiB."""
SHARE_OF_CPU, SHARE_OF_GPU = 0.5, 0.8


@dataclass(frozen=True)
class Footprint:
    """What a network needs for one image, and what it gives.

    per_pixel: bytes at the peak of live tensors for each pixel of the image at scale 1.0; activations grow with the
    area. constant: bytes whatever the size. kept: bytes per pixel of the logits and attention that remain. strides:
    pixels of the image of a scale per pixel of its logits, by descending scale; None where they do not divide.
    """

    per_pixel: float
    constant: int
    kept: float
    strides: tuple[int, ...] | None

    def peak(self, pixels: int) -> int:
        """Bytes at the peak of a pass over an image of so many pixels."""
        return int(self.per_pixel * pixels * SLACK) + self.constant


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
    constant = CONSTANT
    if dtype != torch.float32:  # autocast keeps the weights in both
        weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        peak, constant = max(peak - weights, 0), constant + weights
    kept = sum(t.numel() * t.element_size() for t in (*outputs.logits, *outputs.attention))
    return Footprint(peak / area, constant, kept / area, _strides(outputs, side))


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
    with evaluation_mode(model), _LiveBytes() as watch:
        images = torch.zeros(1, 3, side, side, device=device)
        outputs = run(model, images, scales, device, dtype=dtype, flip=flip)
    return watch.peak, outputs


def _strides(outputs: ScaleOutputs, side: int) -> tuple[int, ...] | None:
    found = []
    for scale, logits in zip(outputs.scales, outputs.logits, strict=True):
        height, width = logits.shape[-2:]
        grid = int(side * scale)
        if height != width or grid % height:
            return None
        found.append(grid // height)
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


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are made while it is active; those of before do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in given:
                    self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._known.add(storage._cdata)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
