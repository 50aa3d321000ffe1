"""The fused ops: ``torch.ops.hmsa.*`` and the public Python functions over them.

Each op is declared in the module of its name: see :mod:`hmsa_ext.ops.registration`.
"""

from hmsa_ext.ops.class_tile_centroids import class_tile_centroids
from hmsa_ext.ops.confusion_matrix import confusion_matrix
from hmsa_ext.ops.draw_class_uniform_boxes import draw_class_uniform_boxes
from hmsa_ext.ops.fuse_scales import fuse_scales
from hmsa_ext.ops.fuse_scales_argmax import fuse_scales_argmax, upsample_argmax
from hmsa_ext.ops.fuse_scales_cross_entropy import (
    cross_entropy_sum,
    fuse_scales_cross_entropy,
    upsample_cross_entropy,
)
from hmsa_ext.ops.fuse_scales_rmi import fuse_scales_rmi
from hmsa_ext.ops.sample_crop import sample_crop

__all__ = [
    "class_tile_centroids",
    "confusion_matrix",
    "cross_entropy_sum",
    "draw_class_uniform_boxes",
    "fuse_scales",
    "fuse_scales_argmax",
    "fuse_scales_cross_entropy",
    "fuse_scales_rmi",
    "sample_crop",
    "upsample_argmax",
    "upsample_cross_entropy",
]
