"""torchvision's segmentation models without the upsampling at their end: ``python examples/torchvision_models.py``.

Their ``forward`` upsamples the classifier's logits (an eighth of the image) to the image's size; the two parts called
one after the other give the logits before that. A random-initialised network; nothing is downloaded.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from comparison import compare_losses, compare_predictions, make_batch, parse_options

import hmsa_ext

try:
    from torchvision.models.segmentation import (  # pyright: ignore[reportMissingImports]  (optional)
        lraspp_mobilenet_v3_large,
    )
except ImportError as error:
    sys.exit(f"this example needs torchvision: pip install torchvision ({error})")


def main() -> None:
    options = parse_options(__doc__)
    torch.manual_seed(0)
    images, target = make_batch(options)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=options.classes)
    model.eval().to(options.device)
    weights = [model.classifier.low_classifier.weight, model.classifier.high_classifier.weight]

    def loss_before():
        return F.cross_entropy(model(images)["out"], target, ignore_index=255)

    def loss_after():
        logits = model.classifier(model.backbone(images))  # DeepLabV3, FCN: model.backbone(images)["out"]
        return hmsa_ext.upsample_cross_entropy(logits, target)

    print("LR-ASPP, the whole network:")
    compare_losses(loss_before, loss_after, weights)

    def predict_before():
        return model(images)["out"].argmax(1)

    def predict_after():
        return hmsa_ext.upsample_argmax(model.classifier(model.backbone(images)), images.shape[2:], confidence=False)

    compare_predictions(predict_before, predict_after)


if __name__ == "__main__":
    main()
