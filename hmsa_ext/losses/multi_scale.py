"""The training loss of a multi-scale model."""

from functools import partial

from torch import Tensor, nn

from hmsa_ext.losses.cross_entropy import cross_entropy
from hmsa_ext.losses.rmi import rmi_bce_loss, rmi_loss
from hmsa_ext.models.scale_outputs import ScaleOutputs

_FUNCTIONS = {"ce": (cross_entropy, cross_entropy), "rmi": (rmi_loss, rmi_bce_loss)}


class MultiScaleLoss(nn.Module):
    """Loss of :class:`ScaleOutputs`, as the published network is trained: ``criterion(outputs, target)`` -> scalar.

        main(fused) + aux_weight * plain(fused aux) + scale_weight * sum over scales of plain(scale alone)

    Each term is computed from the outputs at the stride of the heads: no logits at full resolution exist.
    ``plain`` is the main loss without its RMI part: cross-entropy for ``"ce"``, the binary cross-entropy for ``"rmi"``.
    Where the outputs have no aux logits, that term is left out. Gradients reach the attention through the fused terms.
    A target of nothing but ignored pixels gives 0, with gradients of 0 (see the single losses).

    Args:
        main: ``"ce"`` (:func:`hmsa_ext.losses.cross_entropy`) or ``"rmi"`` (:func:`hmsa_ext.losses.rmi_loss`).
        aux_weight: weight of the fused auxiliary logits (published: 0.4).
        scale_weight: weight of each single scale (published: 0 in the paper, 0.05 in the later recipes).
        ignore_index: label of pixels that do not count.
        class_weight: [C] a factor for each class in the cross-entropy; only with ``main="ce"``.
    """

    def __init__(
        self,
        main: str = "ce",
        aux_weight: float = 0.4,
        scale_weight: float = 0.0,
        ignore_index: int = 255,
        class_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        if main not in _FUNCTIONS:
            raise ValueError(f"main: expected one of {', '.join(map(repr, _FUNCTIONS))}, got {main!r}")
        for name, value in (("aux_weight", aux_weight), ("scale_weight", scale_weight)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
        if class_weight is not None and main != "ce":
            raise ValueError(f"class_weight: the cross-entropy takes it, the main loss is {main!r}")
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.main = main
        self.aux_weight = float(aux_weight)
        self.scale_weight = float(scale_weight)
        self.ignore_index = int(ignore_index)

    def forward(self, outputs: ScaleOutputs, target: Tensor) -> Tensor:
        """``target`` [B, H, W] labels at the size of the images, on the outputs' device; a float32 scalar."""
        expected = (outputs.logits[0].shape[0], *outputs.size)
        if tuple(target.shape) != expected:
            raise ValueError(
                f"target: expected shape {list(expected)}, labels at the size of the images, got {list(target.shape)}"
            )
        main, plain = _FUNCTIONS[self.main]
        if self.class_weight is not None:
            main = plain = partial(cross_entropy, weight=self.class_weight)
        attention, scales, ignored = outputs.attention, outputs.scales, self.ignore_index
        loss = main(outputs.logits, attention, scales, target, ignore_index=ignored)
        if outputs.aux is not None and self.aux_weight > 0:
            loss = loss + self.aux_weight * plain(outputs.aux, attention, scales, target, ignore_index=ignored)
        if self.scale_weight > 0:
            for logits, scale in zip(outputs.logits, scales, strict=True):
                loss = loss + self.scale_weight * plain([logits], [], [scale], target, ignore_index=ignored)
        return loss

    def extra_repr(self) -> str:
        return (
            f"main={self.main!r}, aux_weight={self.aux_weight}, scale_weight={self.scale_weight}, "
            f"ignore_index={self.ignore_index}"
        )
