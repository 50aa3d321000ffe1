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

    Arguments, result and errors are those of :func:`hmsa_ext.fuse_scales_cross_entropy`; one map of logits, of the
    target's size or any other, is ``cross_entropy([logits], [], [1.0], target)``. It equals that op's mean except for a
    target without a valid pixel. There PyTorch's mean is NaN, and one crop of nothing but ignored pixels would end a
    training run; here it is 0, with gradients of 0.

    >>> logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    >>> cross_entropy([logits], [], [1.0], torch.full((1, 32, 32), 255)).item()
    0.0
    """
    total, total_weight = cross_entropy_sum(logits, attention, scales, target, **options)
    return total / total_weight.masked_fill(total_weight == 0, 1)
