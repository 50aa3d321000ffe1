"""The networks that have names.

A network is a function ``(num_classes, *, ...) -> module``: see :func:`hmsa_ext.models.build`. A new one is a file of
its own and a line in ``NETWORKS``; one outside this package is named ``package.module:factory``.
"""

from collections.abc import Callable

from torch import nn

from hmsa_ext.models.deeplab import resnet50_deeplabv3plus, resnet101_deeplabv3plus
from hmsa_ext.models.fcn import hrnet_small_fcn, hrnet_w48_fcn
from hmsa_ext.models.hrnet_ocr import hrnet_small_ocr, hrnet_w18_ocr, hrnet_w32_ocr, hrnet_w48_ocr
from hmsa_ext.models.lraspp import efficientnet_lite0_lraspp

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "hrnet_small_ocr": hrnet_small_ocr,
    "hrnet_w18_ocr": hrnet_w18_ocr,
    "hrnet_w32_ocr": hrnet_w32_ocr,
    "hrnet_w48_ocr": hrnet_w48_ocr,
    "hrnet_small_fcn": hrnet_small_fcn,
    "hrnet_w48_fcn": hrnet_w48_fcn,
    "resnet50_deeplabv3plus": resnet50_deeplabv3plus,
    "resnet101_deeplabv3plus": resnet101_deeplabv3plus,
    "efficientnet_lite0_lraspp": efficientnet_lite0_lraspp,
}
NAMES = tuple(NETWORKS)
PUBLISHED: dict[str, str] = {
    "hrnet_w48_ocr": "ocrnet.HRNet_Mscale, ocrnet.HRNet",
    "hrnet_w48_fcn": "mscale.HRNet, basic.HRNet",
    "resnet50_deeplabv3plus": "mscale.DeepV3R50",
}
"""Networks of NVIDIA/semantic-segmentation whose files fit entirely, by our names."""
