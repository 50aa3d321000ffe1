"""Runs competitors in turn, round by round, each in a process of its own, so that a noisy machine is noisy for all."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.cases import Case

# On a virtual machine the first touch of a page may be slow, since the host has to find the page.
WARM_UP_ROUNDS = 5
# Seconds. A competitor that takes longer has two warm-up rounds, and takes part in every second measured round.
SLOW = 1.0


class Worker:
    """The near end of a process of bench/worker.py."""

    def __init__(self, name: str, memory: str, device: str) -> None:
        self.name, self.memory, self.device = name, memory, device
        self.loaded: tuple[Case, str] | None = None
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", name, memory, device],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None  # both are pipes
        assert process.stdout is not None
        self._process, self._requests, self._answers = process, process.stdin, process.stdout

    def ask(self, do: str, **arguments) -> dict:
        if self._process.poll() is None:
            self._requests.write(json.dumps({"do": do, **arguments}) + "\n")
            self._requests.flush()
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name}, {self.memory} ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}, {self.memory}: {answer['error']}")
        return answer

    def load(self, case: Case, direction: str) -> None:
        if self.loaded != (case, direction):
            self.ask("load", case=case.to_json(), direction=direction)
            self.loaded = case, direction

    def close(self, wait: bool = True) -> None:
        self._requests.close()
        if wait:
            self._process.wait()


class Crew:
    """All workers for a device; they start when they are first needed."""

    def __init__(self, device: str) -> None:
        self.device = device
        # A GPU's memory is kept by PyTorch's own allocator: cold does not exist there.
        self.memories = ("cold", "warm") if device == "cpu" else ("warm",)
        self._workers: dict[tuple[str, str], Worker] = {}

    def measure(
        self,
        case: Case,
        direction: str,
        names: tuple[str, ...],
        seconds: float,
        rounds: tuple[int, int],
        repeat: Callable[[Callable[[], None], Callable[[], None], int], None],
        memories: tuple[str, ...] = (),
    ) -> dict[str, dict]:
        """Facts about each of ``names``, and of the floor, with times in cold and in warm memory.

        As many rounds are run as take about ``seconds``, between the two of ``rounds``, by
        ``repeat(all others, ours in cold memory, count)``. ``memories``: those wanted, else all that the device has.
        """
        names = ("floor", *names)
        workers = [self._worker(name, memory) for memory in reversed(memories or self.memories) for name in names]
        for worker in workers:
            worker.load(case, direction)
        # A call on a GPU takes less than a launch: twenty in a row are timed between two events.
        calls = 20 if self.device == "cuda" else 1
        durations = self._warm_up(workers, calls)
        count = max(rounds[0], min(rounds[1], int(seconds / sum(durations.values()))))
        times: dict[Worker, list[dict]] = {worker: [] for worker in workers}

        def others() -> None:
            number = len(times[workers[-1]])
            for worker in workers[:-1]:
                if durations[worker] < SLOW or number % 2 == 0:
                    times[worker].append(worker.ask("round", calls=calls))

        def ours() -> None:
            times[workers[-1]].append(workers[-1].ask("round", calls=calls))

        repeat(others, ours, count)
        facts: dict[str, dict] = {name: {} for name in names}
        for worker in workers:
            facts[worker.name][worker.memory] = _summary(times[worker])
        for name in names[1:]:
            facts[name].update(self._worker(name, self.memories[0]).ask("facts"))
        return facts

    def _worker(self, name: str, memory: str) -> Worker:
        if (name, memory) not in self._workers:
            self._workers[name, memory] = Worker(name, memory, self.device)
        return self._workers[name, memory]

    def _warm_up(self, workers: list[Worker], calls: int) -> dict[Worker, float]:
        """Rounds that do not count. Returns the seconds that the last round of each worker took."""
        durations = dict.fromkeys(workers, 0.0)
        for number in range(WARM_UP_ROUNDS):
            for worker in workers:
                if number >= 2 and durations[worker] > SLOW:
                    continue
                start = time.perf_counter()
                worker.ask("round", calls=calls)
                durations[worker] = time.perf_counter() - start
        return durations

    def close(self) -> None:
        for wait in (False, True):  # all end at once
            for worker in self._workers.values():
                worker.close(wait)


def _summary(times: list[dict]) -> dict:
    seconds = [entry["seconds"] for entry in times]
    low, _, high = statistics.quantiles(seconds, n=4)
    summary = {"ms": _milliseconds(statistics.median(seconds)), "quartiles": [_milliseconds(low), _milliseconds(high)]}
    if times[0]["faults"] is not None:
        summary["cpu_ms"] = _milliseconds(statistics.median(entry["cpu_seconds"] for entry in times))
        summary["faults"] = round(statistics.median(entry["faults"] for entry in times))
    return {**summary, "rounds": len(seconds)}


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 4)
