"""Height and width may be symbolic: exported programs and compiled functions hold for sizes that they never saw."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export
from torch.utils._pytree import tree_leaves

import hmsa_ext
from hmsa_ext import ops
from hmsa_ext.ops import reference

SCALES = [1.0, 0.5]
OTHER_SIZES = [(40, 56), (37, 91)]
FUNCTIONS: dict[str, Callable] = {
    "fuse_scales": lambda z, a, size: hmsa_ext.fuse_scales(z, a, SCALES, size),
    "fuse_scales_argmax": lambda z, a, size: hmsa_ext.fuse_scales_argmax(z, a, SCALES, size),
    "upsample_argmax": lambda z, a, size: hmsa_ext.upsample_argmax(z[0], size),
}


class Network(nn.Module):
    """Two scales, heads at stride 4, and ``end`` on them at the size of the images."""

    def __init__(self, end: Callable):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.attention, self.end = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(3, 1, 3, 4, 1), end

    def forward(self, images: Tensor):
        half = nn.functional.avg_pool2d(images, 2)
        return self.end([self.head(images), self.head(half)], [self.attention(half).sigmoid()], images.shape[2:])


def check_at_other_sizes(function: Callable, eager: Callable) -> None:
    for size in OTHER_SIZES:
        images = torch.randn(1, 3, *size)
        for got, want in zip(tree_leaves(function(images)), tree_leaves(eager(images)), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("name", "strict"), [*((name, False) for name in FUNCTIONS), ("fuse_scales", True), ("fuse_scales_argmax", True)]
)
def test_exported_programs_run_at_other_sizes(name, strict):
    network = Network(FUNCTIONS[name]).eval()
    sides = {2: Dim("height", min=16, max=4096), 3: Dim("width", min=16, max=4096)}
    program = export(network, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,), strict=strict)
    check_at_other_sizes(program.module(), network)


def test_sizes_that_are_found_to_be_dynamic_stay_so():
    network = Network(FUNCTIONS["fuse_scales"]).eval()
    sides = {2: Dim.AUTO, 3: Dim.AUTO}
    program = export(network, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,))
    check_at_other_sizes(program.module(), network)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_functions_are_compiled_at_most_twice(name):
    network, counter = Network(FUNCTIONS[name]).eval(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, dynamic=True, fullgraph=True, backend=counter)
    compiled(torch.randn(1, 3, 64, 96))
    check_at_other_sizes(compiled, network)
    assert counter.frame_count <= 2


def test_the_reference_is_exported_too():
    """Where another runtime has no op of ours, a model is exported with plain PyTorch."""
    network = Network(lambda z, a, size: reference.fuse_scales(z, a, SCALES, size)).eval()
    sides = {2: Dim.AUTO, 3: Dim.AUTO}
    program = export(network, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,))
    check_at_other_sizes(program.module(), network)


def test_compiled_losses_hold_for_other_sizes():
    def loss(z: Tensor, target: Tensor) -> Tensor:
        total, weight = ops.cross_entropy_sum([z], [], [1.0], target, label_smoothing=0.1)
        return hmsa_ext.fuse_scales_cross_entropy([z], [], [1.0], target, weight=z.new_ones(4)) + total / weight

    compiled = torch.compile(loss, dynamic=True, fullgraph=True, backend="aot_eager")
    for height, width in ((64, 96), *OTHER_SIZES):
        z, target = torch.randn(1, 4, height // 4, width // 4), torch.randint(0, 4, (1, height, width))
        torch.testing.assert_close(compiled(z, target), loss(z, target))
