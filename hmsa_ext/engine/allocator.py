"""Memory on the CPU that a process holds beside its live tensors, given back while it works.

glibc serves blocks below a threshold, which it raises to 32 MiB as blocks are freed, from one heap. PyTorch asks for
aligned blocks, and before glibc 2.38 an aligned block does not fit into the gap that one of the same size has left
(https://sourceware.org/bugzilla/show_bug.cgi?id=14581). The gaps stay resident, and grow.

``malloc_trim`` gives the pages of all gaps back to the system. A thread calls it again and again. A page that is used
again has to be given and cleared again, which takes time; of huge pages, which PyTorch can ask for, there are 512 times
fewer. ``python -m bench.resident`` measures what it gains and costs, beside other allocators.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hmsa_ext.settings import SettingError

OFTEN, SELDOM = 0.25, 10.0
"""Seconds between two times. *Often*: most of what is freed is not needed again soon, or memory counts for more than
time, as in evaluations and with recomputation. *Seldom*: gaps add up less, at little cost in time."""
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Variable by which PyTorch asks for huge pages for blocks of 2 MiB and more. It is read at the first tensor."""


@contextmanager
def follow_live_tensors(seconds: float = OFTEN) -> Iterator[bool]:
    """Inside, memory that was freed goes back to the system every ``seconds``; yields whether it does.

    The commands that train, evaluate and predict do their work inside. The library does not by itself: a program that
    uses it enters this, before its first tensor because of the huge pages, where resident memory matters.

    Nothing is changed without glibc (musl, macOS, Windows), and where the user has chosen: by ``MALLOC_*``, by
    ``glibc.malloc`` in ``GLIBC_TUNABLES``, or by another allocator in ``LD_PRELOAD``. A value of
    ``THP_MEM_ALLOC_ENABLE`` that is set is kept.

    Raises :class:`hmsa_ext.settings.SettingError` for ``seconds`` that are not above 0.
    """
    if not (isinstance(seconds, (int, float)) and 0 < seconds < threading.TIMEOUT_MAX):
        raise SettingError("seconds", seconds, f"a number above 0 and below {threading.TIMEOUT_MAX:g}")
    if not _has_glibc() or _chosen_by_user():
        yield False
        return
    trim, ended = ctypes.CDLL(None).malloc_trim, threading.Event()

    def give_back() -> None:
        while not ended.wait(seconds):
            trim(0)  # without Python's lock; glibc locks its heap for milliseconds

    thread = threading.Thread(target=give_back, name="malloc_trim", daemon=True)
    chosen = HUGE_PAGES in os.environ
    os.environ.setdefault(HUGE_PAGES, "1")
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
        if not chosen:
            os.environ.pop(HUGE_PAGES, None)


def _has_glibc() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # another C library does not know the name
        return False


def _chosen_by_user() -> bool:
    return (
        any(name.startswith("MALLOC_") for name in os.environ)
        or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
        or "malloc" in os.environ.get("LD_PRELOAD", "")
    )
