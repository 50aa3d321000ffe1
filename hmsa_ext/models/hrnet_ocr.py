"""HRNetV2 + OCR + scale attention: the published network, and smaller ones of the same build."""

from hmsa_ext.models.ocr_network import OCRNetwork
from hmsa_ext.models.presets import preset

hrnet_w48_ocr = preset(
    OCRNetwork,
    __name__,
    "hrnet_w48_ocr",
    """The published network: HRNetV2-W48, OCR and scale attention; 72.1 M parameters for 19 classes.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. Arguments and errors
    are those of :class:`hmsa_ext.models.OCRNetwork`.
    """,
    trunk="hrnet_w48",
)

hrnet_w32_ocr = preset(
    OCRNetwork,
    __name__,
    "hrnet_w32_ocr",
    """The published heads on HRNetV2-W32. Arguments, images and errors are those of :func:`hrnet_w48_ocr`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.
    """,
    trunk="hrnet_w32",
)

hrnet_w18_ocr = preset(
    OCRNetwork,
    __name__,
    "hrnet_w18_ocr",
    """The published heads on HRNetV2-W18. Arguments, images and errors are those of :func:`hrnet_w48_ocr`.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.
    """,
    trunk="hrnet_w18",
)

hrnet_small_ocr = preset(
    OCRNetwork,
    __name__,
    "hrnet_small_ocr",
    """A network that trains on a CPU: all four branches and both heads, but narrow.

    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`. Arguments and errors
    are those of :func:`hrnet_w48_ocr`.

    >>> import torch
    >>> model = hrnet_small_ocr(num_classes=8).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96), scales=(0.5, 1.0))
    >>> [list(z.shape) for z in outputs.logits], list(outputs.fuse().shape)
    ([[1, 8, 16, 24], [1, 8, 8, 12]], [1, 8, 64, 96])
    """,
    trunk="hrnet_small",
    mid_channels=64,
    key_channels=32,
    attention_bottleneck=32,
)
