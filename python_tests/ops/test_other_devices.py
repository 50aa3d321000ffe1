"""The public functions on devices that there are no kernels for: plain PyTorch, and a warning that says so once."""

from __future__ import annotations

import warnings

import pytest
import torch

import hmsa_ext
from hmsa_ext import losses
from hmsa_ext.ops import cross_entropy_sum, library

from .problems import Problem, make_problem, make_target


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr(library, "has_kernels", lambda op, device: False)


def results(problem: Problem, target: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    arguments = *problem.args()[:3], target
    options = {"weight": weight, "label_smoothing": 0.1}
    losses_and_labels = [
        *(hmsa_ext.fuse_scales_cross_entropy(*arguments, reduction=r, **options) for r in ("mean", "sum", "none")),
        hmsa_ext.upsample_cross_entropy(problem.logits[0], target),
        *cross_entropy_sum(*arguments, **options),
        *cross_entropy_sum(*arguments),
        losses.cross_entropy(*arguments, weight=weight),
        losses.bootstrapped_cross_entropy(*arguments),
        *hmsa_ext.fuse_scales_argmax(*problem.args(), views=2),
        *hmsa_ext.upsample_argmax(problem.logits[0], problem.size),
        *hmsa_ext.confusion_matrix(target, target, 5),
        hmsa_ext.fuse_scales(*problem.args()),
    ]
    gradients = torch.autograd.grad(losses_and_labels[0], problem.inputs())
    return [*losses_and_labels, *gradients]


def test_plain_pytorch_gives_what_the_kernels_give(device, request):
    problem = make_problem([2.0, 1.0, 0.5], (24, 32), dtype=torch.float64, device=device)
    target, weight = make_target(problem), torch.rand(5, dtype=torch.float64, device=device)
    expected = results(problem, target, weight)
    request.getfixturevalue("without_kernels")
    for got, want in zip(results(problem, target, weight), expected, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want)


def test_it_is_said_once_for_each_op_and_device():
    library._say_once.cache_clear()
    with pytest.warns(UserWarning, match=r"hmsa_ext has no fuse_scales_argmax kernel for mps: running it in plain"):
        assert not library.has_kernels("fuse_scales_argmax", torch.device("mps"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not library.has_kernels("fuse_scales_argmax", torch.device("mps"))
    with pytest.warns(UserWarning, match="no confusion_matrix kernel for mps"):
        library.has_kernels("confusion_matrix", torch.device("mps"))
