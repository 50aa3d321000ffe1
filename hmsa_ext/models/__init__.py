"""Networks that put out :class:`ScaleOutputs`, the wrapper that makes any network do so, and loading of weights.

>>> model = build("hrnet_small_ocr", num_classes=11)
>>> NAMES
('hrnet_small_ocr', 'hrnet_w18_ocr', 'hrnet_w32_ocr', 'hrnet_w48_ocr')
"""

from hmsa_ext.models.hrnet_ocr import HRNetOCR, hrnet_small_ocr, hrnet_w18_ocr, hrnet_w32_ocr, hrnet_w48_ocr
from hmsa_ext.models.multi_scale import MultiScale
from hmsa_ext.models.scale_outputs import ScaleOutputs
from hmsa_ext.models.weights import WeightError, WeightReport, load_weights

__all__ = [
    "NAMES",
    "HRNetOCR",
    "MultiScale",
    "ScaleOutputs",
    "WeightError",
    "WeightReport",
    "build",
    "hrnet_small_ocr",
    "hrnet_w18_ocr",
    "hrnet_w32_ocr",
    "hrnet_w48_ocr",
    "load_weights",
]

_NETWORKS = {
    "hrnet_small_ocr": hrnet_small_ocr,
    "hrnet_w18_ocr": hrnet_w18_ocr,
    "hrnet_w32_ocr": hrnet_w32_ocr,
    "hrnet_w48_ocr": hrnet_w48_ocr,
}
NAMES = tuple(_NETWORKS)


def build(name: str, num_classes: int, **options) -> HRNetOCR:
    """Build the network called ``name`` (one of ``NAMES``); options are those of the function of that name."""
    if name not in _NETWORKS:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    return _NETWORKS[name](num_classes, **options)
