"""Thresholds for the training on automatic labels, as flags that can be copied."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hmsa_ext.autolabel.calibration import Agreement, at_or_above, lowest_levels
from hmsa_ext.data.automatic.manifest import LEVELS, Manifest
from hmsa_ext.data.automatic.trust import MEDIAN, Trust, median_thresholds


@dataclass(frozen=True, eq=False)
class Advice:
    """Thresholds of the classes that have automatic labels.

    precision: that the labels above the thresholds have; None: the thresholds are medians and keep none.
    levels: int64 [K], the least stored probability that counts; 256 for classes to drop, and for those without pixels.
    thresholds: by name of the class, as the flag takes them.
    dropped: why, by name of the class.
    kept: int64 [K], pixels of the whole folder that pass.
    """

    precision: float | None
    levels: np.ndarray
    thresholds: Mapping[str, float]
    dropped: Mapping[str, str]
    kept: np.ndarray

    @property
    def trust(self) -> Trust:
        """The settings that the flags stand for."""
        chosen = dict(self.thresholds) if self.precision is not None else MEDIAN
        return Trust(class_threshold=chosen, drop_classes=tuple(self.dropped))

    def flags(self) -> str:
        """Flags of ``hmsa train``, quoted for a shell; "" where there is nothing to say.

        Names with a comma in them cannot be written as flags: then these are the lines of a YAML file for ``--config``.
        """
        names = [*self.thresholds, *self.dropped]
        if not names:
            return ""
        if self.precision is None:
            return f"--class-threshold {MEDIAN}"
        if any("," in name or name != name.strip() for name in names):
            lines = {"class_threshold": dict(self.thresholds), "drop_classes": list(self.dropped)}
            return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in lines.items() if value)
        words = []
        if self.thresholds:
            words += ["--class-threshold", ",".join(f"{name}:{value:g}" for name, value in self.thresholds.items())]
        if self.dropped:
            words += ["--drop-classes", ",".join(self.dropped)]
        return shlex.join(words)


def for_precision(manifest: Manifest, agreement: Agreement, precision: float, least_pixels: int) -> Advice:
    """Thresholds above which the labels of each class have been at least so precise; classes without one are dropped.

    See :func:`hmsa_ext.autolabel.calibration.lowest_levels`.
    """
    levels = lowest_levels(agreement.labelled, agreement.right, precision, least_pixels)
    thresholds, dropped = {}, {}
    for number in np.flatnonzero(manifest.histogram.sum(1)):
        name, measured = manifest.classes.names[number], int(agreement.labelled[number].sum())
        if levels[number] < LEVELS:
            thresholds[name] = threshold_of(int(levels[number]))
        elif measured < least_pixels:
            dropped[name] = f"only {measured} pixels with truth"
        else:
            dropped[name] = "never so precise"
    return Advice(precision, levels, thresholds, dropped, _kept(manifest.histogram, levels))


def for_median(manifest: Manifest) -> Advice:
    """The median probability of each class, at most 0.9: what can be said without truth."""
    levels = np.where(manifest.histogram.sum(1) > 0, median_thresholds(manifest.histogram), LEVELS)
    names = manifest.classes.names
    thresholds = {names[number]: threshold_of(int(levels[number])) for number in np.flatnonzero(levels < LEVELS)}
    return Advice(None, levels, thresholds, {}, _kept(manifest.histogram, levels))


def threshold_of(level: int) -> float:
    """The threshold with the fewest digits that stored probabilities from ``level`` on pass, and no lower ones.

    >>> threshold_of(230), threshold_of(229), threshold_of(0)
    (0.9, 0.898, 0.0)
    """
    for digits in (1, 2):
        value = math.floor(level / (LEVELS - 1) * 10**digits) / 10**digits
        if level == 0 or value > (level - 1) / (LEVELS - 1):
            return value
    return math.floor(level / (LEVELS - 1) * 1000) / 1000  # levels are more than 0.001 apart


def _kept(histogram: np.ndarray, levels: np.ndarray) -> np.ndarray:
    above = np.pad(at_or_above(histogram), ((0, 0), (0, 1)))  # nothing is at or above level 256
    return above[np.arange(len(levels)), levels]
