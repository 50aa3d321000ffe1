"""Combining the outputs of several scales, and taking them apart as a tree."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, export
from torch.utils import _pytree as pytree

from hmsa_ext.models import ScaleOutputs
from python_tests.ops.agreement import check_prediction


def make(scales: tuple[float, ...] = (2.0, 1.0, 0.5), *, aux: bool = True) -> ScaleOutputs:
    torch.manual_seed(0)
    heads = [(-(-int(20 * s) // 4), -(-int(28 * s) // 4)) for s in scales]
    logits = [torch.randn(2, 3, *head) for head in heads]
    attention = [torch.rand(2, 1, *head) for head in heads[1:]]
    return ScaleOutputs(logits, attention, [z + 1 for z in logits] if aux else None, scales, (20, 28))


def up(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def test_fuse_is_the_published_chain():
    outputs = make()
    z2, z1, z05 = outputs.logits
    a1, a05 = outputs.attention
    fused = up(z2, 40, 56)
    fused = up(a1, 20, 28) * up(z1, 20, 28) + (1 - up(a1, 20, 28)) * up(fused, 20, 28)
    low, weight = up(z05, 10, 14), up(a05, 10, 14)
    fused = up(weight * low, 20, 28) + (1 - up(weight, 20, 28)) * fused
    torch.testing.assert_close(outputs.fuse(), fused)
    torch.testing.assert_close(outputs.fuse_aux(), fused + 1)  # the weights sum to one


def test_single_scales_pass_through_their_own_grid():
    outputs = make()
    for index, (height, width) in enumerate([(40, 56), (20, 28), (10, 14)]):
        expected = up(up(outputs.logits[index], height, width), 20, 28)
        torch.testing.assert_close(outputs.single_scale(index), expected)


def test_mean_is_that_of_the_single_scales():
    outputs = make()
    expected = sum(outputs.single_scale(index) for index in range(3)) / 3
    torch.testing.assert_close(outputs.mean(), expected)


# Two scales above 1.0 reach the image on different ways in a chain and alone: the mean must not be made by a chain.
@pytest.mark.parametrize(
    "scales", [(1.0,), (0.5,), (1.0, 0.5), (2.0, 1.0, 0.5), (1.0, 0.5, 0.25), (2.0, 1.5, 1.0, 0.5)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_labels_are_those_of_the_logits(scales, dtype):
    outputs = make(scales)
    outputs.logits, outputs.attention = ([t.to(dtype) for t in x] for x in (outputs.logits, outputs.attention))
    exact = make(scales)
    exact.logits, exact.attention = ([t.double() for t in x] for x in (outputs.logits, outputs.attention))
    # With two scales above 1.0 the mean is made in the outputs' own dtype.
    rounded = dtype == torch.bfloat16 and sum(s > 1 for s in scales) > 1
    pairs = [
        (outputs.argmax(), exact.fuse(), 1e-6),
        (outputs.argmax("mean"), exact.mean(), 4e-2 if rounded else 1e-6),
        *((outputs.single_scale_argmax(i), exact.single_scale(i), 1e-6) for i in range(len(scales))),
    ]
    for (labels, confidence), logits, tolerance in pairs:
        check_prediction(labels, confidence, logits, tolerance)
    alone = [
        outputs.argmax(confidence=False),
        outputs.argmax("mean", confidence=False),
        *(outputs.single_scale_argmax(i, confidence=False) for i in range(len(scales))),
    ]
    for labels, ((expected, _), _, _) in zip(alone, pairs, strict=True):
        assert torch.equal(labels, expected)


def test_labels_of_two_views_are_those_of_the_mean_of_both():
    outputs = make()
    straight, mirrored = outputs.fuse().double().chunk(2)
    check_prediction(*outputs.argmax(views=2), (straight + mirrored.flip(-1)) / 2, 1e-6)
    straight, mirrored = outputs.mean().double().chunk(2)
    check_prediction(*outputs.argmax("mean", views=2), (straight + mirrored.flip(-1)) / 2, 1e-6)
    assert torch.equal(outputs.argmax(views=2, confidence=False), outputs.argmax(views=2)[0])
    assert torch.equal(
        outputs.single_scale_argmax(1, views=2, confidence=False), outputs.single_scale_argmax(1, views=2)[0]
    )


def test_attention_map_belongs_to_the_next_smaller_scale():
    outputs = make()
    torch.testing.assert_close(outputs.attention_map(0), up(outputs.attention[0], 20, 28))
    torch.testing.assert_close(outputs.attention_map(1), up(up(outputs.attention[1], 10, 14), 20, 28))
    with pytest.raises(IndexError, match="3 scales have 2 attention maps"):
        outputs.attention_map(2)


def test_no_aux_is_told():
    with pytest.raises(ValueError, match="no auxiliary logits"):
        make(aux=False).fuse_aux()


def _stacked(maps):
    return torch.stack(list(maps))


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (_stacked, r"\[3, 2, 3, 20, 28\]"),
        (lambda maps: next(maps)[:, :2], r"\[2, 2, 20, 28\]"),
        (lambda maps: None, "NoneType"),
    ],
)
def test_a_fusion_of_wrong_shape_is_named(wrong, got):
    made = make()
    outputs = ScaleOutputs(made.logits, [], None, made.scales, made.size, wrong)
    with pytest.raises(ValueError, match=rf"^fusion .*: expected combined logits \[2, 3, 20, 28\] in .*, got .*{got}$"):
        outputs.argmax()


def test_lists_of_wrong_length_are_named():
    z = [torch.zeros(1, 2, 4, 4)] * 2
    with pytest.raises(ValueError, match="2 scales combined by attention need 2 logits and 1"):
        ScaleOutputs(z, z, None, (1.0, 0.5), (16, 16))
    with pytest.raises(ValueError, match="2 scales need 2 aux logits or None, got 1"):
        ScaleOutputs(z, z[:1], z[:1], (1.0, 0.5), (16, 16))


# ---- pytree -----------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """A network whose outputs are those of two scales; ``unused`` never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.attention = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(3, 1, 3, 4, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> ScaleOutputs:
        half = F.avg_pool2d(images, 2)
        logits, attention = [self.head(images), self.head(half)], [self.attention(half).sigmoid()]
        return ScaleOutputs(logits, attention, None, (1.0, 0.5), (images.shape[2], images.shape[3]))


@pytest.mark.parametrize("aux", [False, True])
def test_a_tree_of_the_parts_makes_the_same_outputs(aux):
    outputs = make(aux=aux)
    leaves, spec = pytree.tree_flatten(outputs)
    assert sum(isinstance(leaf, Tensor) for leaf in leaves) == (8 if aux else 5)
    again = pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(spec)))
    assert (again.scales, again.size) == (outputs.scales, outputs.size)
    assert torch.equal(again.fuse(), outputs.fuse())
    doubled = pytree.tree_map_only(Tensor, lambda tensor: 2 * tensor, outputs)
    assert torch.equal(doubled.logits[2], 2 * outputs.logits[2])
    assert (doubled.aux is None) == (not aux)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(outputs)[0]]
    assert paths[:4] == [".logits[0]", ".logits[1]", ".logits[2]", ".attention[0]"]


def test_exported_models_return_outputs_of_other_sizes():
    model = Head().eval()
    sides = {2: Dim("height", min=16, max=4096), 3: Dim("width", min=16, max=4096)}
    program = export(model, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for exported in (program, torch.export.load(file)):
        images = torch.randn(1, 3, 40, 56)
        got, want = exported.module()(images), model(images)
        assert isinstance(got, ScaleOutputs)
        assert (got.size, tuple(got.scales), got.aux) == ((40, 56), (1.0, 0.5), None)
        assert torch.equal(got.fuse(), want.fuse())


@pytest.mark.parametrize("end", ["fuse", "argmax"])
def test_combinations_are_exported_for_other_sizes(end):
    class Combined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Head()

        def forward(self, images: Tensor):
            return getattr(self.network(images), end)()

    model = Combined().eval()
    sides = {2: Dim.AUTO, 3: Dim.AUTO}
    program = export(model, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,))
    images = torch.randn(1, 3, 37, 91)
    for got, want in zip(pytree.tree_leaves(program.module()(images)), pytree.tree_leaves(model(images)), strict=True):
        assert torch.equal(got, want)


def test_distributed_training_finds_unused_parameters(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        alone, model = Head(), Head()
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        for step in range(3):
            images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(step))
            for network in (alone, wrapped):
                outputs = network(images)
                assert isinstance(outputs, ScaleOutputs)
                network.zero_grad()
                outputs.fuse().square().mean().backward()
            for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
                assert (ours.grad is None) == (theirs.grad is None)
                if ours.grad is not None:
                    torch.testing.assert_close(ours.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_scales_that_do_not_descend_are_refused() -> None:
    logits = [torch.randn(1, 3, side, side) for side in (4, 8)]
    with pytest.raises(ValueError, match=r"ScaleOutputs: expected scales that descend, \(1.0, 0.5\), got \(0.5, 1.0\)"):
        ScaleOutputs(logits, [], None, (0.5, 1.0), (32, 32), "max")
    with pytest.raises(ValueError, match=r"1.0 must be among several scales"):
        ScaleOutputs(logits, [], None, (2.0, 0.5), (32, 32), "max")


def test_a_combination_of_none_is_not_the_mean() -> None:
    outputs = ScaleOutputs(
        [torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)],
        [],
        None,
        (1.0, 0.5),
        (8, 8),
        None,  # type: ignore[arg-type]
    )
    with pytest.raises(ValueError, match="combination: got None, expected one of attention, mean, max"):
        outputs.fuse()
