"""What memory a training would take, and what to change where that is too much. No data is read, nothing computed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hmsa_ext import settings
from hmsa_ext.data import DataSettings, source_type
from hmsa_ext.data.by_name import class_table
from hmsa_ext.data.fit import CROP_AREA, CROP_STEP
from hmsa_ext.data.types import ClassTable
from hmsa_ext.engine.device import choose_dtype
from hmsa_ext.engine.peak import GRADIENTS, OPTIMIZER, Peak, TrainingTrial
from hmsa_ext.engine.settings import TrainSettings
from hmsa_ext.models.recomputation import MODES
from hmsa_ext.parts import object_name
from hmsa_ext.tables import text_table

RECOMPUTE = tuple(MODES)
"""From the most memory to the least."""
DTYPES = ("float32", "bfloat16")
GPUS = (8, 12, 16, 24, 80)
"""Memory of usual GPUs, in GB."""
SHARE_OF_GPU = 0.8
ASSUMED_CLASSES = 19
GIGABYTE = 1e9


@dataclass(frozen=True)
class Remedy:
    """Settings that differ from those that were asked for, by flat name, and their peak in bytes at most."""

    changes: Mapping[str, Any]
    peak: int

    @property
    def flags(self) -> str:
        """The changes as flags; empty where nothing has to change."""
        return _flags(self.changes)


@dataclass(frozen=True)
class Step:
    """The memory of a training step.

    train: the settings, with the crop that was assumed where there was none. num_classes: classes of the network.
    assumed: what the data would have said, by name of the setting, each with a sentence. device: of the training.
    dtype: name of the arithmetic. peak: of the step.
    """

    train: TrainSettings
    num_classes: int
    assumed: Mapping[str, str]
    device: torch.device
    dtype: str
    peak: Peak

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of the crops in pixels."""
        return self.train.crops.crop_size

    def step_as_text(self) -> str:
        """The settings, the parts of the peak, and when it is reached."""
        optimisation, scales = self.train.optimisation, self.train.model.train_scales
        height, width = self.crop
        crops = f"{optimisation.batch_size} crop{'s' * (optimisation.batch_size > 1)} of {height}x{width}"
        lines = [
            f"model  {object_name(self.train.model.name)}, {self.num_classes} classes, "
            f"at scale{'s' * (len(scales) > 1)} {', '.join(f'{scale:g}' for scale in scales)}",
            f"step   {crops}, {self.dtype}, --recompute {self.train.machine.recompute}, loss "
            f"{object_name(self.train.loss.name)}, {optimisation.optimizer}",
            *(f"note   {name}: {text}" for name, text in self.assumed.items()),
        ]
        total = self.peak.total
        parts = [(name, gigabytes(size), f"{100 * size / total:.1f}") for name, size in self.peak.parts.items()]
        parts.append(("all", gigabytes(total), "100.0"))
        by_part = text_table(["live tensors at the peak", "GB", "%"], parts, rules=[len(parts) - 1])
        moment = f"The peak is reached with {self.peak.moment}."
        if total > self.peak.without_optimizer:
            moment += f" Without optimizer state and moving average it is {gigabytes(self.peak.without_optimizer)} GB."
        return "\n\n".join(["\n".join(lines), by_part, moment])


@dataclass(frozen=True)
class DryRun(Step):
    """The memory of a training: that of its step, and of others to choose from.

    options: bytes at the peak of a step by (``recompute``, dtype), for the arithmetic of the settings and those that
    take less. evaluation: the peak of an evaluation of one image as large as a crop. limit: bytes that tensors may take
    on the device. gpus: memory of GPUs to tell of, in GB.
    """

    options: Mapping[tuple[str, str], int]
    evaluation: Peak
    limit: int
    gpus: tuple[int, ...] = field(default=GPUS)

    def remedy(self, limit: float) -> Remedy | None:
        """The least change with which a step takes at most ``limit`` bytes; None where none is known.

        First what is computed again in backward, then bfloat16, both of which leave the training as it is but for
        rounding; then smaller batches, then smaller crops, which do not.
        """
        ladder = list(self._ladder())
        for changes, peak in ladder:
            if peak <= limit:
                return Remedy(changes, peak)
        changes, peak = min(ladder, key=lambda step: step[1])
        # At the peak of smaller batches the same tensors live, or others, which then took less before: the peak is a
        # convex function of the size, and the line to what is there for nothing at all lies above it.
        standing = self.peak.standing + 2 * self.peak.parts.get(GRADIENTS, 0)
        batch, (height, width) = self.train.optimisation.batch_size, self.crop
        share = (limit - standing) / (peak - standing)
        smaller = math.floor(batch * share)
        if smaller >= 1:
            return Remedy({**changes, "batch_size": smaller}, math.ceil(standing + (peak - standing) * smaller / batch))
        factor = math.sqrt(max(0.0, share * batch))
        sides = [int(side * factor) // CROP_STEP * CROP_STEP for side in (height, width)]
        if min(sides) < CROP_STEP:
            return None
        less = {**changes, "crop": sides} | ({"batch_size": 1} if batch > 1 else {})
        area = sides[0] * sides[1] / (height * width * batch)
        return Remedy(less, math.ceil(standing + (peak - standing) * area))

    def advice(self) -> list[str]:
        """Sentences: whether it fits this device, what to change if not, and what each change is worth."""
        found = []
        told: Mapping[str, Any] = {}
        total, kind = self.peak.total, "GPU" if self.device.type == "cuda" else "machine"
        room = f"about {gigabytes(self.limit)} GB of tensors"
        remedy = self.remedy(self.limit)
        if total <= self.limit:
            found.append(f"These settings fit this {kind}, which has room for {room}.")
        elif remedy is None:
            found.append(f"These settings do not fit this {kind}, which has room for {room}: take a smaller network.")
        else:
            told = remedy.changes
            found.append(
                f"These settings do not fit this {kind}, which has room for {room}: {remedy.flags} brings them to "
                f"{gigabytes(remedy.peak)} GB."
            )
        for changes, peak in self._ladder():
            if len(changes) == 1 and changes != told and peak < total:
                found.append(f"{_flags(changes)} brings this to {gigabytes(peak)} GB.")
        if self.peak.standing > total / 2:
            text = f"{gigabytes(self.peak.standing)} GB are there whatever the crops are"
            state = self.peak.parts.get(OPTIMIZER, 0)
            if self.train.optimisation.optimizer == "adamw" and state:
                text += f"; --optimizer sgd keeps {gigabytes(state / 2)} GB less of it, and needs another --lr"
            found.append(text + ".")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; memory is in bytes."""

        def plain(remedy: Remedy | None) -> dict[str, Any] | None:
            return None if remedy is None else {"changes": dict(remedy.changes), "bytes": remedy.peak}

        optimisation = self.train.optimisation
        return {
            "network": object_name(self.train.model.name),
            "classes": self.num_classes,
            "crop": list(self.crop),
            "batch_size": optimisation.batch_size,
            "scales": list(self.train.model.train_scales),
            "loss": object_name(self.train.loss.name),
            "optimizer": optimisation.optimizer,
            "ema": optimisation.ema,
            "device": str(self.device),
            "dtype": self.dtype,
            "recompute": self.train.machine.recompute,
            "assumed": dict(self.assumed),
            "peak": self.peak.to_dict(),
            "options": [
                {"recompute": mode, "dtype": dtype, "bytes": size} for (mode, dtype), size in self.options.items()
            ],
            "evaluation": {
                "size": list(self.crop),
                "scales": list(self.train.final_evaluation.scales or ()),
                "flip": self.train.evaluation.flip,
                **self.evaluation.to_dict(),
            },
            "room": self.limit,
            "remedy": plain(self.remedy(self.limit)),
            "gpus": [{"gigabytes": gpu, "remedy": plain(self.remedy(_room(gpu)))} for gpu in self.gpus],
            "advice": self.advice(),
        }

    def as_text(self) -> str:
        """All of it for people."""
        return f"{self.step_as_text()}\n\n{self.choices_as_text()}"

    def choices_as_text(self) -> str:
        """The memory of other settings and of an evaluation, what fits usual GPUs, and advice."""
        height, width = self.crop
        dtypes = self._dtypes
        rows = [(mode, *(gigabytes(self.options[mode, dtype]) for dtype in dtypes)) for mode in RECOMPUTE]
        evaluated = ", ".join(f"{scale:g}" for scale in self.train.final_evaluation.scales or ())
        flip = ", mirrored too" if self.train.evaluation.flip else ""
        evaluation = (
            f"Evaluation of one image of {height}x{width} at {evaluated}{flip}: {gigabytes(self.evaluation.total)} GB. "
            "It grows with the area of the image."
        )
        gpus = [(f"{gpu} GB", self._fits(_room(gpu))) for gpu in self.gpus]
        return "\n\n".join(
            [
                text_table(["--recompute", *(f"{dtype}, GB" for dtype in dtypes)], rows),
                evaluation,
                text_table(["GPU of", "fits with"], gpus, left=(1,)),
                f"Tensors are taken to have {SHARE_OF_GPU:g} of a GPU; the rest is for kernels, CUDA itself and gaps.",
                "\n".join(self.advice()),
            ]
        )

    @property
    def _dtypes(self) -> tuple[str, ...]:
        """That of the settings, and those that take less."""
        return DTYPES[DTYPES.index(self.dtype) :]

    def _fits(self, limit: float) -> str:
        remedy = self.remedy(limit)
        if remedy is None:
            return "nothing: take a smaller network"
        return f"{remedy.flags or 'these settings'}: {gigabytes(remedy.peak)} GB"

    def _ladder(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The settings that leave the training as it is, those that were asked for first, each with its peak."""
        mode = self.train.machine.recompute
        stronger = RECOMPUTE[RECOMPUTE.index(mode) :]
        for dtype in self._dtypes:
            for other in stronger:
                changes = {"recompute": other} if other != mode else {}
                changes |= {"dtype": dtype} if dtype != self.dtype else {}
                yield changes, self.options[other, dtype]


def dry_run(
    train: TrainSettings,
    *,
    device: torch.device,
    limit: int,
    processes: int = 1,
    watch: Callable[[str], object] = lambda what: None,
    tell: Callable[[Step], object] = lambda step: None,
) -> DryRun:
    """The memory that a training with these settings takes, found without its data and without computing it.

    Args:
        train: settings of the training.
        device: of the training.
        limit: bytes that tensors may take there.
        processes: of the training: see :class:`hmsa_ext.engine.peak.TrainingTrial`.
        watch: is called with what is counted next; each takes seconds for a large network.
        tell: is called with the step of these settings, as soon as it is known.

    Raises :class:`hmsa_ext.HmsaError` for whatever does not fit.
    """
    num_classes, assumed = known_classes(train.data)
    notes = {} if assumed is None else {"classes": assumed}
    if train.crops.crop is None:
        side = math.isqrt(CROP_AREA)
        train = settings.replace(train, {"crop": (side, side)})
        notes["crop"] = (
            f"follows from the sizes of the images, which are not read; {side}x{side} is assumed, which has as many "
            "pixels as it can get"
        )
    if train.crops.batch_hook is not None:
        notes["batch_hook"] = "what it takes is not counted"
    dtype, _ = choose_dtype(train.machine.dtype, device)
    named = str(dtype).removeprefix("torch.")
    trial = TrainingTrial(train, num_classes, device, processes=processes)

    def counted(mode: str, arithmetic: str) -> Peak:
        watch(f"--recompute {mode}, {arithmetic}")
        found = trial.peak(
            train.crops.crop_size, batch_size=train.optimisation.batch_size, dtype=getattr(torch, arithmetic),
            recomputed=mode,
        )  # fmt: skip
        watch("")
        return found

    asked = train.machine.recompute, named
    step = Step(train, num_classes, notes, device, named, counted(*asked))
    tell(step)
    options = {}
    for option in itertools.product(RECOMPUTE, DTYPES[DTYPES.index(named) :]):
        options[option] = (step.peak if option == asked else counted(*option)).total
    watch("evaluation")
    scales, flip = train.final_evaluation.scales or (), train.evaluation.flip
    evaluation = trial.evaluation_peak(train.crops.crop_size, scales, dtype=dtype, flip=flip)
    watch("")
    return DryRun(**vars(step), options=options, evaluation=evaluation, limit=limit)


def known_classes(data: DataSettings) -> tuple[int, str | None]:
    """The number of classes of a data set, and, where only its files say it, a sentence about what is assumed.

    >>> known_classes(DataSettings.of("camvid"))
    (11, None)
    """
    table = class_table(data.name) if isinstance(data.name, str) else None
    kind = source_type(data.name)
    for owner in (kind, getattr(kind, "function", None)):
        stated = getattr(owner, "classes", None)
        table = stated if table is None and isinstance(stated, ClassTable) else table
    if table is not None:
        return table.num_classes, None
    return ASSUMED_CLASSES, (
        f"the files of {object_name(data.name)} say them, and are not read; {ASSUMED_CLASSES} are assumed, and more of "
        "them change little"
    )


def _room(gpu: int) -> float:
    """Bytes for tensors of a GPU with so many GB."""
    return gpu * GIGABYTE * SHARE_OF_GPU


def gigabytes(size: float) -> str:
    """Bytes in GB (10**9), with two decimals."""
    return f"{size / GIGABYTE:.2f}"


def _flags(changes: Mapping[str, Any]) -> str:
    options = {option.name: option for option in settings.options(TrainSettings())}
    return " ".join(f"--{options[name].flag} {options[name].show(value)}" for name, value in changes.items())
