"""The losses that have names.

A loss is a function ``(logits, attention, scales, target, *, ignore_index) -> scalar`` of lists as the ops take them. A
new one is a file of its own and an entry in ``LOSSES``; one outside this package is named ``package.module:function``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hmsa_ext import parts
from hmsa_ext.losses.bootstrapped import bootstrapped_cross_entropy
from hmsa_ext.losses.cross_entropy import cross_entropy
from hmsa_ext.losses.rmi import rmi_bce_loss, rmi_loss
from hmsa_ext.settings import SettingError


@dataclass(frozen=True)
class Loss:
    """The functions of a main loss: see :class:`hmsa_ext.losses.MultiScaleLoss`."""

    main: Callable[..., Tensor]
    """Loss of the fused logits."""
    plain: Callable[..., Tensor]
    """Loss of the auxiliary logits and of single scales."""
    class_weights: bool
    """Whether both functions take ``weight=``, a tensor [C] with a factor for each class."""
    help: str
    """One line for help texts."""


LOSSES = {
    "ce": Loss(cross_entropy, cross_entropy, True, "cross-entropy"),
    "rmi": Loss(rmi_loss, rmi_bce_loss, False, "region mutual information and binary cross-entropy"),
    "bootstrapped": Loss(
        bootstrapped_cross_entropy, cross_entropy, True, "cross-entropy over the hardest quarter of the pixels"
    ),
}


def find_loss(loss: str | Loss | Callable[..., Tensor], name: str = "loss") -> Loss:
    """The loss that a name of ``LOSSES``, ``package.module:function``, a function or a :class:`Loss` means.

    A function alone is the loss of all terms; class weights reach it where its signature has ``weight``.

    Args:
        loss: what to look for.
        name: of the argument, for messages.

    Raises:
        hmsa_ext.settings.SettingError: no such loss, or not a function.
    """
    found = parts.find(loss, LOSSES, name)
    if isinstance(found, Loss):
        return found
    if not callable(found) or isinstance(found, type):
        raise SettingError(name, loss, "a function (logits, attention, scales, target, *, ignore_index) -> scalar")
    names, _ = parts.parameters(found)
    return Loss(found, found, "weight" in names, (inspect.getdoc(found) or "").partition("\n")[0])
