"""The CUDA kernels, executed on the CPU (csrc/host_run) over numpy arrays, against plain PyTorch.

Needs the module that csrc/tests/raw_kernels.cpp makes: ``cmake -S . -B build/cmake -DHMSA_BUILD_TESTS=ON`` and
``cmake --build build/cmake --target hmsa_raw_kernels``, or a file or folder named by ``HMSA_RAW_KERNELS``. It is built
without sanitizers; the C++ tests have those.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from .module_loader import load_module
from .ops.problems import CHANNELS_LAST, CONTIGUOUS, Problem, make_problem, random_problem

# Roundings of the sums, or of the result where that is stored in half precision, beside the largest value.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.fixture(scope="module")
def raw():
    named = os.environ.get("HMSA_RAW_KERNELS")
    place = Path(named) if named else Path(__file__).parents[1] / "build" / "cmake" / "tests"
    name = f"hmsa_raw_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    path = place / name if place.is_dir() else place
    if not path.is_file():
        text = f"hmsa_raw_kernels is not built: there is no {path}; expected it from a build with -DHMSA_BUILD_TESTS=ON"
        if named:
            pytest.fail(f"HMSA_RAW_KERNELS is {named}, but {text}")
        pytest.skip(text)
    return load_module("hmsa_raw_kernels", path)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """float64, exactly the values of the array."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).double()
    return torch.from_numpy(array.copy()).double()


def forward(raw, problem: Problem, **options) -> np.ndarray:
    logits, attention = ([to_numpy(t) for t in tensors] for tensors in (problem.logits, problem.attention))
    options.setdefault("align_corners", problem.align_corners)
    return raw.fuse_scales(logits, attention, problem.scales, problem.size, **options)


def backward(raw, problem: Problem, grad: torch.Tensor, **options) -> list[np.ndarray]:
    logits, attention = ([to_numpy(t) for t in tensors] for tensors in (problem.logits, problem.attention))
    options.setdefault("align_corners", problem.align_corners)
    grad_logits, grad_attention = raw.fuse_scales_backward(to_numpy(grad), logits, attention, problem.scales, **options)
    return [*grad_logits, *grad_attention]


def check(raw, problem: Problem, **options) -> None:
    tolerance = TOLERANCE[problem.logits[0].dtype]
    truth = problem.to(torch.float64)
    expected = truth.reference()
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(problem.logits[0].dtype)
    got = [forward(raw, problem, **options), *backward(raw, problem, grad, **options)]
    wanted = [expected.detach(), *torch.autograd.grad(expected, truth.inputs(), grad.double())]
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.shape == tuple(theirs.shape)
        # a gradient that cancels to almost nothing is compared with the size of what was summed
        scale = max(theirs.abs().max().item(), 1e-2)
        assert (to_torch(mine) - theirs).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("seed", range(25))
def test_random_problems(raw, seed):
    check(raw, random_problem(seed, dtype=torch.float64), seed=seed)


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scales", [[1.0], [0.5], [1.0, 0.5], [2.0, 1.0, 0.5]])
def test_scales_dtypes_and_formats(raw, scales, dtype, class_wise, memory_format):
    problem = make_problem(
        scales, (19, 27), classes=5, batch=2, class_wise=class_wise, dtype=dtype, memory_format=memory_format
    )
    check(raw, problem, channels_last=memory_format == CHANNELS_LAST)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [1, 4, 19, 33])
def test_several_blocks_and_numbers_of_classes(raw, classes, channels_last):
    format_ = CHANNELS_LAST if channels_last else CONTIGUOUS
    problem = make_problem([2.0, 1.0, 0.5], (37, 131), classes=classes, batch=1, memory_format=format_)
    check(raw, problem, channels_last=channels_last)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("head", [(1, 1), (2, 3), (40, 50)])
def test_heads_of_any_size(raw, head, align_corners):
    problem = make_problem(
        [1.0, 0.5], (40, 50), classes=2, batch=1, head_sizes=[head, head], align_corners=align_corners
    )
    check(raw, problem)


def test_strides_are_read_as_they_are(raw):
    problem = make_problem([1.0, 0.5], (24, 36), classes=3)
    plain = [to_numpy(t) for t in problem.inputs()]
    strided = []
    for array in plain:
        wide = np.full((2, array.shape[3] + 2, 2 * array.shape[2], 3), np.nan, dtype=array.dtype)
        view = wide[:, 1:-1, ::2, : array.shape[1]].transpose(0, 3, 2, 1)  # [B, C, h, w]
        view[...] = array
        strided.append(view)
    results = [raw.fuse_scales(a[:2], a[2:], problem.scales, problem.size) for a in (plain, strided)]
    np.testing.assert_array_equal(*results)
    grad = np.random.default_rng(0).standard_normal((2, 3, 24, 36), dtype=np.float32)
    results = [raw.fuse_scales_backward(grad, a[:2], a[2:], problem.scales) for a in (plain, strided)]
    for ours, theirs in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_order_of_threads_and_blocks_changes_no_bit(raw):
    problem = make_problem([2.0, 1.0, 0.5], (37, 83), classes=3)
    grad = torch.randn(2, 3, 37, 83, generator=torch.Generator().manual_seed(1))
    first = [forward(raw, problem, seed=0), *backward(raw, problem, grad, seed=0)]
    for seed in (1, 2, 99):
        again = [forward(raw, problem, seed=seed), *backward(raw, problem, grad, seed=seed)]
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_bad_arrays_are_named(raw):
    problem = make_problem([1.0, 0.5], (8, 12))
    arrays = [to_numpy(t) for t in problem.inputs()]
    with pytest.raises(RuntimeError, match="got an array of int64"):
        raw.fuse_scales([a.astype(np.int64) for a in arrays[:2]], [arrays[2].astype(np.int64)], [1.0, 0.5], (8, 12))
    with pytest.raises(RuntimeError, match=r"got 2 logits and 0 attention for 2 scales"):
        raw.fuse_scales(arrays[:2], [], [1.0, 0.5], (8, 12))
