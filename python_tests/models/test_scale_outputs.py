"""Combining the outputs of several scales."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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
        (outputs.mean_argmax(), exact.mean(), 4e-2 if rounded else 1e-6),
        *((outputs.single_scale_argmax(i), exact.single_scale(i), 1e-6) for i in range(len(scales))),
    ]
    for (labels, confidence), logits, tolerance in pairs:
        check_prediction(labels, confidence, logits, tolerance)


def test_labels_of_two_views_are_those_of_the_mean_of_both():
    outputs = make()
    straight, mirrored = outputs.fuse().double().chunk(2)
    check_prediction(*outputs.argmax(views=2), (straight + mirrored.flip(-1)) / 2, 1e-6)
    straight, mirrored = outputs.mean().double().chunk(2)
    check_prediction(*outputs.mean_argmax(views=2), (straight + mirrored.flip(-1)) / 2, 1e-6)


def test_attention_map_belongs_to_the_next_smaller_scale():
    outputs = make()
    torch.testing.assert_close(outputs.attention_map(0), up(outputs.attention[0], 20, 28))
    torch.testing.assert_close(outputs.attention_map(1), up(up(outputs.attention[1], 10, 14), 20, 28))
    with pytest.raises(IndexError, match="3 scales have 2 attention maps"):
        outputs.attention_map(2)


def test_no_aux_is_told():
    with pytest.raises(ValueError, match="no auxiliary logits"):
        make(aux=False).fuse_aux()


def test_lists_of_wrong_length_are_named():
    z = [torch.zeros(1, 2, 4, 4)] * 2
    with pytest.raises(ValueError, match="2 scales need 2 logits and 1 attention maps, got 2 and 2"):
        ScaleOutputs(z, z, None, (1.0, 0.5), (16, 16))
    with pytest.raises(ValueError, match="2 scales need 2 aux logits or None, got 1"):
        ScaleOutputs(z, z[:1], z[:1], (1.0, 0.5), (16, 16))
