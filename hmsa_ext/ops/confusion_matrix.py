"""``hmsa::confusion_matrix``: the public Python function and the declaration of the op.

The kernels, the schema and the checks are in ``csrc/ops/confusion_matrix.cpp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmsa_ext.ops import arguments, chain, library, reference, registration
from hmsa_ext.ops.schema import Arguments

_NAME = "confusion_matrix"
_MOST_CLASSES = 4096


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, *, ignore_index: int | None = None
) -> tuple[Tensor, Tensor]:
    """Counts of (truth, prediction) pairs, and the number of pixels that are neither counted nor ignored.

    Args:
        prediction: labels of any shape; uint8, int16, int32 or int64.
        target: true labels of the same shape; any of these types, whatever that of ``prediction``.
        num_classes: K; classes are 0 to K - 1.
        ignore_index: true label of the pixels that do not count, whatever is predicted there; 255 by default. With more
            than 255 classes there is no default.

    Returns:
        Counts int64 [K, K], rows = truth, and an int64 scalar: pixels whose truth is neither a class nor
        ``ignore_index``, or whose prediction is no class where the truth is one. Nothing is raised for them, since that
        would make a GPU wait: look at the scalar once, at the end.

    Raises:
        TypeError: for anything but tensors.
        ValueError: for an ``ignore_index`` that was not chosen and is a class.
        RuntimeError: for shapes, dtypes or devices that do not fit. Every message names the argument, what came and
            what was expected.

    >>> counts, invalid = confusion_matrix(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2)
    >>> counts.tolist(), invalid.item()
    ([[1, 1], [0, 0]], 0)
    """
    for name, labels in (("prediction", prediction), ("target", target)):
        arguments.tensor(_NAME, name, labels, arguments.INTEGER, "of labels")
    if prediction.shape != target.shape:
        raise RuntimeError(
            f"{_NAME}: prediction has shape {list(prediction.shape)}, target {list(target.shape)}; expected the same"
        )
    ignore_index = arguments.ignored(_NAME, ignore_index, num_classes)
    if not library.has_kernels(_NAME, target.device):
        return reference.confusion_matrix(prediction, target, num_classes, ignore_index=ignore_index)
    return _op(_as_planes(prediction), _as_planes(target), num_classes, ignore_index=ignore_index)


def _as_planes(labels: Tensor) -> Tensor:
    """[B, H, W] of any shape, a view wherever one can be had."""
    if labels.dim() == 3:
        return labels
    if labels.dim() > 3:
        return labels.flatten(0, -3)
    return labels[(None,) * (3 - labels.dim())]


# ---- declaration ------------------------------------------------------------------------------------------------


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    expect, shape_of = arguments.expect, arguments.shape_of
    expect(
        [1 <= a.num_classes <= _MOST_CLASSES],
        lambda: f"{_NAME}: num_classes is {a.num_classes}; expected 1 to {_MOST_CLASSES}",
    )
    chain.check_labels(_NAME, "prediction", a.prediction)
    chain.check_labels(_NAME, "target", a.target)
    expect(
        [one == other for one, other in zip(a.prediction.shape, a.target.shape, strict=True)],
        lambda: (
            f"{_NAME}: prediction has shape {shape_of(a.prediction)}, target {shape_of(a.target)}; expected the same"
        ),
    )
    expect(
        [a.prediction.device == a.target.device],
        lambda: f"{_NAME}: prediction is on {a.prediction.device}, target on {a.target.device}; expected one device",
    )
    counts = a.target.new_empty((a.num_classes, a.num_classes), dtype=torch.int64)
    return counts, a.target.new_empty((), dtype=torch.int64)


_op = registration.declare(_NAME, fake=_fake, doc=confusion_matrix.__doc__)
