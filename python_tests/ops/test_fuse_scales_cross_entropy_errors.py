"""Bad input of fuse_scales_cross_entropy: each error names the argument, what came and what was expected."""

from __future__ import annotations

import pytest
import torch

import hmsa_ext

from .problems import make_problem, make_target
from .test_fuse_scales_errors import BAD_INPUT, bad

op = torch.ops.hmsa.fuse_scales_cross_entropy
backward_op = torch.ops.hmsa._fuse_scales_cross_entropy_backward
OF_THE_CHAIN = {name: case for name, case in BAD_INPUT.items() if "side" not in name and "size" not in name}


def arguments(**changes) -> dict:
    """Those of a sound problem, changed."""
    problem = make_problem([2.0, 1.0, 0.5], (16, 24))
    sound = {
        "logits": [t.detach() for t in problem.logits],
        "attention": [t.detach() for t in problem.attention],
        "scales": problem.scales,
        "target": make_target(problem),
    }
    return sound | changes


@pytest.mark.parametrize("case", OF_THE_CHAIN)
def test_bad_chain_is_named(case):
    change, message = OF_THE_CHAIN[case]
    wrong = bad(change)
    wrong["target"] = torch.zeros(2, *wrong.pop("size"), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=f"^fuse_scales_cross_entropy: {message}"):
        op(**wrong)


def labels(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


BAD_OPTIONS = {
    "float labels": ({"target": labels(2, 16, 24, dtype=torch.float32)}, r"target is float32; expected uint8, int16,"),
    "bool labels": ({"target": labels(2, 16, 24, dtype=torch.bool)}, r"target is bool; expected uint8, int16, int32"),
    "int8 labels": ({"target": labels(2, 16, 24, dtype=torch.int8)}, r"target is int8; expected uint8, int16, int32"),
    "one-hot labels": ({"target": labels(2, 5, 16, 24)}, r"target has shape \[2, 5, 16, 24\]; expected \[B, H, W\]"),
    "one plane": ({"target": labels(16, 24)}, r"target has shape \[16, 24\]; expected \[B, H, W\]"),
    "batch of labels": ({"target": labels(3, 16, 24)}, r"target has .*3.*; expected .*2"),
    "no pixel": ({"target": labels(2, 0, 24)}, r"size is \(0, 24\); expected 1 to"),
    "too few pixels": ({"target": labels(2, 1, 24)}, r"scales\[2\] is 0.5, which gives a grid of 0 x 12"),
    "reduction": ({"reduction": "avg"}, r"reduction is 'avg'; expected 'mean', 'sum' or 'none'"),
    "smoothing": ({"label_smoothing": 1.5}, r"label_smoothing is 1.5; expected a number from 0 to 1"),
    "negative smoothing": ({"label_smoothing": -0.1}, r"label_smoothing is -0.1; expected a number from 0 to 1"),
    "number of weights": ({"weight": torch.ones(4)}, r"weight has shape \[4\]; expected \[5\], one factor"),
    "shape of the weights": ({"weight": torch.ones(5, 1)}, r"weight has shape \[5, 1\]; expected \[5\]"),
    "integer weights": ({"weight": torch.ones(5).long()}, r"weight is int64; expected floating point"),
    "weights with a gradient": ({"weight": torch.ones(5, requires_grad=True)}, r"weight requires a gradient"),
}  # fmt: skip


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("form", [op, hmsa_ext.fuse_scales_cross_entropy])
@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_labels_and_options_are_named(case, form, requires_grad):
    changes, message = BAD_OPTIONS[case]
    wrong = arguments(**changes)
    for tensor in wrong["logits"]:
        tensor.requires_grad_(requires_grad)
    with pytest.raises(RuntimeError, match=f"^fuse_scales_cross_entropy: {message}"):
        form(**wrong)


@pytest.mark.parametrize("case", ["float labels", "one plane", "number of weights", "reduction"])
@pytest.mark.compile
def test_compiled_functions_say_it_too(case):
    changes, message = BAD_OPTIONS[case]
    wrong = arguments(**changes)

    @torch.compile(backend="aot_eager", dynamic=False)
    def compiled(logits, attention, target, weight):
        return op(logits, attention, wrong["scales"], target, weight=weight, reduction=wrong.get("reduction", "mean"))

    with pytest.raises(Exception, match=f"fuse_scales_cross_entropy: {message}"):
        compiled(wrong["logits"], wrong["attention"], wrong["target"], wrong.get("weight"))


def test_lists_that_cannot_be_sorted_are_named_by_the_public_function():
    wrong = arguments()
    wrong["scales"] = [0.5, 1.0, 2.0]
    wrong["logits"] = wrong["logits"][:2]
    with pytest.raises(ValueError, match=r"^fuse_scales_cross_entropy: 3 scales came with 2 logits and 2 attention"):
        hmsa_ext.fuse_scales_cross_entropy(**wrong)
    with pytest.raises(ValueError, match=r"^fuse_scales_cross_entropy: scales is \[1.0, 1.0\]; expected every scale"):
        hmsa_ext.fuse_scales_cross_entropy(**arguments(scales=[1.0, 1.0]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["target", "weight"])
def test_devices_that_differ_are_named(name):
    sound = arguments(weight=torch.ones(5))
    with pytest.raises(RuntimeError, match=rf"fuse_scales_cross_entropy: {name} is .*on cuda:0"):
        op(**(sound | {name: sound[name].cuda()}))


BAD_GRADIENTS = {
    "shape": ({"grad": torch.ones(2, 16, 24)}, r"grad is float32 \[2, 16, 24\] on cpu; expected the dtype, shape"),
    "dtype": ({"grad": torch.ones((), dtype=torch.float64)}, r"grad is float64 \[\] on cpu; expected the dtype"),
    "log-sum-exp": ({"lse": torch.ones(2, 16, 23)}, r"log_sum_exp \[2, 16, 23\] and total_weight \[\] are not what"),
    "total weight": ({"total": torch.ones(2)}, r"log_sum_exp \[2, 16, 24\] and total_weight \[2\] are not what"),
}


@pytest.mark.parametrize("case", BAD_GRADIENTS)
def test_bad_arguments_of_the_private_op_are_named(case):
    changes, message = BAD_GRADIENTS[case]
    sound = arguments()
    given = {"grad": torch.ones(()), "lse": torch.ones(2, 16, 24), "total": torch.ones(())} | changes
    with pytest.raises(RuntimeError, match=f"^_fuse_scales_cross_entropy_backward: {message}"):
        backward_op(
            given["grad"], sound["logits"], sound["attention"], sound["scales"], sound["target"], None,
            given["lse"], given["total"], 255, 0.0, "mean", False, 0b111, 0b11,
        )  # fmt: skip
