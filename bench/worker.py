"""A process that runs one competitor, with cold or with warm memory: ``python -m bench.worker eager cold cpu``.

Reads requests as lines of JSON from stdin and answers each with a line on stdout: see :mod:`bench.crew`.

*Cold* is the allocator as it comes: glibc gives every large block back to the system, so that each result is mapped
anew and its pages are faulted in (pages that the machine has: see :func:`bench.meters.touch_free_memory`). *Warm* is
the same with glibc told to keep what is freed, as allocators such as jemalloc do: the pages are there. Each competitor
has a process of its own for each, so that none inherits another's memory; all are told the same.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

LARGEST_STOCK = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Tells glibc never to give memory back and never to map a block of its own. False where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of malloc.h without the M_
    return mallopt is not None and all((mallopt(mmap_max, 0), mallopt(trim_threshold, -1), mallopt(top_pad, 64 << 20)))


def main() -> None:
    name, memory, device = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what compilers print does not get between the answers
    if device == "cpu" and memory == "warm" and not keep_freed_memory():
        sys.exit("warm memory needs glibc")
    work = Work(name, memory, device)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(work, request.pop("do"))(**request)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


class Work:
    """One competitor's answers. Imports torch only here: the allocator has been told before."""

    run: Callable[[], object]  # these are there from :meth:`load` on; the floor has no function and no inputs
    function: competitors.Function
    inputs: competitors.Inputs

    def __init__(self, name: str, memory: str, device: str) -> None:
        global torch, competitors, flops, meters, Case, OPS
        import torch

        import hmsa_ext  # noqa: F401  (registers the op)
        from bench import competitors, flops, meters
        from bench.cases import OPS, Case

        self.name, self.memory, self.device = name, memory, device
        self.threads = torch.get_num_threads()
        self.share = 1.0  # of a measured time that counts

    def load(self, case: dict, direction: str) -> dict:
        """Makes the inputs, compiles, runs once."""
        for former in ("run", "function", "inputs"):  # they hold memory
            vars(self).pop(former, None)
        meters.release_free_memory()
        self.case, self.direction = Case.from_json(case), direction
        torch.manual_seed(0)
        if self.name == "floor":
            self.run, self.share = competitors.floor(self.case, direction, self.memory, self.device)
        else:
            self.inputs = competitors.make_inputs(self.case, self.device)
            self.function = competitors.build(self.name, self.case.op)
            self.run = competitors.runner(self.function, self.case, direction, self.inputs)
        self.run()
        self.needed = meters.peak_memory(self.run) or 0 if self.device == "cpu" else 0
        if self.memory == "warm" and self.device == "cpu":
            self._stock_heap()
        return {}

    def _stock_heap(self) -> None:
        """Leaves free, touched memory at the end of the heap.

        A call seldom finds its large blocks just where they were: glibc cuts a little off to align them, and a small
        block that gets this bit makes the hole too short for the next. A call that needs very much is left to find
        what its own warm-up rounds leave: every process holds its heap, and all have to fit.
        """
        needed = self.needed
        stock = min(8 * needed, needed + LARGEST_STOCK)
        meters.release_free_memory()
        if needed > 2 * LARGEST_STOCK or stock > meters.available_memory() // 4:
            return
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        block = libc.malloc(stock)
        if block:
            ctypes.memset(block, 0, stock)
            libc.free(block)

    def round(self, calls: int = 1) -> dict:
        """Seconds, of the clock and of all threads' processor time, and minor page faults of one call: the mean of
        ``calls`` in a row."""
        if self.device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(calls):
                self.run()
            end.record()
            torch.cuda.synchronize()
            seconds = self.share * begin.elapsed_time(end) / 1e3 / calls
            return {"seconds": seconds, "cpu_seconds": None, "faults": None}
        if self.memory == "cold":
            meters.touch_free_memory(min(self.needed, meters.available_memory() // 2))
        time.sleep(0.005)  # by then the threads of the worker before this one have stopped spinning
        begin = time.perf_counter(), time.process_time(), meters.minor_faults()
        for _ in range(calls):
            self.run()
        end = time.perf_counter(), time.process_time(), meters.minor_faults()
        each = [(after - before) * self.share / calls for before, after in zip(begin, end, strict=True)]
        return dict(zip(("seconds", "cpu_seconds", "faults"), each, strict=True))

    def facts(self) -> dict:
        """What does not depend on time: memory, bytes saved for backward, FLOPs."""
        facts = {"peak_bytes": meters.peak_memory(self.run, self.device)}
        if self.name != "compile":  # Inductor allocates past the dispatcher
            with meters.LiveBytes().ignore(*self.inputs.all) as meter:
                self.run()
            facts["live_peak_bytes"] = meter.peak
        facts["flops"] = flops.of_competitor(self.name, self.case, self.direction)
        facts["saved_bytes"] = 0
        if self.inputs.leaves and OPS[self.case.op].differentiable:  # a prediction is made without gradients
            facts["saved_bytes"] = meters.saved_bytes(
                lambda: competitors.call(self.function, self.case, self.inputs), self.inputs.all
            )
        return facts


if __name__ == "__main__":
    main()
