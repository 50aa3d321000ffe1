"""The outputs of a multi-scale model: input of losses, evaluation and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.ops import fuse_scales, fuse_scales_argmax


@dataclass
class ScaleOutputs:
    """Outputs of one model at several scales, at the stride of its heads, and the ways to combine them.

    Nothing in here is at full resolution; each method returns maps of ``size``. If you only need labels, call
    :meth:`argmax` or one of its kind: they never build full-resolution logits. Neither do the losses, which read the
    parts themselves.

    The class is a registered pytree: ``torch.export``, ``torch.compile``, ``DistributedDataParallel`` and
    ``torch.utils._pytree.tree_map`` go through its tensors and its size, in the order of the fields. The scales are
    part of the structure.
    """

    logits: list[Tensor]
    """Per scale, scales descending: [B, C, h_s, w_s]."""
    attention: list[Tensor]
    """One fewer: ``attention[i]`` [B, 1 or C, h, w], after the sigmoid, belongs to ``scales[i + 1]``."""
    aux: list[Tensor] | None
    """Auxiliary logits, like ``logits``; None where the network has none."""
    scales: tuple[float, ...]
    """Descending; 1.0 among them when more than one."""
    size: tuple[int, int]
    """(H, W) of the image at scale 1.0, in pixels; symbolic in a graph of dynamic sizes."""

    def __post_init__(self) -> None:
        count = len(self.scales)
        if len(self.logits) != count or len(self.attention) != max(count - 1, 0) or count == 0:
            raise ArgumentValueError(
                f"ScaleOutputs: {count} scales need {count} logits and {max(count - 1, 0)} attention maps, "
                f"got {len(self.logits)} and {len(self.attention)}"
            )
        if self.aux is not None and len(self.aux) != count:
            raise ArgumentValueError(
                f"ScaleOutputs: {count} scales need {count} aux logits or None, got {len(self.aux)}"
            )

    def fuse(self) -> Tensor:
        """Logits of all scales, combined by the attention: [B, C, H, W]."""
        return fuse_scales(self.logits, self.attention, self.scales, self.size)

    def fuse_aux(self) -> Tensor:
        """Auxiliary logits of all scales, combined by the same attention: [B, C, H, W]."""
        if self.aux is None:
            raise ArgumentValueError("ScaleOutputs.fuse_aux: the network has no auxiliary logits (aux is None)")
        return fuse_scales(self.aux, self.attention, self.scales, self.size)

    def single_scale(self, index: int) -> Tensor:
        """Logits of ``scales[index]`` alone, through the grid of their scale to the image's size: [B, C, H, W]."""
        return fuse_scales([self.logits[index]], [], [self.scales[index]], self.size)

    def mean(self) -> Tensor:
        """Mean of the single-scale logits, the usual way without attention (the AvgPool baseline): [B, C, H, W]."""
        return torch.stack([self.single_scale(index) for index in range(len(self.scales))]).mean(dim=0)

    def argmax(self, *, views: int = 1) -> tuple[Tensor, Tensor]:
        """Labels of all scales, combined by the attention, and their probabilities: [B, H, W] twice.

        With ``views=2`` the second half of the batch are outputs for the mirrored images: see
        :func:`hmsa_ext.fuse_scales_argmax`.
        """
        return fuse_scales_argmax(self.logits, self.attention, self.scales, self.size, views=views)

    def single_scale_argmax(self, index: int, *, views: int = 1) -> tuple[Tensor, Tensor]:
        """Labels of ``scales[index]`` alone, and their probabilities: as :meth:`argmax` of :meth:`single_scale`."""
        return fuse_scales_argmax([self.logits[index]], [], [self.scales[index]], self.size, views=views)

    def mean_argmax(self, *, views: int = 1) -> tuple[Tensor, Tensor]:
        """Labels of the mean of the logits, and their probabilities: as :meth:`argmax` of :meth:`mean`."""
        if sum(scale > 1.0 for scale in self.scales) > 1:
            # Down a chain, a scale above another one above 1.0 is resized to that one's grid first, and only then to
            # the image's: not what its logits alone go through.
            return fuse_scales_argmax([self.mean()], [], [1.0], self.size, views=views)
        # An attention of 1/2, 1/3, ... leaves every scale the same share. float32: half precision has no third.
        logits = [z if z.dtype == torch.float64 else z.float() for z in self.logits]
        shares = [z.new_full((z.shape[0], 1, *z.shape[2:]), 1 / (i + 2)) for i, z in enumerate(logits[1:])]
        return fuse_scales_argmax(logits, shares, self.scales, self.size, views=views)

    def attention_map(self, index: int) -> Tensor:
        """``attention[index]`` (that of ``scales[index + 1]``) at the image's size, for pictures: [B, 1 or C, H, W]."""
        if not 0 <= index < len(self.attention):
            raise IndexError(
                f"attention_map: index {index} is out of range; {len(self.scales)} scales have {len(self.attention)} "
                "attention maps (the largest scale has none)"
            )
        return fuse_scales([self.attention[index]], [], [self.scales[index + 1]], self.size)


# ---- pytree -----------------------------------------------------------------------------------------------------

_CHILDREN = ("logits", "attention", "aux", "size")


def _flatten(outputs: ScaleOutputs) -> tuple[list[Any], tuple[float, ...]]:
    return [getattr(outputs, name) for name in _CHILDREN], tuple(outputs.scales)


def _flatten_with_keys(outputs: ScaleOutputs) -> tuple[list[tuple[pytree.KeyEntry, Any]], tuple[float, ...]]:
    children, scales = _flatten(outputs)
    keys: list[Any] = [pytree.GetAttrKey(name) for name in _CHILDREN]
    return list(zip(keys, children, strict=True)), scales


def _unflatten(children: Iterable[Any], scales: tuple[float, ...]) -> ScaleOutputs:
    """Without the checks: children may stand for something else, such as ``in_dims`` or specifications of sharding."""
    outputs = object.__new__(ScaleOutputs)
    for name, child in zip(_CHILDREN, children, strict=True):
        setattr(outputs, name, child)
    outputs.scales = scales
    return outputs


pytree.register_pytree_node(
    ScaleOutputs,
    _flatten,
    _unflatten,
    serialized_type_name="hmsa_ext.models.ScaleOutputs",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
    flatten_with_keys_fn=_flatten_with_keys,
)
