"""The outputs of a multi-scale model: input of losses, evaluation and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hmsa_ext import parts
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.combinations import ATTENTION, MEAN, Combination, find_combination
from hmsa_ext.models.scales import descending_scales
from hmsa_ext.ops import fuse_scales, fuse_scales_argmax


@dataclass
class ScaleOutputs:
    """Outputs of one model at several scales, at the stride of its heads, and the ways to combine them.

    Nothing in here is at full resolution; each method returns maps of ``size``. If you only need labels, call
    :meth:`argmax` or one of its kind. With the attention and with the mean of the logits they never build
    full-resolution logits, and neither do the losses. The other combinations, by the maximum or by probabilities, are
    no chain that the ops know, and the mean is none where two scales are above 1.0: there :meth:`argmax` and the losses
    build the combined logits [B, C, H, W], from those of two scales at a time. See :attr:`builds_logits`.

    The class is a registered pytree: ``torch.export``, ``torch.compile``, ``DistributedDataParallel`` and
    ``torch.utils._pytree.tree_map`` go through its tensors and its size, in the order of the fields. The scales and the
    combination are part of the structure.
    """

    logits: list[Tensor]
    """Per scale, scales descending: [B, C, h_s, w_s]."""
    attention: list[Tensor]
    """One fewer: ``attention[i]`` [B, 1 or C, h, w] in [0, 1] belongs to ``scales[i + 1]``. Empty for networks without
    attention."""
    aux: list[Tensor] | None
    """Auxiliary logits, like ``logits``; None where the network has none."""
    scales: tuple[float, ...]
    """Descending; 1.0 among them when more than one."""
    size: tuple[int, int]
    """(H, W) of the image at scale 1.0, in pixels; symbolic in a graph of dynamic sizes."""
    combination: str | Combination = ATTENTION
    """How the scales are combined: a name of :data:`hmsa_ext.models.combinations.COMBINATIONS`,
    ``package.module:function`` or a function."""

    def __post_init__(self) -> None:
        count = len(self.scales)
        weights = max(count - 1, 0) if self.combination == ATTENTION else 0
        if len(self.logits) != count or len(self.attention) != weights or count == 0:
            raise ArgumentValueError(
                f"ScaleOutputs: {count} scales combined by {parts.spelled(self.combination)} need {count} logits and "
                f"{weights} attention maps, got {len(self.logits)} and {len(self.attention)}"
            )
        if self.aux is not None and len(self.aux) != count:
            raise ArgumentValueError(
                f"ScaleOutputs: {count} scales need {count} aux logits or None, got {len(self.aux)}"
            )
        ordered = descending_scales(tuple(self.scales))
        if tuple(self.scales) != ordered:
            raise ArgumentValueError(f"ScaleOutputs: expected scales that descend, {ordered}, got {tuple(self.scales)}")

    @property
    def builds_logits(self) -> bool:
        """Whether labels and losses of the combination take logits at full resolution."""
        return self._builds(self.combination)

    def _builds(self, combination: str | Combination) -> bool:
        if len(self.scales) == 1 or combination == ATTENTION:
            return False
        # Down a chain, a scale above another one above 1.0 is resized to that one's grid first, and only then to the
        # image's: not what its logits alone go through.
        return find_combination(combination) is not None or sum(scale > 1.0 for scale in self.scales) > 1

    def fuse(self) -> Tensor:
        """Logits of all scales, combined: [B, C, H, W]."""
        return fuse_scales(*self.chain(), self.size)

    def fuse_aux(self) -> Tensor:
        """Auxiliary logits of all scales, combined in the same way: [B, C, H, W]."""
        return fuse_scales(*self.chain(aux=True), self.size)

    def single_scale(self, index: int) -> Tensor:
        """Logits of ``scales[index]`` alone, through the grid of their scale to the image's size: [B, C, H, W]."""
        return self._alone(self.logits, index)

    def mean(self) -> Tensor:
        """Mean of the single-scale logits, the usual way without attention (the AvgPool baseline): [B, C, H, W]."""
        return fuse_scales(*self.chain(MEAN), self.size)

    @overload
    def argmax(
        self, combination: str | Combination | None = None, *, views: int = 1, confidence: Literal[True] = True
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def argmax(
        self, combination: str | Combination | None = None, *, views: int = 1, confidence: Literal[False]
    ) -> Tensor: ...
    def argmax(
        self, combination: str | Combination | None = None, *, views: int = 1, confidence: bool = True
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Labels of all scales, combined, and their probabilities: [B, H, W] twice.

        Args:
            combination: instead of that of the outputs, such as ``"mean"``.
            views: with 2 the second half of the batch are outputs for the mirrored images, and the combined logits of
                both are averaged: see :func:`hmsa_ext.fuse_scales_argmax`.
            confidence: False for the labels alone, which takes less time.
        """
        return fuse_scales_argmax(*self.chain(combination), self.size, views=views, confidence=confidence)

    @overload
    def single_scale_argmax(
        self, index: int, *, views: int = 1, confidence: Literal[True] = True
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def single_scale_argmax(self, index: int, *, views: int = 1, confidence: Literal[False]) -> Tensor: ...
    def single_scale_argmax(
        self, index: int, *, views: int = 1, confidence: bool = True
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Labels of ``scales[index]`` alone, and their probabilities: as :meth:`argmax` of :meth:`single_scale`."""
        chain = [self.logits[index]], [], [self.scales[index]]
        return fuse_scales_argmax(*chain, self.size, views=views, confidence=confidence)

    def chain(
        self, combination: str | Combination | None = None, *, aux: bool = False
    ) -> tuple[list[Tensor], list[Tensor], tuple[float, ...]]:
        """Logits, attention and scales whose fusion by the ops is the combination of the outputs.

        With attention these are the outputs themselves. The mean has constant weights at the place of attention. Of
        other combinations it is one map at full resolution.

        Args:
            combination: instead of that of the outputs.
            aux: the auxiliary logits.

        Raises:
            ValueError: the outputs have no auxiliary logits, or no attention.
        """
        maps = self.logits
        if aux:
            if self.aux is None:
                raise ArgumentValueError("ScaleOutputs: the network has no auxiliary logits (aux is None)")
            maps = self.aux
        chosen = self.combination if combination is None else combination
        if len(self.scales) == 1:
            return maps, [], self.scales
        if chosen == ATTENTION:
            if not self.attention:
                raise ArgumentValueError(
                    f"combination: the outputs have no attention; expected another one, such as {self.combination!r}"
                )
            return maps, self.attention, self.scales
        combine = find_combination(chosen)
        if combine is not None:
            return [self._combined(combine, chosen, maps)], [], (1.0,)
        if self._builds(chosen):
            total = self._alone(maps, 0)
            for index in range(1, len(maps)):
                total = total + self._alone(maps, index)
            return [total / len(maps)], [], (1.0,)
        # An attention of 1/2, 1/3, ... leaves every scale the same share. float32: half precision has no third.
        maps = [z if z.dtype == torch.float64 else z.float() for z in maps]
        shares = [z.new_full((z.shape[0], 1, *z.shape[2:]), 1 / (i + 2)) for i, z in enumerate(maps[1:])]
        return maps, shares, self.scales

    def shares(self) -> dict[float, Tensor] | None:
        """How much of the combined logits comes from each scale: maps [B, 1, H, W] that add up to 1, scales ascending.

        The attention of a scale weighs it against all larger scales together. The share of a scale in the result is
        therefore its own attention times ``1 - attention`` of every smaller scale; the largest scale has what is left.
        Class-wise attention is averaged over the classes. None without attention, where several scales have no shares
        that differ from pixel to pixel.
        """
        count = len(self.scales)
        if count > 1 and self.combination != ATTENTION:
            return None
        left: Tensor | None = None
        shares = {}
        for index in reversed(range(1, count)):
            attention = self.attention_map(index - 1).float().mean(1, keepdim=True)
            shares[self.scales[index]] = attention if left is None else left * attention
            left = 1 - attention if left is None else left * (1 - attention)
        if left is None:
            left = self.logits[0].new_ones(self.logits[0].shape[0], 1, *self.size, dtype=torch.float32)
        return {**shares, self.scales[0]: left}

    def attention_map(self, index: int) -> Tensor:
        """``attention[index]`` (that of ``scales[index + 1]``) at the image's size, for pictures: [B, 1 or C, H, W]."""
        if not 0 <= index < len(self.attention):
            raise IndexError(
                f"attention_map: index {index} is out of range; {len(self.scales)} scales have {len(self.attention)} "
                "attention maps (the largest scale has none)"
            )
        return fuse_scales([self.attention[index]], [], [self.scales[index + 1]], self.size)

    def _combined(self, combine: Combination, name: str | Combination, maps: list[Tensor]) -> Tensor:
        """What the function makes of the maps. Maps that differ would be broadcast, others resized, both silently."""
        if any(z.shape[:2] != maps[0].shape[:2] for z in maps):
            shapes = ", ".join(str(list(z.shape)) for z in maps)
            raise ArgumentValueError(f"ScaleOutputs: expected logits of one batch and as many classes, got {shapes}")
        made = combine(self._alone(maps, index) for index in range(len(maps)))
        expected = (*maps[0].shape[:2], *self.size)
        if not isinstance(made, Tensor) or tuple(made.shape) != expected or not made.is_floating_point():
            got = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise ArgumentValueError(
                f"fusion {parts.spelled(name)}: expected combined logits {list(expected)} in floating point, got {got}"
            )
        return made

    def _alone(self, maps: list[Tensor], index: int) -> Tensor:
        return fuse_scales([maps[index]], [], [self.scales[index]], self.size)


# ---- pytree -----------------------------------------------------------------------------------------------------

_CHILDREN = ("logits", "attention", "aux", "size")
_Structure = tuple[tuple[float, ...], str | Combination]


def _flatten(outputs: ScaleOutputs) -> tuple[list[Any], _Structure]:
    return [getattr(outputs, name) for name in _CHILDREN], (tuple(outputs.scales), outputs.combination)


def _flatten_with_keys(outputs: ScaleOutputs) -> tuple[list[tuple[pytree.KeyEntry, Any]], _Structure]:
    children, structure = _flatten(outputs)
    keys: list[Any] = [pytree.GetAttrKey(name) for name in _CHILDREN]
    return list(zip(keys, children, strict=True)), structure


def _unflatten(children: Iterable[Any], structure: _Structure) -> ScaleOutputs:
    """Without the checks: children may stand for something else, such as ``in_dims`` or specifications of sharding."""
    outputs = object.__new__(ScaleOutputs)
    for name, child in zip(_CHILDREN, children, strict=True):
        setattr(outputs, name, child)
    outputs.scales, outputs.combination = structure
    return outputs


def _to_file(structure: _Structure) -> list[Any]:
    return [list(structure[0]), parts.object_name(structure[1])]


def _from_file(content: list[Any]) -> _Structure:
    return tuple(content[0]), content[1]


pytree.register_pytree_node(
    ScaleOutputs,
    _flatten,
    _unflatten,
    serialized_type_name="hmsa_ext.models.ScaleOutputs",
    to_dumpable_context=_to_file,
    from_dumpable_context=_from_file,
    flatten_with_keys_fn=_flatten_with_keys,
)
