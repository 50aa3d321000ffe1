"""Records of a run: what is written, and what a resumed run drops."""

import json
from pathlib import Path

import pytest
import torch

from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.logging import RunLog, duration, memory_gib, timed


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_steps(log: RunLog, steps: range, device: torch.device) -> None:
    for step in steps:
        loss = torch.tensor(float(step), device=device)
        log.step(step, epoch=1, loss=loss, lr=0.1, images=4, data_seconds=0.5)


def test_records_hold_means_over_their_steps(tmp_path: Path, device: torch.device) -> None:
    log = RunLog(tmp_path, Process(device), steps=5, every=2)
    write_steps(log, range(1, 6), device)
    log.close()
    written = records(tmp_path)
    assert [r["step"] for r in written] == [2, 4, 5]
    assert [r["loss"] for r in written] == [1.5, 3.5, 5.0]
    assert all(r["data_seconds"] == 0.5 and r["lr"] == 0.1 and r["memory_gib"] >= 0 for r in written)
    assert all(r["images_per_second"] == pytest.approx(4 / r["step_seconds"]) for r in written)


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path, device: torch.device) -> None:
    log = RunLog(tmp_path, Process(device), steps=9, every=1)
    write_steps(log, range(1, 6), device)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    log = RunLog(tmp_path, Process(device), steps=9, step=3, every=1)
    write_steps(log, range(4, 6), device)
    log.close()
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4, 5]


def test_validation_is_recorded_and_undefined_values_are_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, Process(torch.device("cpu")), steps=5)
    log.validation(5, 1, {"1.0": float("nan"), "attention": 0.25}, best=0.25, seconds=1.5)
    log.close()
    (record,) = records(tmp_path)
    assert (record["kind"], record["miou_1.0"], record["miou_attention"]) == ("validation", None, 0.25)
    assert "attention 25.00" in capsys.readouterr().out


def test_other_processes_write_and_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, Process(torch.device("cpu"), rank=1), steps=2, every=1)
    write_steps(log, range(1, 3), torch.device("cpu"))
    log.say("hello")
    log.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_the_console_gets_the_first_and_the_last_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, Process(torch.device("cpu")), steps=50, every=1)
    write_steps(log, range(1, 51), torch.device("cpu"))
    log.close()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert "step 1/50" in lines[0]
    assert "step 50/50" in lines[-1]
    assert len(lines) <= 3
    for word in ("loss", "lr", "data", "step", "img/s", "mem", "eta"):
        assert word in lines[0]


def test_a_pause_does_not_count_as_step_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    log = RunLog(tmp_path, Process(torch.device("cpu")), steps=5, every=1)
    now[0] += 2.0
    with log.paused():
        now[0] += 100.0
    write_steps(log, range(1, 2), torch.device("cpu"))
    log.close()
    assert records(tmp_path)[0]["step_seconds"] == 2.0


def test_waiting_time_is_that_of_the_next_item(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def slow():
        for item in "ab":
            now[0] += 3.0
            yield item

    waits = []
    for item, seconds in timed(slow()):
        waits.append((item, seconds))
        now[0] += 50.0
    assert waits == [("a", 3.0), ("b", 3.0)]


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (41.4, 250, 7500)] == ["41s", "4m10s", "2h05m"]


def test_memory_is_measured(device: torch.device) -> None:
    x = torch.ones(2**20, device=device)
    assert memory_gib(device) > x.nbytes / 2**30 / 2
