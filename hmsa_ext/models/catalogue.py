"""The networks that have names, with what each costs and where its weights come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from hmsa_ext.models.building import build
from hmsa_ext.models.networks import NETWORKS, PUBLISHED
from hmsa_ext.models.trunks import TRUNK_WEIGHTS, TRUNKS


@dataclass(frozen=True)
class Entry:
    """One network.

    parameters: numbers in its parameters, those of the attention head included.
    flops: of one forward pass over an image, without gradients, a multiplication and an addition counting two;
    convolutions and matrix products alone, as PyTorch counts. stride: pixels of the image per pixel of its logits.
    trunk: the trunk that it has unless told. weights: where weights of the trunk, or of all of it, come from.
    """

    name: str
    parameters: int
    flops: int
    stride: int
    trunk: str
    weights: str


def describe(
    name: str, *, num_classes: int = 19, size: tuple[int, int] = (1024, 2048), scales: tuple[float, ...] = (1.0,)
) -> Entry:
    """What a network of ``NETWORKS`` costs. It is built of tensors without values: nothing is computed.

    Args:
        name: of the network.
        num_classes: classes.
        size: (height, width) of the image in pixels.
        scales: of the pass; several cost the sum of all, and the attention between them.
    """
    with FakeTensorMode(), torch.no_grad():
        network = build(name, num_classes).eval()
        images = torch.zeros(1, 3, *size)
        with FlopCounterMode(display=False) as counter:
            outputs = network(images, scales=scales)
        parameters = count_parameters(network)
        stride = round(size[0] / outputs.logits[outputs.scales.index(1.0)].shape[-2])
    trunk = inspect.signature(NETWORKS[name]).parameters["trunk"].default
    sources = [f"trunk: {TRUNK_WEIGHTS[trunk]}"] if trunk in TRUNK_WEIGHTS else []
    if name in PUBLISHED:
        sources.append(f"all: {PUBLISHED[name]} of NVIDIA/semantic-segmentation")
    return Entry(name, parameters, counter.get_total_flops(), stride, trunk, "; ".join(sources) or "none")


def describe_all(
    *, size: tuple[int, int] = (1024, 2048), watch: Callable[[str], object] = lambda name: None
) -> list[Entry]:
    """:func:`describe` of all networks at 19 classes. ``watch`` is called with each name before its turn."""
    found = []
    for name in NETWORKS:
        watch(name)
        found.append(describe(name, size=size))
    return found


def trunk_weights() -> dict[str, str]:
    """Where ImageNet weights of each trunk come from, by name."""
    return {name: TRUNK_WEIGHTS.get(name, "none") for name in TRUNKS}


def count_parameters(network: nn.Module) -> int:
    """How many numbers the parameters have."""
    return sum(parameter.numel() for parameter in network.parameters())
