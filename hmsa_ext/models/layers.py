"""Convolutions and their batch norms, run as training needs them, or as evaluation does in little memory.

In evaluation without gradients nobody asks for what lies between two layers. Batch norm is then folded into the
convolution before it, sums are in place, a residual block overwrites its input where that is the output of the block
before, and layers that keep the size run in strips of rows. The outputs differ from the plain ones by rounding.

A module that has forward hooks somewhere inside, or is of a class derived from PyTorch's, runs as it stands. Hooks for
all modules of a process are not looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hmsa_ext.models.joined_maps import (
    Features,
    JoinedMaps,
    StripConvolution,
    as_tensor,
    convolve,
    is_channels_last,
    strip_ranges,
    takes_joined,
)
from hmsa_ext.models.recomputation import plain_type
from hmsa_ext.models.scales import resize

STRIP_BYTES = 32 * 2**20
"""Of the widest map in a strip."""
_CHANNELS = 64
"""Of a map in one go, where a map of all channels would be one too many."""


def saves_memory(module: nn.Module) -> bool:
    """Whether a module runs as evaluation does: in evaluation mode, without gradients, in no graph, and unwatched."""
    if module.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    return not any(map(has_hooks, module.modules()))


class Layers(nn.Sequential):
    """``nn.Sequential`` whose input may be :class:`JoinedMaps` where the first layer is a convolution.

    In evaluation it saves memory: see the top of this module.
    """

    def forward(self, x: Features) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return run_layers(self, x, save=saves_memory(self))


class StripLayers(Layers):
    """:class:`Layers` of stride 1, which run in strips of rows in evaluation. They should end in few channels."""

    def forward(self, x: Features) -> Tensor:
        return run_in_strips(self, x) if saves_memory(self) else super().forward(x)


class NormReLU(nn.Sequential):
    """Batch norm and ReLU of maps [B, channels, H, W].

    Where all of a network is recomputed (see :func:`hmsa_ext.models.recompute`), backward needs no map but the input
    and the two gradients: what the ReLU let through is found again, some channels at a time.
    """

    recomputes = "none"

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        norm = self[0]
        if not self._finds_again(norm):
            return super().forward(x)
        assert isinstance(norm, nn.BatchNorm2d), "asked before"
        assert norm.num_batches_tracked is not None, "it tracks statistics"
        norm.num_batches_tracked.add_(1)
        momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        return _NormReLU.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, momentum, norm.eps)

    def _finds_again(self, norm: nn.Module) -> bool:
        if self.recomputes != "all" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if type(norm) is not nn.BatchNorm2d or has_hooks(norm) or has_hooks(self[1]):
            return False
        buffers = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return norm.training and norm.track_running_stats and all(x is not None for x in buffers)


def norm_relu(channels: int) -> NormReLU:
    """A :class:`NormReLU` of so many channels."""
    return NormReLU(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *options: float
    ) -> Tensor:
        momentum, ctx.eps = options
        made, batch_mean, inverse = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, ctx.eps)
        ctx.save_for_backward(x, weight, bias, batch_mean, inverse)
        return made.relu_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        grad_x, sums = torch.empty_like(x), ([], [])
        for of_x, of_grad, of_made, w, b, m, i in zip(
            *(t.split(_CHANNELS, dim=1) for t in (x, grad, grad_x)),
            *(t.split(_CHANNELS) for t in (weight, bias, mean, inverse)), strict=True,
        ):  # fmt: skip
            # As in forward, channel by channel: the same values, to the last bit, are above zero.
            made = torch.native_batch_norm(of_x, w, b, None, None, True, 0.0, ctx.eps)[0]
            passed = torch.ops.aten.threshold_backward(of_grad, made, 0)
            of_made[:], *of_weights = torch.ops.aten.native_batch_norm_backward(
                passed, of_x, w, None, None, m, i, True, ctx.eps, (True, True, True)
            )
            for one, sum_of_all in zip(of_weights, sums, strict=True):
                sum_of_all.append(one)
        return grad_x, *map(torch.cat, sums), None, None, None, None


class Residual(nn.Module):
    """A residual block: ``relu(shortcut(x) + norm(conv(inner(x))))``.

    A subclass has the child ``downsample``, which projects the shortcut, or None; :meth:`inner` and :attr:`last`.
    """

    downsample: nn.Module | None

    def inner(self, x: Tensor, *, save: bool) -> Tensor:
        """All but the last convolution and its batch norm; ``save``: as evaluation does."""
        raise NotImplementedError

    @property
    def last(self) -> tuple[nn.Conv2d, nn.Module]:
        """The last convolution and its batch norm."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        save = saves_memory(self)
        inner, (conv, norm) = self.inner(x, save=save), self.last
        if save and self.downsample is not None:
            return add_conv_norm(self.downsample(x), inner, conv, norm)
        out = conv_norm(inner, conv, norm, save=save)
        return add_relu(out, x if self.downsample is None else self.downsample(x), save=save)

    def overwrite(self, x: Tensor) -> Tensor:
        """As :meth:`forward`, in evaluation, where the caller has no more use for ``x``: the output may lie there."""
        inner, (conv, norm) = self.inner(x, save=True), self.last
        return add_conv_norm(x if self.downsample is None else self.downsample(x), inner, conv, norm)


def run_layers(layers: Iterable[nn.Module], x: Features, *, save: bool, is_own: bool = False) -> Tensor:
    """Runs layers one after the other.

    Args:
        layers: convolutions, batch norms, activations, blocks, sequences of such.
        x: [B, C, H, W].
        save: in little memory, for evaluation.
        is_own: nobody else holds ``x``, so that it may be overwritten.
    """
    left = list(_flat(layers) if save else layers)
    while left:
        layer, *left = left
        if isinstance(layer, nn.Conv2d | Layers):
            if isinstance(layer, Layers):
                x = layer(x)
            elif save and left and can_fold(layer, left[0]):
                x = conv_norm(x, layer, left.pop(0), save=True)
            else:
                x = convolve(layer, x)
        elif save and is_own and isinstance(layer, Residual) and not has_hooks(layer):
            x = layer.overwrite(as_tensor(x))
        else:
            x = layer(as_tensor(x))
        is_own = isinstance(layer, Residual) and not has_hooks(layer)
    return as_tensor(x)


def conv_norm(x: Features, conv: nn.Conv2d, norm: nn.Module, *, save: bool) -> Tensor:
    """``norm(conv(x))``; with ``save`` one convolution where that takes less memory."""
    if not save or not can_fold(conv, norm):
        return norm(convolve(conv, x))
    if isinstance(x, JoinedMaps):
        if not takes_joined(conv):
            return conv_norm(x.tensor(), conv, norm, save=True)
        return Strips(x, conv, norm).everything()
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    if pixels * conv.out_channels < conv.weight.numel():  # to fold costs more than the map
        return norm(conv(x))
    weight, bias = folded(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def add_relu(x: Tensor, shortcut: Tensor, *, save: bool) -> Tensor:
    """ReLU of the sum; with ``save`` at the place of ``x``."""
    return F.relu_(add(x, shortcut, save=save))


def add(x: Tensor, y: Tensor, *, save: bool) -> Tensor:
    """The sum; with ``save`` at the place of ``x``."""
    return x.add_(y) if save else x + y


def add_resized(total: Tensor, x: Tensor) -> Tensor:
    """``total`` plus a map of its channels resized to its size, in place, some channels at a time."""
    size = total.shape[-2:]
    if total.nbytes < STRIP_BYTES:
        return total.add_(resize(x, size))
    channels = max(STRIP_BYTES * total.shape[1] // total.nbytes, 8)
    for part, of_x in zip(total.split(channels, dim=1), x.split(channels, dim=1), strict=True):
        part += resize(of_x, size)
    return total


def add_conv_norm(total: Tensor, x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """ReLU of ``total + norm(conv(x))``, at the place of ``total``, strip by strip. For evaluation."""
    if not can_fold(conv, norm) or not _keeps_size(conv):
        return F.relu_(total.add_(conv_norm(x, conv, norm, save=True)))
    weight, bias = folded(conv, norm)
    halo = _halo(conv)
    for first, last in _strips(total, total.shape[1], least=4 * halo):
        a, b = max(first - halo, 0), min(last + halo, x.shape[2])
        made = F.conv2d(x[:, :, a:b], weight, bias, 1, conv.padding, conv.dilation, conv.groups)
        F.relu_(total[:, :, first:last].add_(made[:, :, first - a : last - a]))
    return total


def run_in_strips(layers: Iterable[nn.Module], x: Features) -> Tensor:
    """Runs layers of stride 1 in strips, so that of what lies between them only some rows exist at a time.

    Rows beyond a strip that its result depends on are computed again. For evaluation.
    """
    flat = list(_flat(layers))
    convolutions = [layer for layer in flat if isinstance(layer, nn.Conv2d)]
    if not all(map(is_local, flat)):
        return run_layers(flat, x, save=True)
    if not convolutions or flat[0] is not convolutions[0] or not all(map(_keeps_size, convolutions)):
        return run_layers(flat, x, save=True)
    if isinstance(x, JoinedMaps) and not takes_joined(convolutions[0]):
        x = x.tensor()
    source: Strips | None = None
    if isinstance(x, JoinedMaps):
        norm = flat[1] if len(flat) > 1 and can_fold(flat[0], flat[1]) else None
        source = Strips(x, convolutions.pop(0), norm)
        flat = flat[1 if norm is None else 2 :]
    halo = sum(map(_halo, convolutions))
    widest = max([conv.out_channels for conv in convolutions] + [x.shape[1] if source is None else source.channels])
    made: Tensor | None = None
    for first, last in _strips(_first(x), widest, least=4 * halo):
        a, b = max(first - halo, 0), min(last + halo, x.shape[2])
        rows = source.rows(a, b) if source is not None else as_tensor(x)[:, :, a:b]
        part = run_layers(flat, rows, save=True)[:, :, first - a : last - a]
        made = empty_map(part, x) if made is None else made
        made[:, :, first:last] = part
    assert made is not None, "a map has rows"
    return made


def empty_map(part: Tensor, like: Features, size: Sequence[int] | None = None) -> Tensor:
    """A map of the channels and dtype of some rows, and of the batch, size and order in memory of ``like``.

    ``size``: height and width instead of those of ``like``.
    """
    order = torch.channels_last if is_channels_last(_first(like)) else torch.contiguous_format
    shape = (*part.shape[:2], *(like.shape[2:] if size is None else size))
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=order)


class Strips:
    """A convolution of features, with the batch norm after it, in strips of rows. For evaluation.

    Args:
        features: [B, C, H, W].
        conv: one of stride 1 that keeps the size.
        norm: a batch norm to fold, or None.
    """

    def __init__(self, features: Features, conv: nn.Conv2d, norm: nn.Module | None) -> None:
        weight, bias = (conv.weight, conv.bias) if norm is None else folded(conv, norm)
        maps = features.maps if isinstance(features, JoinedMaps) else (features,)
        self._device = weight.device.type
        if torch.is_autocast_enabled(self._device):
            dtype = torch.get_autocast_dtype(self._device)
            maps, weight = tuple(x.to(dtype) for x in maps), weight.to(dtype)
        self._convolution = StripConvolution(maps, weight)
        self._bias = None if bias is None else bias.to(weight.dtype)
        self.channels = weight.shape[0]
        self._features = features

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and last row, the last one exclusive, of strips that fit the caches."""
        return self._convolution.strips()

    def rows(self, first: int, last: int) -> Tensor:
        """Rows of the result: [B, channels, last - first, W]."""
        with torch.autocast(self._device, enabled=False):
            made = self._convolution.rows(first, last)
            return (made if self._bias is None else made.add_(self._bias)).permute(0, 3, 1, 2)

    def everything(self) -> Tensor:
        """All rows."""
        made: Tensor | None = None
        for first, last in self.ranges():
            part = self.rows(first, last)
            made = empty_map(part, self._features) if made is None else made
            made[:, :, first:last] = part
        assert made is not None, "a map has rows"
        return made


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that ``norm(conv(x))`` is in evaluation."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm), "asked before"
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None, "asked before"
    assert variance is not None, "asked before"
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    dtype = conv.weight.dtype
    return (conv.weight * scale[:, None, None, None]).to(dtype), bias.to(dtype)


def can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a convolution and a batch norm are plain layers in evaluation mode that nobody watches."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or has_hooks(conv):
        return False
    return is_local(norm) and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)


def is_local(layer: nn.Module) -> bool:
    """Whether what a layer gives at a pixel depends on pixels near it alone, and is the same in every call."""
    if has_hooks(layer):
        return False
    if type(layer) in (nn.BatchNorm2d, nn.SyncBatchNorm):
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm), "that is what these are"
        return not layer.training and layer.running_mean is not None and layer.running_var is not None
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return not layer.training or layer.p == 0
    return type(layer) in (nn.Conv2d, nn.ReLU, nn.Identity)


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a module, at any depth."""
    return (layer for layer in module.modules() if not any(True for _ in layer.children()))


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The layers, with sequences that nobody watches taken apart."""
    for layer in layers:
        if plain_type(layer) in (nn.Sequential, Layers, NormReLU) and not has_hooks(layer):
            yield from _flat(layer.children())
        else:
            yield layer


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at what goes through a module, or has replaced its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _keeps_size(conv: nn.Conv2d) -> bool:
    same = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    odd = all(k % 2 for k in conv.kernel_size)
    return odd and conv.stride == (1, 1) and conv.padding == same and conv.padding_mode == "zeros"


def _halo(conv: nn.Conv2d) -> int:
    """Rows beyond a row of the result that it depends on."""
    return conv.dilation[0] * (conv.kernel_size[0] - 1) // 2


def _strips(x: Tensor, channels: int, *, least: int) -> Iterator[tuple[int, int]]:
    """(first, last) rows of strips of maps with so many channels; at least ``least`` rows, lest much is done twice.

    ``x``: a map of their size and dtype.
    """
    bytes_per_row = x.shape[0] * channels * x.shape[3] * x.element_size()
    return strip_ranges(x, max(STRIP_BYTES // max(bytes_per_row, 1), least, 1))


def _first(x: Features) -> Tensor:
    return x.maps[0] if isinstance(x, JoinedMaps) else x
