"""The benchmark of memory, in miniature: what it counts is what lives, and its file, tables and plot say just that."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from bench import (
    gpu_memory,
    gpu_report,
    json_lines,
    memory,
    memory_fits,
    memory_methods,
    memory_plot,
    memory_table,
    meters,
)
from bench.json_lines import JsonLines
from bench.memory_methods import METHODS, SIZES, Row, Work
from bench.published_network import training_loss
from hmsa_ext import models
from hmsa_ext.engine import tiles

NETWORK, SIZE = "hrnet_w18_ocr", (64, 128)
ROW = Row("training", "none", NETWORK, SIZE, "float32")


def live_of_real_tensors(row: Row) -> int:
    work = memory_methods.prepare(row)
    given = sum(t.nbytes for t in work.given)
    gc.collect()
    with meters.LiveBytes().ignore(*work.given) as meter:
        work.run()
    return meter.peak + given


# ---- what is counted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "method", "dtype"),
    [
        ("training", "published", "bfloat16"),
        pytest.param("training", "checkpoint", "float32", marks=pytest.mark.slow),
        pytest.param("training", "all", "float32", marks=pytest.mark.slow),
        ("evaluation", "published", "float32"),
        ("evaluation", "tiles", "bfloat16"),
    ],
)
def test_what_is_counted_lives_when_it_runs(job, method, dtype):
    row = Row(job, method, NETWORK, SIZE, dtype)
    counted = memory_methods.count(row)
    assert counted["live_peak_bytes"] == pytest.approx(live_of_real_tensors(row), rel=0.01)
    with torch.device("meta"):
        network = models.build(NETWORK, memory_methods.CLASSES)
    assert counted["parameter_bytes"] == sum(p.nbytes for p in network.parameters())


def test_published_logits_at_full_resolution_are_counted():
    """At least the logits and the auxiliary ones of both scales, and what blends them."""
    size = (256, 512)  # below it parameters and gradients are the peak
    published, ours = (
        memory_methods.count(dataclasses.replace(ROW, method=method, size=size))["live_peak_bytes"]
        for method in ("published", "none")
    )
    full_resolution = 4 * memory_methods.CLASSES * size[0] * size[1]
    assert published - ours > 2 * full_resolution


@pytest.mark.slow
def test_operations_of_checkpoints_are_those_of_a_second_forward_pass():
    plain, again = (
        memory_methods.operations(dataclasses.replace(ROW, method=method)) for method in ("published", "checkpoint")
    )
    assert 1.2 < again / plain < 1.4  # backward has twice the operations of forward


class Small(nn.Module):
    """Logits and auxiliary logits; sigmoids and convolutions between them want their results in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if k == 0 else 8, 8, 3, padding=1) for k in range(4))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = images
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x, 2 * x


def small_work(budget: str) -> Work:
    target = torch.randint(0, 8, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    return Work(Row("training", budget, NETWORK, (16, 16), "float32"), Small(), torch.rand(1, 3, 16, 16), target)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.compile
@pytest.mark.parametrize("budget", ["compile-1", "compile-0.1"])
@pytest.mark.usefixtures("fresh_compiler")
def test_what_compiled_graphs_keep_is_what_autograd_is_given(budget):
    """The graphs of torch.compile on real tensors, run op by op: what their forward pass saves for backward."""
    work = small_work(budget)
    compiled = torch.compile(training_loss, backend="aot_eager_decomp_partition", dynamic=False)
    with memory_methods.compiling(work.row):
        saved = meters.saved_bytes(lambda: compiled(work.network, work.images, work.target), work.given)
    assert memory_methods.kept_by_compile(work) == pytest.approx(saved, abs=64)  # and the loss itself


@pytest.mark.compile
@pytest.mark.usefixtures("fresh_compiler")
def test_a_smaller_budget_keeps_less():
    kept = [memory_methods.kept_by_compile(small_work(f"compile-{budget:g}")) for budget in memory_methods.BUDGETS]
    assert kept[0] > kept[1] > kept[2]


# ---- tiles -------------------------------------------------------------------------------------------------------


def test_tiles_give_the_labels_of_their_blended_maps(monkeypatch):
    monkeypatch.setattr(memory_methods, "TILE", 96)
    torch.manual_seed(0)
    network = models.build("hrnet_small_ocr", 7).eval()
    images = torch.rand(1, 3, 100, 170) * 2 - 1
    scales, strides = [2.0, 1.0, 0.5], [4, 4, 4]

    @torch.no_grad()
    def run(tile: torch.Tensor) -> models.ScaleOutputs:
        return network(tile, scales=scales)

    def one(row: int, column: int, height: int, width: int) -> models.ScaleOutputs:
        padded = nn.functional.pad(images, (0, 200, 0, 200))
        return run(padded[..., row : row + height, column : column + width])

    labels, confidence = memory_methods.tiled_labels(run, images)
    plan = tiles.layout((100, 170), (96, 96), memory_methods.OVERLAP, tiles.step_of(scales, strides))
    assert len(plan) > 2
    (band,) = tiles.blended(one, plan, scales, strides, whole=True)
    expected, expected_confidence = (x[:, :100, :170] for x in band.outputs.argmax())
    assert (labels == expected).float().mean() > 0.999  # but for ties
    torch.testing.assert_close(confidence, expected_confidence, atol=1e-5, rtol=0)


# ---- the file ----------------------------------------------------------------------------------------------------


@pytest.fixture
def counts(monkeypatch) -> list[Row]:
    """Rows that were counted, by a formula: 1 GB and 4 kB a pixel, half of that for the method "all"."""
    counted: list[Row] = []

    def count(row: Row) -> dict[str, int]:
        counted.append(row)
        if row.how.budget is not None:
            return {"parameter_bytes": 10**8, "held_bytes": 10**9}
        share = 0.5 if row.method == "all" else 1.0
        return {"parameter_bytes": 10**8, "live_peak_bytes": int(10**9 + share * 4000 * row.size[0] * row.size[1])}

    monkeypatch.setattr(memory_methods, "count", count)
    monkeypatch.setattr(memory_methods, "operations", lambda row: 10**12 * (2 if row.method == "all" else 1))
    return counted


def command(file, *arguments: str) -> None:
    memory.main(["--json", str(file), *arguments])


SMALL = ("--network", NETWORK, "--dtype", "float32", "--job", "training")


def test_a_second_run_counts_what_is_missing(tmp_path, counts):
    file = tmp_path / "R.json"
    command(file, *SMALL, "--size", "512x1024", "--method", "none")
    command(file, *SMALL, "--size", "512x1024")
    assert len(counts) == len(set(counts)) == 5  # those of torch.compile only where they are named
    command(file, *SMALL, "--size", "512x1024", "--method", "none", "--again")
    assert len(counts) == 6
    content = json.loads(file.read_text())
    assert {entry["method"] for entry in content["rows"]} == {"published", "checkpoint", "none", "modules", "all"}
    assert all(entry["counted"]["live_peak_bytes"] > 10**9 for entry in content["rows"])
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in file.read_text()


def test_a_row_that_fails_leaves_those_before_it(tmp_path, counts, monkeypatch):
    file, count = tmp_path / "R.json", memory_methods.count

    def fails_at_last(row: Row) -> dict[str, int]:
        if row.method == "all":
            raise MemoryError
        return count(row)

    monkeypatch.setattr(memory_methods, "count", fails_at_last)
    with pytest.raises(MemoryError):
        command(file, *SMALL, "--size", "512x1024")
    assert len(json.loads(file.read_text())["rows"]) == 4


def test_rows_of_torch_compile_are_lower_bounds(tmp_path, counts, capsys):
    file = tmp_path / "R.json"
    command(file, *SMALL, "--size", "512x1024", "--method", "compile-0.5")
    command(file, "--table")
    assert "| published, torch.compile, budget 0.5 | > 1.00 |" in capsys.readouterr().out
    assert memory_plot.points_of(json.loads(file.read_text())["rows"], "training") == {}


def test_a_size_of_ones_own_can_be_counted(tmp_path, counts):
    command(tmp_path / "R.json", *SMALL, "--size", "256x320", "--method", "all")
    assert counts == [Row("training", "all", NETWORK, (256, 320), "float32")]


def test_a_row_is_measured_in_a_process_of_its_own(tmp_path, capsys):
    file = tmp_path / "R.json"
    small = ("--network", NETWORK, "--dtype", "float32", "--job", "evaluation", "--size", "64x128")
    command(file, *small, "--method", "whole", "--measure", "--rounds", "1")
    (entry,) = json.loads(file.read_text())["rows"]
    assert entry["measured"]["ms"] == entry["measured"]["rounds_ms"][0] > 0
    assert "about" in capsys.readouterr().out  # how long it will take
    if entry["measured"]["resident_bytes"] is not None:
        assert entry["measured"]["resident_bytes"] > 0.8 * entry["counted"]["live_peak_bytes"]
        assert entry["measured"]["libraries_bytes"] > 10**7
    command(file, *small, "--method", "whole", "--measure", "--rounds", "1")
    assert "0 rows" in capsys.readouterr().out
    command(file, "--table")
    assert f"| `{NETWORK}` | 64x128 | float32 | hmsa_ext |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--json"),
        (["--json", "none/R.json"], "--json"),
        (["--json", "R.json", "--rounds", "0"], "--rounds"),
        (["--json", "R.json", "--size", "12"], "--size"),
        (["--json", "R.json", "--method", "twice"], "--method"),
        (["--json", "R.json", "--job", "evaluation", "--method", "all"], "--method"),
    ],
)
def test_bad_arguments_are_named(arguments, named, capsys):
    with pytest.raises(SystemExit) as ended:
        memory.main(arguments)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


# ---- what fits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_size", [1, 2, 8, 12, 16, 24, 80])
@pytest.mark.parametrize("power", [1.0, 1.3])
def test_the_largest_crop_fits_and_the_next_does_not(memory_size, power):
    def facts(row: Row) -> dict[str, int]:
        area = row.size[0] * row.size[1] / 1e6
        return {"parameter_bytes": 0, "live_peak_bytes": int(1e9 * (0.5 + 3 * area**power))}

    def need(steps: int) -> float:
        return memory_fits.needed(facts(dataclasses.replace(ROW, size=memory_fits.crop(steps))))

    steps = memory_fits.search(ROW, memory_size, facts)
    assert steps == 0 or need(steps) <= 1e9 * memory_size
    assert need(steps + 1) > 1e9 * memory_size


def test_the_optimizers_state_and_a_reserve_are_needed_too():
    assert memory_fits.needed({"live_peak_bytes": 7 * 10**9, "parameter_bytes": 10**9}) == 10 * 10**9


def test_crops_that_fit_are_in_the_table(tmp_path, counts, capsys):
    file = tmp_path / "R.json"
    command(file, *SMALL, "--method", "none", "--method", "all", "--fits")
    capsys.readouterr()
    command(file, "--table")
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {line[1]: line[1:] for line in lines if line[0] == f"`{NETWORK}`" and line[2:3] == ["float32"]}
    none, everything = rows["hmsa_ext"], rows["hmsa_ext, recompute all"]
    # 8 GB: (8 * 0.8 - 1 - 0.1) GB at 4 kB a pixel are 1.33 megapixels; 6 steps have 1.18, 7 have 1.61.
    assert none[2] == "768x1536"
    assert [int(cell.split("x")[0]) for cell in none[2:]] == sorted(int(cell.split("x")[0]) for cell in none[2:])
    assert all(int(a.split("x")[0]) < int(b.split("x")[0]) for a, b in zip(none[2:], everything[2:], strict=True))


def test_a_crop_whose_next_was_not_counted_is_not_said_to_be_the_largest():
    entries = [
        {**dataclasses.replace(ROW, size=memory_fits.crop(steps)).to_json(), "counted": facts}
        for steps, facts in (
            (4, {"live_peak_bytes": 10**9, "parameter_bytes": 0}),
            (6, {"live_peak_bytes": 30 * 10**9, "parameter_bytes": 0}),
            (7, {"live_peak_bytes": 90 * 10**9, "parameter_bytes": 0}),
        )
    ]
    (found,) = memory_fits.known(entries).values()
    assert found == {80: 6}  # 5 steps may fit 8 GB


# ---- tables and plot ---------------------------------------------------------------------------------------------


@pytest.fixture
def whole_file(tmp_path, counts):
    file = tmp_path / "R.json"
    command(file, "--network", memory_plot.NETWORK, "--dtype", "float32")
    return file


def test_tables_have_every_row_and_size(whole_file, capsys):
    entries = json.loads(whole_file.read_text())["rows"]
    table = memory_table.growth(entries, "training", memory_plot.NETWORK, "float32")
    assert [len(row) for row in table] == [1 + len(SIZES)] * len(table)
    assert [row[0] for row in table[1:]] == [how.label for how in METHODS["training"].values() if how.budget is None]
    assert table[-1][1:] == [f"{1 + 2000 * h * w / 1e9:.2f}" for h, w in SIZES]
    operations = memory_table.operations(entries)
    assert ["training", "hmsa_ext, recompute all", "2.00", "2.00"] in operations
    assert ["evaluation", "published", "1.00", "1.00"] in operations


def test_the_summary_holds_ours_against_the_published(whole_file):
    entries = json.loads(whole_file.read_text())["rows"]
    _, none, _, everything, evaluation = memory_table.summary(entries)
    pixels = 1024 * 2048
    ours, published = 1e9 + 2000 * pixels, 1e9 + 4000 * pixels
    assert everything[1:4] == [f"**{ours / 1e9:.2f}**", f"{published / 1e9:.2f}", f"{published / ours:.1f}"]
    assert none[3] == "1.0"
    assert everything[5] == ""  # nothing was run
    assert evaluation[4] == ""  # nothing is checkpointed in evaluation
    for entry in entries:
        entry["measured"] = {"ms": 300.0 if entry["method"] == "all" else 200.0}
    assert [row[5] for row in memory_table.summary(entries)[1:4]] == ["1.00", "1.00", "1.50"]


def test_tables_of_a_page_are_replaced_and_nothing_else(whole_file, tmp_path, capsys):
    command(whole_file, "--table")
    tables = [block.strip() for block in capsys.readouterr().out.strip().split("\n\n")]
    other = "| `fuse_scales` | ms |\n| --- | --- |\n| forward | 23 |"
    page, stale = tmp_path / "page.md", "\n".join(tables[0].splitlines()[:2]) + "\n| published | 0 | 0 | 0 | 0 | 0 |"
    page.write_text(f"# Memory\n\n{stale}\n\nText.\n{other}\n\n{tables[1]}\n")
    command(whole_file, "--page", str(page))
    assert page.read_text() == f"# Memory\n\n{tables[0]}\n\nText.\n{other}\n\n{tables[1]}\n"


def test_the_plot_has_each_method_where_its_bytes_are(whole_file, tmp_path):
    entries = json.loads(whole_file.read_text())["rows"]
    lines = memory_plot.points_of(entries, "training")
    assert list(lines) == ["published", "checkpoint", "none", "modules", "all"]
    page = memory_plot.draw(entries)
    colour = np.array(memory_plot.COLOURS["all"])
    lower = np.argwhere((page[: memory_plot.TOP + memory_plot.SIDE, : memory_plot.SIDE] == colour).all(-1))
    upper = np.argwhere(
        (page[: memory_plot.TOP + memory_plot.SIDE, : memory_plot.SIDE] == memory_plot.COLOURS["modules"]).all(-1)
    )
    assert len(lower) > 50
    assert lower[:, 0].mean() > upper[:, 0].mean()  # fewer bytes lie lower
    command(whole_file, "--plot", str(tmp_path / "growth.png"))
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_without_the_rows_of_the_plot_is_an_error():
    with pytest.raises(ValueError, match=memory_plot.NETWORK):
        memory_plot.draw([ROW.to_json()])


# ---- the GPU's part ----------------------------------------------------------------------------------------------


def test_the_part_of_a_gpu_run_begins_with_what_counts_most():
    names = [row.name for row in gpu_memory.suite("memory", dry=False)]
    assert names[0] == "training, all, hrnet_w48_ocr, 1024x2048, bfloat16"
    assert len(set(names)) == len(names)
    assert not any(row.how.budget for row in gpu_memory.suite("memory", dry=False))
    assert all(row.how.budget for row in gpu_memory.suite("compile", dry=False))


def test_rows_of_a_gpu_run_are_lines_and_a_table(tmp_path, device):
    lines = JsonLines(tmp_path / "lines.jsonl")
    for method in ("none", "published"):
        gpu_memory.measure(dataclasses.replace(ROW, method=method), device.type, lines)
    entries = json_lines.read(lines.path)
    assert [len(entry["rounds_ms"]) for entry in entries] == [gpu_memory.ROUNDS] * 2
    if device.type == "cuda":
        counted = memory_methods.count(ROW)["live_peak_bytes"]
        assert counted * 0.9 < entries[0]["peak_bytes"] <= entries[0]["reserved_bytes"]
    header, ours, published = gpu_report.pipeline(entries)
    assert (ours[header.index("by")], ours[header.index("times ours")]) == ("hmsa_ext", "1.00")
    assert float(published[header.index("times ours")]) > 0


def test_a_row_that_fails_on_a_gpu_is_a_line_with_its_error(tmp_path, monkeypatch):
    def fail(row, device):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    monkeypatch.setattr(memory_methods, "prepare", fail)
    lines = JsonLines(tmp_path / "lines.jsonl")
    gpu_memory.measure(ROW, "cpu", lines)
    (entry,) = json_lines.read(lines.path)
    assert entry["error"] == "OutOfMemoryError: Tried to allocate 20.00 GiB"
    assert gpu_report.failures([entry])[1][2] == entry["error"]
    assert gpu_report.pipeline([entry])[1:] == []
