"""Runs a list of items in a process of their own, which is started again behind an item that it did not survive.

A kernel that writes out of bounds leaves CUDA unusable for the rest of its process, one that never ends blocks it. Both
cost the item in which they happen, and no other.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
_MARK = "#item "  # begins the line that a child prints before it starts an item


def supervise(command: Sequence[str], names: Sequence[str], seconds: float, failed: Callable[[str, str], None]) -> bool:
    """Runs ``command --first N`` until every item was tried; whether all of them went through.

    ``seconds`` is what one item may take, the start of the process included. ``failed(name, why)`` is called for an
    item that ended its process. What else the child prints is passed on.
    """
    first, whole = 0, True
    while first < len(names):
        reached, why, known = _run(command, first, seconds)
        if why is None:
            return whole
        whole = False
        if reached is None:  # it would not get further the next time
            failed(names[first], f"the process did not start: {why}")
            return False
        if not known:
            failed(names[reached], why)
        first = reached + 1
    return whole


def run_items(items: Sequence[tuple[str, Item]], first: int, run: Callable[[Item], None], healthy: Callable[[], bool]):
    """The child's side. Leaves its process behind the first item after which ``healthy()`` does not hold.

    ``run`` reports what happened to its item by itself and raises nothing; its parent need not say it again.
    """
    for number, (name, item) in enumerate(items[first:], first):
        print(f"{_MARK}{number} {name}", flush=True)
        run(item)
        if not healthy():
            print(f"the device is unusable after {name}: starting afresh", flush=True)
            os._exit(_UNHEALTHY)  # what CUDA would do at a regular exit may hang


_UNHEALTHY = 75


def _run(command: Sequence[str], first: int, seconds: float) -> tuple[int | None, str | None, bool]:
    """The item that was reached; why the process ended before its last item, None if it did not; whether the child
    has told of it."""
    child = subprocess.Popen(
        [*command, "--first", str(first)], stdout=subprocess.PIPE, text=True, errors="replace", bufsize=1
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(child, lines), daemon=True).start()
    reached, until = None, time.monotonic() + seconds
    try:
        while True:
            try:
                line = lines.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                return reached, f"it took longer than {seconds:g} s", False
            if line is None:
                break
            if line.startswith(_MARK):
                reached, until = int(line.split()[1]), time.monotonic() + seconds
            else:
                print(line, end="", flush=True)
        status = child.wait()
    finally:
        if child.poll() is None:
            child.kill()
    if status == 0:
        return reached, None, True
    return reached, _ending(status), status == _UNHEALTHY


def _pump(child: subprocess.Popen, lines: queue.Queue[str | None]) -> None:
    assert child.stdout is not None  # a pipe
    for line in child.stdout:
        lines.put(line)
    lines.put(None)


def _ending(status: int) -> str:
    if status < 0:
        return f"the process died of {signal.Signals(-status).name}"
    return f"the process ended with exit status {status}"
