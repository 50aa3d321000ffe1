"""Hugging Face's SegFormer, trained and read without full-resolution logits: ``python examples/segformer.py``.

The model upsamples its logits (a quarter of the image) when it is given labels, and the image processor does for a
prediction. Left out, both are one call each. A small random-initialised network; nothing is downloaded.
"""

from __future__ import annotations

import sys

import torch
from comparison import compare_losses, compare_predictions, make_batch, parse_options

import hmsa_ext

try:
    from transformers import (  # pyright: ignore[reportMissingImports]  (optional)
        SegformerConfig,
        SegformerForSemanticSegmentation,
    )
except ImportError as error:
    sys.exit(f"this example needs Hugging Face transformers: pip install transformers ({error})")


def main() -> None:
    options = parse_options(__doc__)
    torch.manual_seed(0)
    config = SegformerConfig(num_labels=options.classes, semantic_loss_ignore_index=255)
    # Dropout would make the two ways differ.
    model = SegformerForSemanticSegmentation(config).eval().to(options.device)
    images, labels = make_batch(options)
    weights = [model.decode_head.classifier.weight, model.decode_head.linear_fuse.weight]

    def loss_before():
        return model(pixel_values=images, labels=labels).loss

    def loss_after():
        logits = model(pixel_values=images).logits
        return hmsa_ext.upsample_cross_entropy(logits, labels, ignore_index=config.semantic_loss_ignore_index)

    print("SegFormer, the whole network:")
    compare_losses(loss_before, loss_after, weights)

    with torch.no_grad():
        logits = model(pixel_values=images).logits
    height, width = images.shape[2:]

    def predict_before():  # what SegformerImageProcessor.post_process_semantic_segmentation does with target sizes
        large = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return large.argmax(dim=1)

    def predict_after():
        return hmsa_ext.upsample_argmax(logits, (height, width), confidence=False)

    print("post-processing:")
    compare_predictions(predict_before, predict_after)


if __name__ == "__main__":
    main()
