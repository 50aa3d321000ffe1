"""The GPU run without a GPU: every part in its dry form, limits, skipped parts, kills, readers of the tools' output."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu_checks, gpu_machine, gpu_profile, gpu_report, gpu_run, gpu_times, gpu_tools, json_lines
from bench.gpu_run import Part, Run
from bench.json_lines import JsonLines

ROOT = Path(__file__).resolve().parents[2]


def sleeps(name: str, seconds: float, limit: int = 30, least: int = 0, code: str = "") -> Part:
    program = f"import time; print('hello from {name}', flush=True); time.sleep({seconds}); {code}"
    return Part(name, limit, least, lambda run: [sys.executable, "-c", program])


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(JsonLines(tmp_path / "day-card-gpu.jsonl"), tmp_path / "day-card", dry=True)


def ends(run: Run) -> dict[str, str]:
    return {e["name"]: e["end"] for e in json_lines.read(run.lines.path) if e["kind"] == "part"}


@pytest.mark.compile
def test_dry_run_goes_through_every_part(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    answer = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), "--dry"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-2000:]
    (file,) = tmp_path.glob("*-dry-gpu.jsonl")
    assert re.match(r"\d{4}-\d\d-\d\d-dry-gpu.jsonl", file.name)
    entries = json_lines.read(file)
    first = entries[0]
    assert first["kind"] == "run"
    assert {"commit", "library", "torch", "cuda_of_torch", "processor", "versions"} <= set(first)
    last = {e["name"]: e["end"] for e in entries if e["kind"] == "part"}
    assert last == {part.name: "passed" for part in gpu_run.standard()}
    # Each part left figures of its own.
    kinds = {e["kind"] for e in entries}
    assert {"check", "copy", "time", "tests", "command", "memcheck", "racecheck"} <= kinds
    assert {e["suite"] for e in entries if e["kind"] == "time"} == {"times", "compile"}
    assert not [e for e in entries if e.get("error") or e.get("wrong")]
    (tests,) = (e for e in entries if e["kind"] == "tests" and e["finished"])
    assert tests["passed"] > 5
    assert tests["failed"] == 0
    assert len(list(tmp_path.iterdir())) <= 8  # what comes back from a lent machine
    for private in (str(ROOT), str(tmp_path)):
        assert private not in file.read_text()
    # Printed at the end, and again from the file.
    assert "## Times, in microseconds" in answer.stdout
    text = "\n".join(gpu_report.report(entries))
    assert "`fuse_scales_cross_entropy`, two scales | forward+backward" in text
    assert "## Failed" not in text


def test_parts_fit_a_lent_machine():
    names = [part.name for part in gpu_run.standard()]
    assert names == ["checks", "times", "tests", "memory", "ncu", "memcheck", "racecheck", "compile"]
    assert gpu_run.SECONDS <= 520
    assert all(part.least < part.seconds < gpu_run.SECONDS for part in gpu_run.PARTS)


def test_a_part_that_takes_too_long_is_ended_and_the_next_one_runs(run, capfd):
    assert not gpu_run.run_parts([sleeps("long", 60, limit=1), sleeps("short", 0)], run, time.monotonic() + 60)
    assert ends(run) == {"long": "out of time", "short": "passed"}
    assert "hello from long" in Path(run.file("gpu.log")).read_text()  # also of a part that was ended


def test_a_part_that_no_longer_fits_is_skipped_and_said_to_be(run):
    parts = [sleeps("first", 0), sleeps("large", 0, least=40), sleeps("small", 0, least=1)]
    assert not gpu_run.run_parts(parts, run, time.monotonic() + 20)
    assert ends(run) == {"first": "passed", "large": "skipped", "small": "passed"}


def test_a_part_gets_no_more_than_what_is_left(run):
    started = time.monotonic()
    assert not gpu_run.run_parts([sleeps("long", 60)], run, started + 2)
    assert time.monotonic() - started < 15
    assert ends(run) == {"long": "out of time"}


def test_a_part_that_fails_stops_no_other(run):
    parts = [sleeps("bad", 0, code="raise SystemExit(3)"), sleeps("good", 0)]
    assert not gpu_run.run_parts(parts, run, time.monotonic() + 60)
    assert ends(run) == {"bad": "failed, status 3", "good": "passed"}


def test_what_a_part_started_ends_with_it(run, tmp_path):
    pid = tmp_path / "pid"
    code = f"import subprocess as s; open({str(pid)!r}, 'w').write(str(s.Popen(['sleep', '60']).pid)); time.sleep(60)"
    gpu_run.run_parts([sleeps("parent", 0, limit=3, code=code)], run, time.monotonic() + 60)
    child = Path(f"/proc/{pid.read_text()}/stat")
    # The process has ended; its parent may not have collected it yet.
    assert not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_kill_leaves_what_was_measured(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), "--dry", "--part", "times"]
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and not measured(tmp_path):
            time.sleep(0.05)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    entries = measured(tmp_path)
    assert entries
    assert any("still running" in line for line in gpu_report.report(entries))


def measured(folder: Path) -> list[dict]:
    entries = [e for file in folder.glob("*.jsonl") for e in json_lines.read(file)]
    return entries if any(e["kind"] == "time" for e in entries) else []


def test_parts_can_be_listed_and_are_named_in_errors():
    script = str(ROOT / "bench" / "gpu.sh")
    environment = {**os.environ, "PYTHON": sys.executable}
    listed = subprocess.run(["bash", script, "--list"], env=environment, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [part.name for part in gpu_run.PARTS]
    wrong = subprocess.run(
        ["bash", script, "--dry", "--part", "none"], env=environment, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "racecheck" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--part", "none"], "--part"),
        (["--seconds", "abc"], "--seconds"),
        (["--seconds", "0"], "--seconds"),
        (["--frob"], "--frob"),
        (["--build", "--dry"], "--build"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_built(arguments, named):
    environment = {**os.environ, "PYTHON": sys.executable}
    script = str(ROOT / "bench" / "gpu.sh")
    wrong = subprocess.run(["bash", script, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert named in wrong.stderr.splitlines()[-1]
    assert "Traceback" not in wrong.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("prebuilt", ["0", "1"])
def test_a_machine_without_a_gpu_is_told_what_it_can_do(prebuilt):
    environment = {**os.environ, "PYTHON": sys.executable, "HMSA_PREBUILT": prebuilt}
    script = str(ROOT / "bench" / "gpu.sh")
    wrong = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "--dry" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_sources_of_the_library_have_a_stable_hash():
    assert gpu_machine.digest() == gpu_machine.digest()
    assert re.fullmatch(r"[0-9a-f]{16}", gpu_machine.digest())


def test_commit_is_told_where_git_is_not_there(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HMSA_COMMIT", "abc")
    assert gpu_machine.commit() == "abc"
    monkeypatch.delenv("HMSA_COMMIT")
    assert gpu_machine.commit() is None


# ---- the tools ---------------------------------------------------------------------------------------------------

NCU = """==PROF== Connected to process 12
fuse_scales, two scales, forward
==PROF== Disconnected from process 12
"ID","Process ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","dram__bytes_write.sum",\
"smsp__inst_executed.sum","smsp__thread_inst_executed.sum","launch__registers_per_thread"
"","","","ns","byte","byte","inst","inst","register/thread"
"0","12","spin_kernel(long)","1,000","0","0","1","1","8"
"1","12","void hmsa::cuda::forward::(anonymous namespace)::fuse_scales_forward_kernel<float, 1, 1>(int)","85,000",\
"12,000,000","159,000,000","63,000,000","2,000,000,000","64"
"2","12","spin_kernel(long)","1,000","0","0","1","1","8"
"3","12","void at::native::vectorized_elementwise_kernel<4, float>(int)","2,000","1","1","1,000","32,000","16"
"""


def test_kernels_are_read_with_the_call_that_launched_them():
    first, second = gpu_tools.read_ncu(NCU, ["fuse", "loss"])
    assert (first["case"], first["kernel"]) == ("fuse", "fuse_scales_forward_kernel")
    assert first["ns"] == 85000
    assert first["bytes_written"] == 159e6
    assert first["registers"] == 64
    assert first["blocks"] is None  # this version did not print it
    assert second["case"] == "loss"
    assert "vectorized_elementwise_kernel" in second["kernel"]
    assert list(gpu_tools.read_ncu("==ERROR== no permission\n", ["fuse"])) == []


def test_command_line_of_ncu_asks_for_what_is_read():
    command = gpu_tools.ncu(["python", "program.py"])
    assert command[:3] == ["ncu", "--profile-from-start", "off"]
    assert command[-2:] == ["python", "program.py"]
    assert command[command.index("--clock-control") + 1] == "none"
    assert set(command[command.index("--metrics") + 1].split(",")) == set(gpu_tools.METRICS)
    assert set(gpu_tools.FEWER) < set(gpu_tools.METRICS)


def test_command_line_of_the_sanitizer_names_our_kernels_alone():
    command = gpu_tools.sanitizer("racecheck", ["python"])
    assert command[:3] == ["compute-sanitizer", "--tool", "racecheck"]
    assert command[command.index("--kernel-name") + 1] == "kns=hmsa"
    assert command[-1] == "python"


def test_summary_of_the_sanitizer_is_read():
    text = "========= COMPUTE-SANITIZER\nours\n========= Invalid __global__ read of size 4 bytes\n"
    found = gpu_tools.read_sanitizer(text + "========= ERROR SUMMARY: 3 errors\n")
    assert found["errors"] == 3
    assert "Invalid __global__ read of size 4 bytes" in found["found"]
    assert gpu_tools.read_sanitizer(text)["errors"] is None  # ended before its summary
    clean = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    assert gpu_tools.read_sanitizer(clean)["errors"] == 0


def test_failures_are_reported_with_what_failed():
    entries = [
        {"kind": "check", "op": "argmax", "case": "odd size", "ok": False, "error": "RuntimeError: too much | memory"},
        {
            "kind": "check",
            "op": "rmi",
            "case": "odd",
            "ok": False,
            "errors": {"loss": 1.0},
            "wrong": ["loss: 1 > 1e-5"],
        },
        {"kind": "tool", "name": "memcheck", "errors": 2, "summary": "ERROR SUMMARY: 2 errors", "found": ["Invalid"]},
    ]
    rows = gpu_report.failures(entries)[1:]
    assert [row[1] for row in rows] == ["argmax odd size", "rmi odd", "memcheck"]
    assert rows[0][2] == "RuntimeError: too much \\| memory"


def test_case_that_ended_its_process_is_named(run, monkeypatch):
    def supervise(command, names, seconds, failed):
        failed(names[0], "the process died of SIGABRT")
        return False

    monkeypatch.setattr(gpu_checks.supervise, "supervise", supervise)
    options = argparse.Namespace(kind="check", device="cpu", small=True)
    assert not gpu_checks.run_op("argmax", [], run.lines, options)
    rows = gpu_report.failures(json_lines.read(run.lines.path))[1:]
    assert rows == [["check", "argmax small, two scales", "the process died of SIGABRT"]]


def test_times_have_the_floor_of_the_measured_bandwidth():
    calls = [item for item in gpu_times.times() if isinstance(item, gpu_times.Call)]
    (item,) = (call for call in calls if call.name == "fuse_scales, two scales, forward")
    facts = {"kind": "time", "case": item.case.to_json(), "direction": item.direction, "bytes": 172_000_000}
    entries = [
        {"kind": "copy", "us": 1.0, "gigabytes_per_second": 4300.0},
        {**facts, "by": "hmsa", "how": "graph", "us": 80.0},
        {**facts, "by": "hmsa", "how": "events", "us": 90.0, "host_us": 50.0},
        {**facts, "by": "eager", "how": "graph", "us": 400.0},
    ]
    header, row = gpu_report.times(entries)
    assert dict(zip(header, row, strict=True)) == {
        "what": "`fuse_scales`, two scales",
        "direction": "forward",
        "floor (4300 GB/s)": "40.0",
        "ours, graph": "80.0",
        "share": "50 %",
        "ours, events": "90.0",
        "host": "50.0",
        "eager, graph": "400",
        "eager, events": "",
        "compile, events": "",
        "times eager": "5.0",
    }


def test_most_valuable_times_come_first():
    names = [item.name for item in gpu_times.times()]
    assert names[0] == "copy"
    assert len(set(names)) == len(names)
    assert names.index("cross_entropy, two scales, forward+backward") < names.index(
        "fuse_scales, three scales, forward"
    )


def test_every_result_is_in_the_list_of_results():
    folder = ROOT / "bench" / "results"
    listed = (folder / "README.md").read_text()
    for file in folder.glob("*.json*"):
        assert re.match(r"\d{4}-\d\d-\d\d-[a-z0-9-]+-[a-z0-9_-]+\.json", file.name), file.name
        assert file.name in listed


# ---- what only a GPU runs, on stand-ins --------------------------------------------------------------------------


class FakeGraph:
    """Stands for ``torch.cuda.CUDAGraph`` and, with the rest of torch.cuda, for what times are taken with."""

    replayed = 0

    def replay(self) -> None:
        FakeGraph.replayed += 1


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


class FakeStream:
    def wait_stream(self, other: FakeStream) -> None:
        pass


@pytest.fixture
def fake_cuda(monkeypatch):
    for name, stand_in in (
        ("CUDAGraph", FakeGraph),
        ("Event", FakeEvent),
        ("Stream", FakeStream),
        ("current_stream", FakeStream),
        ("stream", contextlib.nullcontext),
        ("graph", contextlib.nullcontext),
        ("synchronize", lambda: None),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)


@pytest.mark.usefixtures("fake_cuda")
def test_events_and_graphs_give_the_median_of_rounds(run):
    item = gpu_times.suite("times", dry=True)[1]
    assert gpu_times.measure(item, "cpu", gpu_times.Events(), run.lines, "times")
    entries = json_lines.read(run.lines.path)
    assert [(e["by"], e["how"]) for e in entries] == [
        ("hmsa", "events"),
        ("eager", "events"),
        ("hmsa", "graph"),
        ("eager", "graph"),
    ]
    for entry in entries:
        assert len(entry["rounds_us"]) == gpu_times.ROUNDS
        assert entry["us"] == pytest.approx(sorted(entry["rounds_us"])[gpu_times.ROUNDS // 2], abs=1e-2)
    assert "host_us" in entries[0]
    assert FakeGraph.replayed > 2 * gpu_times.ROUNDS


@pytest.mark.usefixtures("fake_cuda")
def test_a_capture_that_fails_costs_the_rest_of_its_process(run, monkeypatch):
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    item = gpu_times.suite("times", dry=True)[1]
    assert not gpu_times.measure(item, "cpu", gpu_times.Events(), run.lines, "times")
    entries = json_lines.read(run.lines.path)
    assert ["us" in e for e in entries] == [True, True, False]  # the events are there
    assert "capturing" in entries[-1]["error"]


def stand_in(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/usr/bin/env bash\n{script}\n")
    program.chmod(0o755)


def run_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[dict]]:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", ["gpu_profile", *arguments, "--lines", str(tmp_path / "lines.jsonl")])
    return gpu_profile.main(), json_lines.read(tmp_path / "lines.jsonl")


def test_kernels_of_the_profiler_become_lines(tmp_path, monkeypatch):
    (tmp_path / "printed").write_text(NCU)
    stand_in(tmp_path, "ncu", f"cat {tmp_path}/printed")
    status, entries = run_tool(tmp_path, monkeypatch, "ncu", "--output", str(tmp_path / "ncu.csv"))
    assert status == 0
    found = [e for e in entries if e["kind"] == "kernel"]
    assert [e["group"] for e in found[::2]] == list(gpu_times.PROFILES)
    assert found[0]["case"] == "fuse_scales, two scales, forward+backward"
    assert (tmp_path / "ncu.csv").read_text() == 3 * NCU
    assert "63.00" in "\n".join(map(str, gpu_report.kernels(entries)))


def test_a_profiler_that_does_not_know_a_metric_is_asked_for_fewer(tmp_path, monkeypatch):
    (tmp_path / "printed").write_text(NCU)
    missing = list(gpu_tools.METRICS)[-1]
    stand_in(tmp_path, "ncu", f'case "$*" in *{missing}*) echo "==ERROR==" && exit 1 ;; esac; cat {tmp_path}/printed')
    status, entries = run_tool(tmp_path, monkeypatch, "ncu")
    assert status == 0
    assert len([e for e in entries if e["kind"] == "kernel"]) == 2 * len(gpu_times.PROFILES)


def test_findings_of_the_sanitizer_become_a_line(tmp_path, monkeypatch):
    # Runs what stands behind its own options, then reports a finding.
    script = 'while [ "${1#-}" != "$1" ]; do shift 2; done; "$@" --device cpu --op argmax\n'
    script += 'echo "========= Invalid read"; echo "========= ERROR SUMMARY: 1 error"; exit 9'
    stand_in(tmp_path, "compute-sanitizer", script)
    status, entries = run_tool(tmp_path, monkeypatch, "memcheck")
    assert status == 9
    assert all(e["ok"] for e in entries if e["kind"] == "memcheck")
    assert len([e for e in entries if e["kind"] == "memcheck"]) >= 5
    assert entries[-1] == {
        "kind": "tool",
        "name": "memcheck",
        "status": 9,
        "summary": "ERROR SUMMARY: 1 error",
        "errors": 1,
        "found": ["Invalid read"],
    }
    assert gpu_report.failures(entries)[1][:2] == ["tool", "memcheck"]


def test_a_tool_that_is_not_there_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tools, "find", lambda tool: None)
    status, entries = run_tool(tmp_path, monkeypatch, "racecheck")
    assert status == 127
    assert entries == [{"kind": "tool", "name": "racecheck", "error": "compute-sanitizer was not found"}]
