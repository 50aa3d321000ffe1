"""Records of a run: what is written, and what a resumed run drops."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hmsa_ext.data.progress import duration
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.logging import RunLog, memory_gib, read_records, timed


def records(folder: Path) -> list[dict[str, Any]]:
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
    log.validation(5, 1, {"1.0": float("nan"), "max": 0.25}, best=0.375, seconds=1.5)
    log.close()
    (record,) = records(tmp_path)
    assert (record["kind"], record["miou_1.0"], record["miou_max"]) == ("validation", None, 0.25)
    said = capsys.readouterr().out
    assert "max 25.00" in said
    assert "best max 37.50" in said


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


def test_the_first_mean_after_an_interruption_is_over_the_same_steps(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def steps(log: RunLog, numbers: range) -> None:
        for step in numbers:
            now[0] += 2.0
            write_steps(log, range(step, step + 1), device)

    (tmp_path / "whole").mkdir()
    whole = RunLog(tmp_path / "whole", Process(device), steps=9, every=5)
    steps(whole, range(1, 10))
    whole.close()
    log = RunLog(tmp_path, Process(device), steps=9, every=5)
    steps(log, range(1, 8))
    with log.paused():
        now[0] += 50.0  # the checkpoint is being written
        state = json.loads(json.dumps(log.state()))
    log.close()
    now[0] += 1000.0
    log = RunLog(tmp_path, Process(device), steps=9, step=7, every=5)
    log.load_state(state)
    steps(log, range(8, 10))
    log.close()
    assert [r["steps"] for r in records(tmp_path)] == [5, 4]
    assert [r["loss"] for r in records(tmp_path)] == [3.0, 7.5]
    memory = {"memory_gib": None}
    assert [r | memory for r in records(tmp_path)] == [r | memory for r in records(tmp_path / "whole")]


def test_without_a_state_the_record_says_over_how_many_steps_it_is(tmp_path: Path, device: torch.device) -> None:
    log = RunLog(tmp_path, Process(device), steps=9, step=7, every=5)
    log.load_state({})
    write_steps(log, range(8, 10), device)
    log.close()
    assert [(r["step"], r["steps"], r["loss"]) for r in records(tmp_path)] == [(9, 2, 8.5)]


def test_of_several_processes_the_state_has_the_sums_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("hmsa_ext.engine.distributed.total", lambda process, values: values * process.world_size)
    log = RunLog(tmp_path, Process(cpu, rank=0, world_size=3), steps=9, every=5)
    write_steps(log, range(1, 3), cpu)
    state = log.state()
    log.close()
    assert (state["loss"], state["steps"], state["images"], state["data_seconds"]) == (9.0, 2, 24, 3.0)
    logs = [RunLog(tmp_path, Process(cpu, rank=rank, world_size=3), steps=9, step=2, every=5) for rank in range(3)]
    for log in logs:
        log.load_state(state)
    assert [float(log._loss) for log in logs] == [9.0, 0.0, 0.0]  # once in the next sum over all
    assert sum(log._images for log in logs) == 24
    assert all(log._data_seconds == 1.0 for log in logs)
    logs[0].close()


@pytest.mark.parametrize(
    "bad", [b"5", b"null", b"[1]", b"\x80\xff\x00", b'{"step": "x", "kind": "train"}', b"[" * 99999]
)
def test_a_line_that_is_no_record_does_not_stop_a_resumed_run(tmp_path: Path, bad: bytes) -> None:
    first = b'{"kind": "train", "step": 1, "loss": 1.0}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([bad, first, bad, b'{"kind": "train", "step": 9}', bad]))
    log = RunLog(tmp_path, Process(torch.device("cpu")), steps=9, step=3, every=1)
    write_steps(log, range(4, 5), torch.device("cpu"))
    log.close()
    assert [r["step"] for r in records(tmp_path)] == [1, 4]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(first)
    assert read_records(tmp_path / "metrics.jsonl") == records(tmp_path)


def board(folder: Path) -> EventAccumulator:
    """What TensorBoard finds in a folder."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def test_both_logs_have_iou_by_class_loss_and_the_board_has_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, Process(torch.device("cpu")), steps=5)
    more = {"iou/background": 0.95, "iou/crack": 0.0, "loss": 0.5, "far": math.inf}
    log.validation(5, 1, {"attention": 0.475}, best=0.475, seconds=1.0, more=more)
    log.pictures(5, iter([("a/b", np.full((4, 6, 3), 7, np.uint8))]))
    log.close()
    (record,) = records(tmp_path)
    assert (record["iou/background"], record["iou/crack"], record["loss"], record["far"]) == (0.95, 0.0, 0.5, None)
    events = board(tmp_path)
    assert events.Scalars("validation/iou/background")[0].value == pytest.approx(0.95)
    assert events.Scalars("validation/loss")[0].value == 0.5
    (image,) = events.Images("pictures/a/b")
    assert (image.step, image.width, image.height) == (5, 6, 4)
    # Of two classes the mean alone hides one that is never found.
    assert "mIoU attention 47.50  IoU background 95.00  crack 0.00  loss 0.5000" in capsys.readouterr().out


def test_many_classes_are_not_listed_on_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, Process(torch.device("cpu")), steps=5)
    log.validation(
        5, 1, {"attention": 0.5}, best=-math.inf, seconds=1.0, more={f"iou/class {k}": 0.5 for k in range(3)}
    )
    log.close()
    shown = capsys.readouterr().out
    assert "class 0" not in shown
    assert "no mIoU so far" in shown


def test_pictures_are_not_drawn_where_nothing_takes_them(tmp_path: Path) -> None:
    log = RunLog(tmp_path, Process(torch.device("cpu"), rank=1), steps=5)
    pages = iter([("a", np.zeros((2, 2, 3), np.uint8))])
    log.pictures(1, pages)
    log.close()
    assert next(pages)[0] == "a"


def test_a_pause_that_ends_with_an_error_is_over(tmp_path: Path) -> None:
    log = RunLog(tmp_path, Process(torch.device("cpu")), steps=5)
    with pytest.raises(OSError, match="full"), log.paused():
        raise OSError("full")
    before = log.state()["seconds"]
    time.sleep(0.01)
    assert log.state()["seconds"] > before
    log.close()


def test_an_infinite_loss_is_null(tmp_path: Path, device: torch.device) -> None:
    log = RunLog(tmp_path, Process(device), steps=1, every=1)
    log.step(1, epoch=1, loss=torch.tensor(math.inf, device=device), lr=0.1, images=4, data_seconds=0.5)
    log.close()
    assert records(tmp_path)[0]["loss"] is None
