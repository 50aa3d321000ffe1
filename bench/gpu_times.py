"""Times on a GPU: ours and eager PyTorch, by events and by graph replay, beside the card's copy bandwidth.

    python -m bench.gpu_times --lines FILE                     # in the order of worth
    python -m bench.gpu_times --lines FILE --suite compile     # torch.compile of the headlines
    ncu --profile-from-start off ... python -m bench.gpu_times --lines FILE --suite profile    # one call each, for ncu

Each figure is a line of its own, appended at once. *Events*: the time between two events around several calls in a row,
a call of a Python program as a user makes it; the host may be what it waits for. *Graph*: the same call captured once
and replayed, which leaves the kernels alone. *Host*: the time until one call returns while the device is idle. Inputs
that fit the cache are there from the call before, as they are behind a network that has just written them. ``bytes``
are those of every input and every result, each once; over the copy bandwidth they are the floor.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch

import hmsa_ext  # noqa: F401  (registers the ops)
from bench import competitors, meters, supervise
from bench.cases import Case
from bench.commands import command_parser
from bench.gpu_checks import healthy
from bench.json_lines import JsonLines

SECONDS = {"times": 40.0, "compile": 90.0, "profile": 60.0}  # for one item, the process's start included
ROUNDS = 9
ROUND_SECONDS = 4e-3  # a round has as many calls as take that long
COPIES = (1 << 30, 159383552)  # bytes: past every cache, and the output of the headline


@dataclasses.dataclass(frozen=True)
class Copy:
    """Large copies, whose bandwidth everything else is held against."""

    name: str = "copy"


@dataclasses.dataclass(frozen=True)
class Call:
    """One case in one direction by some competitors, and which of them are captured as a graph too."""

    case: Case
    direction: str = "forward"
    names: tuple[str, ...] = ("hmsa", "eager")
    captured: tuple[str, ...] = ("hmsa", "eager")

    @property
    def name(self) -> str:
        return f"{self.case.op}, {self.case.name}, {self.direction}"


Item = Copy | Call


def main() -> int:
    parser = command_parser("python -m bench.gpu_times", __doc__)
    parser.add_argument("--lines", required=True, help="file to append to")
    parser.add_argument("--suite", choices=SECONDS, default="times")
    parser.add_argument("--group", choices=PROFILES, default="two scales", help="of the suite 'profile'")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU, without events and graphs")
    options = parser.parse_args()
    lines = JsonLines(options.lines)
    if options.suite == "profile":
        for call in profiled(options.group):
            profile(_tiny(call) if options.dry else call, options.dry)
        return 0
    items = suite(options.suite, options.dry)
    names = [item.name for item in items]
    if options.first is None:
        command = [sys.executable, "-m", "bench.gpu_times", *sys.argv[1:]]
        bad = []

        def failed(name: str, why: str) -> None:
            bad.append(lines.append("time", name=name, suite=options.suite, error=why))
            print(f"{name}: {why}", flush=True)

        whole = supervise.supervise(command, names, SECONDS[options.suite], failed)
        return 1 if bad or not whole else 0
    device = "cpu" if options.dry else "cuda"
    stopwatch = Wall() if options.dry else Events()
    spoilt: list[str] = []  # by a capture that failed: PyTorch does not put everything back

    def run(item: Item) -> None:
        if not measure(item, device, stopwatch, lines, options.suite):
            spoilt.append(item.name)

    named = list(zip(names, items, strict=True))
    supervise.run_items(named, options.first, run, lambda: not spoilt and healthy(device))
    return 0


# ---- the items ---------------------------------------------------------------------------------------------------

_SIZE = (1024, 2048)
_THREE = (2.0, 1.0, 0.5)
PROFILES = ("two scales", "three scales", "rmi")


def suite(name: str, dry: bool) -> list[Item]:
    """The items of the suite ``times`` or ``compile``; tiny ones in a dry run, where only forward is compiled."""
    items: list[Item] = times() if name == "times" else [*compiled()]
    if not dry:
        return items
    small = [item if isinstance(item, Copy) else _tiny(item) for item in items]
    return [item for item in small if name == "times" or (isinstance(item, Call) and item.direction == "forward")]


def times() -> list[Item]:
    """Most valuable first: what the headline needs, then more scales, then half precision and the other format."""
    two = Case("two scales", _SIZE)
    chosen: list[Item] = [Copy()]
    for scales, ops in (
        ({}, ("fuse_scales", "cross_entropy", "argmax")),
        ({"name": "three scales", "scales": _THREE}, ("fuse_scales", "cross_entropy", "argmax")),
        ({"name": "one scale", "scales": (1.0,)}, ("argmax",)),
        ({"name": "one scale, labels only", "scales": (1.0,)}, ("labels",)),
        ({}, ("rmi",)),
        ({"name": "two scales, bfloat16", "dtype": "bfloat16"}, ("fuse_scales", "cross_entropy", "argmax")),
        ({"name": "two scales, channels_last", "channels_last": True}, ("fuse_scales", "cross_entropy")),
        (
            {"name": "three scales, bfloat16", "scales": _THREE, "dtype": "bfloat16"},
            ("fuse_scales", "cross_entropy", "argmax"),
        ),
        ({"name": "three scales", "scales": _THREE}, ("rmi",)),
        ({"name": "two scales, bfloat16", "dtype": "bfloat16"}, ("rmi",)),
        ({"name": "two scales, stride 8", "stride": 8}, ("fuse_scales", "cross_entropy")),
        (
            {"name": "one scale, 150 classes", "size": (512, 512), "scales": (1.0,), "classes": 150, "batch": 8},
            ("cross_entropy", "argmax"),
        ),
        ({"name": "19 classes", "scales": (1.0,)}, ("confusion_matrix",)),
        (
            {"name": "class-wise attention", "size": (512, 1024), "class_wise": True},
            ("fuse_scales", "cross_entropy"),
        ),
    ):
        for op in ops:
            case = dataclasses.replace(two, op=op, **scales)
            # The published RMI cannot be captured: its factorisations ask the device how they went.
            captured = ("hmsa",) if op == "rmi" else ("hmsa", "eager")
            chosen += [Call(case, direction, captured=captured) for direction in case.directions]
    return chosen


def compiled() -> list[Call]:
    """Two headlines by torch.compile, training and inference, then labels of one scale and the confusion matrix."""
    two = Case("two scales", _SIZE)
    loss = dataclasses.replace(two, op="cross_entropy")
    labels = Case("one scale, labels only", _SIZE, scales=(1.0,), op="labels")
    counts = Case("19 classes", _SIZE, scales=(1.0,), op="confusion_matrix")
    pairs = (
        (loss, "forward+backward"),
        (two, "forward"),
        (two, "forward+backward"),
        (loss, "forward"),
        (labels, "forward"),
        (counts, "forward"),
    )
    return [Call(case, direction, ("compile",), ()) for case, direction in pairs]


def profiled(group: str) -> list[Call]:
    """The calls that the profiler looks at, of one of ``PROFILES``."""
    ops = ("rmi",) if group == "rmi" else ("fuse_scales", "cross_entropy", "argmax")
    scales = _THREE if group == "three scales" else (1.0, 0.5)
    cases = [Case("two scales" if group == "rmi" else group, _SIZE, scales, op=op) for op in ops]
    # Backward brings the forward kernels along.
    return [Call(case, case.directions[-1], ("hmsa",)) for case in cases]


def _tiny(call: Call) -> Call:
    labelled = call.case.op == "confusion_matrix"
    classes = competitors.LABELLED_CLASSES if labelled else min(call.case.classes, 5)
    return dataclasses.replace(call, case=dataclasses.replace(call.case, size=(40, 72), classes=classes, batch=1))


# ---- how ---------------------------------------------------------------------------------------------------------


def measure(item: Item, device: str, stopwatch: Events | Wall, lines: JsonLines, suite_name: str) -> bool:
    """Appends every figure of an item as soon as it is known, or the exception that prevented the figure.

    Whether the process is fit for the next item.
    """
    gc.collect()
    if isinstance(item, Copy):
        measure_copy(device, stopwatch, lines)
        return True
    case = item.case
    facts = {"suite": suite_name, "op": case.op, "case": case.to_json(), "direction": item.direction}
    facts["bytes"] = competitors.moved_bytes(case, item.direction)

    def tell(by: str, how: str, figures: dict) -> None:
        lines.append("time", by=by, how=how, **facts, **figures)
        print(f"{item.name}, {by} by {how}: {figures['us']:.1f} us", flush=True)

    def failed(by: str, how: str, error: Exception) -> None:
        entry = lines.append("time", by=by, how=how, name=item.name, **facts, error=_text(error))
        print(f"{item.name}, {by} by {how}: {entry['error']}", flush=True)

    try:
        inputs = competitors.make_inputs(case, device)
    except Exception as error:
        failed("", "", error)
        return True
    runs: dict[str, Callable[[], None]] = {}
    for name in item.names:
        try:
            # In a dry run without Inductor, which would take minutes to say nothing.
            options = {"backend": "aot_eager"} if name == "compile" and device == "cpu" else {}
            function = competitors.build(name, case.op, **options)
            run = competitors.runner(function, case, item.direction, inputs)
            started = time.perf_counter()
            run()
            stopwatch.wait()
            first = time.perf_counter() - started
            tell(name, "events", {"first_call_s": first, **stopwatch.events(run)})
            if device == "cuda":
                lines.append("memory", by=name, peak_bytes=meters.peak_memory(run, "cuda"), **facts)
            runs[name] = run
        except Exception as error:
            failed(name, "events", error)
    # Last: a capture that fails spoils the process.
    for name in item.captured:
        if name in runs:
            try:
                tell(name, "graph", stopwatch.graph(runs[name]))
            except Exception as error:
                failed(name, "graph", error)
                return False
    return True


def measure_copy(device: str, stopwatch: Events | Wall, lines: JsonLines) -> None:
    for size in COPIES if device == "cuda" else (1 << 20,):
        try:
            source = torch.rand(size // 4, device=device)
            target = torch.empty_like(source)
            figures = stopwatch.events(lambda target=target, source=source: target.copy_(source))
            bandwidth = 2 * size / figures["us"] / 1e3
            lines.append("copy", bytes=2 * size, gigabytes_per_second=bandwidth, **figures)
            print(f"copy of {size / 1e6:.0f} MB: {bandwidth:.0f} GB/s read and written", flush=True)
        except Exception as error:
            lines.append("copy", bytes=2 * size, error=_text(error))


def profile(item: Call, dry: bool) -> None:
    """One warm call between a marker, by which the profiler's reader tells the calls apart, and the next."""
    print(f"profiling {item.name}", flush=True)
    inputs = competitors.make_inputs(item.case, "cpu" if dry else "cuda")
    run = competitors.runner(competitors.build("hmsa", item.case.op), item.case, item.direction, inputs)
    if dry:
        run()
        return
    with contextlib.suppress(Exception):  # the second call fails as well, behind its marker
        run()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    torch.cuda._sleep(1)  # its kernel's name is the marker
    try:
        run()
        torch.cuda.synchronize()
    except Exception as error:
        print(f"{item.name}: {_text(error)}", flush=True)
    torch.cuda.profiler.stop()


class Events:
    """Times of the device, in microseconds."""

    @staticmethod
    def wait() -> None:
        torch.cuda.synchronize()

    def events(self, run: Callable[[], object]) -> dict:
        for _ in range(3):
            run()
        return {**self._rounds(run), "host_us": self._host(run)}

    def graph(self, run: Callable[[], object]) -> dict:
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            run()
        graph.replay()
        return self._rounds(graph.replay)

    def _rounds(self, run: Callable[[], object]) -> dict:
        calls = max(1, min(50, int(ROUND_SECONDS / (self._between(run, 1) / 1e6 + 1e-9))))
        each = [self._between(run, calls) / calls for _ in range(ROUNDS)]
        return {"us": statistics.median(each), "calls": calls, "rounds_us": [round(us, 3) for us in each]}

    @staticmethod
    def _between(run: Callable[[], object], calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end)

    @staticmethod
    def _host(run: Callable[[], object]) -> float:
        times = []
        for _ in range(ROUNDS):
            torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            times.append(1e6 * (time.perf_counter() - started))
        torch.cuda.synchronize()
        return statistics.median(times)


class Wall:
    """The same by the clock, for a dry run."""

    @staticmethod
    def wait() -> None:
        pass

    def events(self, run: Callable[[], object]) -> dict:
        started = time.perf_counter()
        run()
        us = 1e6 * (time.perf_counter() - started)
        return {"us": us, "calls": 1, "rounds_us": [us], "host_us": us}

    graph = events


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}"


if __name__ == "__main__":
    sys.exit(main())
