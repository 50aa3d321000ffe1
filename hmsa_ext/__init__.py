"""Hierarchical multi-scale attention for semantic segmentation: fused ops, models and a trainer."""

from hmsa_ext.ops import fuse_scales

__version__ = "0.1.0"
__all__ = ["__version__", "fuse_scales"]
