"""Hierarchical multi-scale attention for semantic segmentation: fused ops, models and a trainer.

``hmsa_ext.load`` opens a trained model that predicts photos. It, ``hmsa_ext.models``, ``hmsa_ext.losses``,
``hmsa_ext.data`` and ``hmsa_ext.prediction`` are imported when they are first used, so that the ops alone cost nothing
else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hmsa_ext.errors import HmsaError
from hmsa_ext.ops import (
    confusion_matrix,
    fuse_scales,
    fuse_scales_argmax,
    fuse_scales_cross_entropy,
    sample_crop,
    upsample_argmax,
    upsample_cross_entropy,
)

if TYPE_CHECKING:
    from hmsa_ext import data, losses, models, prediction
    from hmsa_ext.prediction import load

__version__ = "0.1.0"
__all__ = [
    "HmsaError",
    "__version__",
    "confusion_matrix",
    "data",
    "fuse_scales",
    "fuse_scales_argmax",
    "fuse_scales_cross_entropy",
    "load",
    "losses",
    "models",
    "prediction",
    "sample_crop",
    "upsample_argmax",
    "upsample_cross_entropy",
]


def __getattr__(name: str):
    if name in ("data", "losses", "models", "prediction"):
        return importlib.import_module(f"hmsa_ext.{name}")
    if name == "load":
        return importlib.import_module("hmsa_ext.prediction").load
    raise AttributeError(f"module 'hmsa_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    hidden = {"TYPE_CHECKING", "annotations", "importlib"}
    return sorted({*globals(), *__all__} - hidden)
