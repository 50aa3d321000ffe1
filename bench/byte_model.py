"""Bytes that each CUDA kernel of fuse_scales must move, and the time that takes at a bandwidth.

    python -m bench.byte_model                                        # the headline's cases on an H200
    python -m bench.byte_model --bandwidth 2000 --scales 2,1,0.5 --size 1024x2048 --classes 19 --dtype bfloat16

A block reads every element that its tile needs once, neighbours that share a border read it twice: that is counted
exactly, from the geometry of the resizes, tile by tile. Most of the second reads hit the cache; what must come from
memory in any case is "each once": every input read once, every result written once. A measured time lies above the
time of the latter, and well above that of the former only if something else than memory bounds the kernel.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable

from bench import cases, competitors
from bench.cases import Case
from hmsa_ext.ops import reference

# Rows and columns of a block's tile, contiguous and channels_last: of the output (forward, channel sums), or of the
# head that the block writes the gradient of. They are what csrc/ops/cuda chooses on an H200 for the headline; where a
# tile would need too much shared memory (many classes in channels_last; three scales forward: 32x32) it takes less.
TILES = {
    "fuse_scales_forward_kernel": ((64, 32), (32, 16)),
    "channel_sums_kernel": ((8, 128), (8, 32)),
    "fuse_scales_backward_kernel above 1": ((12, 64), (8, 48)),
    "fuse_scales_backward_kernel at 1": ((8, 32), (6, 24)),
    "fuse_scales_backward_kernel below 1": ((8, 8), (4, 4)),
}
H200_COPY = 4300.0  # GB/s, measured, read and written together


@dataclasses.dataclass
class Traffic:
    """Bytes that one launch moves."""

    kernel: str
    what: str
    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def milliseconds(self, bandwidth: float) -> float:
        return self.bytes / bandwidth / 1e6


def launches(case: Case, direction: str) -> list[Traffic]:
    """One entry for each kernel that a call launches."""
    model = _Model(case)
    forward = [model.forward()]
    return forward if direction == "forward" else forward + model.backward()


def each_once(case: Case, direction: str) -> int:
    """Bytes of every input and every result, each once."""
    return competitors.moved_bytes(case, direction)


def milliseconds(case: Case, direction: str, bandwidth: float) -> float:
    return sum(launch.milliseconds(bandwidth) for launch in launches(case, direction))


def _head(case: Case, scale: float) -> tuple[int, int]:
    height, width = (-(-side // case.stride) for side in reference.grid_size(case.size, scale))
    return height, width


# ---- one axis: which part of every map a tile touches (core/resize.h, core/chain.h) ------------------------------


@dataclasses.dataclass(frozen=True)
class AxisMap:
    """Bilinear resize ``in -> out`` of one axis: output o reads from ((2 o + 1) in - out) / (2 out)."""

    size_in: int
    size_out: int

    def sources(self, outputs: range) -> range:
        """Inputs that are read by a range of outputs."""
        if not outputs or self.size_in == self.size_out:
            return outputs
        return range(self._first(outputs[0]), min(self._first(outputs[-1]) + 2, self.size_in))

    def outputs(self, inputs: range) -> range:
        """Outputs that may read a range of inputs."""
        if not inputs or self.size_in == self.size_out:
            return inputs
        low = 0 if inputs[0] == 0 else self._behind(inputs[0] - 1)
        high = self.size_out if inputs[-1] == self.size_in - 1 else self._behind_or_at(inputs[-1] + 1)
        return range(low, high)

    def _first(self, output: int) -> int:
        return min(max(((2 * output + 1) * self.size_in - self.size_out) // (2 * self.size_out), 0), self.size_in - 1)

    def _behind(self, source: int) -> int:
        """The first output whose source coordinate is larger than ``source``."""
        numerator = 2 * self.size_out * source - self.size_in + self.size_out
        return min(max(numerator // (2 * self.size_in) + 1, 0), self.size_out)

    def _behind_or_at(self, source: int) -> int:
        """The first output whose source coordinate is ``source`` or larger."""
        numerator = 2 * self.size_out * source - self.size_in + self.size_out
        return min(max(-(-numerator // (2 * self.size_in)), 0), self.size_out)


class _Axis:
    """The chain of scales along one axis."""

    def __init__(self, size: int, scales: tuple[float, ...], heads: list[int]) -> None:
        self.size, self.heads = size, heads
        self.unit = scales.index(1.0) if 1.0 in scales else 0
        grids = [math.floor(size * scale) for scale in scales]
        self.up = [AxisMap(head, grid) for head, grid in zip(heads, grids, strict=True)]
        self.across = [AxisMap(grid, grids[i + 1] if i < self.unit else size) for i, grid in enumerate(grids)]

    def heads_of_output(self, output: range) -> list[range]:
        """Of each head, what a tile of the output reads."""
        lower = [self.across[i].sources(output) for i in range(self.unit + 1, len(self.heads))]
        grids = [*self._upper_grids(self.unit, self.across[self.unit].sources(output)), *lower]
        return [up.sources(grid) for up, grid in zip(self.up, grids, strict=True)]

    def heads_before(self, i: int, grid: range) -> list[range]:
        """Of heads 0 .. i, what a tile of upper grid i reads."""
        return [up.sources(part) for up, part in zip(self.up, self._upper_grids(i, grid), strict=False)]

    def _upper_grids(self, i: int, grid: range) -> list[range]:
        grids = [grid]
        for j in range(i - 1, -1, -1):
            grids.insert(0, self.across[j].sources(grids[0]))
        return grids

    def reach(self, i: int, owned: range) -> tuple[range, range]:
        """Of grid i and of the output, what reaches a part of head i in the backward pass."""
        grid = level = self.up[i].outputs(owned)
        for j in range(i, max(i, self.unit)):
            level = self.across[j].outputs(level)
        # A lower scale, or a lone one off the output's grid, has one more resize to the output.
        return grid, self.across[max(i, self.unit)].outputs(level)


# ---- both axes ---------------------------------------------------------------------------------------------------


class _Model:
    def __init__(self, case: Case) -> None:
        self.case = case
        heads = [_head(case, scale) for scale in case.scales]
        self.axes = [_Axis(case.size[a], case.scales, [head[a] for head in heads]) for a in (0, 1)]
        self.unit = self.axes[0].unit
        self.item = case.torch_dtype.itemsize
        self.map_item = 8 if case.dtype == "float64" else 4  # maps of channel sums have the arithmetic's type
        self.attention_channels = case.classes if case.class_wise else 1

    def forward(self) -> Traffic:
        tile = self._tile("fuse_scales_forward_kernel")
        traffic = Traffic("fuse_scales_forward_kernel", "")
        for i in range(len(self.case.scales)):
            area = self._area(tile, self.case.size, lambda axis, part, i=i: axis.heads_of_output(part)[i])
            traffic.read += area * self._head_bytes(i)
        traffic.written = self.case.output_bytes
        return traffic

    def backward(self) -> list[Traffic]:
        # A map of channel sums for scale 1.0, unless it is the largest, and for every scale below.
        maps = range(max(self.unit, 1), len(self.case.scales))
        sums = [self._channel_sums(len(maps))] if maps else []
        return sums + [self._gradients(i) for i in range(len(self.case.scales))]

    def _channel_sums(self, maps: int) -> Traffic:
        """sum_c g * P_before at each pixel, all maps at once: the gradient, the logits of every scale but the last
        below 1, attention."""
        tile = self._tile("channel_sums_kernel")
        pixels = self.case.batch * self.case.size[0] * self.case.size[1]
        traffic = Traffic("channel_sums_kernel", f"{maps} map{'s' * (maps > 1)}", self.case.output_bytes)
        for j in range(len(self.case.scales)):
            area = self._area(tile, self.case.size, lambda axis, part, j=j: axis.heads_of_output(part)[j])
            wants_logits = j <= self.unit or j + 1 < len(self.case.scales)
            channels = (self.case.classes if wants_logits else 0) + (self.attention_channels if j > 0 else 0)
            traffic.read += area * self.case.batch * channels * self.item
        traffic.written = maps * pixels * self.attention_channels * self.map_item
        return traffic

    def _gradients(self, i: int) -> Traffic:
        """Gradients of one scale: what of g reaches a tile of the head, the attention on the way, for the attention's
        own gradient the logits of the scale and of those before, or the channel sums."""
        case = self.case
        where = "above" if i < self.unit else "at" if i == self.unit else "below"
        tile = self._tile(f"fuse_scales_backward_kernel {where} 1")
        head = (self.axes[0].heads[i], self.axes[1].heads[i])
        traffic = Traffic("fuse_scales_backward_kernel", f"scale {case.scales[i]:g}")
        reach = self._area(tile, head, lambda axis, part: axis.reach(i, part)[1])
        traffic.read += reach * case.batch * case.classes * self.item
        if i > 0 and i >= self.unit:
            traffic.read += reach * case.batch * self.attention_channels * self.map_item
        logits = [i] if i > self.unit else range(i + 1) if 0 < i < self.unit else []  # scale 1.0 has the sums
        for j in logits:
            area = self._area(tile, head, lambda axis, part, j=j: self._head_part(axis, i, j, part))
            traffic.read += area * case.batch * case.classes * self.item
        for j in range(1, len(case.scales)):  # kept attention of every scale behind, and of those on the way
            area = self._area(tile, head, lambda axis, part, j=j: axis.heads_of_output(axis.reach(i, part)[1])[j])
            traffic.read += area * case.batch * self.attention_channels * self.item
        traffic.written = head[0] * head[1] * self._head_bytes(i)
        return traffic

    def _tile(self, kernel: str) -> tuple[int, int]:
        return TILES[kernel][self.case.channels_last]

    @staticmethod
    def _head_part(axis: _Axis, i: int, j: int, owned: range) -> range:
        grid = axis.reach(i, owned)[0]
        return axis.up[i].sources(grid) if i == j else axis.heads_before(i, grid)[j]

    def _head_bytes(self, i: int) -> int:
        """Bytes of one position of head i in all images: logits, and attention where the scale has one."""
        channels = self.case.classes + (self.attention_channels if i > 0 else 0)
        return self.case.batch * channels * self.item

    def _area(self, tile: tuple[int, int], whole: Iterable[int], touched: Callable[[_Axis, range], range]) -> int:
        """Elements of a map that all tiles of ``whole`` touch together: what a tile touches is a rectangle, and its
        rows depend on the tile's rows alone, so the sum of the products is the product of the sums."""
        area = 1
        for axis, side, size in zip(self.axes, tile, whole, strict=True):
            parts = (range(start, min(start + side, size)) for start in range(0, size, side))
            area *= sum(len(touched(axis, part)) for part in parts)
        return area


# ---- the command -------------------------------------------------------------------------------------------------


def table(case: Case, bandwidth: float) -> list[str]:
    lines = [
        f"{case.name}: scales {', '.join(f'{s:g}' for s in case.scales)}, {case.size[0]}x{case.size[1]}, "
        f"{case.classes} classes, {case.dtype}, heads at stride {case.stride}",
        f"{'kernel':<30} {'':<10} {'MB read':>9} {'MB written':>11} {'ms':>8}",
    ]
    for launch in launches(case, "forward+backward"):
        lines.append(
            f"{launch.kernel:<30} {launch.what:<10} {launch.read / 1e6:9.1f} {launch.written / 1e6:11.1f} "
            f"{launch.milliseconds(bandwidth):8.4f}"
        )
    for direction in cases.DIRECTIONS:
        floor = each_once(case, direction)
        lines.append(
            f"{direction}: {milliseconds(case, direction, bandwidth):.4f} ms predicted; "
            f"each once: {floor / 1e6:.1f} MB, {floor / bandwidth / 1e6:.4f} ms"
        )
    return lines


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    fits = scales and len(set(scales)) == len(scales) and all(0 < s < math.inf for s in scales)
    if not fits or (len(scales) > 1 and 1.0 not in scales):
        raise argparse.ArgumentTypeError(
            f"got '{text}'; expected different positive numbers, 1 among them when there are several, such as 2,1,0.5"
        )
    return scales


def _bandwidth(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got '{text}'; expected a positive number of GB/s")
    return value


def _size(text: str) -> tuple[int, int]:
    try:
        return cases.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got '{text}'; expected a whole number of at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.byte_model", description=__doc__.splitlines()[0])
    parser.add_argument("--bandwidth", type=_bandwidth, default=H200_COPY, help="GB/s (%(default)g: copy on an H200)")
    parser.add_argument("--scales", type=_scales, help="such as 2,1,0.5")
    parser.add_argument("--size", type=_size, default=cases.HEADLINE_SIZE, help="such as 1024x2048")
    parser.add_argument("--classes", type=_count, default=19)
    parser.add_argument("--batch", type=_count, default=1)
    parser.add_argument("--stride", type=_count, default=4, help="of the heads")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16", "float64"))
    parser.add_argument("--class-wise", action="store_true", help="attention with a channel for each class")
    options = vars(parser.parse_args())
    bandwidth, scales = options.pop("bandwidth"), options.pop("scales")
    chosen = [scales] if scales else [case.scales for case in cases.headline()]
    print(f"at {bandwidth:g} GB/s\n")
    for each in chosen:
        case = Case(f"{len(each)} scales", scales=tuple(sorted(each, reverse=True)), **options)
        print("\n".join([*table(case, bandwidth), ""]))


if __name__ == "__main__":
    main()
