"""What the declarations of the ops promise, whatever the op."""

from __future__ import annotations

import inspect

import pytest
import torch

import hmsa_ext
from hmsa_ext import ops
from hmsa_ext.ops import library, registration
from hmsa_ext.ops.schema import signature

from .problems import make_problem, make_target

has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
PUBLIC = [name for name in registration.names() if not name.startswith("_")]


def test_names_are_those_of_all_ops():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hmsa::")}
    # A question to the library about itself takes no tensor: PyTorch has nothing to know of it.
    assert registered - {"hmsa::_instruction_set"} == {f"hmsa::{name}" for name in registration.names()}
    assert registration.names() == sorted(set(registration.names()))


@pytest.mark.parametrize("name", registration.names())
def test_every_op_has_what_pytorch_asks_for(name):
    qualified = f"hmsa::{name}"
    if has_kernel(qualified, "CompositeImplicitAutograd"):
        return
    for key in ("CPU", "CUDA", "Meta", "Autograd"):  # a build without CUDA kernels says so under their key
        assert has_kernel(qualified, key), key


@pytest.mark.skipif(library.has_cuda_kernels(), reason="the kernels are there")
@pytest.mark.parametrize("name", ["_fuse_scales_backward", "confusion_matrix", "_sample_crop"])
def test_missing_cuda_kernels_are_explained_by_each_op(name):
    with pytest.raises(NotImplementedError, match="hmsa_ext was built without CUDA kernels"):
        registration._refuse_cuda()
    assert has_kernel(f"hmsa::{name}", "CUDA")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_ops_are_documented(name):
    assert getattr(torch.ops.hmsa, name).__doc__ == getattr(ops, name).__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_take_what_the_ops_take(name):
    function, op = inspect.signature(getattr(ops, name)).parameters, signature(name)
    assert set(function) == set(op.names)
    for argument, default in zip(op.names, op.defaults, strict=True):
        if argument == "ignore_index" and name != "sample_crop":
            assert (function[argument].default, default) == (None, 255)
        elif default is not None and argument != "dtype":
            assert function[argument].default == default


def test_the_one_map_forms_are_chains_of_one_scale():
    problem = make_problem([1.0], (16, 24))
    target, z = make_target(problem), problem.logits[0]
    assert torch.equal(
        hmsa_ext.upsample_cross_entropy(z, target, label_smoothing=0.1, reduction="none"),
        hmsa_ext.fuse_scales_cross_entropy([z], [], [1.0], target, label_smoothing=0.1, reduction="none"),
    )
