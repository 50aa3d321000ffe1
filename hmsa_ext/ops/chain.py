"""Shared by the ops on a chain of scales: the chain as one object, fake results, checks for them, FLOP counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from hmsa_ext.ops import arguments, library, reference
from hmsa_ext.ops.schema import Arguments

MOST_SCALES = 8
SIDE_LIMIT = 1 << 24
"""Heights and widths stay below this."""


class Chain(NamedTuple):
    """The arguments that all of these ops have in common, as the ops take them: the largest scale first."""

    logits: list[Tensor]
    attention: list[Tensor]
    scales: list[float]
    align_corners: bool

    @property
    def classes(self) -> int:
        """C of the logits."""
        return self.logits[0].shape[1] if self.logits[0].dim() == 4 else 0

    def has_kernels(self, op: str) -> bool:
        """Whether the library computes ``op`` where the logits are: see :func:`hmsa_ext.ops.library.has_kernels`."""
        return library.has_kernels(op, self.logits[0].device)

    def call(self, function: Callable[..., Any], *rest, **options) -> Any:
        """``function``, a public op or its reference, of this chain and the arguments that follow the scales."""
        logits, attention, scales, align_corners = self
        return function(logits, attention, scales, *rest, align_corners=align_corners, **options)

    def call_private(self, op: Callable[..., Any], *rest) -> Any:
        """A private op of this chain and the arguments in between. PyTorch takes what is not named in half the time."""
        logits, attention, scales, align_corners = self
        return op(logits, attention, scales, *rest, align_corners)


def sorted_chain(
    op: str, logits: Iterable[Tensor], attention: Iterable[Tensor], scales: Iterable[float], align_corners: bool
) -> Chain:
    """The arguments of a public function, which come in any order of the scales.

    Raises ValueError or TypeError, which begin with ``op``, for what is no list of tensors or numbers, an empty list, a
    scale given twice and lists that cannot be sorted.
    """
    logits = arguments.tensors(op, "logits", logits, arguments.FLOATING, "[B, C, h, w]")
    attention = arguments.tensors(op, "attention", attention, arguments.FLOATING, "[B, 1 or C, h, w]")
    scales = arguments.numbers(op, "scales", scales)
    if not logits:
        raise arguments.ArgumentValueError(f"{op}: logits has 0 entries; expected one for each of scales, {scales}")
    for i in range(1, len(scales)):
        if not scales[i] < scales[i - 1]:
            return _reordered(op, logits, attention, scales, align_corners)
    return Chain(logits, attention, scales, align_corners)  # the op itself checks the lengths


def _reordered(
    op: str, logits: list[Tensor], attention: list[Tensor], scales: list[float], align_corners: bool
) -> Chain:
    if len(set(scales)) != len(scales):
        raise arguments.ArgumentValueError(f"{op}: scales is {scales}; expected every scale once")
    order = sorted(range(len(scales)), key=lambda i: -scales[i])
    if order == list(range(len(scales))):
        return Chain(logits, attention, scales, align_corners)  # NaN is among them: the op refuses it
    if len(logits) != len(scales) or len(attention) != len(scales) - 1:
        raise arguments.ArgumentValueError(
            f"{op}: {len(scales)} scales came with {len(logits)} logits and {len(attention)} attention maps; "
            f"expected {len(scales)} and {len(scales) - 1} (none for the largest scale)"
        )
    largest = order[0]
    of_scale = dict(zip((i for i in range(len(scales)) if i != largest), attention, strict=True))
    return Chain(
        [logits[i] for i in order], [of_scale[i] for i in order[1:]], [scales[i] for i in order], align_corners
    )


def arithmetic_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, else float32: what the ops compute in, and the dtype of losses and probabilities."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


# ---- checks of fake arguments: those of csrc/ops/chain_arguments.cpp, in the same words -----------------------------


def check(op: str, a: Arguments | Chain, size: Sequence[int]) -> None:
    """Raise RuntimeError for logits, attention, scales and size that do not fit."""
    expect, number = arguments.expect, arguments.number
    count = len(a.scales)
    expect([len(size) == 2], lambda: f"{op}: size has {len(size)} entries; expected (height, width)")
    expect([1 <= count <= MOST_SCALES], lambda: f"{op}: scales has {count} entries; expected 1 to {MOST_SCALES}")
    expect(
        [len(a.logits) == count],
        lambda: f"{op}: logits has {len(a.logits)} entries; expected {count}, one for each of scales",
    )
    expect(
        [len(a.attention) + 1 == count],
        lambda: (
            f"{op}: attention has {len(a.attention)} entries; expected {count - 1}, one for each scale but the largest"
        ),
    )
    shown = f"({size[0]}, {size[1]})"
    expect(_in_limits(size), lambda: f"{op}: size is {shown}; expected {_LIMITS}")
    for i, scale in enumerate(a.scales):
        expect(
            [math.isfinite(scale) and scale > 0],
            lambda i=i, scale=scale: f"{op}: scales[{i}] is {number(scale)}; expected a positive number",
        )
        expect(
            [i == 0 or scale < a.scales[i - 1]],
            lambda i=i, scale=scale: (
                f"{op}: scales[{i}] is {number(scale)} after {number(a.scales[i - 1])}; "
                "expected strictly descending scales"
            ),
        )
        grid = reference.grid_size(size, scale)
        expect(
            _in_limits(grid),
            lambda i=i, scale=scale, grid=grid: (
                f"{op}: scales[{i}] is {number(scale)}, which gives a grid of {number(grid[0])} x {number(grid[1])} "
                f"for size {shown}; expected {_LIMITS}"
            ),
        )
    expect(
        [count == 1 or 1.0 in a.scales],
        lambda: f"{op}: scales has {count} entries without 1.0; expected 1.0 among them",
    )
    _check_logits(op, a)
    _check_attention(op, a)


def _check_logits(op: str, a: Arguments | Chain) -> None:
    first = a.logits[0]
    arguments.tensor(op, "logits[0]", first, arguments.FLOATING, "[B, C, h, w]")
    for i, tensor in enumerate(a.logits):
        _check_like(op, f"logits[{i}]", tensor, first)
        channels = tensor.shape[1], first.shape[1]
        arguments.expect(
            [channels[0] == channels[1], channels[1] > 0],
            lambda i=i, channels=channels: (
                f"{op}: logits[{i}] has {channels[0]} channels, logits[0] has {channels[1]}; "
                "expected the same, at least 1"
            ),
        )


def _check_attention(op: str, a: Arguments | Chain) -> None:
    first = a.logits[0]
    for i, tensor in enumerate(a.attention):
        name = f"attention[{i}]"
        _check_like(op, name, tensor, first)
        channels, classes = tensor.shape[1], first.shape[1]
        fits = channels == 1 or channels == classes if _known(channels, classes) else True
        arguments.expect(
            [channels == a.attention[0].shape[1], fits],
            lambda name=name, channels=channels, classes=classes: (
                f"{op}: {name} has {channels} channels; expected 1, or {classes} as the logits have, "
                "the same in every entry"
            ),
        )
        (height, width), (of_height, of_width) = tensor.shape[2:], a.logits[i + 1].shape[2:]
        arguments.expect(
            [height == of_height, width == of_width],
            lambda i=i, name=name, sides=(height, width, of_height, of_width): (
                f"{op}: {name} has a map of {sides[0]} x {sides[1]}; expected {sides[2]} x {sides[3]}, "
                f"the map of logits[{i + 1}], which belongs to the same scale"
            ),
        )


def _check_like(op: str, name: str, tensor: Tensor, first: Tensor) -> None:
    expect, dtype_name = arguments.expect, arguments.dtype_name
    expect(
        [tensor.dim() == 4],
        lambda: f"{op}: {name} has shape {arguments.shape_of(tensor)}; expected four dimensions [B, C, h, w]",
    )
    expect(
        [tensor.dtype == first.dtype],
        lambda: (
            f"{op}: {name} is {dtype_name(tensor)}, but logits[0] is {dtype_name(first)}; expected one dtype for all"
        ),
    )
    expect(
        [tensor.device == first.device],
        lambda: f"{op}: {name} is on {tensor.device}, but logits[0] is on {first.device}; expected one device for all",
    )
    expect(
        [tensor.shape[0] == first.shape[0]],
        lambda: f"{op}: {name} has batch size {tensor.shape[0]}, but logits[0] has {first.shape[0]}",
    )
    expect(
        _in_limits(tensor.shape[2:]),
        lambda: f"{op}: {name} has a map of {tensor.shape[2]} x {tensor.shape[3]}; expected {_LIMITS}",
    )


def check_target(op: str, a: Arguments | Chain, target: Tensor) -> None:
    """Raise RuntimeError for a target that does not fit the first of the logits."""
    arguments.expect(
        [len(a.logits) > 0 and a.logits[0].dim() == 4],
        lambda: (
            f"{op}: logits has {len(a.logits)} entries"
            + (f", the first of shape {arguments.shape_of(a.logits[0])}" if a.logits else "")
            + "; expected one [B, C, h, w] for each of scales"
        ),
    )
    first = a.logits[0]
    check_labels(op, "target", target)
    arguments.expect(
        [target.shape[0] == first.shape[0]],
        lambda: (
            f"{op}: target has shape {arguments.shape_of(target)}; expected [{first.shape[0]}, H, W], "
            f"a plane for each image of the logits {arguments.shape_of(first)}"
        ),
    )
    arguments.expect(
        [target.device == first.device],
        lambda: (
            f"{op}: target is on {target.device}, but the logits are on {first.device}; expected one device for all"
        ),
    )


def check_labels(op: str, name: str, labels: Tensor) -> None:
    """Raise RuntimeError unless these are integers [B, H, W]."""
    arguments.tensor(op, name, labels, arguments.INTEGER, "[B, H, W]")
    arguments.expect(
        [labels.dim() == 3], lambda: f"{op}: {name} has shape {arguments.shape_of(labels)}; expected [B, H, W]"
    )


_LIMITS = f"1 to {SIDE_LIMIT - 1} in height and width"


def _in_limits(size: Sequence[int]) -> list[bool]:
    return [condition for side in size for condition in (side > 0, side < SIDE_LIMIT)]


def _known(*values: int) -> bool:
    return all(isinstance(value, int) for value in values)


# ---- fake results -----------------------------------------------------------------------------------------------


def unit(scales: Sequence[float]) -> int:
    """Index of the scale whose logits decide the memory format of a fused result."""
    return scales.index(1.0) if 1.0 in scales else 0


def empty_like_format(like: Tensor, shape: Sequence[int]) -> Tensor:
    return like.new_empty(shape).contiguous(memory_format=suggest_memory_format(like))


def fake_gradients(a: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    """What a backward op returns: like its inputs, empty and one-dimensional where no gradient is wanted."""

    def gradients(inputs: Sequence[Tensor], wanted: int) -> list[Tensor]:
        return [empty_like_format(x, x.shape) if wanted >> i & 1 else x.new_empty((0,)) for i, x in enumerate(inputs)]

    return gradients(a.logits, a.wanted_logits), gradients(a.attention, a.wanted_attention)


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
