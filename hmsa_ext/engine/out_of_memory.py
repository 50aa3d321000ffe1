"""Errors of allocators, turned into one that says what was tried and what helps."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator, Sequence

import torch

from hmsa_ext.errors import HmsaError

SIGNS = (
    "can't allocate memory",  # PyTorch on the CPU
    "not enough memory",  # the same on Windows
    "out of memory",  # CUDA, and the ops of this package
    "bad_alloc",
    "insufficient memory",  # OpenCV
    "could not create a primitive",  # oneDNN, which has no memory for its scratch
    "could not create a memory object",
    "_status_alloc_failed",  # cuBLAS and cuDNN
)
"""Words of the errors that are of no class of their own."""
LESS_TO_EVALUATE = (
    "take large images in tiles (--memory 4GB or --tile 1024; in Python tiles=TileSettings(...)), or evaluate at fewer "
    "or smaller scales (--eval-scales)"
)
LESS_TO_PREDICT = (
    "allow less, so that it is cut into smaller tiles (--memory 2GB or --tile 1024; in Python memory or tile), predict "
    "it at fewer or smaller scales (--eval-scales; in Python scales), or smaller (--resize-to; in Python resize_to)"
)


class NotEnoughMemoryError(HmsaError, MemoryError):
    """The machine or the GPU has no memory left for what was asked."""

    local = True
    """Of several processes one alone may have it: that one says it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of an allocator, of the CPU or of CUDA."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):  # its text has the names of files
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, Exception) and any(sign in text for sign in SIGNS)


def reason_of(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def explained(what: str, remedies: str) -> Iterator[None]:
    """Turns the errors of allocators inside into :class:`NotEnoughMemoryError`; others pass.

    what: what was tried, as in "evaluating an image of 1024x2048 at the scales 0.5, 1". remedies: what helps, as in
    "evaluate in tiles (--tile 1024)".
    """
    try:
        yield
    except HmsaError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = NotEnoughMemoryError(
            f"memory: there was not enough for {what}; {remedies}; or stop what else uses it ({reason_of(error)})"
        )
        traceback.clear_frames(error.__traceback__)  # what they hold would stay as long as the error does
        raise found from error


def shown_images(count: int, size: Sequence[int], what: str = "image") -> str:
    """A number of pictures and their size in words: ``"2 crops of 512x1024"``, ``"an image of 512x1024"``."""
    sides = f"{size[0]}x{size[1]}"
    if count > 1:
        return f"{count} {what}s of {sides}"
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what} of {sides}"


def shown_scales(scales: Sequence[float], *, flip: bool = False) -> str:
    """Scales in words: ``"the scales 0.5, 1, 2, and mirrored"``."""
    ordered = ", ".join(f"{scale:g}" for scale in sorted(scales))
    return f"the scale{'s' * (len(scales) > 1)} {ordered}{', and mirrored' * flip}"
