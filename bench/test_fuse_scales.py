"""fuse_scales: time in cold and in warm memory, peak memory, bytes saved for backward and FLOPs.

    pytest bench --benchmark-json R.json && python -m bench.table R.json
    pytest bench --bench-size 256x512     # a quick try
    pytest bench -k headline              # without the table over shapes

The headline is 1024x2048, 19 classes, heads at stride 4, float32, against plain PyTorch and torch.compile, forward
against ONNX Runtime and XLA, too (bench/runtimes.py); the table over shapes is against plain PyTorch. Competitors take
turns, round by round, each in processes of its own (see bench/worker.py for what cold and warm are); medians count.
pytest-benchmark's own figures are ours in cold memory.
"""

from __future__ import annotations

from bench import competitors


def test_headline(benchmark, crew, case, direction):
    names = competitors.names(case.op, crew.device, direction)
    measure(benchmark, crew, case, direction, names, seconds=20, rounds=(5, 11))


def test_shape(benchmark, crew, case, direction):
    measure(benchmark, crew, case, direction, ("eager", "hmsa"), seconds=3, rounds=(3, 7))


def measure(benchmark, crew, case, direction, names, seconds, rounds, memories=()):
    """Runs the competitors in turn and adds their facts to the report."""

    def repeat(others, ours, count):
        benchmark.pedantic(ours, setup=others, rounds=count)

    facts = crew.measure(case, direction, names, seconds, rounds, repeat, memories)
    benchmark.extra_info["case"] = case.to_json()
    benchmark.extra_info["direction"] = direction
    benchmark.extra_info["device"] = crew.device
    benchmark.extra_info["results"] = facts
