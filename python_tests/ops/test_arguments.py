"""Arguments of the public functions that are not even tensors, integers or choices: errors say what was expected."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

import hmsa_ext
from hmsa_ext import losses, ops
from hmsa_ext.errors import HmsaError
from hmsa_ext.ops import arguments
from hmsa_ext.ops.arguments import ArgumentTypeError, ArgumentValueError

Z, A, SIZE = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4), (16, 16)
TARGET = torch.zeros(1, *SIZE, dtype=torch.uint8)
CROP = (
    [torch.zeros(8, 8, 3, dtype=torch.uint8)], [torch.zeros(8, 8, dtype=torch.uint8)], torch.tensor([[0, 0, 0, 2, 2]]),
    torch.tensor([False]), torch.tensor([[1.0, 1.0, 1.0, 0.0]]),
)  # fmt: skip
COLOURS = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
# The modules without their types, for the calls that a type checker refuses as well.
untyped, untyped_ops, untyped_losses = (cast(Any, module) for module in (hmsa_ext, ops, losses))
ON_CHAINS: dict[str, Callable] = {
    "fuse_scales": lambda logits, attention, scales: hmsa_ext.fuse_scales(logits, attention, scales, SIZE),
    "fuse_scales_argmax": lambda logits, attention, scales: hmsa_ext.fuse_scales_argmax(
        logits, attention, scales, SIZE
    ),
    "fuse_scales_cross_entropy": lambda logits, attention, scales: hmsa_ext.fuse_scales_cross_entropy(
        logits, attention, scales, TARGET
    ),
    "fuse_scales_rmi": lambda logits, attention, scales: ops.fuse_scales_rmi(logits, attention, scales, TARGET),
}
# Chains that are none, the error, and its words.
BAD_CHAINS = {
    "None": (([None], [], [1.0]), TypeError, r"logits\[0\] is None; expected a tensor \[B, C, h, w\]"),
    "array": (([Z.numpy()], [], [1.0]), TypeError, r"logits\[0\] is a ndarray; expected a tensor \[B, C, h, w\]"),
    "no list": ((Z, [], [1.0]), TypeError, r"logits is a Tensor; expected a list of tensors \[B, C, h, w\]"),
    "number": ((5, [], [1.0]), TypeError, r"logits is a int; expected a list of tensors"),
    "attention": (([Z, Z], [None], [1.0, 0.5]), TypeError, r"attention\[0\] is None; expected a tensor \[B, 1 or C"),
    "no scales": (([Z], [], None), TypeError, r"scales is None; expected a list of numbers"),
    "words": (([Z], [], ["one"]), TypeError, r"scales is \['one'\]; expected a list of numbers"),
    "empty": (([], [], []), ValueError, r"logits has 0 entries; expected one for each of scales"),
    "no logits": (([], [], [1.0]), ValueError, r"logits has 0 entries; expected one for each of scales, \[1.0\]"),
    "complex": (([Z.to(torch.complex64)], [], [1.0]), RuntimeError, r"logits\[0\] is complex64; expected float32, fl"),
    "float8": (([Z.to(torch.float8_e4m3fn)], [], [1.0]), RuntimeError, r"logits\[0\] is float8_e4m3fn; expected fl"),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_CHAINS)
@pytest.mark.parametrize("case", BAD_CHAINS)
def test_chains_that_are_none_are_named(name, case):
    chain, error, words = BAD_CHAINS[case]
    with pytest.raises(error, match=f"^{name}: {words}") as caught:
        ON_CHAINS[name](*chain)
    assert error is RuntimeError or isinstance(caught.value, HmsaError)


CALLS = {
    "array for one map": (lambda: untyped.upsample_argmax(np.zeros((1, 3, 4, 4)), SIZE), TypeError,
        r"^upsample_argmax: logits is a ndarray; expected a tensor \[B, C, h, w\]"),
    "list for one map": (lambda: untyped.upsample_cross_entropy([Z], TARGET), TypeError,
        r"^upsample_cross_entropy: logits is a list; expected a tensor \[B, C, h, w\]"),
    "one side": (lambda: untyped.upsample_argmax(Z, 64), TypeError,
        r"^upsample_argmax: size is 64; expected two integers, \(height, width\)"),
    "half a pixel": (lambda: untyped.fuse_scales([Z], [], [1.0], (1.5, 2)), TypeError,
        r"^fuse_scales: size is \(1.5, 2\); expected two integers, \(height, width\)"),
    "whole float": (lambda: untyped.fuse_scales_argmax([Z], [], [1.0], (16.0, 16)), TypeError,
        r"^fuse_scales_argmax: size is \(16.0, 16\); expected two integers"),
    "crop of half a pixel": (lambda: untyped.sample_crop(*CROP, (2.5, 2), *COLOURS), TypeError,
        r"^sample_crop: size is \(2.5, 2\); expected two integers"),
    "boxes of half a pixel": (lambda: untyped_ops.draw_class_uniform_boxes(
        torch.tensor([[0, 0, 1, 1]]), torch.tensor([1, 1]), torch.tensor([[8, 8]]), (2.5, 2), scale=(1.0, 1.0),
        uniform_images=1, seed=0, epoch=0, first=0, count=1), TypeError,
        r"^draw_class_uniform_boxes: crop is \(2.5, 2\); expected two integers"),
    "no target": (lambda: untyped.fuse_scales_cross_entropy([Z], [], [1.0], None), TypeError,
        r"^fuse_scales_cross_entropy: target is None; expected a tensor \[B, H, W\]"),
    "weight of numbers": (lambda: untyped.upsample_cross_entropy(Z, TARGET, weight=[1.0, 1.0, 1.0]), TypeError,
        r"^fuse_scales_cross_entropy: weight is a list; expected a tensor \[C\]"),
    "unknown option": (lambda: untyped_losses.cross_entropy([Z], [], [1.0], TARGET, smoothing=0.1), TypeError,
        r"got 'smoothing'; expected options among weight, ignore_index, label_smoothing, align_corners"),
    "odd labels": (lambda: untyped.upsample_cross_entropy(Z, TARGET.to(torch.uint16)), RuntimeError,
        r"target is uint16; expected uint8, int16, int32 or int64"),
    "no prediction": (lambda: untyped.confusion_matrix(None, TARGET, 3), TypeError,
        r"^confusion_matrix: prediction is None; expected a tensor"),
    "labels of numpy": (lambda: untyped_ops.class_tile_centroids(TARGET.numpy(), 4, 3), TypeError,
        r"^class_tile_centroids: labels is a ndarray; expected a tensor \[B, H, W\]"),
    "no boxes": (lambda: untyped.sample_crop(*CROP[:2], None, *CROP[3:], (2, 2), *COLOURS), TypeError,
        r"^sample_crop: boxes is a NoneType; expected a tensor"),
    "no images": (lambda: untyped.sample_crop([None], *CROP[1:], (2, 2), *COLOURS), TypeError,
        r"^sample_crop: images\[0\] is None; expected a tensor \[H, W, 3\]"),
    "colours": (lambda: untyped.sample_crop(*CROP, (2, 2), None, COLOURS[1]), TypeError,
        r"^sample_crop: mean is None; expected a list of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_what_does_not_fit_is_named(case):
    call, error, words = CALLS[case]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("size", [np.array([16, 24]), torch.tensor([16, 24]), torch.Size([16, 24])], ids=type)
def test_integers_of_numpy_and_torch_are_sizes(size):
    assert hmsa_ext.upsample_argmax(Z, size)[0].shape == (1, 16, 24)


# ---- ignore_index -----------------------------------------------------------------------------------------------

MANY = torch.randn(1, 300, 4, 4)
LOSSES: dict[str, Callable] = {
    "fuse_scales_cross_entropy": lambda **o: hmsa_ext.fuse_scales_cross_entropy([MANY], [], [1.0], TARGET, **o),
    "upsample_cross_entropy": lambda **o: hmsa_ext.upsample_cross_entropy(MANY, TARGET, **o),
    "cross_entropy": lambda **o: losses.cross_entropy([MANY], [], [1.0], TARGET, **o),
    "bootstrapped": lambda **o: losses.bootstrapped_cross_entropy([MANY], [], [1.0], TARGET, **o),
    "rmi": lambda **o: losses.rmi_loss([MANY], [], [1.0], TARGET, **o),
    "rmi_bce": lambda **o: losses.rmi_bce_loss([MANY], [], [1.0], TARGET, **o),
    "confusion_matrix": lambda **o: hmsa_ext.confusion_matrix(TARGET, TARGET, 300, **o)[0].sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_default_that_would_ignore_a_class_is_an_error(name):
    with pytest.raises(ValueError, match=r"ignore_index was not given, and its default 255 is one of the 300 classes"):
        LOSSES[name]()
    for choice in (255, -100):
        assert LOSSES[name](ignore_index=choice).isfinite()


def test_256_classes_need_a_choice_and_255_do_not():
    labels = torch.full((1, 4, 4), 255)
    assert hmsa_ext.confusion_matrix(labels, labels, 255)[1].item() == 0
    with pytest.raises(ArgumentValueError, match="one of the 256 classes"):
        hmsa_ext.confusion_matrix(labels, labels, 256)
    assert hmsa_ext.confusion_matrix(labels, labels, 256, ignore_index=255)[0].sum() == 0


@pytest.mark.parametrize("dtype", arguments.INTEGER)
def test_labels_are_compared_as_integers_without_end(dtype):
    labels = torch.tensor([0, 156, 255, -100, 256]).to(dtype)
    for ignore_index in (0, 255, 256, -100, 156, 2**40):
        assert torch.equal(arguments.is_valid(labels, ignore_index), labels.long() != ignore_index)


@pytest.mark.parametrize("ignore_index", [-100, 256])
def test_no_uint8_label_is_ignored_by_a_number_it_cannot_be(ignore_index):
    """-100 is 156, and 256 is 0, once it is made an uint8."""
    z = torch.randn(2, 160, 4, 4, dtype=torch.float64)
    target = torch.tensor([0, 156]).repeat(2, 8, 4).byte()
    options, wide = {"ignore_index": ignore_index}, target.long()
    got = losses.bootstrapped_cross_entropy([z], [], [1.0], target, share=1.0, **options)
    torch.testing.assert_close(got, losses.cross_entropy([z], [], [1.0], wide, **options))

    def mean(z, target):
        return hmsa_ext.upsample_cross_entropy(z[None], target[None], **options)

    torch.testing.assert_close(
        torch.vmap(mean)(z, target), torch.stack([mean(*item) for item in zip(z, wide, strict=True)])
    )
    plain = ops.fuse_scales_rmi.__globals__["_plain"]([z], [], [1.0], target, ignore_index, True, False)
    for ours, theirs in zip(plain, ops.fuse_scales_rmi([z], [], [1.0], wide, **options), strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- documentation ----------------------------------------------------------------------------------------------

PUBLIC = [getattr(ops, name) for name in ops.__all__] + [
    getattr(losses, name) for name in ("cross_entropy", "bootstrapped_cross_entropy", "rmi_loss", "rmi_bce_loss")
]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_help_is_complete(function):
    documentation = inspect.getdoc(function)
    assert documentation
    for name in arguments._SHARED:
        assert f"{{{name}}}" not in documentation
    parameters = inspect.signature(function).parameters
    assert "options" not in parameters
    if "Args:" in documentation:
        for name in parameters:
            assert any(name in line.split(":")[0] for line in documentation.splitlines()), name
    assert max(map(len, documentation.splitlines())) <= 120


def test_unknown_options_are_of_the_type_of_python():
    with pytest.raises(ArgumentTypeError, match=r"^fuse_scales_rmi: got 'weight'; expected options among ignore_index"):
        untyped_losses.rmi_loss([Z], [], [1.0], TARGET, weight=torch.ones(3))
