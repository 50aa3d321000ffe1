"""A model of segmentation_models.pytorch without the upsampling in its head: ``python examples/smp_models.py``.

FPN, DeepLabV3+, PAN, UPerNet and others end in ``nn.UpsamplingBilinear2d``, which aligns corners: so must the op. A
random-initialised network; nothing is downloaded.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from comparison import compare_losses, compare_predictions, make_batch, parse_options
from torch import nn

import hmsa_ext

try:
    import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]  (optional)
except ImportError as error:
    sys.exit(f"this example needs segmentation_models.pytorch: pip install segmentation-models-pytorch ({error})")


def main() -> None:
    options = parse_options(__doc__)
    torch.manual_seed(0)
    images, masks = make_batch(options)
    large, small = (
        smp.FPN("resnet18", encoder_weights=None, classes=options.classes).eval().to(options.device) for _ in range(2)
    )
    small.load_state_dict(large.state_dict())
    small.segmentation_head[1] = nn.Identity()  # was nn.UpsamplingBilinear2d(scale_factor=4)

    def loss_before():
        return F.cross_entropy(large(images), masks, ignore_index=255)

    def loss_after():
        return hmsa_ext.upsample_cross_entropy(small(images), masks, align_corners=True)

    print("FPN, the whole network:")
    # Each model has weights of its own, with the same values: the gradients of the last layer's are compared.
    small.segmentation_head[0].weight = large.segmentation_head[0].weight
    compare_losses(loss_before, loss_after, [large.segmentation_head[0].weight])

    def predict_before():
        return large(images).argmax(1)

    def predict_after():
        return hmsa_ext.upsample_argmax(small(images), images.shape[2:], align_corners=True, confidence=False)

    compare_predictions(predict_before, predict_after)


if __name__ == "__main__":
    main()
