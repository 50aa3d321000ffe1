"""``hmsa::confusion_matrix``: the form for people and fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from hmsa_ext.ops import dispatch, reference

_op = torch.ops.hmsa.confusion_matrix.default


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, *, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Counts of (truth, prediction) pairs, and the number of pixels that are neither counted nor ignored.

    Args:
        prediction: labels of any shape; uint8, int16, int32 or int64.
        target: true labels of the same shape; any of these types, whatever that of ``prediction``.
        num_classes: K; classes are 0 to K - 1.
        ignore_index: true label of the pixels that do not count, whatever is predicted there.

    Returns:
        Counts int64 [K, K], rows = truth, and an int64 scalar: pixels whose truth is neither a class nor
        ``ignore_index``, or whose prediction is no class where the truth is one. Nothing is raised for them, since that
        would make a GPU wait: look at the scalar once, at the end.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit; it names what came and what was expected.

    >>> counts, invalid = confusion_matrix(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2)
    >>> counts.tolist(), invalid.item()
    ([[1, 1], [0, 0]], 0)
    """
    if prediction.shape != target.shape:
        raise RuntimeError(
            f"confusion_matrix: prediction has shape {list(prediction.shape)}, target {list(target.shape)}; "
            "expected the same"
        )
    if not dispatch.has_kernels("confusion_matrix", target.device):
        return reference.confusion_matrix(prediction, target, num_classes, ignore_index=ignore_index)
    return _op(_as_planes(prediction), _as_planes(target), num_classes, ignore_index=ignore_index)


def _as_planes(labels: Tensor) -> Tensor:
    """[B, H, W] of any shape, a view wherever one can be had."""
    if labels.dim() == 3:
        return labels
    if labels.dim() > 3:
        return labels.flatten(0, -3)
    return labels[(None,) * (3 - labels.dim())]


@torch.library.register_fake("hmsa::confusion_matrix")
def _fake(prediction, target, num_classes, *, ignore_index=255):
    counts = target.new_empty((num_classes, num_classes), dtype=torch.int64)
    return counts, target.new_empty((), dtype=torch.int64)
