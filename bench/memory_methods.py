"""The ways to train and to evaluate a network whose memory is compared, each as something that can be run.

A training step is forward at the scales 0.5 and 1.0, cross-entropy with the auxiliary logits, and backward; the
optimizer, whose state depends on the parameters alone, is left out. An evaluation is labels and their probabilities of
one image at the scales 0.5, 1.0 and 2.0. Both have 19 classes and one image.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._functorch.config
from functorch.compile import (
    aot_function,  # pyright: ignore[reportPrivateImportUsage]  (its public place)
    make_boxed_func,  # pyright: ignore[reportPrivateImportUsage]
    min_cut_rematerialization_partition,
)
from torch import Tensor, nn
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import flops, meters, published_network
from bench.published_network import PublishedNetwork, training_loss
from hmsa_ext import models
from hmsa_ext.engine import passes, tiles
from hmsa_ext.engine.device import arithmetic, evaluation_mode
from hmsa_ext.losses import MultiScaleLoss
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.models.joined_maps import two_strips_alone

CLASSES = 19
NETWORKS = tuple(published_network.WIDTHS)
SIZES = ((512, 1024), (768, 1536), (1024, 2048), (1536, 3072), (2048, 4096))
DTYPES = ("float32", "bfloat16")
TRAIN_SCALES, EVAL_SCALES = (0.5, 1.0), (0.5, 1.0, 2.0)
TILE, OVERLAP = 1024, 0.25
BUDGETS = (1.0, 0.5, 0.1)
"""Shares of the activations that torch.compile may keep (``torch._functorch.config.activation_memory_budget``)."""


@dataclass(frozen=True)
class Method:
    """A way to do a job."""

    label: str
    ours: bool = False
    recompute: str = "none"
    """Of ours: see :func:`hmsa_ext.models.recompute`."""
    run: published_network.Run = published_network.plainly
    """Of the published network: how its parts are run."""
    budget: float | None = None
    """Of the published network by torch.compile."""
    tiled: bool = False


METHODS: dict[str, dict[str, Method]] = {
    "training": {
        "published": Method("published"),
        "checkpoint": Method("published, checkpointed in 7 parts", run=published_network.checkpointed),
        **{
            f"compile-{budget:g}": Method(f"published, torch.compile, budget {budget:g}", budget=budget)
            for budget in BUDGETS
        },
        "none": Method("hmsa_ext", ours=True),
        "modules": Method("hmsa_ext, recompute modules", ours=True, recompute="modules"),
        "all": Method("hmsa_ext, recompute all", ours=True, recompute="all"),
    },
    "evaluation": {
        "published": Method("published"),
        "whole": Method("hmsa_ext", ours=True),
        "tiles": Method(f"hmsa_ext, tiles of {TILE}", ours=True, tiled=True),
    },
}


@dataclass(frozen=True)
class Row:
    """What is run: one step or one evaluation. size: (height, width) of the image."""

    job: str
    method: str
    network: str
    size: tuple[int, int]
    dtype: str

    @property
    def how(self) -> Method:
        return METHODS[self.job][self.method]

    @property
    def name(self) -> str:
        height, width = self.size
        return f"{self.job}, {self.method}, {self.network}, {height}x{width}, {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Row:
        """The row of an entry that may have further fields."""
        return cls(fields["job"], fields["method"], fields["network"], tuple(fields["size"]), fields["dtype"])


def every_row(*, compiled: bool) -> list[Row]:
    """All rows, small networks and images first; ``compiled``: those of torch.compile, too, which take minutes each."""
    return [
        Row(job, method, network, size, dtype)
        for network in NETWORKS
        for dtype in DTYPES
        for size in SIZES
        for job, methods in METHODS.items()
        for method, how in methods.items()
        if compiled or how.budget is None
    ]


@dataclass
class Work:
    """A network with an image [1, 3, H, W] and labels [1, H, W]."""

    row: Row
    network: nn.Module
    images: Tensor
    target: Tensor
    published_loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = training_loss
    """Of the published network; compiled where the row says so."""

    @property
    def given(self) -> list[Tensor]:
        """The tensors that exist before the work begins."""
        return [*self.network.parameters(), *self.network.buffers(), self.images, self.target]

    def run(self) -> None:
        """One step, or one evaluation; the gradients and results are gone at the end."""
        if self.row.job == "training":
            self.loss().backward()
            self.network.zero_grad(set_to_none=True)
        else:
            self.labels()

    def loss(self) -> Tensor:
        with self._arithmetic():
            if isinstance(self.network, PublishedNetwork):
                return self.published_loss(self.network, self.images, self.target)
            return MultiScaleLoss("ce")(self.network(self.images, scales=TRAIN_SCALES), self.target)

    def labels(self) -> tuple[Tensor, Tensor]:
        """Labels and their probabilities, [1, H, W] both."""
        device = self.images.device
        with evaluation_mode(self.network):
            if isinstance(self.network, PublishedNetwork):
                with self._arithmetic():
                    return self.network.predict(self.images, EVAL_SCALES)
            run = lambda images: passes.run(  # noqa: E731
                self.network, images, EVAL_SCALES, device, dtype=getattr(torch, self.row.dtype)
            )
            if self.row.how.tiled:
                return tiled_labels(run, self.images)
            return run(self.images).argmax()

    def _arithmetic(self) -> AbstractContextManager[object]:
        return arithmetic(self.images.device, getattr(torch, self.row.dtype))


def prepare(row: Row, device: torch.device | str = "cpu") -> Work:
    """The work of a row, with random weights and a random image; compiled where the row says so."""
    torch.manual_seed(0)
    how = row.how
    with torch.device(device):
        if how.ours:
            network: nn.Module = models.build(row.network, CLASSES)
            if row.job == "training":
                models.recompute(network, how.recompute)
        else:
            network = PublishedNetwork(published_network.WIDTHS[row.network], CLASSES, run=how.run)
    images = torch.rand(1, 3, *row.size, device=device) * 2 - 1
    # The published loss wants int64; ours takes the labels as they are in the files.
    target = torch.randint(0, CLASSES, (1, *row.size), dtype=torch.uint8 if how.ours else torch.int64, device=device)
    if how.budget is None:
        return Work(row, network, images, target)
    return Work(row, network, images, target, torch.compile(training_loss, dynamic=False))


def compiling(row: Row) -> AbstractContextManager[object]:
    """The context in which the work of a row is run for the first time; it says what torch.compile may keep."""
    if row.how.budget is None:
        return nullcontext()
    return torch._functorch.config.patch(activation_memory_budget=row.how.budget)


def tiled_labels(run: Callable[[Tensor], ScaleOutputs], images: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and probabilities from overlapping tiles, as ``hmsa predict --tile`` makes them."""
    size, scales = (images.shape[-2], images.shape[-1]), sorted(EVAL_SCALES, reverse=True)
    strides = [4] * len(scales)
    plan = tiles.layout(size, (TILE, TILE), OVERLAP, tiles.step_of(scales, strides))
    labels = torch.empty(1, *size, dtype=torch.uint8, device=images.device)
    confidence = torch.empty(1, *size, device=images.device)

    def one(row: int, column: int, height: int, width: int) -> ScaleOutputs:
        tile = images[..., row : row + height, column : column + width]
        beyond = (0, width - tile.shape[-1], 0, height - tile.shape[-2])
        return run(nn.functional.pad(tile, beyond) if any(beyond) else tile)

    for band in tiles.blended(one, plan, scales, strides):
        rows = slice(band.margin, band.margin + band.last - band.first)
        there = slice(band.first, band.last)
        for whole, part in zip((labels, confidence), band.outputs.argmax(), strict=True):
            whole[:, there] = part[:, rows, : size[1]][:, : size[0] - band.first]
        del band
    return labels, confidence


# ---- counting ----------------------------------------------------------------------------------------------------


def count(row: Row) -> dict[str, int]:
    """What a row takes on any machine. Nothing is computed: only shapes count.

    Returns:
        ``parameter_bytes`` (buffers not among them). Then ``live_peak_bytes``: the most bytes of tensors that live at
        once, parameters, gradients, image and labels among them. Of torch.compile, whose tensors no meter sees, in its
        place ``held_bytes``: what has to be held between forward and backward; the peak is above it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        work = prepare(row)
        facts = {"parameter_bytes": sum(p.nbytes for p in work.network.parameters())}
        given = sum(t.nbytes for t in work.given)
        gc.collect()
        if row.how.budget is not None:
            return {**facts, "held_bytes": given + kept_by_compile(work)}
        with meters.LiveBytes().ignore(*work.given) as meter, two_strips_alone():
            work.run()
    return {**facts, "live_peak_bytes": meter.peak + given}


def operations(row: Row) -> int:
    """Floating-point operations of a row. Those of torch.compile are counted without it.

    In a pass of its own: the counter keeps tensors longer than they would live.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        work = prepare(row)
        work.published_loss = training_loss
        return flops.count_flops(work.run)


def kept_by_compile(work: Work) -> int:
    """Bytes that the forward graph of torch.compile hands to the backward graph, beside the graph's inputs.

    The graphs are those that Inductor would be given: traced, decomposed and divided between forward and backward
    within the budget of the row.
    """
    graphs: list[torch.fx.GraphModule] = []

    def keep(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return make_boxed_func(gm)

    def loss(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor, target: Tensor) -> Tensor:
        def network(images: Tensor) -> Any:
            return torch.func.functional_call(work.network, {**parameters, **buffers}, (images,))

        return training_loss(network, images, target)

    traced = aot_function(
        loss, keep, keep, partition_fn=min_cut_rematerialization_partition, decompositions=select_decomp_table()
    )
    held = dict(work.network.named_parameters()), dict(work.network.named_buffers())
    with compiling(work.row), arithmetic(work.images.device, getattr(torch, work.row.dtype)):
        traced(*held, work.images, work.target)
    (results,) = (node.args[0] for node in graphs[0].graph.nodes if node.op == "output")
    storages = {}
    for node in results:
        if isinstance(node, torch.fx.Node) and node.op != "placeholder":
            storage = node.meta["val"].untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())
