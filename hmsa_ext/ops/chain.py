"""What the ops on a chain of scales share on the Python side: order of the scales, shapes of results, FLOP counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from hmsa_ext.ops import reference


def descending(
    op: str, logits: Sequence[Tensor], attention: Sequence[Tensor], scales: Sequence[float]
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """The arguments as the ops take them, largest scale first, from any order.

    Raises ValueError, which begins with ``op``, for a scale given twice and for lists that cannot be sorted.
    """
    logits, attention, scales = list(logits), list(attention), [float(scale) for scale in scales]
    if len(set(scales)) != len(scales):
        raise ValueError(f"{op}: scales is {scales}; expected every scale once")
    order = sorted(range(len(scales)), key=lambda i: -scales[i])
    if order == list(range(len(scales))):
        return logits, attention, scales  # the op itself checks the lengths
    if len(logits) != len(scales) or len(attention) != len(scales) - 1:
        raise ValueError(
            f"{op}: {len(scales)} scales came with {len(logits)} logits and {len(attention)} attention maps; "
            f"expected {len(scales)} and {len(scales) - 1} (none for the largest scale)"
        )
    largest = order[0]
    of_scale = dict(zip((i for i in range(len(scales)) if i != largest), attention, strict=True))
    return [logits[i] for i in order], [of_scale[i] for i in order[1:]], [scales[i] for i in order]


def arithmetic_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, else float32: what the ops compute in, and the dtype of losses and probabilities."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


# ---- fake results -----------------------------------------------------------------------------------------------


def unit(scales: Sequence[float]) -> int:
    """Index of the scale whose logits decide the memory format of a fused result."""
    return scales.index(1.0) if 1.0 in scales else 0


def empty_like_format(like: Tensor, shape: Sequence[int]) -> Tensor:
    return like.new_empty(shape).contiguous(memory_format=suggest_memory_format(like))


def fake_gradients(
    logits: Sequence[Tensor], attention: Sequence[Tensor], wanted_logits: int, wanted_attention: int
) -> tuple[list[Tensor], list[Tensor]]:
    """What a backward op returns: like its inputs, empty and one-dimensional where no gradient is wanted."""

    def gradients(inputs, wanted):
        return [empty_like_format(x, x.shape) if wanted >> i & 1 else x.new_empty((0,)) for i, x in enumerate(inputs)]

    return gradients(logits, wanted_logits), gradients(attention, wanted_attention)


def unfold_gradients(results: Sequence[Sequence[Tensor]], batch_size: int) -> tuple[tuple, tuple]:
    """For vmap: gradients of folded inputs (see :func:`hmsa_ext.ops.dispatch.fold`) with the mapped dimension first,
    and their ``out_dims``."""
    unfolded = tuple(
        [g.unflatten(0, (batch_size, -1)) if g.dim() == 4 else g.expand(batch_size, 0) for g in list_]
        for list_ in results
    )
    return unfolded, tuple([0] * len(list_) for list_ in unfolded)


# ---- FLOPs: what the separable formulation of the kernels computes ----------------------------------------------


def chain_flops(
    logits: Sequence[Sequence[int]], attention: Sequence[Sequence[int]], scales: Sequence[float], size: Sequence[int]
) -> int:
    """Floating-point operations of fusing logits and attention of these shapes."""
    batch, classes = logits[0][:2]
    pixels = size[0] * size[1]
    grids = [reference.grid_size(size, scale) for scale in scales]
    after = grids[1] if scales[0] > 1.0 and len(scales) > 1 else tuple(size)
    if tuple(grids[0]) != tuple(after):  # no attention lies between the two resizes of the largest scale
        total = classes * _composed_flops(logits[0][2:], after)
    else:
        total = classes * _resize_flops(logits[0][2:], grids[0])
    total += sum(classes * _resize_flops(z[2:], grid) for z, grid in zip(logits[1:], grids[1:], strict=True))
    for i, scale in enumerate(scales[1:], start=1):
        channels, grid = attention[i - 1][1], grids[i]
        cells = grid[0] * grid[1]
        total += channels * _resize_flops(attention[i - 1][2:], grid)
        if scale >= 1.0:
            total += classes * ((_resize_flops(grids[i - 1], grid) if i > 1 else 0) + 4 * cells)
        else:
            total += channels * _resize_flops(grid, size)
            total += classes * (cells + _resize_flops(grid, size) + 3 * pixels)
    return batch * total


def adjoint_flops(
    logits: Sequence[Sequence[int]], attention: Sequence[Sequence[int]], scales: Sequence[float], size: Sequence[int]
) -> int:
    """Of carrying a gradient of the fused logits back to all inputs, P_before being at hand: the adjoints cost what
    the resizes cost, and every scale with attention adds the products and sums of its gradient."""
    batch, classes = logits[0][:2]
    sums = 0
    for scale in scales[1:]:
        cells = math.prod(reference.grid_size(size, scale))
        sums += classes * (3 * cells if scale >= 1.0 else 2 * cells + 2 * size[0] * size[1])
    return chain_flops(logits, attention, scales, size) + batch * sums


def _resize_flops(source: Sequence[int], target: Sequence[int]) -> int:
    """Columns, then rows, three operations (two products, one sum) for each element made; a copy costs nothing."""
    if tuple(source) == tuple(target):
        return 0
    return 3 * (source[0] * target[1] + target[0] * target[1])


def _composed_flops(source: Sequence[int], target: Sequence[int]) -> int:
    """Two resizes in one step: up to four products and three sums for each element made."""
    return 7 * (source[0] * target[1] + target[0] * target[1])
