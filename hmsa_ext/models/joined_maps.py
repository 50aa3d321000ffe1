"""Maps of several sizes that stand for their concatenation, and convolutions that never build it.

HRNet ends with four maps, 1/4 to 1/32 of the image, and published heads begin by resizing the coarser ones to the
finest and concatenating all: 720 channels at 1/4. Resizing acts on rows and columns, a convolution of one tap on
channels. So they commute, and the convolution of the concatenation is a sum over the maps and taps::

    conv(cat_i R b_i)[y, x] = sum_i sum_{dy, dx} (R (W_i[dy, dx] b_i))[y + dy, x + dx]       (0 beyond the border)

The products with the weights, nearly all of the work, are computed at the size of each map. Of the 720 channels of
HRNet-W48 only 48 are then multiplied at 1/4, and 672 at a quarter to a 64th of that cost. What is left for each tap is
to resize and to add, which this module writes as products with narrow bands of a matrix. It works on strips of rows, so
that nothing of the size of the result exists beside the result. The result differs from the plain one by rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.scales import resize

STRIP_BYTES = {"cpu": 64 * 2**20}
"""Of the products of one map in a strip, by type of device. More rows in a strip mean fewer that are computed twice."""
OTHER_STRIP_BYTES = 128 * 2**20
"""On GPUs more, for the sake of fewer kernels."""
COLUMNS = {"cpu": 64}
"""Columns of the result in one product with a band, by type of device."""
OTHER_COLUMNS = 128


@dataclass(frozen=True)
class JoinedMaps:
    """Maps [B, C_i, h_i, w_i], finest first, in place of their concatenation [B, sum(C_i), h_0, w_0].

    Those of another size count as resized to the first (bilinear, ``align_corners=False``).

    >>> joined = JoinedMaps((torch.zeros(1, 2, 8, 8), torch.ones(1, 3, 4, 4)))
    >>> joined.shape, joined.tensor().mean().item()
    (torch.Size([1, 5, 8, 8]), 0.6000000238418579)
    """

    maps: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        first = self.maps[0]
        for x in self.maps:
            if x.dim() != 4 or x.shape[0] != first.shape[0]:
                shapes = ", ".join(str(list(m.shape)) for m in self.maps)
                raise ArgumentValueError(f"maps: expected maps [B, C, h, w] of one batch, got {shapes}")

    @property
    def shape(self) -> torch.Size:
        """Of the concatenation."""
        first = self.maps[0]
        return torch.Size((first.shape[0], sum(m.shape[1] for m in self.maps), *first.shape[2:]))

    def dim(self) -> int:
        return 4

    def tensor(self) -> Tensor:
        """The concatenation itself, for code that takes a tensor."""
        first = self.maps[0]
        return first if len(self.maps) == 1 else torch.cat([resize(x, first.shape[-2:]) for x in self.maps], dim=1)


pytree.register_pytree_node(
    JoinedMaps, lambda joined: (list(joined.maps), None), lambda maps, _: JoinedMaps(tuple(maps))
)

Features = Tensor | JoinedMaps
"""What heads take."""


def as_tensor(features: Features) -> Tensor:
    """Features as one tensor."""
    return features.tensor() if isinstance(features, JoinedMaps) else features


def convolve(conv: nn.Conv2d, features: Features) -> Tensor:
    """``conv`` of features [B, C, h, w] -> [B, M, h, w].

    Of joined maps nothing of C channels is built, forward or backward, and what is kept for backward are the maps.
    Under autocast the products are in its dtype, as those of a convolution.
    """
    if isinstance(features, Tensor):
        return conv(features)
    if not takes_joined(conv) or torch.compiler.is_compiling() or torch._C._is_tracing():
        return conv(features.tensor())
    device = features.maps[0].device.type
    maps, weight = features.maps, conv.weight
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        maps, weight = tuple(x.to(dtype) for x in maps), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        result = cast(Tensor, _Convolution.apply(weight, *maps))
        return result if conv.bias is None else result + conv.bias.to(result.dtype)[:, None, None]


def takes_joined(conv: nn.Module) -> bool:
    """Whether :func:`convolve` knows joined maps: a plain convolution that keeps the size, without hooks."""
    if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.padding_mode != "zeros":
        return False
    if conv._forward_hooks or conv._forward_pre_hooks or "forward" in conv.__dict__:
        return False
    kernel, same = conv.kernel_size, tuple(k // 2 for k in conv.kernel_size)
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1)
    return plain and kernel[0] == kernel[1] and kernel[0] % 2 == 1 and conv.padding == same


_fakes_take_two_strips = False


@contextlib.contextmanager
def two_strips_alone() -> Iterator[None]:
    """Inside, of the strips of a map of fake tensors only the first two are computed, whose memory is that of all.

    For counting memory, where each strip takes time. Counts of FLOPs need all.
    """
    global _fakes_take_two_strips  # and no context variable: backward on a GPU is another thread
    before, _fakes_take_two_strips = _fakes_take_two_strips, True
    try:
        yield
    finally:
        _fakes_take_two_strips = before


def strip_ranges(x: Tensor, rows: int) -> Iterator[tuple[int, int]]:
    """(first, last) row of strips of a map [B, C, H, W], of so many ``rows``, the last one exclusive."""
    height = x.shape[2]
    end = min(height, 2 * rows) if _fakes_take_two_strips and isinstance(x, FakeTensor) else height
    for first in range(0, end, rows):
        yield first, min(first + rows, height)


class StripConvolution:
    """The convolution of joined maps by strips of rows.

    Strips are [B, rows, W, M], channels last, without the bias.

    Args:
        maps: as of :class:`JoinedMaps`, of one dtype.
        weight: [M, sum(C_i), k, k], k odd.
    """

    def __init__(self, maps: Sequence[Tensor], weight: Tensor) -> None:
        self._first, self.size = maps[0], maps[0].shape[-2:]
        self.kernel = weight.shape[-1]
        self.parts: list[_Direct | _Commuted] = []
        for x, w in zip(maps, weight.split([m.shape[1] for m in maps], dim=1), strict=True):
            kind = _Direct if x.shape[-2:] == self.size else _Commuted
            self.parts.append(kind(x, w, self.size))
        budget = STRIP_BYTES.get(weight.device.type, OTHER_STRIP_BYTES)
        per_row = max(part.bytes_per_row for part in self.parts)
        self.strip = max(min(budget // max(per_row, 1), self.size[0]), 4)
        """Rows of a strip."""

    def strips(self) -> Iterator[tuple[int, int]]:
        """(first, last) row of each strip, the last one exclusive."""
        return strip_ranges(self._first, self.strip)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of the convolution: [B, last - first, W, M]."""
        total: Tensor | None = None
        for part in self.parts:
            total = part.add_rows(total, first, last)
        assert total is not None, "there is at least one map"
        return total

    def add_gradients(self, first: int, last: int, grad: Tensor) -> None:
        """Adds what the gradient of these rows, [B, last - first, W, M], gives for the maps and the weights."""
        for part in self.parts:
            part.add_gradients(first, last, grad)

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The gradients of the weight and of each map, summed over all that was added."""
        pairs = [part.gradients() for part in self.parts]
        return torch.cat([weight for weight, _ in pairs], dim=1), [x for _, x in pairs]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *maps)
        first = maps[0]
        shape = (first.shape[0], weight.shape[0], *first.shape[2:])
        order = torch.channels_last if is_channels_last(first) else torch.contiguous_format
        made = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=order)
        work = StripConvolution(maps, weight)
        for a, b in work.strips():
            made[:, :, a:b] = work.rows(a, b).permute(0, 3, 1, 2)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        weight, *maps = ctx.saved_tensors
        work = StripConvolution(maps, weight)
        for a, b in work.strips():
            work.add_gradients(a, b, grad[:, :, a:b].permute(0, 2, 3, 1).contiguous())
        of_weight, of_maps = work.gradients()
        return of_weight, *of_maps


class _Direct:
    """A map of the result's size: a plain convolution of a few rows."""

    def __init__(self, x: Tensor, weight: Tensor, size: torch.Size) -> None:
        self.x, self.weight, self.halo = x, weight, weight.shape[-1] // 2
        self.bytes_per_row = x.shape[0] * (weight.shape[0] + x.shape[1]) * size[1] * x.element_size()
        self.grad_x: Tensor | None = None
        self.grad_weight: Tensor | None = None

    def _input(self, first: int, last: int) -> tuple[Tensor, int, int]:
        """The rows that a strip depends on, with zeros beyond the border, and the first and last of them in the map."""
        height = self.x.shape[2]
        a, b = max(first - self.halo, 0), min(last + self.halo, height)
        rows = self.x[:, :, a:b]
        above, below = a - (first - self.halo), last + self.halo - b
        if above or below:
            rows = F.pad(rows, (0, 0, above, below))
        return rows.contiguous(memory_format=torch.channels_last), a, b

    def add_rows(self, total: Tensor | None, first: int, last: int) -> Tensor:
        rows, _, _ = self._input(first, last)
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        made = F.conv2d(rows, weight, padding=(0, self.halo)).permute(0, 2, 3, 1).contiguous()
        return made if total is None else total.add_(made)

    def add_gradients(self, first: int, last: int, grad: Tensor) -> None:
        rows, a, b = self._input(first, last)
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        of_rows, of_weight, _ = torch.ops.aten.convolution_backward(
            grad.permute(0, 3, 1, 2), rows, weight, None, (1, 1), (0, self.halo), (1, 1), False, (0, 0), 1,
            (True, True, False),
        )  # fmt: skip
        if self.grad_x is None or self.grad_weight is None:
            # Without a halo each row gets all of its gradient at once.
            self.grad_x = torch.zeros_like(self.x, dtype=_sum_dtype(self.x) if self.halo else None)
            self.grad_weight = torch.zeros_like(self.weight, dtype=_sum_dtype(self.x))
        above = a - (first - self.halo)
        self.grad_x[:, :, a:b] += of_rows[:, :, above : above + b - a]
        self.grad_weight += of_weight

    def gradients(self) -> tuple[Tensor, Tensor]:
        assert self.grad_x is not None, "there is a strip"
        assert self.grad_weight is not None, "there is a strip"
        return self.grad_weight.to(self.x.dtype), self.grad_x.to(self.x.dtype)


class _Commuted:
    """A coarser map: products with the weights at its own size, then bands that resize, shift and add them."""

    def __init__(self, x: Tensor, weight: Tensor, size: torch.Size) -> None:
        self.x = x.permute(0, 2, 3, 1).contiguous()  # [B, h, w, C]
        count, height, width, channels = self.x.shape
        self.out, self.kernel = weight.shape[0], weight.shape[-1]
        # For each row of taps a matrix [C, k * M]: the taps of a row lie side by side.
        self.matrices = weight.permute(2, 1, 3, 0).reshape(self.kernel, channels, self.kernel * self.out).contiguous()
        self.down = _Bands(size[0], height, self.kernel, x)
        self.across = _Bands(size[1], width, self.kernel, x)
        bytes_of_row = count * width * self.kernel * self.out * x.element_size()
        # A strip has so many rows of the sum over rows of taps, and of the products a share by the ratio of the sizes.
        self.bytes_per_row = int(bytes_of_row * (1 + height / size[0]))
        columns = COLUMNS.get(x.device.type, OTHER_COLUMNS)
        self.blocks = []  # first and last column of the result, first and last product, the band between them
        for first in range(0, size[1], columns):
            last = min(first + columns, size[1])
            c, d, band = self.across.of(first, last)
            self.blocks.append((first, last, c * self.kernel, d * self.kernel, _side_by_side(band)))
        self.grad_x: Tensor | None = None
        self.grad_matrices: Tensor | None = None

    def add_rows(self, total: Tensor | None, first: int, last: int) -> Tensor:
        a, b, down = self.down.of(first, last)
        rows = self.x[:, a:b]
        count, low, width, channels = rows.shape
        flat = rows.reshape(-1, channels)
        summed: Tensor | None = None
        for tap in range(self.kernel):
            products = torch.mm(flat, self.matrices[tap]).view(count, low, -1)
            band = down[tap].expand(count, -1, -1)
            summed = torch.bmm(band, products) if summed is None else summed.baddbmm_(band, products)
        assert summed is not None, "a kernel has a row of taps"
        summed = summed.view(-1, width * self.kernel, self.out)
        if total is None:
            total = self.x.new_zeros(count, last - first, self.across.size, self.out)
        result = total.view(len(summed), -1, self.out)
        for begin, end, c, d, band in self.blocks:
            result[:, begin:end].baddbmm_(band.expand(len(summed), -1, -1), summed[:, c:d])
        return total

    def add_gradients(self, first: int, last: int, grad: Tensor) -> None:
        a, b, down = self.down.of(first, last)
        rows = self.x[:, a:b]
        count, low, width, channels = rows.shape
        flat = rows.reshape(-1, channels)
        if self.grad_x is None or self.grad_matrices is None:
            self.grad_x = torch.zeros_like(self.x, dtype=_sum_dtype(self.x))
            self.grad_matrices = torch.zeros_like(self.matrices, dtype=_sum_dtype(self.x))
        of_result = grad.view(count * (last - first), -1, self.out)
        summed = grad.new_zeros(len(of_result), width * self.kernel, self.out)
        for begin, end, c, d, band in self.blocks:
            summed[:, c:d].baddbmm_(band.mT.expand(len(summed), -1, -1), of_result[:, begin:end])
        summed = summed.view(count, last - first, -1)
        for tap in range(self.kernel):
            products = torch.bmm(down[tap].mT.expand(count, -1, -1), summed).view(count * low * width, -1)
            self.grad_x[:, a:b] += torch.mm(products, self.matrices[tap].mT).view(count, low, width, channels)
            self.grad_matrices[tap] += torch.mm(flat.mT, products)

    def gradients(self) -> tuple[Tensor, Tensor]:
        assert self.grad_x is not None, "there is a strip"
        assert self.grad_matrices is not None, "there is a strip"
        kernel, dtype = self.kernel, self.x.dtype
        of_weight = self.grad_matrices.view(kernel, -1, kernel, self.out).permute(3, 1, 0, 2)
        return of_weight.to(dtype), self.grad_x.permute(0, 3, 1, 2).to(dtype)


class _Bands:
    """The matrices that resize ``length`` values to ``size`` and then shift them, one for each of ``kernel`` taps.

    Row y of the matrix of tap d is row ``y + d - kernel // 2`` of the resize, and zero beyond the border.
    """

    def __init__(self, size: int, length: int, kernel: int, like: Tensor) -> None:
        self.size, self.length, self.halo = size, length, kernel // 2
        # Half precision would round the places in large maps. Weights like 1/4 it has exactly.
        dtype = _sum_dtype(like)
        unit = torch.eye(length, dtype=dtype, device=like.device)
        resize = F.interpolate(unit[None, None], (size, length), mode="bilinear", align_corners=False)[0, 0]
        padded = F.pad(resize, (0, 0, self.halo, self.halo))
        self.matrices = torch.stack([padded[tap : tap + size] for tap in range(kernel)]).to(like.dtype)

    def of(self, first: int, last: int) -> tuple[int, int, Tensor]:
        """For rows ``first`` to ``last``: the first and last column that is not all zero, and the block [k, rows,
        columns] between them."""
        ratio = self.length / self.size
        # One more on either side, since the ratio of the resize is a rounded one.
        begin = int(max((first - self.halo + 0.5) * ratio - 0.5, 0.0) - 1e-3)
        end = int((last - 1 + self.halo + 0.5) * ratio - 0.5 + 1e-3) + 2
        begin, end = max(min(begin, self.length - 1), 0), max(min(end, self.length), 1)
        return begin, end, self.matrices[:, first:last, begin:end]


def _side_by_side(bands: Tensor) -> Tensor:
    """[k, rows, columns] -> [rows, columns * k], the order of the products of a row of taps."""
    return bands.permute(1, 2, 0).reshape(bands.shape[1], -1)


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Of sums over strips: half precision would lose what each adds."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def is_channels_last(x: Tensor) -> bool:
    """Whether a map is in this order in memory and not in the other one."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
