"""How the logits of several scales become one map.

A combination is a function: the full-resolution logits of each scale, one map [B, C, H, W] after the other, scales
descending -> the combined logits [B, C, H, W]. Losses take the cross-entropy of the result, its softmax are the
probabilities. ``"attention"`` and ``"mean"`` are no such functions, since the fused ops compute them from the heads'
own maps, and no full-resolution logits exist.

A combination outside this package is named ``package.module:function``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hmsa_ext import parts
from hmsa_ext.settings import SettingError

Combination = Callable[[Iterable[Tensor]], Tensor]
ATTENTION, MEAN = "attention", "mean"


def max_of_logits(maps: Iterable[Tensor]) -> Tensor:
    """The largest logit of each class over the scales."""
    return functools.reduce(torch.maximum, maps)


def mean_of_probabilities(maps: Iterable[Tensor]) -> Tensor:
    """Logarithm of the mean of the softmax probabilities: its softmax is that mean."""
    total, count = None, 0
    for logits in maps:
        log_probabilities = F.log_softmax(logits, dim=1)
        total = log_probabilities if total is None else torch.logaddexp(total, log_probabilities)
        count += 1
    assert total is not None, "there is at least one scale"
    return total - math.log(count)


def max_of_probabilities(maps: Iterable[Tensor]) -> Tensor:
    """Logarithm of the largest softmax probability of each class over the scales; its softmax makes them sum to 1."""
    return functools.reduce(torch.maximum, (F.log_softmax(logits, dim=1) for logits in maps))


COMBINATIONS: Mapping[str, Combination | None] = {
    ATTENTION: None,
    MEAN: None,
    "max": max_of_logits,
    "mean_probabilities": mean_of_probabilities,
    "max_probabilities": max_of_probabilities,
}
"""By name; None where the fused ops do it."""


def find_combination(combination: str | Combination) -> Combination | None:
    """The function that a name of ``COMBINATIONS`` or ``package.module:function`` means; None where the ops do it.

    Raises :class:`hmsa_ext.settings.SettingError` where there is none of this name.
    """
    table: dict[str, Any] = dict(COMBINATIONS)
    found = parts.find(combination, table, "combination")
    if found is None and isinstance(combination, str):
        return None
    if not callable(found):
        raise SettingError("combination", combination, f"{parts.expected_of(COMBINATIONS)} that is a function of maps")
    return found
