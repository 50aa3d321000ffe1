"""Lines that survive a kill, and items that survive each other."""

from __future__ import annotations

import json
import multiprocessing
import sys
import textwrap

from bench import json_lines, supervise
from bench.json_lines import JsonLines


def test_a_line_that_was_cut_off_costs_no_other(tmp_path):
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.append("time", us=1.5)
    lines.append("time", us=float("nan"))
    with lines.path.open("a") as file:
        file.write('{"kind": "time", "u')
    found = json_lines.read(lines.path)
    assert [entry["kind"] for entry in found] == ["time", "time"]
    assert found[0]["us"] == 1.5


def append_many(path: str, number: int) -> None:
    for index in range(50):
        JsonLines(path).append("time", process=number, index=index, padding="x" * 500)


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "lines.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_many, args=(str(path), number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found) == 150
    for number in range(3):
        assert [entry["index"] for entry in found if entry["process"] == number] == list(range(50))


CHILD = """
    import os, sys, time
    from bench import supervise

    def run(item):
        print("ran", item, flush=True)
        if item == "crash":
            os.abort()
        if item == "hang":
            time.sleep(60)

    names = sys.argv[1].split(",")
    first = int(sys.argv[sys.argv.index("--first") + 1])
    last = []
    supervise.run_items([(name, name) for name in names], first, lambda item: (last.append(item), run(item)),
                        lambda: last[-1] != "spoil")
"""


def run_child(tmp_path, names: list[str], seconds: float = 20.0) -> tuple[bool, list[tuple[str, str]]]:
    program = tmp_path / "child.py"
    program.write_text(textwrap.dedent(CHILD))
    failed = []
    command = [sys.executable, str(program), ",".join(names)]
    whole = supervise.supervise(command, names, seconds, lambda name, why: failed.append((name, why)))
    return whole, failed


def test_items_behind_a_crash_are_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ".")
    whole, failed = run_child(tmp_path, ["a", "crash", "b"])
    assert not whole
    assert failed == [("crash", "the process died of SIGABRT")]
    assert capsys.readouterr().out.split("\n")[:3] == ["ran a", "ran crash", "ran b"]


def test_items_behind_one_that_never_ends_are_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ".")
    whole, failed = run_child(tmp_path, ["hang", "b"], seconds=3.0)
    assert not whole
    assert failed == [("hang", "it took longer than 3 s")]
    assert "ran b" in capsys.readouterr().out


def test_a_spoilt_device_costs_a_new_process_and_is_told_by_the_child_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ".")
    whole, failed = run_child(tmp_path, ["spoil", "b"])
    assert not whole
    assert failed == []
    assert "ran b" in capsys.readouterr().out


def test_a_program_that_does_not_start_is_tried_once(tmp_path):
    failed = []
    command = [sys.executable, "-c", "raise SystemExit(5)"]
    assert not supervise.supervise(command, ["a", "b"], 10, lambda name, why: failed.append((name, why)))
    assert failed == [("a", "the process did not start: the process ended with exit status 5")]
