"""Losses: cross-entropy and region mutual information, and their sum over the outputs of a multi-scale model."""

from hmsa_ext.losses.cross_entropy import cross_entropy
from hmsa_ext.losses.multi_scale import MultiScaleLoss
from hmsa_ext.losses.rmi import rmi_bce_loss, rmi_loss

__all__ = ["MultiScaleLoss", "cross_entropy", "rmi_bce_loss", "rmi_loss"]
