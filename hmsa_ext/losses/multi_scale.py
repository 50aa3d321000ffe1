"""The training loss of a multi-scale model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hmsa_ext import parts
from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError
from hmsa_ext.losses.table import Loss, find_loss
from hmsa_ext.models.scale_outputs import ScaleOutputs


class MultiScaleLoss(nn.Module):
    """Loss of :class:`ScaleOutputs`, as the published network is trained: ``criterion(outputs, target)`` -> scalar.

        main(fused) + aux_weight * plain(fused aux) + scale_weight * sum over scales of plain(scale alone)

    Each term is computed from the outputs at the stride of the heads: no logits at full resolution exist. (But see
    :class:`hmsa_ext.models.ScaleOutputs` for combinations by the maximum or by probabilities.)
    ``main`` and ``plain`` are the functions of an entry of ``LOSSES``: for ``"rmi"`` the plain one is the binary
    cross-entropy, for ``"ce"`` and ``"bootstrapped"`` the cross-entropy. Outputs without aux logits have no aux term.
    Gradients reach the attention through the fused terms. A target of nothing but ignored pixels gives 0, with
    gradients of 0 (see the single losses).

    Args:
        main: a name of ``LOSSES``, ``package.module:function``, a function or a :class:`Loss`: see :func:`find_loss`.
        aux_weight: weight of the fused auxiliary logits (published: 0.4).
        scale_weight: weight of each single scale (published: 0 in the paper, 0.05 in the later recipes).
        ignore_index: label of pixels that do not count; 255 unless given, which must then be no class.
        class_weight: [C] a factor for each class, for losses that take class weights.

    Raises:
        ValueError: no such loss; weights below 0; class weights for a loss that takes none.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        main: str | Loss | Callable[..., Tensor] = "ce",
        aux_weight: float = 0.4,
        scale_weight: float = 0.0,
        ignore_index: int | None = None,
        class_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.functions = find_loss(main, "main")
        for name, value in (("aux_weight", aux_weight), ("scale_weight", scale_weight)):
            if not 0.0 <= value < float("inf"):
                raise ArgumentValueError(f"{name}: expected a number of at least 0, got {value!r}")
        if class_weight is not None and not self.functions.class_weights:
            raise ArgumentValueError(
                f"class_weight: expected None, since the main loss {parts.spelled(main)} takes none"
            )
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.main = parts.spelled(main)
        self.aux_weight = float(aux_weight)
        self.scale_weight = float(scale_weight)
        self.ignore_index = 255 if ignore_index is None else int(ignore_index)
        self._ignores_by_default = ignore_index is None

    def forward(self, outputs: ScaleOutputs, target: Tensor) -> Tensor:
        """The loss of ``outputs``.

        Args:
            outputs: of a multi-scale model.
            target: [B, H, W] labels at the size of the images, on the outputs' device.

        Returns:
            A float32 scalar (float64 for float64 logits).

        Raises:
            TypeError: ``outputs`` are no :class:`ScaleOutputs`, or ``target`` is no tensor.
            ValueError: ``target`` has another shape; the ignored label was not chosen and is a class.
        """
        if not isinstance(outputs, ScaleOutputs):
            raise ArgumentTypeError(
                f"outputs: expected ScaleOutputs, got {type(outputs).__name__}; the models of hmsa_ext.models return "
                "them, and MultiScale makes any network do so. The loss of one map of logits is a function: "
                "hmsa_ext.losses.cross_entropy([logits], [], [1.0], target)"
            )
        if not isinstance(target, Tensor):
            raise ArgumentTypeError(f"target: expected a tensor of labels [B, H, W], got {type(target).__name__}")
        expected = (outputs.logits[0].shape[0], *outputs.size)
        if tuple(target.shape) != expected:
            raise ArgumentValueError(
                f"target: expected shape {list(expected)}, labels at the size of the images, got {list(target.shape)}"
            )
        if self._ignores_by_default and outputs.logits[0].shape[1] > self.ignore_index:
            raise ArgumentValueError(
                f"ignore_index: {self.ignore_index} is one of the {outputs.logits[0].shape[1]} classes; expected it to "
                "be given"
            )
        options: dict[str, Any] = {"ignore_index": self.ignore_index}
        if self.class_weight is not None:
            options["weight"] = self.class_weight
        main, plain = self.functions.main, self.functions.plain
        loss = main(*outputs.chain(), target, **options)
        if outputs.aux is not None and self.aux_weight > 0:
            loss = loss + self.aux_weight * plain(*outputs.chain(aux=True), target, **options)
        if self.scale_weight > 0:
            for logits, scale in zip(outputs.logits, outputs.scales, strict=True):
                loss = loss + self.scale_weight * plain([logits], [], [scale], target, **options)
        return loss

    def extra_repr(self) -> str:
        return (
            f"main={self.main!r}, aux_weight={self.aux_weight}, scale_weight={self.scale_weight}, "
            f"ignore_index={self.ignore_index}"
        )
