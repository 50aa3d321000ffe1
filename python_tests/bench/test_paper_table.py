"""The costs of the methods: counted as the paper reckons them, and each in the table."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from torch import nn

from bench import flops, meters, record, table, training_cost
from bench.training_cost import BASE, METHODS, Method
from hmsa_ext.models.fcn import FCN

NETWORK, SIZE = "small", (64, 128)
FEATURES, INNER, PIXELS = 64, 48, SIZE[0] * SIZE[1] // 4  # of the attention head; pixels at scale 1


class Trunk(nn.Sequential):
    out_channels, stride = FEATURES, 2

    def __init__(self) -> None:
        conv = nn.Conv2d(3, FEATURES, 3, stride=2, padding=1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(FEATURES), nn.ReLU(inplace=True))


def small(num_classes: int, **options: Any) -> nn.Module:
    """A network of few ops: fake tensors cost time for each."""
    return FCN(Trunk, num_classes, head_channels=16, attention_bottleneck=INNER, **options)


def cost(method: Method) -> dict[str, Any]:
    return training_cost.count(small, method, SIZE)


def head_flops(features: int, out: int, pixels: int) -> int:
    """Operations of the convolutions of an attention head, forward."""
    return 2 * pixels * (9 * features * INNER + 9 * INNER * INNER + INNER * out)


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, Any]]:
    return {name: cost(method) for name, method in METHODS.items()}


@pytest.mark.parametrize(("name", "times"), [("mean", 1.0), ("explicit", 5.25), ("hierarchical", 1.25)])
def test_trunk_and_decoder_cost_what_the_paper_says(counted, name, times):
    got = counted[name]["trunk_and_decoder_flops"] / counted[BASE]["trunk_and_decoder_flops"]
    assert got == pytest.approx(times, rel=2e-3)  # images are resized as well, which costs little


@pytest.mark.slow
@pytest.mark.parametrize("network", training_cost.NETWORKS)
def test_trunk_and_decoder_of_the_papers_networks_cost_what_the_paper_says(network):
    flops_of = {
        name: training_cost.count(network, METHODS[name], (128, 256))["trunk_and_decoder_flops"]
        for name in (BASE, "explicit", "hierarchical")
    }
    assert flops_of["explicit"] / flops_of[BASE] == pytest.approx(5.25, rel=1e-3)
    assert flops_of["hierarchical"] / flops_of[BASE] == pytest.approx(1.25, rel=1e-3)


def test_deeplabv3plus_trains_on_one_image():
    assert training_cost.count("resnet50_deeplabv3plus", METHODS[BASE], (64, 128))["attention_flops"] == 0


def test_attention_costs_what_its_convolutions_do(counted):
    assert counted[BASE]["attention_flops"] == counted["mean"]["attention_flops"] == 0
    # Backward costs twice the forward pass. The largest scale's head runs forward only, for its statistics. The sigmoid
    # and sums of gradients are the rest.
    for name, out in (("hierarchical", 1), ("hierarchical_classes", training_cost.CLASSES)):
        expected = 3 * head_flops(FEATURES, out, PIXELS // 4) + head_flops(FEATURES, out, PIXELS)
        assert counted[name]["attention_flops"] == pytest.approx(expected, rel=0.01)
    # One head on the features of three scales together, on the grid of scale 1. Those are resized, too.
    expected = 3 * head_flops(3 * FEATURES, 3, PIXELS)
    assert counted["explicit"]["attention_flops"] == pytest.approx(expected, rel=0.05)


def test_the_published_statistics_cost_the_head_of_the_largest_scale(counted):
    method = METHODS["hierarchical"]
    used = dataclasses.replace(method, options=method.options | {"attention_statistics": "used"})
    difference = counted["hierarchical"]["flops"] - cost(used)["flops"]
    assert difference == pytest.approx(head_flops(FEATURES, 1, PIXELS), rel=0.001)


def test_parts_of_a_step_add_up(counted):
    for facts in counted.values():
        parts = ("trunk_and_decoder_flops", "attention_flops", "loss_flops")
        assert facts["flops"] == sum(facts[part] for part in parts)
        assert all(facts[part] >= 0 for part in parts)
        assert facts["saved_bytes"] + facts["parameter_bytes"] < facts["live_peak_bytes"]


def test_mean_is_the_training_of_a_single_scale(counted):
    assert counted["mean"] == counted[BASE]


def test_more_scales_and_more_attention_keep_more_for_backward(counted):
    saved = [counted[name]["saved_bytes"] for name in (BASE, "hierarchical", "hierarchical_classes", "explicit")]
    assert saved == sorted(set(saved))


def test_counts_are_those_of_real_tensors(counted):
    step = training_cost.make_step(small, METHODS["hierarchical"], SIZE)
    given = [*step.network.parameters(), *step.network.buffers(), step.images, step.target]
    assert meters.saved_bytes(step.loss, given) == counted["hierarchical"]["saved_bytes"]
    assert flops.count_flops(step.run) == counted["hierarchical"]["flops"]


def test_every_method_is_timed(device):
    figures = training_cost.measure(small, (64, 64), rounds=2, device=device.type)
    assert figures.keys() == METHODS.keys()
    for facts in figures.values():
        assert len(facts["rounds_ms"]) == 2
        assert min(facts["rounds_ms"]) <= facts["ms"] <= max(facts["rounds_ms"])
        assert facts["peak_bytes"] is None or facts["peak_bytes"] > 0


@pytest.mark.parametrize("time_crop", [None, [256, 512]], ids=["counted", "timed"])
def test_the_table_has_every_method(counted, time_crop):
    timed = {"ms": 200.0, "rounds_ms": [200.0], "peak_bytes": 3e9} if time_crop else {}
    results = {name: facts | timed for name, facts in counted.items()}
    if time_crop:
        results["explicit"]["ms"] = 1060.0
    case = {"network": NETWORK, "classes": 19, "batch": 1, "crop": list(SIZE), "time_crop": time_crop}
    test = json.loads(json.dumps({"group": "paper_table", "device": "cpu", "case": case, "results": results}))
    header, *rows = table.paper_table(test)
    assert [row[0] for row in rows] == [method.label for method in METHODS.values()]
    assert [row[header.index("in the paper")] for row in rows] == ["1.00", "1.00", "5.25", "1.25", ""]
    assert all(len(row) == len(header) for row in rows)
    explicit = rows[list(METHODS).index("explicit")]
    assert explicit[:2] == ["explicit attention", "0.5, 1, 2"]
    assert explicit[header.index("trunk and decoder alone")] == "5.25"
    attention = counted["explicit"]["attention_flops"] / counted["explicit"]["flops"]
    assert explicit[header.index("attention, %")] == f"{100 * attention:.1f}"
    if time_crop:
        assert explicit[header.index("ms at 256x512") :] == ["1060", "5.30", "3000"]


def test_the_command_prints_the_table(counted):
    case = {"network": NETWORK, "classes": 19, "batch": 1, "crop": list(SIZE), "time_crop": None}
    tests = [{"group": "paper_table", "device": "cpu", "case": case, "results": counted}]
    report = {
        "machine_info": record.machine(),
        "commit_info": {"id": "0123456789", "dirty": False},
        "datetime": "2026-01-02",
    }
    lines = table.tables(report | {"benchmarks": tests}, "cpu")
    assert any(line.startswith(f"| `{NETWORK}` | trained at |") for line in lines)
    assert sum(line.startswith(f"| {method.label} |") for method in METHODS.values() for line in lines) == len(METHODS)
