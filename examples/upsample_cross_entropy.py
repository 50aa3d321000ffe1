"""A plain PyTorch model whose loss and prediction no longer build full-resolution logits.

    python examples/upsample_cross_entropy.py
    python examples/upsample_cross_entropy.py --classes 19 --size 1024x2048 --batch 1 --device cuda

Prints what the loss and the prediction cost before and after, the network left out: that stays as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comparison import compare_losses, compare_predictions, make_batch, parse_options
from torch import nn

import hmsa_ext


def main() -> None:
    options = parse_options(__doc__)
    height, width = options.size
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, options.classes, 1),
    ).to(options.device)  # logits at a quarter of the image's size
    images, target = make_batch(options)
    logits = model(images).detach().requires_grad_()
    print(f"{options.classes} classes, {options.batch} x {height} x {width}, logits {tuple(logits.shape)}")

    def loss_before():
        large = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        return F.cross_entropy(large, target, ignore_index=255)

    def loss_after():
        return hmsa_ext.upsample_cross_entropy(logits, target)

    compare_losses(loss_before, loss_after, [logits])

    def predict_before():
        return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False).argmax(1)

    def predict_after():
        return hmsa_ext.upsample_argmax(logits, (height, width), confidence=False)

    compare_predictions(predict_before, predict_after)


if __name__ == "__main__":
    main()
