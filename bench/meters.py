"""One memory meter for all competitors: live storages, resident memory, bytes saved for backward, page faults."""

from __future__ import annotations

import ctypes
import gc
import mmap
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hmsa_ext.live_bytes import LiveBytes as LiveBytes


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Peak memory of ``function()`` in bytes, beyond the memory held before, workspace included.

    On the CPU this is resident memory of the process, by Linux's high-water mark; None where that cannot be reset.
    Freed memory must go back to the system. Call ``function`` once before, so that one-time allocations do not count.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    release_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at the resident size
        before = process_status("VmHWM")
    except (OSError, LookupError):
        return None
    function()
    return process_status("VmHWM") - before


def process_status(key: str, process: int | str = "self") -> int:
    """A size in bytes that Linux tells of a process, such as ``VmRSS`` (resident now) or ``VmHWM`` (at most so far)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise LookupError(key)


def release_free_memory() -> None:
    """Gives memory that the allocator holds free back to the system, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def touch_free_memory(size: int) -> None:
    """Takes so many bytes from the system, writes to each page and gives them back.

    A virtual machine may have handed memory that was free for a second or two back to its host. The next process that
    asks for memory then pays for the work of the host, many times the usual cost of a page. Which process that is
    depends on the order of the processes.
    """
    memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    view = ctypes.c_char.from_buffer(memory)
    ctypes.memset(ctypes.addressof(view), 1, len(memory))
    del view
    memory.close()


def available_memory() -> int:
    """Bytes that could be had without swapping, by Linux's estimate."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def minor_faults() -> int:
    """Pages that this process had to be given so far without reading from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def saved_bytes(function: Callable[[], object], inputs: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``function()``, beyond its inputs.

    Fake tensors, which have no memory, count like those that they stand for.
    """
    storages: dict[int, int] = {}
    given = {t.untyped_storage()._cdata for t in inputs}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in given:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    total = sum(storages.values())
    del result
    return total
