"""A plain PyTorch model whose loss and prediction no longer build full-resolution logits.

    python examples/upsample_cross_entropy.py
    python examples/upsample_cross_entropy.py --classes 19 --size 1024x2048 --batch 1 --device cuda

Prints what the loss and the prediction cost before and after, the network left out: that stays as it is.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from comparison import compare_losses, compare_predictions
from torch import nn

import hmsa_ext


def main() -> None:
    options = _options()
    height, width = options.size
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, options.classes, 1),
    ).to(options.device)  # logits at a quarter of the image's size
    images = torch.rand(options.batch, 3, height, width, device=options.device)
    target = torch.randint(0, options.classes, (options.batch, height, width), device=options.device)
    target[:, : height // 8] = 255  # ignored
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
        labels, _confidence = hmsa_ext.upsample_argmax(logits, (height, width))
        return labels

    compare_predictions(predict_before, predict_after)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--size", type=_size, default=(512, 512), metavar="HxW", help="of the images [512x512]")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"got '{text}'; expected HEIGHTxWIDTH, such as 512x512")
    return int(height), int(width)


if __name__ == "__main__":
    main()
