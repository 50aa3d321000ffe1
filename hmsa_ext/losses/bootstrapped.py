"""Cross-entropy over the hardest pixels."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from typing_extensions import Unpack

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.ops import arguments, fuse_scales_cross_entropy
from hmsa_ext.ops.arguments import CROSS_ENTROPY_DEFAULTS, CrossEntropyOptions


@arguments.documented(CROSS_ENTROPY_DEFAULTS)
def bootstrapped_cross_entropy(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    target: Tensor,
    *,
    share: float = 0.25,
    threshold: float | None = None,
    **options: Unpack[CrossEntropyOptions],
) -> Tensor:
    """Mean cross-entropy of the fused logits over the hardest of the valid pixels of the batch.

    With l(i) the loss of a valid pixel i, and N valid pixels, the mean is over the set K::

        K = { i : l(i) >= bar },    bar = min(l of the hardest pixel number ceil(share * N), -log(threshold))

    At least ``share`` of the valid pixels count. With a ``threshold``, every pixel counts whose label has a probability
    below it (without weights and smoothing, l is -log of the probability). The share alone is the bootstrapping of Wu,
    Shen, van den Hengel 2016 (arXiv:1605.06885) in its later form; DeepLab mines hard pixels with a share of 0.15 to
    0.25. A threshold of 0.7 is the online hard example mining of HRNet and OCRNet, which state the least number of
    pixels instead of a share.

    Args:
        {chain}
        {target}
        share: of the valid pixels, in (0, 1].
        threshold: a probability in (0, 1), or None.
        {weight}
        {ignore_index}
        {label_smoothing}
        {align_corners}

    One map of logits is ``[logits], [], [1.0]``.

    Returns:
        A float32 scalar (float64 for float64 logits); 0, with gradients of 0, where no pixel is valid.

    Raises:
        ValueError: for a share or a threshold out of range.
        RuntimeError: as :func:`hmsa_ext.fuse_scales_cross_entropy` does.

    >>> logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    >>> target = torch.zeros(1, 32, 32, dtype=torch.uint8)
    >>> bootstrapped_cross_entropy([logits], [], [1.0], target, share=0.2, threshold=0.7).backward()
    """
    if not 0.0 < share <= 1.0:
        raise ArgumentValueError(f"share: expected a number above 0 and up to 1, got {share!r}")
    if threshold is not None and not 0.0 < threshold < 1.0:
        raise ArgumentValueError(f"threshold: expected a probability between 0 and 1, or None, got {threshold!r}")
    losses = fuse_scales_cross_entropy(logits, attention, scales, target, reduction="none", **options)
    if losses.numel() == 0:
        return losses.sum()
    valid = arguments.is_valid(target, arguments.chosen(options.get("ignore_index")))
    with torch.no_grad():
        bar = _loss_of_rank(losses, valid, share)
        if threshold is not None:
            bar = bar.clamp(max=-math.log(threshold))
        # Not "at least the bar": a loss or a bar that is NaN must make the result NaN.
        counts = valid & ~(losses < bar)
        number = counts.sum().clamp(min=1)
    return torch.where(counts, losses, 0).sum() / number


def _loss_of_rank(losses: Tensor, valid: Tensor, share: float) -> Tensor:
    """The loss of valid pixel number ceil(share * N), with the N valid pixels sorted from the hardest.

    The number of valid pixels stays on the device, so that nothing waits for a GPU.
    """
    hardest = torch.where(valid, losses, -math.inf).flatten().topk(math.ceil(share * losses.numel())).values
    rank = (share * valid.sum(dtype=torch.float64)).ceil().long().clamp(min=1)
    return hardest.gather(0, rank[None] - 1)[0]
