"""What a multi-scale model hands over: to losses, to evaluation, to pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hmsa_ext.ops import fuse_scales


@dataclass
class ScaleOutputs:
    """Outputs of one model at several scales, at the stride of its heads, and the ways to combine them.

    Nothing in here is at full resolution; each method returns a map of ``size``.
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
    """(H, W) of the image at scale 1.0, in pixels."""

    def __post_init__(self) -> None:
        count = len(self.scales)
        if len(self.logits) != count or len(self.attention) != max(count - 1, 0) or count == 0:
            raise ValueError(
                f"ScaleOutputs: {count} scales need {count} logits and {max(count - 1, 0)} attention maps, "
                f"got {len(self.logits)} and {len(self.attention)}"
            )
        if self.aux is not None and len(self.aux) != count:
            raise ValueError(f"ScaleOutputs: {count} scales need {count} aux logits or None, got {len(self.aux)}")

    def fuse(self) -> Tensor:
        """Logits of all scales, combined by the attention: [B, C, H, W]."""
        return fuse_scales(self.logits, self.attention, self.scales, self.size)

    def fuse_aux(self) -> Tensor:
        """Auxiliary logits of all scales, combined by the same attention: [B, C, H, W]."""
        if self.aux is None:
            raise ValueError("ScaleOutputs.fuse_aux: the network has no auxiliary logits (aux is None)")
        return fuse_scales(self.aux, self.attention, self.scales, self.size)

    def single_scale(self, index: int) -> Tensor:
        """Logits of ``scales[index]`` alone, through the grid of their scale to the image's size: [B, C, H, W]."""
        return fuse_scales([self.logits[index]], [], [self.scales[index]], self.size)

    def mean(self) -> Tensor:
        """Mean of the single-scale logits, the usual way without attention (the AvgPool baseline): [B, C, H, W]."""
        return torch.stack([self.single_scale(index) for index in range(len(self.scales))]).mean(dim=0)

    def attention_map(self, index: int) -> Tensor:
        """``attention[index]`` (that of ``scales[index + 1]``) at the image's size, for pictures: [B, 1 or C, H, W]."""
        if not 0 <= index < len(self.attention):
            raise IndexError(
                f"attention_map: index {index} is out of range; {len(self.scales)} scales have {len(self.attention)} "
                "attention maps (the largest scale has none)"
            )
        return fuse_scales([self.attention[index]], [], [self.scales[index + 1]], self.size)
