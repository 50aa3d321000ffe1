"""HRNetV2 trunks (Sun et al. 2019): parallel branches at strides 4, 8, 16 and 32 that keep exchanging features.

Parameter names are those of the published checkpoints (``conv1``, ``layer1``, ``transition1``, ``stage2`` ...), so
ImageNet trunks load as they are. Differences between trunks are data (:class:`HRNetConfig`), not code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.joined_maps import Features, JoinedMaps, strip_ranges
from hmsa_ext.models.layers import (
    Layers,
    add,
    add_resized,
    conv_norm,
    empty_map,
    is_local,
    leaves,
    run_layers,
    saves_memory,
)
from hmsa_ext.models.recomputation import run_part
from hmsa_ext.models.residual_blocks import BOTTLENECK_EXPANSION, BasicBlock, Bottleneck, batch_norm, conv3x3

LARGE_STAGE = 256 * 2**20
"""Bytes of the widest map of stage 1, from which on evaluation runs that stage in strips of rows."""


@dataclass(frozen=True)
class HRNetConfig:
    """Widths and depths of a trunk.

    A stage with n branches has ``widths[:n]`` channels in them; stage 2 has two branches, stage 3 three, stage 4 four.
    """

    widths: tuple[int, int, int, int]
    """Channels of the branches at strides 4, 8, 16, 32."""
    modules: tuple[int, int, int] = (1, 4, 3)
    """Multi-resolution modules (each ends by an exchange between branches) in stages 2, 3, 4."""
    blocks: int = 4
    """Residual blocks of each branch in each module."""
    stem_channels: int = 64
    """Channels of the two stride-2 convolutions that begin the trunk."""
    bottleneck_channels: int = 64
    """Inner channels of the bottleneck blocks of stage 1; the outputs have four times as many."""
    bottleneck_blocks: int = 4
    """Bottleneck blocks of stage 1."""

    def __post_init__(self) -> None:
        for name, count in (("widths", 4), ("modules", 3)):
            values = getattr(self, name)
            if len(values) != count or any(v < 1 for v in values):
                raise ArgumentValueError(f"HRNetConfig.{name}: expected {count} positive integers, got {values!r}")
        for name in ("blocks", "stem_channels", "bottleneck_channels", "bottleneck_blocks"):
            if getattr(self, name) < 1:
                raise ArgumentValueError(
                    f"HRNetConfig.{name}: expected a positive integer, got {getattr(self, name)!r}"
                )

    @property
    def out_channels(self) -> int:
        """Channels of the features: the sum over the four branches."""
        return sum(self.widths)


W18 = HRNetConfig(widths=(18, 36, 72, 144))
W32 = HRNetConfig(widths=(32, 64, 128, 256))
W48 = HRNetConfig(widths=(48, 96, 192, 384))
# For CPUs and tests: the least depth with all four branches. Multiples of 8 fill vector registers.
SMALL = HRNetConfig(
    widths=(16, 32, 64, 96),
    modules=(1, 1, 1),
    blocks=2,
    stem_channels=24,
    bottleneck_channels=16,
    bottleneck_blocks=1,
)


class HRNet(nn.Module):
    """HRNetV2 trunk: images [B, 3, H, W] -> features [B, sum(widths), ceil(H / 4), ceil(W / 4)].

    The four branches are resized (bilinear, ``align_corners=False``) to stride 4 and concatenated, widest last. Heads
    that know :class:`hmsa_ext.models.joined_maps.JoinedMaps` take them as they are.
    Images are RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.

    Args:
        config: widths and depths.

    >>> import torch
    >>> HRNet(SMALL)(torch.zeros(1, 3, 65, 64)).shape
    torch.Size([1, 208, 17, 16])
    """

    stride = 4
    joins = True
    recomputes = "none"

    def __init__(self, config: HRNetConfig) -> None:
        super().__init__()
        self.out_channels = config.out_channels
        stem, widths = config.stem_channels, config.widths

        self.conv1 = conv3x3(3, stem, stride=2)
        self.bn1 = batch_norm(stem)
        self.conv2 = conv3x3(stem, stem, stride=2)
        self.bn2 = batch_norm(stem)
        self.relu = nn.ReLU(inplace=True)

        inner, channels = config.bottleneck_channels, stem
        self.layer1 = Layers()
        for _ in range(config.bottleneck_blocks):
            self.layer1.append(Bottleneck(channels, inner))
            channels = inner * BOTTLENECK_EXPANSION

        self.transition1 = _transition((channels,), widths[:2])
        self.stage2 = _stage(config.modules[0], config.blocks, widths[:2])
        self.transition2 = _transition(widths[:2], widths[:3])
        self.stage3 = _stage(config.modules[1], config.blocks, widths[:3])
        self.transition3 = _transition(widths[:3], widths[:4])
        self.stage4 = _stage(config.modules[2], config.blocks, widths[:4])

    def forward(self, images: Tensor, *, joined: bool = False) -> Features:
        """The features; with ``joined`` as :class:`JoinedMaps` of the four branches, which are not concatenated."""
        branches = self._first_branches(images)
        branches = self.stage2(branches)
        branches = _branch_out(self.transition2, branches)
        branches = self.stage3(branches)
        branches = _branch_out(self.transition3, branches)
        branches = self.stage4(branches)
        found = JoinedMaps(tuple(branches))
        return found if joined else found.tensor()

    def _first_branches(self, images: Tensor) -> list[Tensor]:
        """Stem, stage 1 and the first transition: the inputs of stage 2."""
        if not saves_memory(self):
            return self._rows_of_first_branches(images)
        # Stage 1 has the widest maps of all at stride 4. It is local, so it runs in strips where they would be large.
        height, halo = -(-images.shape[2] // 4), 2 * (len(self.layer1) // 2 + 2)
        channels = [m for m in self.layer1.modules() if isinstance(m, nn.Conv2d)][-1].out_channels
        bytes_per_row = images.shape[0] * channels * (images.shape[3] // 4) * images.element_size()
        first_layers = [self.conv1, self.bn1, self.conv2, self.bn2, *leaves(self.layer1), *leaves(self.transition1)]
        if bytes_per_row * height < LARGE_STAGE or not all(map(_is_narrow, first_layers)):
            return _Own(self._rows_of_first_branches(images))
        rows = max(LARGE_STAGE // 4 // bytes_per_row // 2 * 2, 4 * halo)
        made: list[Tensor] = []
        for first, last in strip_ranges(images[:, :, ::4], rows):
            a, b = max(first - halo, 0), min(last + halo, height)
            parts = self._rows_of_first_branches(images[:, :, 4 * a : 4 * b])
            # A new branch halves the first one.
            places = [(first, last), (first // 2, -(-last // 2))]
            shown = [part[:, :, c - a // s : d - a // s] for part, (c, d), s in zip(parts, places, (1, 2), strict=True)]
            if not made:
                sizes = [(-(-height // s), part.shape[3]) for part, s in zip(parts, (1, 2), strict=True)]
                made = [empty_map(part, images, size) for part, size in zip(parts, sizes, strict=True)]
            for whole, part, (c, d) in zip(made, shown, places, strict=True):
                whole[:, :, c:d] = part
        return _Own(made)

    def _rows_of_first_branches(self, images: Tensor) -> list[Tensor]:
        x = self.layer1(run_part(self, self._stem, images))
        return _branch_out(self.transition1, [x])

    def recompute_parts(self, mode: str) -> list[nn.Module]:
        """See :func:`hmsa_ext.models.recomputation.run_part`."""
        stages = [module for stage in (self.stage2, self.stage3, self.stage4) for module in stage]
        transitions = [layer for lists in (self.transition1, self.transition2, self.transition3) for layer in lists]
        # The blocks of the first stage have the widest maps between them.
        first = [self.layer1] if mode == "all" else list(self.layer1)
        return [*first, *(layer for layer in transitions if not isinstance(layer, nn.Identity)), *stages]

    def _stem(self, images: Tensor) -> Tensor:
        save = saves_memory(self)
        x = self.relu(conv_norm(images, self.conv1, self.bn1, save=save))
        return self.relu(conv_norm(x, self.conv2, self.bn2, save=save))


class ResolutionModule(nn.Module):
    """Residual blocks on each branch, then an exchange: every branch receives the sum of all, resized to its size.

    Takes and returns one tensor per branch. It keeps no state between calls, so backward can recompute it.
    """

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Layers(*(BasicBlock(w, w) for _ in range(blocks))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        is_own = isinstance(inputs, _Own)
        targets = range(len(inputs))
        if not is_own:
            sources = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
            save = saves_memory(self)
            return [self._sum(target, sources, save=save, may_overwrite=False) for target in targets]
        sources = [run_layers(branch.children(), inputs.pop(0), save=True, is_own=True) for branch in self.branches]
        # The finest map comes last: its sum lies where the source is, which the other targets have read by then.
        made = [self._sum(t, sources, save=True, may_overwrite=t == 0) for t in reversed(targets)]
        return _Own(made[::-1])

    def _sum(self, target: int, sources: list[Tensor], *, save: bool, may_overwrite: bool) -> Tensor:
        size = sources[target].shape[-2:]
        total: Tensor | None = None
        for source, layer in enumerate(self.fuse_layers[target].children()):
            term = layer(sources[source])
            if total is None:
                total = term
                continue
            # A source is written to only where no other target needs it.
            in_place = save and (may_overwrite or not any(total is s for s in sources))
            if source > target and in_place:
                total = add_resized(total, term)
            else:
                total = add(total, _resize(term, size) if source > target else term, save=in_place)
        return self.relu(total)


class _Own(list[Tensor]):
    """Maps in evaluation that nobody else holds: whoever gets the list may empty it, and overwrite the maps."""


def _is_narrow(layer: nn.Module) -> bool:
    """Whether a layer depends on the next row at most, as those of the first stage do."""
    if isinstance(layer, nn.Conv2d) and (max(layer.kernel_size) > 3 or max(layer.dilation) > 1):
        return False
    return is_local(layer)


def _stage(modules: int, blocks: int, widths: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(ResolutionModule(widths, blocks) for _ in range(modules)))


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Layers that bring the branches ``before`` to the widths ``after``; each new branch halves the last one.

    The extra ``nn.Sequential`` around a new branch is there for the published names (``transition1.1.0.0.weight``).
    """
    layers = nn.ModuleList()
    for index, width in enumerate(after):
        if index >= len(before):
            layers.append(nn.Sequential(_conv_bn_relu(before[-1], width, stride=2)))
        elif width != before[index]:
            layers.append(_conv_bn_relu(before[index], width))
        else:
            layers.append(nn.Identity())
    return layers


def _branch_out(transition: nn.ModuleList, branches: list[Tensor]) -> list[Tensor]:
    made = [layer(branches[min(index, len(branches) - 1)]) for index, layer in enumerate(transition)]
    return _Own(made) if isinstance(branches, _Own) else made


def _exchange(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Layers that bring branch ``source`` to the channels and stride of ``target``; forward does the upsampling."""
    if source == target:
        return nn.Identity()
    if source > target:
        return Layers(nn.Conv2d(widths[source], widths[target], 1, bias=False), batch_norm(widths[target]))
    steps = nn.Sequential()
    for _ in range(source, target - 1):
        steps.append(_conv_bn_relu(widths[source], widths[source], stride=2))
    steps.append(Layers(conv3x3(widths[source], widths[target], stride=2), batch_norm(widths[target])))
    return steps


def _conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> Layers:
    return Layers(conv3x3(in_channels, out_channels, stride), batch_norm(out_channels), nn.ReLU(inplace=True))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
