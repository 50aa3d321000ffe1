"""The stored part of a benchmark run, and the tables that are printed from it."""

from __future__ import annotations

import json
import os
import platform

import pytest

from bench import cases, record, table


def test_machine_has_what_times_depend_on_and_nothing_private():
    machine = record.machine()
    for key in ("flags", "row primitives", "threads", "huge pages", "compiler", "versions", "glibc"):
        assert key in machine
    assert machine["huge pages"] in ("always", "madvise", "never", None)
    text = json.dumps(machine)
    for private in (os.getcwd(), platform.node(), os.path.expanduser("~")):
        assert private in ("", "/", "/root") or private not in text


def test_strip_leaves_facts_only():
    extra = {"case": {"name": "x"}, "results": {}}
    report = {
        "machine_info": {},
        "commit_info": {"id": "abc", "time": "now", "dirty": True, "author_time": "then", "project": "p"},
        "datetime": "2026-01-02T03:04:05+00:00",
        "benchmarks": [
            {"name": "test_shape[x]", "fullname": "bench/x", "extra_info": extra, "stats": {"data": [1.0, 2.0]}}
        ],
    }
    record.strip(report)
    assert report["commit_info"] == {"id": "abc", "time": "now", "dirty": True}
    assert report["datetime"] == "2026-01-02"
    assert report["benchmarks"] == [{"name": "test_shape[x]", "group": "shape", **extra}]


def entry(case: cases.Case, direction: str, device: str, group: str, ours: float) -> dict:
    memories = ("cold", "warm") if device == "cpu" else ("warm",)
    results = {}
    for name, factor in (("floor", 0.5), ("eager", 10.0), ("compile", 4.0), ("hmsa", 1.0)):
        results[name] = {m: {"ms": factor * ours * (2 if m == "cold" else 1)} for m in memories}
        results[name] |= {"peak_bytes": 3e6, "saved_bytes": 2e6, "flops": 5e9}
    if case.op == "labels" and device == "cpu":
        results["onnxruntime"] = {**results["eager"], **dict.fromkeys(("peak_bytes", "saved_bytes", "flops"))}
    return {"case": case.to_json(), "direction": direction, "device": device, "group": group, "results": results}


@pytest.fixture
def report():
    machine = record.machine() | {"devices": ["Some GPU"], "cuda": {"nvcc": "13.0"}}
    tests = []
    for device in ("cpu", "cuda"):
        for direction in cases.DIRECTIONS:
            tests += [entry(case, direction, device, "headline", 40.0) for case in cases.headline()]
            tests += [entry(case, direction, device, "shape", 20.0) for case in cases.shapes()]
            tests += [
                entry(case, direction, device, "end", 8.0) for case in cases.ends() if direction in case.directions
            ]
    commit = {"id": "0123456789", "dirty": False}
    return {"machine_info": machine, "commit_info": commit, "datetime": "2026-01-02", "benchmarks": tests}


def test_tables_of_a_cpu_have_cold_and_warm(report):
    lines = table.tables(report, "cpu")
    assert any(line.startswith("| op | direction | by | ms cold |") for line in lines)
    figures = "800 | 10.0 | 20.0 | 400 | 10.0 | 20.0 | 3 | 2 | 5.00 |"
    assert f"| `fuse_scales` (1, 0.5) | forward | PyTorch eager | {figures}" in lines
    # a quarter of the elements in half the time: twice as much for each
    assert any(line.startswith("| two scales | 1x19x512x1024 | forward | 40.0 | 10.0 | 2.0 |") for line in lines)
    assert "| 2.00 | 20.0 |" in next(line for line in lines if line.startswith("| two scales | 1x19x512x1024"))
    assert "commit 0123456," in lines[-2]


def test_summary_has_all_but_the_shapes(report):
    lines = table.tables(report, "cpu")
    assert lines[0] == "| what | by | ms | times ours | times the floor | peak MB | saved MB | GFLOP |"
    assert any(line.startswith("| `fuse_scales` (2, 1, 0.5), forward | **hmsa_ext** | 80.0 |") for line in lines)
    figures = "160 | 10.0 | 20.0 | 3 | 2 | 5.00 |"
    assert f"| `fuse_scales_cross_entropy` (1, 0.5), forward+backward | PyTorch eager | {figures}" in lines
    assert any(line.startswith("| `fuse_scales_argmax` (2, 1, 0.5) | torch.compile | 64.0 | 4.0 |") for line in lines)
    assert any(line.startswith("| `rmi_loss` (1, 0.5), forward | published, eager |") for line in lines)
    assert any(line.startswith("| `rmi_loss` (1, 0.5), forward | torch.compile | 64.0 |") for line in lines)
    # Memory and operations of another runtime are not known.
    assert "| `fuse_scales_argmax` (1), labels only | ONNX Runtime | 160 | 10.0 | 20.0 |  |  |  |" in lines
    one_scale = "| `fuse_scales_cross_entropy` (1), 150 classes, 8x512x512, forward | **hmsa_ext** |"
    assert any(line.startswith(one_scale) for line in lines)


def test_tables_of_a_gpu_have_the_share_of_the_floor(report):
    lines = table.tables(report, "cuda")
    assert not any("cold" in line for line in lines)
    header = next(line for line in lines if "share of the floor" in line)
    first = [cell.strip() for cell in lines[lines.index(header) + 2].strip("|").split("|")]
    facts = dict(zip([cell.strip() for cell in header.strip("|").split("|")], first, strict=True))
    # A copy of 159 MB in 20 ms; the result and the inputs once, and the time is 40 ms.
    assert facts["GB/s of a copy"] == "16"
    assert facts["share of the floor"] == "27 %"
    # The floor of the others is the time for their bytes at the speed of a copy: half of ours, in these figures.
    prediction = next(line for line in lines if line.startswith("| fuse_scales_argmax, three scales |"))
    assert prediction.endswith("| 50 % |")
    assert lines[-2].startswith("Some GPU")


def test_crops_have_a_table_of_their_own(report):
    for device, others in (("cpu", {"pillow": 24.0, "opencv": 6.0}), ("cuda", {})):
        crop = {"case": {"scale": 0.5, "variant": "plain"}, "results": {"hmsa": 2.0, **others}}
        report["benchmarks"].append({"device": device, "group": "sample_crop", **crop})
    assert "| plain | 0.5 | 2.0 | 24.0 | 12.0 | 6.0 | 3.0 |" in table.tables(report, "cpu")
    assert "| plain | 0.5 | 2.0 |" in table.tables(report, "cuda")


def test_command(report, tmp_path, capsys, monkeypatch):
    (tmp_path / "r.json").write_text(json.dumps(report))
    monkeypatch.setattr("sys.argv", ["table", str(tmp_path / "r.json")])
    table.main()
    assert capsys.readouterr().out.count("| op |") == 5  # headline of both devices, three tables of the model
