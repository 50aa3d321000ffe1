"""Fusions: how a network weighs its scales, and how its outputs are combined.

A fusion says which attention head the network has, and which combination its :class:`ScaleOutputs` ask for. A new one
is an entry of ``FUSIONS``; one outside this package is named ``package.module:object``. The object is a
:class:`Fusion`, or a function that combines full-resolution logits, as :mod:`hmsa_ext.models.combinations` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmsa_ext import parts
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.combinations import ATTENTION, COMBINATIONS, MEAN, Combination
from hmsa_ext.models.joined_maps import Features, as_tensor
from hmsa_ext.models.scales import descending_scales, resize
from hmsa_ext.settings import SettingError


@dataclass(frozen=True)
class Fusion:
    """How the scales of a network are fused."""

    help: str
    """One line for help texts."""
    attention: Literal["own", "joint"] | None = None
    """The attention head: on the features of each scale for itself, on those of all scales together, or none."""
    combination: str | Combination = ATTENTION
    """What the outputs are combined by: see :mod:`hmsa_ext.models.combinations`."""
    train_scales: tuple[float, ...] = (1.0,)
    """Scales of a training that does not say which."""
    eval_scales: tuple[float, ...] | None = (0.5, 1.0, 2.0)
    """Scales of an evaluation that does not say which; None: those of the training."""
    most_scales: int | None = None
    """How many scales the fusion takes at most; None: any number."""

    def __post_init__(self) -> None:
        if self.attention not in ("own", "joint", None):
            raise ArgumentValueError(f'Fusion.attention: expected "own", "joint" or None, got {self.attention!r}')
        known = self.combination in COMBINATIONS or ":" in str(self.combination)
        if not (known if isinstance(self.combination, str) else callable(self.combination)):
            raise ArgumentValueError(
                f"Fusion.combination: expected {parts.expected_of(COMBINATIONS)} or a function of maps, got "
                f"{self.combination!r}"
            )
        if (self.combination == ATTENTION) != (self.attention is not None):
            raise ArgumentValueError(
                f'Fusion.combination: expected "{ATTENTION}" with an attention head and another one without, got '
                f"{parts.spelled(self.combination)!r} with attention={self.attention!r}"
            )
        for name in ("train_scales", "eval_scales"):
            if getattr(self, name) is not None:
                descending_scales(getattr(self, name), f"Fusion.{name}")
        if self.attention == "joint" and len(self.train_scales) < 2:
            raise ArgumentValueError(
                f"Fusion.train_scales: expected several for one attention, got {self.train_scales}"
            )


FUSIONS: dict[str, Fusion] = {
    "hierarchical": Fusion(
        "attention between neighbouring scales, evaluated at any", "own", ATTENTION, train_scales=(0.5, 1.0)
    ),
    "explicit": Fusion(
        "attention to all scales of the training at once", "joint", ATTENTION, (0.5, 1.0, 2.0), eval_scales=None
    ),
    "single": Fusion("one scale alone", None, MEAN, eval_scales=(1.0,), most_scales=1),
    "mean": Fusion("mean of the logits", None, MEAN),
    "max": Fusion("largest logits", None, "max"),
    "mean_probabilities": Fusion("mean of the probabilities", None, "mean_probabilities"),
    "max_probabilities": Fusion("largest probabilities", None, "max_probabilities"),
}
"""By name."""


def find_fusion(fusion: str | Fusion | Callable[..., Tensor]) -> Fusion:
    """The fusion that a name of ``FUSIONS``, ``package.module:object``, a function or a :class:`Fusion` means.

    Raises :class:`hmsa_ext.settings.SettingError` where it means none.
    """
    table: dict[str, Any] = dict(FUSIONS)
    found = parts.find(fusion, table, "fusion")
    if isinstance(found, Fusion):
        return found
    if not callable(found) or isinstance(found, type):
        raise SettingError("fusion", fusion, f"{parts.expected_of(FUSIONS)} that is a Fusion or a function of maps")
    named: Any = fusion if isinstance(fusion, str) else found  # files keep names
    return Fusion("", None, named)


def training_scales(fusion: Fusion, scales: Sequence[float] | None) -> tuple[float, ...]:
    """The scales of a training, ascending: those that are given, or those of the fusion.

    Raises:
        ValueError: scales that are none, or that the fusion does not take.
    """
    ordered = descending_scales(fusion.train_scales if scales is None else scales, "train_scales")
    if fusion.attention == "joint" and len(ordered) < 2:
        raise SettingError("train_scales", ordered, "several scales, which this fusion weighs against each other")
    if 1.0 not in ordered:
        raise SettingError("train_scales", ordered, "1.0 among them")
    ascending = ordered[::-1]
    check_scales(fusion, ascending, ascending, "train_scales")
    return ascending


def check_scales(fusion: Fusion, scales: Sequence[float], train_scales: Sequence[float], name: str = "scales") -> None:
    """Raises SettingError, a ValueError, unless the fusion takes these scales of a network trained at ``train_scales``.

    ``name``: of the setting, for the message.
    """
    if fusion.most_scales is not None and len(scales) > fusion.most_scales:
        raise SettingError(
            name, tuple(scales), "one scale: this fusion is of a single one; others, such as mean, combine several"
        )
    if fusion.attention == "joint" and len(scales) > 1 and set(scales) != set(train_scales):
        trained = ",".join(f"{scale:g}" for scale in train_scales)
        raise SettingError(
            name,
            tuple(scales),
            f"{trained}, or one scale: explicit attention weighs the scales of its training, and knows no others",
        )


def require_used(fusion: Fusion, attention_channels: int | str, head: object) -> None:
    """Raises SettingError where something is asked of an attention that the fusion does not have."""
    if fusion.attention is None:
        for name, value, default in (
            ("attention_channels", attention_channels, ("one", 1)),
            ("attention_head", head, ("scale",)),
        ):
            if value not in default:
                raise SettingError(name, value, f"{default[0]}, since the fusion has no attention")


def head_channels(
    fusion: Fusion, features: int, attention: int, train_scales: Sequence[float]
) -> tuple[int, int] | None:
    """Channels that the attention head takes and gives; None where the fusion has no head.

    ``features``: of the network at one scale. ``attention``: of the attention of a scale, 1 or the number of classes.
    """
    if fusion.attention is None:
        return None
    count = len(train_scales) if fusion.attention == "joint" else 1
    return features * count, attention * count


def explicit_attention(
    head: nn.Module, features: Sequence[Features], logits: Sequence[Tensor], scales: Sequence[float]
) -> list[Tensor]:
    """Attention to all scales at once (Chen et al. 2016), in the form that the fused ops take.

    The features of all scales, resized to the grid of scale 1.0 and concatenated, give one score e_s per scale, pixel
    and channel of the attention. The share of scale s is the softmax w_s over the scales. In a chain, the attention of
    a scale weighs it against all larger ones, so it is the softmax over these scales alone::

        a_s = w_s / sum_{t >= s} w_t = sigmoid(e_s - log sum_{t > s} exp(e_t))

    The shares that the chain gives back are the w_s: the smallest scale has a_s, what it leaves is divided among the
    larger ones. The scores are resized to the grid of each scale before the softmax, so the shares sum to 1 everywhere.

    Args:
        head: features [B, S * F, h, w] -> scores [B, S * K, h, w], not in [0, 1]. Scales descend in both.
        features: per scale [B, F, h_s, w_s], scales descending.
        logits: per scale; their grids are those of the result.
        scales: descending, 1.0 among them.

    Returns:
        Per scale but the largest: [B, K, h_s, w_s] in [0, 1].
    """
    grid = features[list(scales).index(1.0)].shape[-2:]
    scores = head(torch.cat([resize(as_tensor(f), grid) for f in features], dim=1))
    if not _is_of_scales(scores, len(scales)):
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ArgumentValueError(
            f"attention_head: expected scores of {len(scales)} scales, [B, {len(scales)} * channels, h, w], got {got}"
        )
    attention = []
    for index in range(1, len(scales)):
        own = resize(scores, logits[index].shape[-2:]).unflatten(1, (len(scales), -1))
        attention.append(torch.sigmoid(own[:, index] - torch.logsumexp(own[:, :index], dim=1)))
    return attention


def _is_of_scales(scores: object, count: int) -> bool:
    if not isinstance(scores, Tensor) or scores.dim() != 4:
        return False
    return scores.shape[1] > 0 and scores.shape[1] % count == 0
