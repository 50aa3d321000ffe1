"""Settings of the training loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from hmsa_ext.losses.multi_scale import MultiScaleLoss
from hmsa_ext.losses.table import LOSSES, Loss, find_loss
from hmsa_ext.parts import Part, one_of
from hmsa_ext.settings import NOT_NEGATIVE, Flag, validate


@dataclass(frozen=True)
class LossSettings:
    """The loss of the training."""

    name: Annotated[Part, Flag("loss"), one_of(LOSSES)] = field(
        default="ce",
        metadata={
            "help": f"Main loss: {'; '.join(f'{name} ({loss.help})' for name, loss in LOSSES.items())}; or "
            "package.module:function."
        },
    )
    aux_weight: Annotated[float, NOT_NEGATIVE] = 0.4
    """Weight of the loss of the auxiliary (OCR region) logits."""
    scale_weight: Annotated[float, NOT_NEGATIVE] = 0.05
    """Weight of the loss of each scale's own logits, which supervises every scale for itself."""
    class_balance: Annotated[float, NOT_NEGATIVE] = field(
        default=0.25,
        metadata={
            "help": "Class weights 1 / frequency ** this in the loss: 0 none, 1 makes all classes equal; not used by "
            f"{', '.join(name for name, loss in LOSSES.items() if not loss.class_weights)}, which has no class weights."
        },
    )

    def __post_init__(self) -> None:
        validate(self)

    @property
    def functions(self) -> Loss:
        """The entry of ``LOSSES`` or what ``package.module:function`` means; raises SettingError."""
        return find_loss(self.name)

    @property
    def weighs_classes(self) -> bool:
        """Whether the loss has a weight for each class, which follows from the training labels."""
        return self.class_balance > 0 and self.functions.class_weights

    def criterion(self, ignore_index: int, class_weight: Tensor | None = None) -> MultiScaleLoss:
        """The loss that these settings ask for: see :class:`hmsa_ext.losses.MultiScaleLoss`."""
        return MultiScaleLoss(self.name, self.aux_weight, self.scale_weight, ignore_index, class_weight)
