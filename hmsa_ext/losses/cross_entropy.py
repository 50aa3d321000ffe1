"""Cross-entropy over the valid pixels."""

from collections.abc import Iterable

from torch import Tensor
from typing_extensions import Unpack

from hmsa_ext.ops import arguments, cross_entropy_sum
from hmsa_ext.ops.arguments import CROSS_ENTROPY_DEFAULTS, CrossEntropyOptions


@arguments.documented(CROSS_ENTROPY_DEFAULTS)
def cross_entropy(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    target: Tensor,
    **options: Unpack[CrossEntropyOptions],
) -> Tensor:
    """Mean cross-entropy of the fused logits over the pixels of ``target`` that are not ``ignore_index``.

    One map of logits, of any size, is ``cross_entropy([logits], [], [1.0], target)``. The result is the mean of
    :func:`hmsa_ext.fuse_scales_cross_entropy`, except for a target without a valid pixel. There the op and PyTorch
    return NaN, which would end a training run; this loss is 0, with gradients of 0.

    Args:
        logits, attention, scales, target, weight, ignore_index, label_smoothing, align_corners: as for
            :func:`hmsa_ext.fuse_scales_cross_entropy`.

    Returns:
        A float32 scalar (float64 for float64 logits).

    Raises:
        ValueError: for scales given twice or lists of different lengths.
        RuntimeError: for anything else that does not fit, as :func:`hmsa_ext.fuse_scales_cross_entropy` does.

    >>> logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    >>> cross_entropy([logits], [], [1.0], torch.full((1, 32, 32), 255)).item()
    0.0
    """
    total, total_weight = cross_entropy_sum(logits, attention, scales, target, **options)
    return total / total_weight.masked_fill(total_weight == 0, 1)
