"""Losses of multi-scale outputs, computed without full-resolution logits, and their sum over the terms of training.

``LOSSES`` lists them by name; :class:`MultiScaleLoss` is what training minimises.
"""

from hmsa_ext.losses.bootstrapped import bootstrapped_cross_entropy
from hmsa_ext.losses.cross_entropy import cross_entropy
from hmsa_ext.losses.multi_scale import MultiScaleLoss
from hmsa_ext.losses.rmi import rmi_bce_loss, rmi_loss
from hmsa_ext.losses.settings import LossSettings
from hmsa_ext.losses.table import LOSSES, Loss, find_loss

__all__ = [
    "LOSSES",
    "Loss",
    "LossSettings",
    "MultiScaleLoss",
    "bootstrapped_cross_entropy",
    "cross_entropy",
    "find_loss",
    "rmi_bce_loss",
    "rmi_loss",
]
