"""Bad input of fuse_scales: each error names the argument, what came and what was expected."""

from __future__ import annotations

import math

import pytest
import torch

import hmsa_ext

from .problems import make_problem

op = torch.ops.hmsa.fuse_scales
backward_op = torch.ops.hmsa._fuse_scales_backward


def bad(change):
    """The arguments of a sound problem, changed."""
    problem = make_problem([2.0, 1.0, 0.5], (16, 24))
    arguments = {
        "logits": [t.detach() for t in problem.logits],
        "attention": [t.detach() for t in problem.attention],
        "scales": problem.scales,
        "size": [16, 24],
    }
    change(arguments)
    return arguments


def set_item(name, index, value):
    def change(arguments):
        old = arguments[name][index]
        arguments[name][index] = value(old) if callable(value) else value

    return change


def set_whole(name, value):
    def change(arguments):
        arguments[name] = value(arguments[name]) if callable(value) else value

    return change


BAD_INPUT = {
    "no scales": (set_whole("scales", []), r"scales has 0 entries; expected 1 to 8"),
    "too many scales": (set_whole("scales", [9.0 - i for i in range(9)]), r"scales has 9 entries; expected 1 to 8"),
    "logits missing": (set_whole("logits", lambda x: x[:2]), r"logits has 2 entries; expected 3, one for each"),
    "attention missing": (set_whole("attention", lambda x: x[:1]), r"attention has 1 entries; expected 2, one for"),
    "ascending": (set_whole("scales", [0.5, 1.0, 2.0]), r"scales\[1\] is 1 after 0.5; expected strictly descending"),
    "no unit": (set_whole("scales", [2.0, 1.5, 0.5]), r"scales has 3 entries without 1.0; expected 1.0 among them"),
    "negative": (set_whole("scales", [2.0, 1.0, -0.5]), r"scales\[2\] is -0.5; expected a positive number"),
    "nan": (set_whole("scales", [2.0, 1.0, math.nan]), r"scales\[2\] is nan; expected a positive number"),
    "inf": (set_whole("scales", [math.inf, 1.0, 0.5]), r"scales\[0\] is inf; expected a positive number"),
    "equal scales": (set_whole("scales", [1.0, 1.0, 0.5]), r"scales\[1\] is 1 after 1; expected strictly descending"),
    "huge grid": (
        set_whole("scales", [1e6, 1.0, 0.5]),
        r"scales\[0\] is 1e\+06, which gives a grid of 1.6e\+07 x 2.4e\+07 for size \(16, 24\); expected 1 to",
    ),
    "empty grid": (
        set_whole("scales", [2.0, 1.0, 0.01]),
        r"scales\[2\] is 0.01, which gives a grid of 0 x 0 for size \(16, 24\); expected 1 to",
    ),
    "one side": (set_whole("size", [16]), r"size has 1 entries; expected \(height, width\)"),
    "three sides": (set_whole("size", [16, 24, 3]), r"size has 3 entries; expected \(height, width\)"),
    "negative size": (set_whole("size", [16, -1]), r"size is \(16, -1\); expected 1 to \d+ in height and width"),
    "size of zero": (set_whole("size", [0, 24]), r"size is \(0, 24\); expected 1 to \d+ in height and width"),
    "huge size": (set_whole("size", [1 << 30, 24]), r"size is \(1073741824, 24\); expected 1 to"),
    "integers": (set_item("logits", 0, torch.Tensor.long), r"logits\[0\] is int64; expected float32, float16"),
    "dtypes": (set_item("logits", 1, torch.Tensor.half), r"logits\[1\] is float16, but logits\[0\] is float32"),
    "attention dtype": (set_item("attention", 0, torch.Tensor.double), r"attention\[0\] is float64, but logits\[0\]"),
    "dimensions": (set_item("logits", 2, lambda x: x[0]), r"logits\[2\] has shape \[5, 2, 3\]; expected four dim"),
    "attention dimensions": (set_item("attention", 0, lambda x: x[0]), r"attention\[0\] has shape \[1, 4, 6\]"),
    "attention batch": (set_item("attention", 1, lambda x: x[:1]), r"attention\[1\] has batch size 1, but logits"),
    "integer attention": (set_item("attention", 1, torch.Tensor.int), r"attention\[1\] is int32, but logits\[0\]"),
    "no channels": (
        set_whole("logits", lambda x: [t[:, :0] for t in x]),
        r"logits\[0\] has 0 channels, logits\[0\] has 0; expected the same, at least 1",
    ),
    "attention of both kinds": (
        set_item("attention", 1, lambda x: x.expand(-1, 5, -1, -1)),
        r"attention\[1\] has 5 channels; expected 1, or 5 as the logits have, the same in every entry",
    ),
    "empty attention": (set_item("attention", 0, lambda x: x[:, :0]), r"attention\[0\] has 0 channels; expected"),
    "batch": (set_item("logits", 1, lambda x: x[:1]), r"logits\[1\] has batch size 1, but logits\[0\] has 2"),
    "channels": (set_item("logits", 1, lambda x: x[:, :3]), r"logits\[1\] has 3 channels, logits\[0\] has 5"),
    "attention channels": (
        set_item("attention", 1, lambda x: x.expand(-1, 2, -1, -1)),
        r"attention\[1\] has 2 channels; expected 1, or 5 as the logits have",
    ),
    "attention map": (
        set_item("attention", 0, lambda x: x[..., :-1]),
        r"attention\[0\] has a map of 4 x 5; expected 4 x 6, the map of logits\[1\]",
    ),
    "empty map": (set_item("logits", 2, lambda x: x[..., :0]), r"logits\[2\] has a map of 2 x 0; expected 1 to"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case):
    change, message = BAD_INPUT[case]
    with pytest.raises(RuntimeError, match=f"^fuse_scales: {message}"):
        op(**bad(change))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_bad_input_is_named_by_the_public_function_with_gradients_wanted(requires_grad):
    arguments = bad(set_item("logits", 1, torch.Tensor.half))
    for tensor in arguments["logits"]:
        tensor.requires_grad_(requires_grad)
    with pytest.raises(RuntimeError, match=r"^fuse_scales: logits\[1\] is float16, but logits\[0\] is float32"):
        hmsa_ext.fuse_scales(**arguments)


def test_lists_of_other_lengths_are_named_by_the_public_function():
    problem = make_problem([2.0, 1.0, 0.5], (16, 24))
    with pytest.raises(ValueError, match=r"3 scales came with 2 logits and 2 attention maps; expected 3 and 2"):
        hmsa_ext.fuse_scales(problem.logits[:2], problem.attention, [0.5, 1.0, 2.0], (16, 24))


@pytest.mark.gpu
def test_devices_that_differ_are_named():
    arguments = bad(set_item("logits", 1, torch.Tensor.cuda))
    with pytest.raises(RuntimeError, match=r"fuse_scales: logits\[1\] is on cuda:0, but logits\[0\] is on cpu"):
        op(**arguments)


BAD_GRADIENTS = {
    "dimensions": (lambda g: g[0], r"grad has shape \[5, 16, 24\]; expected \[B, C, H, W\]"),
    "dtype": (torch.Tensor.half, r"grad is float16 \[2, 5, 16, 24\] on cpu; logits\[0\] is float32 \[2, 5, 8, 12\]"),
    "batch": (lambda g: g[:1], r"grad is float32 \[1, 5, 16, 24\] on cpu; logits\[0\] is float32 \[2, 5, 8, 12\]"),
    "channels": (lambda g: g[:, :3], r"grad is float32 \[2, 3, 16, 24\] on cpu; logits\[0\] is float32"),
}


@pytest.mark.parametrize("case", BAD_GRADIENTS)
def test_bad_gradients_of_the_private_op_are_named(case):
    change, message = BAD_GRADIENTS[case]
    arguments = bad(lambda arguments: None)
    grad = change(torch.randn(2, 5, 16, 24))
    with pytest.raises(RuntimeError, match=f"^_fuse_scales_backward: {message}"):
        backward_op(grad, arguments["logits"], arguments["attention"], arguments["scales"], False, 0b111, 0b11)
