"""Fake and meta tensors are refused where real ones are, in the same words; and meta tensors among real ones."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import hmsa_ext

from .problems import make_problem
from .test_fuse_scales_cross_entropy_errors import BAD_OPTIONS
from .test_fuse_scales_cross_entropy_errors import arguments as of_cross_entropy
from .test_fuse_scales_errors import BAD_INPUT, bad
from .test_sample_crop import BAD_INPUT as BAD_CROPS
from .test_sample_crop import Crops

op = torch.ops.hmsa
SIZE = (16, 24)
# Errors about values, which fake tensors do not have.
OF_VALUES = ("image index", "empty box", "far box", "contrast", "brightness", "hue", "blur", "blur sign")


def faked(arguments):
    """A mode, and the arguments as its fake tensors."""
    mode = FakeTensorMode()
    return mode, tree_map_only(torch.Tensor, lambda tensor: mode.from_tensor(tensor.detach()), arguments)


def on_meta(arguments):
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("meta"), arguments)


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_chains_are_named(case):
    change, message = BAD_INPUT[case]
    mode, fakes = faked(bad(change))
    with mode, pytest.raises(RuntimeError, match=f"^fuse_scales: {message}"):
        op.fuse_scales(**fakes)
    with pytest.raises(RuntimeError, match=f"^fuse_scales_argmax: {message}"):
        op.fuse_scales_argmax(**on_meta(bad(change)))


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_labels_and_options_are_named(case):
    changes, message = BAD_OPTIONS[case]
    if case == "weights with a gradient":
        pytest.skip("fake tensors are made detached here")
    mode, fakes = faked(of_cross_entropy(**changes))
    with mode, pytest.raises(RuntimeError, match=f"^fuse_scales_cross_entropy: {message}"):
        op.fuse_scales_cross_entropy(**fakes)


@pytest.mark.parametrize("case", [case for case in BAD_CROPS if case not in OF_VALUES and "gradient" not in case])
def test_bad_crops_are_named(case):
    change, message = BAD_CROPS[case]
    crops = Crops(0, "cpu", count=2, sizes=((12, 16),)).plain()
    crops.boxes = torch.tensor([[0, 2, 3, 8, 9], [1, 2, 3, 8, 9]])
    arguments = crops.keywords()
    change(arguments)
    mode, fakes = faked(arguments)
    with mode, pytest.raises(RuntimeError, match=message):
        op.sample_crop(**fakes)


def labels(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def chain() -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
    problem = make_problem([1.0, 0.5], SIZE)
    return [t.detach() for t in problem.logits], [t.detach() for t in problem.attention], problem.scales


def draw(centroids=None, **changes):
    tables = (torch.tensor([[0, 0, 1, 1]]) if centroids is None else centroids), torch.tensor([1, 1])
    numbers = {"scale": (1.0, 1.0), "uniform_images": 1, "seed": 0, "epoch": 0, "first": 0, "count": 1} | changes
    crop = numbers.pop("crop", (4, 4))
    return lambda: op.draw_class_uniform_boxes, (*tables, torch.tensor([[8, 8]]), crop), numbers


# The op, its positional arguments, the others.
REFUSED = {
    "views": (lambda: op.fuse_scales_argmax, (*chain(), SIZE), {"views": 3}),
    "no views": (lambda: op.fuse_scales_argmax, (*chain(), SIZE), {"views": 0}),
    "odd batch": (lambda: op.fuse_scales_argmax, ([chain()[0][0][:1]], [], [1.0], SIZE), {"views": 2}),
    "tile": (lambda: op.class_tile_centroids, (labels(1, 8, 8), 0, 3), {}),
    "classes": (lambda: op.class_tile_centroids, (labels(1, 8, 8), 4, 257), {}),
    "labels": (lambda: op.class_tile_centroids, (labels(1, 8, 8, dtype=torch.int64), 4, 3), {}),
    "plane": (lambda: op.class_tile_centroids, (labels(8, 8), 4, 3), {}),
    "matrix of none": (lambda: op.confusion_matrix, (labels(1, 8, 8), labels(1, 8, 8), 0), {}),
    "shapes of labels": (lambda: op.confusion_matrix, (labels(1, 8, 8), labels(1, 8, 9), 3), {}),
    "float prediction": (lambda: op.confusion_matrix, (labels(1, 8, 8).float(), labels(1, 8, 8), 3), {}),
    "small images": (lambda: op._fuse_scales_rmi, (chain()[0][:1], [], [1.0], labels(2, 7, 8), 255, True, False), {}),
    "columns": draw(torch.tensor([[0, 0, 1]])),
    "dtype of a table": draw(torch.tensor([[0, 0, 1, 1]]).int()),
    "scale": draw(scale=(2.0, 1.0)),
    "images": draw(uniform_images=2),
    "seed": draw(seed=-1),
    "crop": draw(crop=(0, 4)),
    "sides of the crop": draw(crop=(4, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_real_tensors_are_refused_for_fake_ones_are_too(case):
    get, arguments, options = REFUSED[case]
    with pytest.raises(RuntimeError) as real:
        get()(*arguments, **options)
    mode, fakes = faked(arguments)
    with mode, pytest.raises(RuntimeError) as fake:
        get()(*fakes, **options)
    assert str(fake.value) == str(real.value)
    with pytest.raises(RuntimeError) as meta:
        get()(*on_meta(arguments), **options)
    assert str(meta.value) == str(real.value)


def meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("meta")


def test_a_meta_tensor_among_others_is_an_error():
    logits, attention, scales = chain()
    target = labels(2, *SIZE)
    for mixed in ([logits[0], meta(logits[1])], [meta(logits[0]), logits[1]]):
        with pytest.raises(RuntimeError, match=r"logits\[1\] is on .*, but logits\[0\] is on .*; expected one device"):
            hmsa_ext.fuse_scales(mixed, attention, scales, SIZE)
    with pytest.raises(RuntimeError, match=r"attention\[0\] is on meta, but logits\[0\] is on cpu"):
        hmsa_ext.fuse_scales_argmax(logits, [meta(attention[0])], scales, SIZE)
    with pytest.raises(
        RuntimeError, match=r"target is on meta, but the logits are on cpu; expected one device for all"
    ):
        hmsa_ext.fuse_scales_cross_entropy(logits, attention, scales, meta(target))
    with pytest.raises(RuntimeError, match=r"weight is float32 on meta .*; expected contiguous float32 on cpu"):
        hmsa_ext.fuse_scales_cross_entropy(logits, attention, scales, target, weight=meta(torch.ones(5)))
    with pytest.raises(RuntimeError, match="prediction is on meta, target on cpu; expected one device"):
        hmsa_ext.confusion_matrix(meta(target), target, 5)
    crops = Crops(0, "cpu")
    crops.boxes = meta(crops.boxes)
    with pytest.raises(RuntimeError, match="boxes is on meta; expected a CPU tensor wherever the images are"):
        hmsa_ext.sample_crop(*crops.arguments())


def test_meta_tensors_alone_give_shapes_and_dtypes():
    logits, attention, scales = chain()
    logits, attention = ([meta(t) for t in tensors] for tensors in (logits, attention))
    fused = hmsa_ext.fuse_scales(logits, attention, scales, SIZE)
    assert (fused.shape, fused.dtype, fused.device.type) == ((2, 5, *SIZE), torch.float32, "meta")
