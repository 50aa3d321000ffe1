"""The meters of the benchmarks measure what they say, for every competitor alike."""

from __future__ import annotations

import ctypes
import statistics

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import hmsa_ext
from bench import cases, competitors, flops, meters, record, runtimes
from bench.cases import Case
from bench.crew import Worker

MEGABYTE = 1 << 20


@pytest.mark.memory
def test_live_bytes_counts_what_lives_at_once():
    with meters.LiveBytes() as meter:
        a = torch.zeros(MEGABYTE)
        b = a + 1
        del a
        c = b.view(-1) * 2  # a view is no storage of its own
        del b, c
        torch.zeros(MEGABYTE // 2)
    assert meter.peak == 8 * MEGABYTE
    assert meter.live == 0


@pytest.mark.memory
def test_peak_memory_sees_what_a_kernel_takes_and_returns():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def workspace():
        block = libc.malloc(64 * MEGABYTE)
        ctypes.memset(block, 1, 64 * MEGABYTE)
        libc.free(block)

    peak = meters.peak_memory(workspace)
    if peak is None:
        pytest.skip("the system has no high-water mark that can be reset")
    assert 63 * MEGABYTE <= peak < 68 * MEGABYTE  # Linux counts resident pages in batches
    idle = meters.peak_memory(lambda: None)
    assert idle is not None
    assert idle < MEGABYTE


@pytest.mark.memory
def test_saved_bytes_leaves_out_the_inputs():
    x = torch.randn(1000, requires_grad=True)
    assert meters.saved_bytes(lambda: x * x, [x]) == 0
    assert meters.saved_bytes(lambda: x.exp() * x, [x]) == 4000


def test_meters_count_fake_tensors_like_real_ones():
    def measured() -> tuple[int, int]:
        x, y = torch.randn(1000, requires_grad=True), torch.randn(1000, requires_grad=True)
        with meters.LiveBytes().ignore(x, y) as meter:
            saved = meters.saved_bytes(lambda: (x.exp() * y.exp()).view(10, -1).softmax(1), [x, y])
        return saved, meter.peak

    real = measured()
    with FakeTensorMode():
        assert measured() == real
    assert real[0] == 3 * 4000  # both exponentials and the softmax


@pytest.mark.parametrize("direction", cases.DIRECTIONS)
@pytest.mark.compile
def test_flops_are_counted_by_hand_calculation(direction):
    """One scale, twice up: 7 operations for each output; its adjoint 8 for each gradient of the output."""
    case = cases.Case("one", (32, 64), scales=(1.0,), classes=3)
    expected = 3 * 32 * 64 * (7 if direction == "forward" else 7 + 8)
    assert flops.of_competitor("eager", case, direction) == expected
    for name in ("compile", "hmsa"):
        assert 0 < flops.of_competitor(name, case, direction) < 5 * expected


@pytest.mark.parametrize("case", cases.shapes((128, 256)), ids=lambda case: case.name)
def test_competitors_agree(case):
    case = cases.Case.from_json({**case.to_json(), "size": list(case.size)})
    inputs = competitors.make_inputs(case)
    results = []
    for name in ("eager", "hmsa"):
        fused = competitors.call(competitors.build(name), case, inputs)
        results.append([fused, *torch.autograd.grad(fused, inputs.leaves, inputs.grad)])
    # Plain PyTorch rounds every map in between to half precision; ours does not.
    tolerance = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}[case.dtype]
    for eager, ours in zip(*results, strict=True):
        assert (eager.float() - ours.float()).abs().max() <= tolerance * eager.abs().max()


def test_every_op_has_competitors_and_a_function_that_users_call():
    measured = {case.op for case in (*cases.headline(), *cases.ends())}
    assert measured == set(cases.OPS)
    for name, op in cases.OPS.items():
        assert {"eager", "hmsa"} <= set(competitors.names(name, "cpu"))
        assert callable(getattr(hmsa_ext, op.function, None) or getattr(hmsa_ext.losses, op.function))


@pytest.mark.parametrize("case", cases.ends((128, 256)), ids=lambda case: f"{case.op} {case.name}")
def test_competitors_of_the_ops_that_end_the_chain_agree(case):
    inputs = competitors.make_inputs(case)
    first, *others = (
        competitors.call(competitors.build(name, case.op), case, inputs)
        for name in competitors.names(case.op, "cpu")
        if name != "compile" and name not in runtimes.PACKAGES
    )
    for other in others:
        if case.op == "confusion_matrix":
            assert torch.equal(torch.as_tensor(first), other[0])
        elif case.op == "labels":
            assert (first == other).float().mean() > 0.999
        elif case.op == "argmax":
            assert (first[0] == other[0]).float().mean() > 0.999
            torch.testing.assert_close(first[1], other[1], rtol=1e-4, atol=1e-5)
        elif case.op == "labels":
            assert (first == other).float().mean() > 0.999
        else:
            torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-5)
            for theirs, ours in zip(*(torch.autograd.grad(x, inputs.leaves) for x in (first, other)), strict=True):
                assert (theirs - ours).abs().max() <= 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("name", runtimes.PACKAGES)
@pytest.mark.parametrize("op", runtimes.OPS)
def test_other_runtimes_compute_the_same(name, op):
    if runtimes.missing(name):
        pytest.skip(competitors.left_out("cpu")[0])
    # Class-wise attention; grids that floor unevenly; one scale of more classes than a byte has.
    for case in (
        Case("three scales", (50, 70), scales=(2.0, 1.0, 0.5), classes=3, class_wise=True, op=op),
        Case("two scales", (33, 64), batch=2, op=op),
        Case("one scale", (32, 64), scales=(1.0,), classes=300, op=op),
    ):
        inputs = competitors.make_inputs(case)
        ours = competitors.call(competitors.build("hmsa", op), case, inputs)
        (theirs,) = runtimes.tensors(competitors.call(competitors.build(name, op), case, inputs))
        assert theirs.dtype == ours.dtype
        if op == "labels":
            assert (theirs == ours).float().mean() > 0.999
        else:
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_competitors_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setitem(runtimes.PACKAGES, "xla", ("no_such_package", "torch"))
    assert "xla" not in competitors.names("labels", "cpu")
    assert "xla: left out, since no_such_package is not installed" in competitors.left_out("cpu")


def test_each_device_and_direction_has_its_competitors(monkeypatch):
    monkeypatch.setattr(runtimes, "missing", lambda name: [])
    assert competitors.names("fuse_scales", "cpu") == ("eager", "compile", "onnxruntime", "xla", "hmsa")
    assert competitors.names("fuse_scales", "cpu", "forward+backward") == ("eager", "compile", "hmsa")
    assert competitors.names("labels", "cuda") == ("eager", "compile", "hmsa")
    assert competitors.names("confusion_matrix", "cpu") == ("numpy", "eager", "compile", "hmsa")
    assert competitors.names("rmi", "cpu") == ("eager", "compile", "hmsa")


@pytest.mark.compile
@pytest.mark.parametrize("op", ["rmi", "confusion_matrix"])
def test_published_formulations_are_single_graphs_for_torch_compile(op):
    case = Case("x", (40, 72), op=op)
    inputs = competitors.make_inputs(case)
    compiled = competitors.call(competitors.build("compile", op, backend="aot_eager"), case, inputs)
    torch.testing.assert_close(compiled, competitors.call(competitors.build("eager", op), case, inputs))
    assert (flops.of_competitor("compile", case, "forward") > 0) == (op == "rmi")


def test_floor_of_the_ops_that_end_the_chain_is_bytes_at_the_speed_of_a_copy():
    one, two = (Case("x", (64, 128), scales=(1.0,), op=op) for op in ("cross_entropy", "argmax"))
    head, pixels = 19 * 16 * 32 * 4, 64 * 128
    assert competitors.moved_bytes(one, "forward") == head + 8 * pixels
    assert competitors.moved_bytes(one, "forward+backward") == 3 * head + 2 * 8 * pixels
    assert competitors.moved_bytes(two, "forward") == head + 5 * pixels
    copy, share = competitors.floor(two, "forward", "cold")
    copy()
    assert share == (head + 5 * pixels) / (2 * competitors.COPIED)


@pytest.mark.memory
def test_cold_floor_is_touched_in_huge_pages_where_the_system_has_them():
    if record.machine()["huge pages"] not in ("always", "madvise"):
        pytest.skip("the system gives no huge pages")
    case = cases.Case("big", (512, 1024))
    touch, _ = competitors.floor(case, "forward", "cold")
    touch()
    before = meters.minor_faults()
    touch()
    # 2 MB at a time, but for the ends (some pages may be small where memory is fragmented)
    assert meters.minor_faults() - before < case.output_bytes // 4096 // 4


@pytest.mark.memory
def test_cold_results_are_faulted_in_and_warm_ones_are_not():
    case = cases.Case("big", (512, 1024), scales=(1.0,))  # 40 MB: more than glibc keeps by itself
    pages = case.output_bytes // 4096
    faults = {}
    for memory in ("cold", "warm"):
        worker = Worker("eager", memory, "cpu")
        try:
            worker.load(case, "forward")
            faults[memory] = [worker.ask("round")["faults"] for _ in range(12)]
            with pytest.raises(RuntimeError, match="no_such_request"):
                worker.ask("no_such_request")
        finally:
            worker.close()
    assert min(faults["cold"]) > pages // 2
    assert statistics.median(faults["warm"]) < pages // 100, faults
