"""What each method of the paper costs to train: FLOPs and bytes, counted; the time of a step, measured.

    pytest bench/test_paper_table.py --benchmark-json paper.json && python -m bench.table paper.json
    pytest bench/test_paper_table.py --time-rounds 0         # counted columns alone: exact, on any machine
    pytest bench/test_paper_table.py --time-crop 128x256     # a quick try

Both networks of the paper, 19 classes, batch 1, float32. The counts are for a crop of 512x1024. The time is that of a
smaller crop where there is no GPU, and is to be read relative to a single scale of the same run: the methods take
turns, and medians count. *mean of scales* is the same training as *single scale*; how far their times are apart is the
noise. On a GPU float32 is as PyTorch has it: convolutions may use TF32. The table is also printed as soon as a network
is done. pytest-benchmark's own figure is the time that all of this took.
"""

from __future__ import annotations

import pytest

from bench import table, training_cost
from bench.commands import markdown
from bench.conftest import DEVICES

TIME_CROPS = {"cpu": (256, 512), "cuda": training_cost.CROP}
TIME_ROUNDS = {"cpu": 3, "cuda": 11}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("network", training_cost.NETWORKS)
def test_paper_table(benchmark, capsys, request, network, device):
    options = request.config.option
    time_crop = options.time_crop or TIME_CROPS[device]
    rounds = TIME_ROUNDS[device] if options.time_rounds is None else options.time_rounds

    def run() -> dict[str, dict]:
        counted = {name: training_cost.count(network, method) for name, method in training_cost.METHODS.items()}
        measured = training_cost.measure(network, time_crop, rounds, device) if rounds else {}
        return {name: facts | measured.get(name, {}) for name, facts in counted.items()}

    results = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["case"] = {
        "network": network,
        "classes": training_cost.CLASSES,
        "batch": 1,
        "crop": list(training_cost.CROP),
        "time_crop": list(time_crop) if rounds else None,
    }
    benchmark.extra_info["device"] = device
    benchmark.extra_info["results"] = results
    with capsys.disabled():
        print("\n", *markdown(table.paper_table(benchmark.extra_info)), sep="\n")
