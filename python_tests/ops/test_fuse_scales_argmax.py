"""fuse_scales_argmax against the argmax and the softmax of the fused logits in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import hmsa_ext
from bench.meters import LiveBytes, peak_memory
from hmsa_ext.ops import reference

from .agreement import check_prediction
from .problems import CHANNELS_LAST, CONTIGUOUS, Problem, make_problem, random_problem
from .test_fuse_scales_errors import BAD_INPUT, bad
from .test_fuse_scales_memory import LAYOUTS, MEGABYTE, laid_out

op = torch.ops.hmsa.fuse_scales_argmax
SETS_OF_SCALES = ([1.0], [1.0, 0.5], [2.0, 1.0, 0.5], [2.0, 1.5, 1.0, 0.5], [0.5], [1.7])


def fused(problem: Problem, views: int) -> torch.Tensor:
    logits = problem.to(torch.float64).reference().detach()
    if views == 2:
        straight, mirrored = logits.chunk(2)
        logits = (straight + mirrored.flip(-1)) / 2
    return logits


def check(problem: Problem, views: int = 1, tolerance: float = 1e-6) -> None:
    labels, confidence = op(*problem.args(), views=views, align_corners=problem.align_corners)
    check_prediction(labels, confidence, fused(problem, views), tolerance)
    assert confidence.dtype == (torch.float64 if problem.logits[0].dtype == torch.float64 else torch.float32)
    assert torch.equal(labels_alone(problem, views), labels)


def labels_alone(problem: Problem, views: int = 1) -> torch.Tensor:
    options = {"views": views, "align_corners": problem.align_corners}
    labels, nothing = op(*problem.args(), **options, confidence=False)
    assert nothing.shape == (0,)
    assert nothing.dtype == (torch.float64 if problem.logits[0].dtype == torch.float64 else torch.float32)
    return labels


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_labels_and_confidence_match_pytorch(device, seed):
    dtype = [torch.float32, torch.float64, torch.bfloat16, torch.float16][seed % 4]
    problem = random_problem(seed, dtype=dtype, device=device)
    check(problem, views=2 if problem.logits[0].shape[0] == 2 else 1)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("scales", SETS_OF_SCALES)
def test_two_views_are_mirrored_and_averaged(device, scales, memory_format, class_wise, views):
    problem = make_problem(scales, (41, 63), batch=4, class_wise=class_wise, memory_format=memory_format, device=device)
    check(problem, views)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("classes", [1, 2, 3, 19, 65, 150, 256, 257, 300])
def test_numbers_of_classes_and_the_type_of_the_labels(device, classes, views):
    problem = make_problem([1.0, 0.5], (21, 45), classes=classes, device=device)
    check(problem, views)
    # Class 255 is a label like any other.
    problem.logits = [torch.zeros_like(z) for z in problem.logits]
    problem.logits[0][:, -1] = 5.0
    labels, _ = op(*problem.args(), views=views)
    assert labels.dtype == (torch.uint8 if classes <= 256 else torch.int32)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (2, 17), (33, 7)])
@pytest.mark.parametrize("views", [1, 2])
def test_small_maps(device, size, views):
    check(make_problem([1.0], size, head_sizes=[(2, 3)], device=device), views)


def test_several_tiles_in_both_directions(device):
    check(make_problem([1.0, 0.5], (197, 1111), classes=3, device=device), views=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scales", [[1.0, 0.5], [2.0, 1.0], [2.0, 1.0, 0.5]])
def test_labels_alone_are_the_same_where_classes_fall(device, scales, dtype):
    """In each of six regions one class leads, and the noise decides how many others can win somewhere."""
    for noise in (0.1, 1.0, 4.0):
        problem = make_problem(scales, (128, 256), classes=9, dtype=dtype, device=device)
        logits = []
        for x in problem.logits:
            height, width = x.shape[2:]
            rows, columns = torch.arange(height)[:, None] * 3 // height, torch.arange(width) * 2 // width
            leads = torch.arange(9)[:, None, None] == rows + 3 * columns
            logits.append((noise * x.detach() + 4 * leads.to(x)).to(dtype))
        labels, _ = op(logits, *problem.args()[1:])
        alone, _ = op(logits, *problem.args()[1:], confidence=False)
        assert torch.equal(alone, labels)


def test_empty_batch(device):
    problem = make_problem([1.0, 0.5], (16, 24), batch=0, device=device)
    for views in (1, 2):
        labels, confidence = op(*problem.args(), views=views)
        assert labels.shape == confidence.shape == (0, 16, 24)
        assert labels.dtype == torch.uint8
        assert labels_alone(problem, views).shape == (0, 16, 24)


def test_the_smallest_class_wins_a_tie(device):
    logits = torch.zeros(2, 5, 7, 9, device=device)
    logits[:, 2] = logits[:, 4] = 3.0
    for views in (1, 2):
        labels, confidence = op([logits], [], [1.0], (28, 36), views=views)
        assert (labels == 2).all()
        torch.testing.assert_close(confidence, torch.full_like(confidence, 1 / (2 + 3 * math.exp(-3))))
    assert not op([torch.zeros_like(logits)], [], [1.0], (28, 36))[0].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("classes", [3, 19])
@pytest.mark.parametrize("views", [1, 2])
def test_nan_and_inf_give_what_pytorch_gives(device, views, classes, value):
    """Heads of the output's size, so that every pixel is as it was made."""
    logits = torch.randn(2, classes, 6, 40, generator=torch.Generator().manual_seed(0))
    logits[0, 1, 1, 3] = value
    logits[0, 0, 2, 4] = logits[0, 2, 2, 4] = value
    logits[0, :, 3, 5] = value
    logits[1, 2, 4, 6] = value
    logits[0, 1, 5, 7], logits[0, 2, 5, 7] = math.inf, math.nan
    logits = logits.to(device)
    labels, confidence = op([logits], [], [1.0], (6, 40), views=views)
    expected_labels, expected = reference.fuse_scales_argmax([logits], [], [1.0], (6, 40), views=views)
    assert torch.equal(labels, expected_labels)
    torch.testing.assert_close(confidence, expected, equal_nan=True)
    assert confidence.isnan().any()
    assert torch.equal(op([logits], [], [1.0], (6, 40), views=views, confidence=False)[0], expected_labels)


def test_large_logits_do_not_overflow(device):
    logits = 1e30 * torch.randn(1, 5, 6, 8, device=device)
    labels, confidence = op([logits], [], [1.0], (6, 8))
    assert torch.equal(labels.long(), logits.argmax(1))
    assert (confidence == 1).all()


# ---- forms, errors ----------------------------------------------------------------------------------------------


def test_public_function_takes_scales_in_any_order(device):
    problem = make_problem([2.0, 1.0, 0.5], (24, 36), device=device)
    two, one, half = problem.logits
    of_one, of_half = problem.attention
    ours = hmsa_ext.fuse_scales_argmax([half, two, one], [of_half, of_one], [0.5, 2.0, 1.0], (24, 36), views=2)
    assert all(map(torch.equal, ours, op(*problem.args(), views=2)))
    alone = hmsa_ext.fuse_scales_argmax(
        [half, two, one], [of_half, of_one], [0.5, 2.0, 1.0], (24, 36), views=2, confidence=False
    )
    assert torch.equal(alone, ours[0])


def test_one_scale_replaces_interpolate_and_argmax(device):
    logits = torch.randn(2, 7, 13, 17, device=device)
    labels, confidence = hmsa_ext.upsample_argmax(logits, (51, 66), align_corners=True)
    large = F.interpolate(logits.double(), (51, 66), mode="bilinear", align_corners=True)
    check_prediction(labels, confidence, large, 1e-6)
    assert (labels == large.argmax(1)).float().mean() > 0.999
    assert torch.equal(hmsa_ext.upsample_argmax(logits, (51, 66), align_corners=True, confidence=False), labels)


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_chain_is_named(case):
    change, message = BAD_INPUT[case]
    with pytest.raises(RuntimeError, match=f"^fuse_scales_argmax: {message}"):
        op(**bad(change))


@pytest.mark.parametrize("value", [None, 1, 0.5, "no"])
def test_bad_confidence_is_named(value):
    problem = make_problem([1.0, 0.5], (16, 24))
    expected = f"confidence is {value!r}; expected True or False$"
    with pytest.raises(TypeError, match=f"^fuse_scales_argmax: {expected}"):
        hmsa_ext.fuse_scales_argmax(problem.logits, problem.attention, [1.0, 0.5], (16, 24), confidence=value)
    with pytest.raises(TypeError, match=f"^upsample_argmax: {expected}"):
        hmsa_ext.upsample_argmax(problem.logits[0], (16, 24), confidence=value)


def test_bad_views_are_named():
    problem = make_problem([1.0, 0.5], (16, 24), batch=3)
    for views in (0, 3, -1):
        with pytest.raises(RuntimeError, match=rf"^fuse_scales_argmax: views is {views}; expected 1, or 2 with"):
            op(*problem.args(), views=views)
    with pytest.raises(RuntimeError, match=r"^fuse_scales_argmax: logits\[0\] has batch size 3; expected an even one"):
        op(*problem.args(), views=2)
    with pytest.raises(ValueError, match=r"^fuse_scales_argmax: scales is \[1.0, 1.0\]; expected every scale once"):
        hmsa_ext.fuse_scales_argmax(problem.logits, problem.attention, [1.0, 1.0], (16, 24))


# ---- under PyTorch's machinery ----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.compile
def test_opcheck(device, dtype, memory_format):
    problem = make_problem([2.0, 1.0, 0.5], (26, 38), dtype=dtype, memory_format=memory_format, device=device)
    opcheck(op, problem.args(), {"views": 2})
    opcheck(op, problem.args(), {"align_corners": True})
    opcheck(op, problem.args(), {"views": 2, "confidence": False})
    many = make_problem([1.0], (26, 38), classes=300, dtype=dtype, memory_format=memory_format, device=device)
    opcheck(op, many.args())


def test_results_have_no_gradient(device):
    labels, confidence = op(*make_problem([1.0, 0.5], (16, 24), device=device).args())
    assert not labels.requires_grad
    assert not confidence.requires_grad


@pytest.mark.compile
def test_compiles_whole_with_changing_sizes(device):
    counter = CompileCounterWithBackend("aot_eager")

    def function(low, high, attention, height: int, width: int):
        labels, confidence = hmsa_ext.fuse_scales_argmax([low, high], [attention], [0.5, 1.0], (height, width), views=2)
        alone = hmsa_ext.fuse_scales_argmax([low, high], [attention], [0.5, 1.0], (height, width), confidence=False)
        return labels + 1, confidence * 2, alone

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for size in ((32, 48), (41, 63), (56, 40)):
        problem = make_problem([1.0, 0.5], size, device=device)
        inputs = (problem.logits[1], problem.logits[0], problem.attention[0])
        assert all(map(torch.equal, compiled(*inputs, *size), function(*inputs, *size)))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, 0, None), (None, None, 0), (1, -1, 2)])
@pytest.mark.parametrize("views", [1, 2])
def test_vmap_is_a_loop(device, views, in_dims):
    problem = make_problem([1.0, 0.5], (20, 28), batch=4, device=device)
    generator = torch.Generator().manual_seed(2)
    inputs = []
    for tensor, dim in zip(problem.inputs(), in_dims, strict=True):
        tensor = tensor.detach()
        copies = [torch.rand(tensor.shape, generator=generator).to(device) for _ in range(3)]
        inputs.append(tensor if dim is None else torch.stack(copies, dim))

    def predict(high, low, attention, confidence=True):
        return op([high, low], [attention], problem.scales, problem.size, views=views, confidence=confidence)

    mapped = torch.vmap(predict, in_dims)(*inputs)
    for i in range(3):
        alone = predict(*(t if dim is None else t.select(dim, i) for t, dim in zip(inputs, in_dims, strict=True)))
        assert torch.equal(mapped[0][i], alone[0])
        torch.testing.assert_close(mapped[1][i], alone[1])

    def predict_labels(high, low, attention):
        return predict(high, low, attention, confidence=False)

    mapped_labels = torch.vmap(predict_labels, in_dims)(*inputs)
    assert torch.equal(mapped_labels[0], mapped[0])
    assert mapped_labels[1].shape == (3, 0)


def test_autocast_computes_in_the_widest_dtype(device):
    problem = make_problem([1.0, 0.5], (24, 32), device=device)
    logits = [problem.logits[0].detach().bfloat16(), problem.logits[1].detach()]
    with torch.autocast(device.type, torch.bfloat16):
        ours = op(logits, problem.attention, problem.scales, problem.size)
        labels, nothing = op(logits, problem.attention, problem.scales, problem.size, confidence=False)
    assert all(map(torch.equal, ours, op([z.float() for z in logits], *problem.args()[1:])))
    assert torch.equal(labels, ours[0])
    assert nothing.shape == (0,)
    with pytest.raises(RuntimeError, match=r"^fuse_scales_argmax: logits\[1\] is float32, but logits\[0\] is bfloat16"):
        op(logits, problem.attention, problem.scales, problem.size)


def test_flops_are_counted(device):
    problem = make_problem([1.0], (32, 64), classes=3, batch=2, device=device)  # head 8 x 16
    resize, pixels = 2 * 3 * 3 * (8 * 64 + 32 * 64), 32 * 64
    for views, expected in ((1, resize + 2 * (3 * 3 + 1) * pixels), (2, resize + (2 * 3 + 3 * 3 + 1) * pixels)):
        with FlopCounterMode(display=False) as counter:
            op(*problem.args(), views=views)
        assert counter.get_total_flops() == expected
        with FlopCounterMode(display=False) as counter:
            op(*problem.args(), views=views, confidence=False)
        assert counter.get_total_flops() == resize + (2 * 3 * pixels if views == 2 else 0)


# ---- memory, determinism ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_inputs_change_nothing(device, layout):
    plain = make_problem([2.0, 1.0, 0.5], (40, 56), class_wise=True, device=device)
    labels, confidence = op(*laid_out(plain, layout).args())
    check_prediction(labels, confidence, fused(plain, 1), 1e-6)
    assert labels.is_contiguous()
    assert confidence.is_contiguous()


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.memory
def test_nothing_of_full_resolution_with_classes_exists(device, memory_format, views):
    problem = make_problem([2.0, 1.0, 0.5], (512, 512), classes=48, memory_format=memory_format, device=device)
    arguments = [t.detach() for t in problem.logits], [t.detach() for t in problem.attention], *problem.args()[2:]
    results = 5 * 2 // views * 512 * 512

    def predict():
        op(*arguments, views=views)

    predict()
    with LiveBytes() as meter:
        predict()
    assert meter.peak <= results + MEGABYTE
    peak = peak_memory(predict, device)
    assert peak is None or peak <= results + (16 + 4) * MEGABYTE


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scales", [[1.0], [0.5], [2.0, 1.5, 1.0, 0.5]])
def test_same_bits_for_every_number_of_threads(scales, dtype, views):
    problem = make_problem(scales, (97, 231), batch=4, classes=7, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(op(*problem.args(), views=views))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
