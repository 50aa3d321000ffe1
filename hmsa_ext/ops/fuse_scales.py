"""``hmsa::fuse_scales``: everything about the op that is not a kernel.

Fake tensors, autograd, autocast, vmap and FLOP counts are registered here, on the op that csrc/ops/fuse_scales.cpp
defines; :func:`fuse_scales` is the form for people.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils.flop_counter import register_flop_formula

from hmsa_ext.ops import dispatch, reference

_op = torch.ops.hmsa.fuse_scales.default
_backward_op = torch.ops.hmsa._fuse_scales_backward.default


def fuse_scales(
    logits: Sequence[Tensor],
    attention: Sequence[Tensor],
    scales: Sequence[float],
    size: Sequence[int],
    *,
    align_corners: bool = False,
) -> Tensor:
    """Fuse the predictions of several scales by the attention between neighbours, at full resolution.

    With L and A the logits and attention of a scale resized (bilinear) to its own grid ``floor(size * scale)``, from
    the largest scale down (Tao, Sapra, Catanzaro 2020, eq. 1, chained)::

        first scale   P = L
        s >= 1        P = A * L + (1 - A) * resize(P -> grid of s)
        s <  1        P = resize(A * L -> size) + (1 - resize(A -> size)) * P

    Args:
        logits: one [B, C, h_s, w_s] per scale, at the head's own resolution; float32, float16, bfloat16 or float64.
        attention: one [B, 1 or C, h_s, w_s] per scale but the largest, in the order of ``scales``, in [0, 1].
        scales: up to 8 different positive numbers in any order, 1.0 among them when there is more than one.
        size: (H, W) of the image at scale 1.0, in pixels.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        [B, C, H, W] in the dtype of the inputs and the memory format of the logits at scale 1.0. Arithmetic is in
        float32 (float64 for float64). Only the inputs are saved for backward; both directions are deterministic.

    Raises:
        ValueError: for scales given twice or lists of different lengths.
        RuntimeError: for anything else that does not fit; it names the argument, what came and what was expected.

    >>> low, high = torch.randn(1, 19, 16, 32), torch.randn(1, 19, 32, 64)
    >>> alpha = torch.sigmoid(torch.randn(1, 1, 16, 32))
    >>> fuse_scales([low, high], [alpha], [0.5, 1.0], (128, 256)).shape
    torch.Size([1, 19, 128, 256])
    """
    logits, attention, scales = _descending(logits, attention, scales)
    size = [int(side) for side in size]
    if not logits or dispatch.has_kernels("fuse_scales", logits[0].device):
        return _op(logits, attention, scales, size, align_corners=align_corners)
    return reference.fuse_scales(logits, attention, scales, size, align_corners=align_corners)


def _descending(
    logits: Sequence[Tensor], attention: Sequence[Tensor], scales: Sequence[float]
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    logits, attention, scales = list(logits), list(attention), [float(scale) for scale in scales]
    if len(set(scales)) != len(scales):
        raise ValueError(f"fuse_scales: scales is {scales}; expected every scale once")
    order = sorted(range(len(scales)), key=lambda i: -scales[i])
    if order == list(range(len(scales))):
        return logits, attention, scales  # the op itself checks the lengths
    if len(logits) != len(scales) or len(attention) != len(scales) - 1:
        raise ValueError(
            f"fuse_scales: {len(scales)} scales came with {len(logits)} logits and {len(attention)} attention maps; "
            f"expected {len(scales)} and {len(scales) - 1} (none for the largest scale)"
        )
    largest = order[0]
    of_scale = dict(zip((i for i in range(len(scales)) if i != largest), attention, strict=True))
    return [logits[i] for i in order], [of_scale[i] for i in order[1:]], [scales[i] for i in order]


# ---- fake tensors -----------------------------------------------------------------------------------------------


def _unit(scales: Sequence[float]) -> int:
    return scales.index(1.0) if 1.0 in scales else 0


def _empty_like_format(like: Tensor, shape: Sequence[int]) -> Tensor:
    return like.new_empty(shape).contiguous(memory_format=suggest_memory_format(like))


@torch.library.register_fake("hmsa::fuse_scales")
def _fake(logits, attention, scales, size, *, align_corners=False):
    like = logits[_unit(scales)]
    return _empty_like_format(like, (like.shape[0], like.shape[1], size[0], size[1]))


@torch.library.register_fake("hmsa::_fuse_scales_backward")
def _fake_backward(grad, logits, attention, scales, align_corners, wanted_logits, wanted_attention):
    def gradients(inputs, wanted):
        return [_empty_like_format(x, x.shape) if wanted >> i & 1 else x.new_empty((0,)) for i, x in enumerate(inputs)]

    return gradients(logits, wanted_logits), gradients(attention, wanted_attention)


# ---- autograd ---------------------------------------------------------------------------------------------------


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    logits, attention, scales, _ = inputs
    ctx.save_for_backward(*logits, *attention)
    ctx.scales = scales
    ctx.align_corners = keyword_only_inputs["align_corners"]


def _backward(ctx, grad):
    count = len(ctx.scales)
    logits, attention = list(ctx.saved_tensors[:count]), list(ctx.saved_tensors[count:])
    wanted = [sum(1 << i for i, need in enumerate(needs) if need) for needs in ctx.needs_input_grad[:2]]
    grad_logits, grad_attention = _backward_op(grad, logits, attention, ctx.scales, ctx.align_corners, *wanted)
    return (
        [g if wanted[0] >> i & 1 else None for i, g in enumerate(grad_logits)],
        [g if wanted[1] >> i & 1 else None for i, g in enumerate(grad_attention)],
        None,
        None,
    )


torch.library.register_autograd("hmsa::fuse_scales", _backward, setup_context=_setup_context)
dispatch.forbid_double_backward("hmsa::_fuse_scales_backward", "fuse_scales")


# ---- autocast ---------------------------------------------------------------------------------------------------


def _autocast(logits, attention, scales, size, *, align_corners=False):
    logits, attention = dispatch.promote(logits, attention)
    return _op(logits, attention, scales, size, align_corners=align_corners)


dispatch.register_autocast("fuse_scales", _autocast)


# ---- vmap: the mapped dimension becomes part of the batch -------------------------------------------------------


@torch.library.register_vmap("hmsa::fuse_scales")
def _vmap(info, in_dims, logits, attention, scales, size, *, align_corners=False):
    logits = dispatch.fold(logits, in_dims[0], info.batch_size)
    attention = dispatch.fold(attention, in_dims[1], info.batch_size)
    fused = _op(logits, attention, scales, size, align_corners=align_corners)
    return fused.unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("hmsa::_fuse_scales_backward")
def _vmap_backward(info, in_dims, grad, logits, attention, scales, align_corners, wanted_logits, wanted_attention):
    n = info.batch_size
    (grad,) = dispatch.fold([grad], [in_dims[0]], n)
    logits, attention = dispatch.fold(logits, in_dims[1], n), dispatch.fold(attention, in_dims[2], n)
    results = _backward_op(grad, logits, attention, scales, align_corners, wanted_logits, wanted_attention)
    results = tuple([g.unflatten(0, (n, -1)) if g.dim() == 4 else g.expand(n, 0) for g in list_] for list_ in results)
    return results, tuple([0] * len(list_) for list_ in results)


# ---- FLOPs: what the separable formulation of the kernels computes ----------------------------------------------


def _resize_flops(source: Sequence[int], target: Sequence[int]) -> int:
    """Columns, then rows, three operations (two products, one sum) for each element made; a copy costs nothing."""
    if tuple(source) == tuple(target):
        return 0
    return 3 * (source[0] * target[1] + target[0] * target[1])


def _composed_flops(source: Sequence[int], target: Sequence[int]) -> int:
    """Two resizes in one step: up to four products and three sums for each element made."""
    return 7 * (source[0] * target[1] + target[0] * target[1])


def _chain_flops(logits_shapes, attention_shapes, scales, size) -> int:
    batch, classes = logits_shapes[0][:2]
    pixels = size[0] * size[1]
    grids = [reference.grid_size(size, scale) for scale in scales]
    after = grids[1] if scales[0] > 1.0 and len(scales) > 1 else tuple(size)
    if tuple(grids[0]) != tuple(after):  # no attention lies between the two resizes of the largest scale
        total = classes * _composed_flops(logits_shapes[0][2:], after)
    else:
        total = classes * _resize_flops(logits_shapes[0][2:], grids[0])
    total += sum(classes * _resize_flops(z[2:], grid) for z, grid in zip(logits_shapes[1:], grids[1:], strict=True))
    for i, scale in enumerate(scales[1:], start=1):
        channels, grid = attention_shapes[i - 1][1], grids[i]
        cells = grid[0] * grid[1]
        total += channels * _resize_flops(attention_shapes[i - 1][2:], grid)
        if scale >= 1.0:
            total += classes * ((_resize_flops(grids[i - 1], grid) if i > 1 else 0) + 4 * cells)
        else:
            total += channels * _resize_flops(grid, size)
            total += classes * (cells + _resize_flops(grid, size) + 3 * pixels)
    return batch * total


@register_flop_formula(torch.ops.hmsa.fuse_scales)
def _flops(logits, attention, scales, size, *args, out_shape=None, **kwargs) -> int:
    return _chain_flops(logits, attention, scales, size)


@register_flop_formula(torch.ops.hmsa._fuse_scales_backward)
def _backward_flops(grad, logits, attention, scales, *args, out_shape=None, **kwargs) -> int:
    """The adjoints cost what the resizes cost; with attention, P_before is computed again (the chain but its last
    scale) and every scale adds the products and sums of DESIGN 2."""
    size = grad[2:]
    adjoint = _chain_flops(logits, attention, scales, size)
    if len(scales) == 1:
        return adjoint
    batch, classes = logits[0][:2]
    again = _chain_flops(logits[:-1], attention[:-1], scales[:-1], size) if scales[-2] >= 1.0 or len(scales) > 2 else 0
    sums = 0
    for scale in scales[1:]:
        grid = reference.grid_size(size, scale)
        cells = grid[0] * grid[1]
        sums += classes * (3 * cells if scale >= 1.0 else 2 * cells + 2 * size[0] * size[1])
    return adjoint + again + batch * sums
