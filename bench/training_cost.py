"""What a training step of each method of the paper costs: operations and bytes counted on fake tensors, time measured.

A step is forward, loss and backward, as users train: :class:`hmsa_ext.losses.MultiScaleLoss` with the cross-entropy,
float32, batch 1. The optimizer, whose cost depends on the parameters alone, is left out.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from bench import flops, meters
from hmsa_ext import models
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models.deeplab import ASPP
from hmsa_ext.models.scales import resize_images
from hmsa_ext.models.segmentation_network import SegmentationNetwork

Network = str | Callable[..., nn.Module]
"""A name, or a factory: see :func:`hmsa_ext.models.build`."""

CLASSES = 19
CROP = (512, 1024)


@dataclass(frozen=True)
class Method:
    """A way to train."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    """Of :func:`hmsa_ext.models.build`."""
    paper: float | None = None
    """Cost of training relative to a single scale as the paper reckons it (Tao et al. 2020): pixels of all scales."""


BASE = "single"
METHODS = {
    BASE: Method("single scale", {"fusion": "single"}, 1.0),
    "mean": Method("mean of scales", {"fusion": "mean"}, 1.0),
    "explicit": Method("explicit attention", {"fusion": "explicit"}, 5.25),
    "hierarchical": Method("hierarchical attention", {"fusion": "hierarchical"}, 1.25),
    "hierarchical_classes": Method(
        "hierarchical, per class", {"fusion": "hierarchical", "attention_channels": "classes"}
    ),
}
NETWORKS = ("resnet50_deeplabv3plus", "hrnet_w48_ocr")


@dataclass
class Step:
    """A training step of a network on images [1, 3, H, W] and labels [1, H, W]."""

    network: SegmentationNetwork
    images: Tensor
    target: Tensor
    criterion: MultiScaleLoss = field(default_factory=lambda: MultiScaleLoss("ce"))

    def loss(self) -> Tensor:
        return self.criterion(self.network(self.images), self.target)

    def run(self) -> None:
        self.loss().backward()
        self.network.zero_grad(set_to_none=True)

    def trunk_and_decoder(self) -> None:
        """The part of a step that a network without attention would do at the same scales."""
        for scale in self.network.train_scales:
            logits, aux, _ = self.network.forward_one_scale(resize_images(self.images, scale))
            outputs = [z for z in (logits, aux) if z is not None]
            torch.autograd.backward(outputs, [torch.ones_like(z) for z in outputs])
        self.network.zero_grad(set_to_none=True)

    def detached_loss(self) -> Callable[[], None]:
        """The part of a step behind the network: fusion and loss of its outputs, and their gradients."""
        with torch.no_grad():
            outputs = self.network(self.images)
        outputs = tree_map_only(Tensor, lambda z: z.detach().requires_grad_(), outputs)
        return lambda: self.criterion(outputs, self.target).backward()


def make_step(
    network: str | Callable[..., nn.Module], method: Method, size: tuple[int, int], device: str = "cpu"
) -> Step:
    """A step of a network that is trained by ``method``, on random images of ``size``."""
    torch.manual_seed(0)
    with torch.device(device):
        model = models.build(network, CLASSES, **method.options)
    assert isinstance(model, SegmentationNetwork)
    for module in model.modules():
        if isinstance(module, ASPP):
            # This batch norm sees one value per image and channel. Batches of 1 need synchronised batch norm for it, or
            # its running statistics; on one value the cost is nothing either way.
            module.img_conv[1].eval()
    images = torch.rand(1, 3, *size, device=device) * 2 - 1
    target = torch.randint(0, CLASSES, (1, *size), dtype=torch.uint8, device=device)
    return Step(model, images, target)


def count(network: Network, method: Method, size: tuple[int, int] = CROP) -> dict[str, Any]:
    """What a step costs on any machine. Nothing is computed: only shapes count.

    Returns:
        ``scales`` of the training; ``flops`` of the step, and its parts: ``trunk_and_decoder_flops``,
        ``attention_flops``, ``loss_flops`` (fusion and loss); ``saved_bytes`` that autograd keeps for backward beside
        parameters and inputs; ``live_peak_bytes``, the most bytes of tensors that live at once, with parameters,
        gradients and inputs; ``parameter_bytes``, with buffers.
    """
    with FakeTensorMode():
        step = make_step(network, method, size)
        held = [*step.network.parameters(), *step.network.buffers()]
        given = [*held, step.images, step.target]
        gc.collect()
        with meters.LiveBytes().ignore(*given) as meter:
            total = flops.count_flops(step.run)
        alone, behind = flops.count_flops(step.trunk_and_decoder), flops.count_flops(step.detached_loss())
        saved = meters.saved_bytes(step.loss, given)
    return {
        "scales": list(step.network.train_scales),
        "flops": total,
        "trunk_and_decoder_flops": alone,
        "attention_flops": total - alone - behind,
        "loss_flops": behind,
        "saved_bytes": saved,
        "live_peak_bytes": meter.peak + sum(t.nbytes for t in given),
        "parameter_bytes": sum(t.nbytes for t in held),
    }


def measure(network: Network, size: tuple[int, int], rounds: int, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Time and peak memory of a step of each of ``METHODS``, which take turns, round by round.

    Before each step, free memory goes back to the system, so that none finds the memory of the one before.

    Returns:
        Per method: ``ms``, the median of ``rounds_ms``; ``peak_bytes``, the most memory of a step, workspace and
        parameters included, None where the system does not tell.
    """
    steps = {name: make_step(network, method, size, device) for name, method in METHODS.items()}
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks: dict[str, list[int | None]] = {name: [] for name in steps}

    def timed(name: str) -> None:
        begin = time.perf_counter()
        steps[name].run()
        if device == "cuda":
            torch.cuda.synchronize()
        milliseconds[name].append(1e3 * (time.perf_counter() - begin))

    for _ in range(1 + rounds):
        for name in steps:
            peaks[name].append(meters.peak_memory(lambda name=name: timed(name), device))
    figures = {}
    for name, step in steps.items():
        counted, peak = milliseconds[name][1:], peaks[name][-1]  # the first round warms up
        parameters = sum(p.nbytes for p in step.network.parameters())
        figures[name] = {
            "ms": round(statistics.median(counted), 2),
            "rounds_ms": [round(ms, 2) for ms in counted],
            "peak_bytes": None if peak is None else peak + parameters,
        }
    return figures
