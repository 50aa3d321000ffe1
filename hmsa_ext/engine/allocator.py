"""Large tensors in mappings of their own, so that resident memory follows the tensors that live.

glibc serves what is smaller than a threshold from one heap, and raises the threshold to 32 MiB as large blocks are
freed. Nearly all tensors then lie in the heap. PyTorch asks for aligned blocks, and before glibc 2.38 an aligned block
does not fit into the gap that one of the same size has left (https://sourceware.org/bugzilla/show_bug.cgi?id=14581).
The gaps stay resident.

A fixed threshold avoids that: what is larger is mapped, and unmapped when it is freed. Its pages are then new each
time, which takes time: ``python -m bench.resident`` measures it. PyTorch can ask for huge pages, of which there are 512
times fewer to be given. Other allocators fill such gaps; they have to be loaded before the C library (:func:`advice`).
"""

from __future__ import annotations

import ctypes.util
import os
import sys

MMAP_THRESHOLD = 2 * 2**20
"""Bytes from which a block has a mapping of its own, and huge pages."""
TRIM_THRESHOLD = 64 * 2**20
"""Bytes that may stay free at the end of the heap: glibc's own largest value. It would be 128 KiB beside a fixed
threshold for mappings, and the heap would shrink and grow all the time."""
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Variable by which PyTorch asks for huge pages for blocks of 2 MiB and more. It is read at the first tensor."""

LIBRARY, PACKAGE = "libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"
"""An allocator whose blocks fit into the gaps that others leave, and the package of Debian and Ubuntu that has it."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def follow_live_tensors() -> bool:
    """Tells glibc to map large blocks one by one, for the whole process; true if it was told.

    The commands that evaluate and predict call this first. Training, whose time counts for more, calls
    :func:`use_huge_pages`. The library does neither: a program that uses it calls this function itself, before its
    first tensor, where resident memory matters more than time.

    Nothing is changed without glibc (musl, macOS, Windows), and where the user has chosen: by ``MALLOC_*``, by
    ``glibc.malloc`` in ``GLIBC_TUNABLES``, or by another allocator in ``LD_PRELOAD``. A value of
    ``THP_MEM_ALLOC_ENABLE`` that is set is kept.
    """
    if not _has_glibc() or _chosen_by_user():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    if done:
        use_huge_pages()
    return bool(done)


def use_huge_pages() -> None:
    """Has PyTorch ask for huge pages for blocks of 2 MiB and more, before the first tensor of the process.

    Large blocks, which are mapped in any case, are then given faster. A value that the user has set is kept, and so is
    another allocator, which knows itself how to give large blocks.
    """
    if not _chosen_by_user():
        os.environ.setdefault(HUGE_PAGES, "1")


def advice() -> str | None:
    """A sentence: with what a training on the CPU takes less resident memory. None where there is nothing to say:
    without glibc, and where the user has chosen (see :func:`follow_live_tensors`)."""
    if not _has_glibc() or _chosen_by_user():
        return None
    installed = ctypes.util.find_library(LIBRARY.removeprefix("lib").partition(".")[0]) == LIBRARY
    where = "" if installed else f" (Debian and Ubuntu: package {PACKAGE})"
    return (
        "On the CPU a training takes more memory than its tensors, since glibc keeps gaps between them: "
        f"LD_PRELOAD={LIBRARY}{where} before the command takes less, and less time."
    )


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
