"""The most memory that a training step or an evaluation takes, by part, found with fake tensors: nothing is computed.

Fake tensors have sizes but no values. What lives at the same time is counted exactly: it is what
:class:`hmsa_ext.live_bytes.LiveBytes` measures when the same step is computed. Workspace inside kernels and what an
allocator cannot give back come on top of it.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hmsa_ext import models
from hmsa_ext.data.types import IGNORE_LABEL
from hmsa_ext.engine import schedule
from hmsa_ext.engine.device import evaluation_mode
from hmsa_ext.engine.metrics import Predictions
from hmsa_ext.engine.passes import run
from hmsa_ext.engine.settings import TrainSettings
from hmsa_ext.engine.step import forward_backward
from hmsa_ext.errors import HmsaError
from hmsa_ext.fake_tensors import RememberingFakes
from hmsa_ext.live_bytes import LiveParts, Origin
from hmsa_ext.models.joined_maps import two_strips_alone
from hmsa_ext.models.recomputation import recompute
from hmsa_ext.ops import confusion_matrix
from hmsa_ext.parts import spelled

PARAMETERS, GRADIENTS = "parameters and buffers", "gradients of parameters"
OPTIMIZER, AVERAGE, BUCKETS = "optimizer state", "moving average", "gradients of parameters, between processes"
INPUTS, LOSS, UPDATE, OUTPUTS = "images and labels", "loss", "optimizer step", "labels"
NETWORK, OTHERS = "network", "others"
STANDING = (PARAMETERS, GRADIENTS, OPTIMIZER, AVERAGE, BUCKETS)
SHOWN_FROM = 0.01
"""Share of the peak from which a part has a name of its own."""
SPLIT_FROM = 1 / 3
"""Share of the peak from which a module is shown by its children."""


class FakeStepError(HmsaError, RuntimeError):
    """A network, loss or fusion that does not run on fake tensors, so that its memory is known only by running it."""


@dataclass(frozen=True)
class Peak:
    """The most bytes of tensors that live at once.

    parts: bytes by part at that moment, which add up to ``total``; the largest first. Parts are modules by their paths
        (what their forward pass keeps or holds), "gradients of PATH" for what the backward pass of that module made,
        "PATH, recomputed" for what was made again in backward, and the names at the top of this module.
    moment: what made the storage that brought about the peak, by the same names.
    standing: bytes that are there whatever the size of the images: parameters, their gradients, optimizer state and
        moving average.
    """

    parts: Mapping[str, int]
    moment: str
    standing: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def without_optimizer(self) -> int:
        """Bytes of all parts but optimizer state and moving average, as published figures of steps count."""
        return self.total - sum(self.parts.get(name, 0) for name in (OPTIMIZER, AVERAGE))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "bytes": self.total,
            "bytes_without_optimizer": self.without_optimizer,
            "moment": self.moment,
            "parts": dict(self.parts),
        }


class TrainingTrial:
    """A network of fake tensors with its optimizer, for the peaks of its training steps under several settings.

    Args:
        train: settings of the training; weights are not read.
        num_classes: classes, the ignored label not counted.
        device: of the training.
        processes: of the training; with several each one holds a second copy of the gradients, which it exchanges.

    Raises :class:`FakeStepError`.
    """

    def __init__(self, train: TrainSettings, num_classes: int, device: torch.device, *, processes: int = 1) -> None:
        self.train, self.num_classes, self.device, self.processes = train, num_classes, device, processes
        self._mode = RememberingFakes()
        with self._fake("building"):
            self.model = _build(train, num_classes, device)
            self.criterion = _criterion(train, num_classes, device)
            self.optimizer = schedule.build_optimizer(self.model, train.optimisation)
            _fill_optimizer(self.optimizer, device)
            decay = train.optimisation.ema
            self.average = {n: v.clone() for n, v in self.model.state_dict().items()} if decay else None
            # The update takes the same whatever the crops and the arithmetic are, and thousands of operations.
            self._update = self._steps_peak((1, 1), 0, torch.float32, passes=False)

    def peak(self, crop: tuple[int, int], *, batch_size: int, dtype: torch.dtype, recomputed: str) -> Peak:
        """The peak of a step that is not the first one.

        Args:
            crop: (height, width) of the crops in pixels.
            batch_size: crops of the step.
            dtype: ``torch.float32`` or ``torch.bfloat16``: see :func:`hmsa_ext.engine.device.arithmetic`.
            recomputed: see :func:`hmsa_ext.models.recompute`.

        Raises :class:`FakeStepError`.
        """
        with self._fake("a training step"):
            recompute(self.model, recomputed)
            self.model.train()
            found = self._steps_peak(crop, batch_size, dtype, update=False)
            inputs = sum(t.nbytes for t in _batch(crop, batch_size, self.device, self.train))
        if found.total >= self._update.total + inputs:
            return found
        return replace(self._update, parts={**self._update.parts, INPUTS: inputs})

    def evaluation_peak(
        self, size: tuple[int, int], scales: Sequence[float], *, dtype: torch.dtype, flip: bool = False
    ) -> Peak:
        """The peak of an evaluation with this network, like that of the function of this name."""
        with self._fake("an evaluation"):
            return evaluation_pass_peak(
                self.model, self.num_classes, size, scales, device=self.device, dtype=dtype, flip=flip
            )

    def _steps_peak(
        self, crop: tuple[int, int], batch_size: int, dtype: torch.dtype, *, passes: bool = True, update: bool = True
    ) -> Peak:
        return training_step_peak(
            self.model, self.criterion, self.optimizer, self.train, crop, batch_size=batch_size, dtype=dtype,
            device=self.device, average=self.average, processes=self.processes, passes=passes, update=update,
        )  # fmt: skip

    @contextmanager
    def _fake(self, what: str) -> Iterator[None]:
        with _on_fakes(self._mode, spelled(self.train.model.name), what):
            yield


def training_peak(
    train: TrainSettings,
    num_classes: int,
    crop: tuple[int, int],
    *,
    device: torch.device,
    dtype: torch.dtype,
    processes: int = 1,
) -> Peak:
    """The peak of a training step with these settings. Arguments and errors: see :class:`TrainingTrial`.

    >>> from hmsa_ext.engine.settings import TrainSettings
    >>> found = training_peak(TrainSettings(), 19, (64, 128), device=torch.device("cpu"), dtype=torch.float32)
    >>> found.total == sum(found.parts.values()) > found.standing > 0
    True
    """
    trial = TrainingTrial(train, num_classes, device, processes=processes)
    return trial.peak(crop, batch_size=train.optimisation.batch_size, dtype=dtype, recomputed=train.machine.recompute)


def evaluation_peak(
    train: TrainSettings,
    num_classes: int,
    size: tuple[int, int],
    scales: Sequence[float],
    *,
    device: torch.device,
    dtype: torch.dtype,
    flip: bool = False,
) -> Peak:
    """The peak of the evaluation of one image, read in every way that :func:`hmsa_ext.engine.evaluation.evaluate` does.

    Args:
        train: settings of the network.
        num_classes: classes, the ignored label not counted.
        size: (height, width) of the image in pixels.
        scales: that are combined.
        device: of the evaluation.
        dtype: of the arithmetic.
        flip: whether the mirrored image is averaged in.

    Raises :class:`FakeStepError`.
    """
    with _on_fakes(RememberingFakes(), spelled(train.model.name), "an evaluation"):
        model = _build(train, num_classes, device)
        return evaluation_pass_peak(model, num_classes, size, scales, device=device, dtype=dtype, flip=flip)


def training_step_peak(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: TrainSettings,
    crop: tuple[int, int],
    *,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device,
    average: dict[str, Tensor] | None = None,
    processes: int = 1,
    passes: bool = True,
    update: bool = True,
) -> Peak:
    """The peak of one step of the training loop on random crops, computed for real or on fake tensors.

    The optimizer's state and the gradients of the step before count where they are there. ``passes`` and ``update``:
    whether the step has its forward and backward pass, and the update of parameters and moving average.
    """
    parameters = list(model.parameters())
    meter = LiveParts(model)
    with meter:
        standing = [*parameters, *model.buffers(), *criterion.buffers()]
        meter.count(PARAMETERS, standing)
        meter.count(GRADIENTS, _gradients(parameters))
        kept = {
            OPTIMIZER: [v for one in optimizer.state.values() for v in one.values() if isinstance(v, Tensor)],
            AVERAGE: list((average or {}).values()),
            BUCKETS: [torch.empty_like(p) for p in parameters if p.requires_grad and processes > 1],
        }
        for name, tensors in kept.items():
            meter.count(name, tensors)
            standing += tensors
        if passes:
            with meter.part(INPUTS):
                # On a GPU the watch on the loss keeps the batch of the step before.
                batches = [_batch(crop, batch_size, device, train) for _ in range(2 if device.type == "cuda" else 1)]
            images, labels = batches[-1]
            with meter.part(LOSS):  # what no module makes
                forward_backward(model, criterion, optimizer, images, labels, train.model.train_scales, dtype=dtype)
        if update:
            with meter.part(UPDATE):
                optimizer.step()
                if average is not None:
                    schedule.update_average(average, model, train.optimisation.ema)
        meter.count(GRADIENTS, _gradients(parameters))
    return _summed(meter, sum(t.nbytes for t in (*standing, *_gradients(parameters))))


def evaluation_pass_peak(
    model: nn.Module,
    num_classes: int,
    size: tuple[int, int],
    scales: Sequence[float],
    *,
    device: torch.device,
    dtype: torch.dtype,
    flip: bool = False,
) -> Peak:
    """The peak of the evaluation of one image, computed for real or on fake tensors: see :func:`evaluation_peak`."""
    held = [*model.parameters(), *model.buffers()]
    meter = LiveParts(model)
    with evaluation_mode(model), meter:
        meter.count(PARAMETERS, held)
        with meter.part(INPUTS):
            images = torch.zeros(1, 3, *size, device=device)
            target = torch.zeros(1, *size, dtype=torch.uint8, device=device)
        outputs = run(model, images, scales, device, dtype=dtype, flip=flip)
        with meter.part(OUTPUTS):
            predictions = Predictions(outputs, target, [""], flip=flip, with_confidence=False)
            for way in predictions.ways:
                confusion_matrix(predictions.labels(way), target, num_classes, ignore_index=IGNORE_LABEL)
    return _summed(meter, sum(t.nbytes for t in held))


# ---- helpers ----------------------------------------------------------------------------------------------------


@contextmanager
def _on_fakes(mode: RememberingFakes, network: str, what: str) -> Iterator[None]:
    """Inside, tensors are fake; an error of anything but this package says that it may be for that reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with mode, two_strips_alone():
                yield
        except HmsaError:
            raise
        except Exception as error:  # whatever code of others does not do with fake tensors
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise FakeStepError(
                f"memory: {what} of {network} failed on tensors without values: {reason}. Either these settings do not "
                "work, or its code looks at the values of tensors; then its memory is known only by running it"
            ) from error


def _build(train: TrainSettings, num_classes: int, device: torch.device) -> nn.Module:
    """The network on a device, like that of a run. ``Module.to`` does not take fake tensors."""
    with device:
        model = models.build(train.model, num_classes)
    for module in model.modules():
        if isinstance(module, _NormBase) and module.momentum is not None and module.num_batches_tracked is not None:
            # A number that nobody reads. It was made with a value, and each operation would compute with it.
            module.num_batches_tracked = torch.empty((), dtype=torch.long, device=device)
    if train.model.channels_last:
        moved: dict[nn.Parameter, nn.Parameter] = {}  # one parameter of two modules stays one
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 4:
                    ordered = parameter.detach().contiguous(memory_format=torch.channels_last)
                    moved.setdefault(parameter, nn.Parameter(ordered, parameter.requires_grad))
                    setattr(module, name, moved[parameter])
    return model


def _criterion(train: TrainSettings, num_classes: int, device: torch.device) -> nn.Module:
    weight = torch.ones(num_classes, device=device) if train.loss.weighs_classes else None
    return train.loss.criterion(IGNORE_LABEL, weight)


def _fill_optimizer(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Gives the optimizer the state that it has after a first step, and the parameters gradients."""
    for group in optimizer.param_groups:
        if device.type == "cuda" and group.get("foreach") is None:
            group["foreach"] = True  # what PyTorch chooses for parameters that are not fake
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def _batch(crop: tuple[int, int], count: int, device: torch.device, train: TrainSettings) -> tuple[Tensor, Tensor]:
    order = torch.channels_last if train.model.channels_last else torch.contiguous_format
    images = torch.empty(count, 3, *crop, device=device, memory_format=order).uniform_(-1, 1)
    return images, torch.zeros(count, *crop, dtype=torch.uint8, device=device)


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _summed(meter: LiveParts, standing: int) -> Peak:
    amounts: dict[tuple[str, str], int] = defaultdict(int)
    for origin, size in meter.at_peak():
        amounts[origin.phase, origin.part] += size
    parts: dict[str, int] = {}
    for phase in ("", "gradients", "recomputed"):
        by_path = {path: size for (of, path), size in amounts.items() if of == phase}
        parts |= {_name(Origin(path, phase)): size for path, size in _grouped(by_path, meter.peak).items()}
    small = {name for name, size in parts.items() if size < SHOWN_FROM * meter.peak and name not in STANDING}
    shown = {name: size for name, size in sorted(parts.items(), key=lambda part: -part[1]) if name not in small}
    if small:
        shown[OTHERS] = sum(parts[name] for name in small)
    return Peak(shown, _name(meter.peak_origin), standing)


def _grouped(amounts: Mapping[str, int], total: int, depth: int = 1) -> dict[str, int]:
    """Sums by the first components of the paths: two, and more of them where a module has a large share of all."""
    groups: dict[str, dict[str, int]] = defaultdict(dict)
    for path, size in amounts.items():
        groups[".".join(path.split(".")[:depth])][path] = size
    found: dict[str, int] = {}
    for name, group in groups.items():
        size = sum(group.values())
        deeper = any(path.count(".") >= depth for path in group)
        if deeper and (depth < 2 or size > SPLIT_FROM * total):
            found |= _grouped(group, total, depth + 1)
        else:
            found[name] = size
    return found


def _name(origin: Origin) -> str:
    part = origin.part or NETWORK
    return {"": part, "gradients": f"gradients of {part}", "recomputed": f"{part}, recomputed"}[origin.phase]
