"""fuse_scales at 1024x2048, 19 classes: time, peak memory, bytes saved for backward and FLOPs.

    pytest bench --benchmark-json bench/results/cpu.json && python -m bench.table bench/results/cpu.json

Every round allocates its result anew with torch's default allocator ("cold"), for all competitors alike. Each test
runs the competitors in turn, round by round, so that a noisy machine is noisy for all of them; pytest-benchmark times
ours, the medians of all and their ratios are recorded beside it.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from bench import competitors, meters

SIZE = (1024, 2048)
CLASSES = 19
NAMES = ("eager", "compile", "hmsa")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("scales", [[1.0, 0.5], [2.0, 1.0, 0.5]], ids=["two", "three"])
def test_fuse_scales(benchmark, device, scales, direction):
    logits, attention = competitors.make_inputs(scales, SIZE, CLASSES, device=device)
    inputs = [*logits, *attention]
    grad = torch.randn(1, CLASSES, *SIZE, device=device)

    def runner(fuse):
        if direction == "forward":

            def run():
                with torch.no_grad():
                    fuse(logits, attention, scales, SIZE)

        else:

            def run():
                torch.autograd.grad(fuse(logits, attention, scales, SIZE), inputs, grad)

        return run

    facts = {}
    for name in NAMES:  # counted first, each alone
        counting = meters.CountingBackend()
        fuse = counting.compile(competitors.eager) if name == "compile" else competitors.build(name)
        runner(fuse)()
        facts[name] = {
            "saved_bytes": meters.saved_bytes(lambda fuse=fuse: fuse(logits, attention, scales, SIZE), inputs),
        }
        if name == "compile":
            counting.flops = 0
            runner(fuse)()
            facts[name]["flops"] = counting.flops
            continue  # no peak: Inductor allocates past the dispatcher
        facts[name]["flops"] = meters.count_flops(runner(fuse))
        with meters.LiveBytes().ignore(*inputs, grad) as meter:
            runner(fuse)()
        facts[name]["peak_bytes"] = meter.peak

    runs = {name: runner(competitors.build(name)) for name in NAMES}
    for run in runs.values():  # warm up: compilation, threads
        run()
        run()
    rounds = 9 if direction == "forward" else 5
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name, run in runs.items():
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start)

    for name in NAMES:
        facts[name]["milliseconds"] = 1e3 * statistics.median(seconds[name])
    for name in NAMES[:2]:
        facts[name]["times_ours"] = facts[name]["milliseconds"] / facts["hmsa"]["milliseconds"]
    benchmark.extra_info.update(facts)

    def ours():
        runs["hmsa"]()
        synchronise(device)

    benchmark.pedantic(ours, rounds=rounds)
