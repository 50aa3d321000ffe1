"""The memory of networks by name, for comparison: one crop or image, the settings of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hmsa_ext import settings
from hmsa_ext.engine.device import choose_device
from hmsa_ext.engine.dry_run import RECOMPUTE
from hmsa_ext.engine.peak import TrainingTrial
from hmsa_ext.engine.settings import TrainSettings
from hmsa_ext.errors import HmsaError

MOST_CROPS = 2
"""Crops of a step where a network does not train on one: a batch norm may see one value of each crop."""


@dataclass(frozen=True)
class Row:
    """Bytes of a network at its peaks.

    dtype: of the arithmetic. device: that the peaks are for. parameters: with buffers. crops: of a training step.
    training: by what is computed again in backward (see :func:`hmsa_ext.models.recompute`), with parameters and
    gradients, without optimizer state. evaluation: of one image, with parameters. train_scales, eval_scales: of both.
    """

    name: str
    dtype: str
    device: str
    parameters: int
    crops: int
    training: Mapping[str, int]
    evaluation: int
    train_scales: tuple[float, ...]
    eval_scales: tuple[float, ...]


def peaks_of_network(
    name: str,
    num_classes: int,
    size: tuple[int, int],
    dtypes: Sequence[str] = ("float32",),
    *,
    watch: Callable[[str], object] = lambda what: None,
) -> list[Row]:
    """A row for each dtype.

    Args:
        name: a name of :data:`hmsa_ext.models.NAMES`, or ``package.module:factory``.
        num_classes: classes, the ignored label not counted.
        size: (height, width) of crops and images in pixels.
        dtypes: "float32", "bfloat16", or both.
        watch: is called with what is counted next.

    Raises :class:`hmsa_ext.HmsaError` for a network that does not run so.
    """
    device, _ = choose_device()
    # Without momentum the optimizer keeps nothing.
    train = settings.replace(TrainSettings(), {"model": name, "optimizer": "sgd", "momentum": 0.0})
    eval_scales = train.final_evaluation.scales or ()
    trial = TrainingTrial(train, num_classes, device)
    crops, rows = 1, []
    for dtype in dtypes:
        arithmetic = getattr(torch, dtype)
        training: dict[str, int] = {}
        for mode in RECOMPUTE:
            watch(f"{name}, {dtype}, --recompute {mode}")
            try:
                peak = trial.peak(size, batch_size=crops, dtype=arithmetic, recomputed=mode)
            except HmsaError:
                if crops == MOST_CROPS:
                    raise
                crops = MOST_CROPS
                peak = trial.peak(size, batch_size=crops, dtype=arithmetic, recomputed=mode)
            training[mode] = peak.without_optimizer
        watch(f"{name}, {dtype}, evaluation")
        evaluation = trial.evaluation_peak(size, eval_scales, dtype=arithmetic)
        parameters = sum(t.nbytes for t in (*trial.model.parameters(), *trial.model.buffers()))
        rows.append(
            Row(
                name, dtype, str(device), parameters, crops, training, evaluation.total, train.model.train_scales,
                eval_scales,
            )
        )  # fmt: skip
    return rows
