"""Networks that return :class:`ScaleOutputs`, a wrapper that makes any network do so, and loading of weights.

>>> model = build("hrnet_small_ocr", num_classes=11)
>>> NAMES[:2]
('hrnet_small_ocr', 'hrnet_w18_ocr')
"""

import warnings

from hmsa_ext.models.building import build
from hmsa_ext.models.deeplab import DeepLabV3Plus, resnet50_deeplabv3plus, resnet101_deeplabv3plus
from hmsa_ext.models.efficientnet import EfficientNetLite, EfficientNetLiteClassifier, EfficientNetLiteConfig
from hmsa_ext.models.fcn import FCN, hrnet_small_fcn, hrnet_w48_fcn
from hmsa_ext.models.fusions import FUSIONS, Fusion, find_fusion
from hmsa_ext.models.hrnet import HRNet, HRNetConfig
from hmsa_ext.models.hrnet_ocr import hrnet_small_ocr, hrnet_w18_ocr, hrnet_w32_ocr, hrnet_w48_ocr
from hmsa_ext.models.inputs import InputError
from hmsa_ext.models.lraspp import LRASPP, efficientnet_lite0_lraspp
from hmsa_ext.models.multi_scale import MultiScale
from hmsa_ext.models.networks import NAMES, NETWORKS
from hmsa_ext.models.ocr import OCRHead
from hmsa_ext.models.ocr_network import OCRNetwork
from hmsa_ext.models.recomputation import RecomputeError, recompute
from hmsa_ext.models.resnet import ResNet, ResNetConfig
from hmsa_ext.models.scale_attention import ATTENTION_HEADS, ScaleAttentionHead, build_attention_head
from hmsa_ext.models.scale_outputs import ScaleOutputs
from hmsa_ext.models.segmentation_network import SegmentationNetwork
from hmsa_ext.models.settings import ModelSettings
from hmsa_ext.models.trunks import TRUNKS, build_trunk
from hmsa_ext.models.weight_files import WeightError, read_checkpoint
from hmsa_ext.models.weights import WeightReport, load_weights

__all__ = [
    "ATTENTION_HEADS",
    "FCN",
    "FUSIONS",
    "LRASPP",
    "NAMES",
    "NETWORKS",
    "TRUNKS",
    "DeepLabV3Plus",
    "EfficientNetLite",
    "EfficientNetLiteClassifier",
    "EfficientNetLiteConfig",
    "Fusion",
    "HRNet",
    "HRNetConfig",
    "InputError",
    "ModelSettings",
    "MultiScale",
    "OCRHead",
    "OCRNetwork",
    "RecomputeError",
    "ResNet",
    "ResNetConfig",
    "ScaleAttentionHead",
    "ScaleOutputs",
    "SegmentationNetwork",
    "WeightError",
    "WeightReport",
    "build",
    "build_attention_head",
    "build_trunk",
    "efficientnet_lite0_lraspp",
    "find_fusion",
    "hrnet_small_fcn",
    "hrnet_small_ocr",
    "hrnet_w18_ocr",
    "hrnet_w32_ocr",
    "hrnet_w48_fcn",
    "hrnet_w48_ocr",
    "load_weights",
    "read_checkpoint",
    "recompute",
    "resnet50_deeplabv3plus",
    "resnet101_deeplabv3plus",
]


def __getattr__(name: str) -> type[OCRNetwork]:
    if name == "HRNetOCR":
        warnings.warn(
            "HRNetOCR is now OCRNetwork; the old name goes with the next version", DeprecationWarning, stacklevel=2
        )
        return OCRNetwork
    raise AttributeError(f"module 'hmsa_ext.models' has no attribute {name!r}")
