"""Hierarchical multi-scale attention for semantic segmentation: fused ops, models and a trainer.

``hmsa_ext.models``, ``hmsa_ext.losses`` and ``hmsa_ext.data`` are imported when they are first used, so that the ops
alone cost nothing else.
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
    from hmsa_ext import data, losses, models

__version__ = "0.1.0"
__all__ = [
    "HmsaError",
    "__version__",
    "confusion_matrix",
    "data",
    "fuse_scales",
    "fuse_scales_argmax",
    "fuse_scales_cross_entropy",
    "losses",
    "models",
    "sample_crop",
    "upsample_argmax",
    "upsample_cross_entropy",
]


def __getattr__(name: str):
    if name in ("data", "losses", "models"):
        return importlib.import_module(f"hmsa_ext.{name}")
    raise AttributeError(f"module 'hmsa_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    hidden = {"TYPE_CHECKING", "annotations", "importlib"}
    return sorted({*globals(), *__all__} - hidden)
