"""Picture files that say what they were made from, in a place where no program minds it.

A mark is a short text. In a PNG it is a ``tEXt`` chunk with the keyword ``hmsa_ext``, the first behind the header; in a
JPEG a comment, the first segment; in an MP4 a ``free`` box, the last one. It comes and goes with the pixels: there is
no second file that could say something else.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from hmsa_ext.errors import ArgumentValueError

KEYWORD = "hmsa_ext"
JPEG_SIDE = 65535
_PNG_START = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 33  # of a PNG: 8 bytes of start, 25 of IHDR
_PREFIX = KEYWORD.encode() + b"\0"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_MOST = 4096  # bytes of a mark


def encode_png(picture: np.ndarray, mark: str = "") -> bytes:
    """A PNG file: uint8 or uint16 [H, W] as grey values, or uint8 RGB [H, W, 3]; with a mark where it is not empty."""
    _check(picture, (np.uint8, np.uint16) if picture.ndim == 2 else (np.uint8,))
    # Run lengths suit areas of one value: label maps come out smaller than at level 6 of the default strategy, and
    # confidence about as small and faster.
    how = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    data = _encoded(".png", picture, how)
    if not mark:
        return data
    content = b"tEXt" + _PREFIX + _bytes_of(mark)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return data[:_HEADER_END] + chunk + data[_HEADER_END:]


def encode_jpeg(picture: np.ndarray, mark: str = "", *, quality: int = 92) -> bytes:
    """A JPEG file: uint8 [H, W], or RGB [H, W, 3]; with a mark where it is not empty.

    Raises ValueError for more than 65535 pixels along a side, which the format cannot hold.
    """
    _check(picture, (np.uint8,))
    if max(picture.shape[:2]) > JPEG_SIDE:
        raise ArgumentValueError(
            f"picture: JPEG has at most {JPEG_SIDE} pixels along a side, got {picture.shape[1]}x{picture.shape[0]}; "
            "write a PNG (colours instead of overlay), or predict a part of it"
        )
    data = _encoded(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not mark:
        return data
    content = _PREFIX + _bytes_of(mark)
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(content) + 2) + content + data[2:]


def append_mark(path: Path, mark: str) -> None:
    """Adds a mark to an MP4 file, to the disk (fsync). Raises OSError."""
    content = _PREFIX + _bytes_of(mark)
    with path.open("ab") as file:
        file.write(struct.pack(">I", len(content) + 8) + b"free" + content)
        file.flush()
        os.fsync(file.fileno())


def read_mark(path: Path) -> str | None:
    """The mark of a PNG, JPEG or MP4 file; None where there is none, or no such file. A few bytes are read.

    A file that lacks its end, such as a copy that was cut off, has no mark.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_MOST)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST))
            content = _content(start, file.read())
    except OSError:
        return None
    if not content.startswith(_PREFIX):
        return None
    return content[len(_PREFIX) :].decode("ascii", "replace")


def _content(start: bytes, end: bytes) -> bytes:
    """What stands where a mark would, from the first and last bytes of a file; empty where nothing does."""
    try:
        if start.startswith(_PNG_START) and end.endswith(_PNG_END):
            (length,) = struct.unpack_from(">I", start, _HEADER_END)
            chunk = start[_HEADER_END + 4 : _HEADER_END + 8 + length]
            (checksum,) = struct.unpack_from(">I", start, _HEADER_END + 8 + length)
            return chunk[4:] if chunk[:4] == b"tEXt" and zlib.crc32(chunk) == checksum else b""
        if start.startswith(b"\xff\xd8\xff\xfe") and end.endswith(_JPEG_END):
            return start[6 : 4 + struct.unpack_from(">H", start, 4)[0]]
        if start[4:8] == b"ftyp":
            # The last box is ours or none: its prefix stands behind its type, and its length reaches the end.
            place = end.rfind(b"free" + _PREFIX)
            if place >= 4 and struct.unpack_from(">I", end, place - 4)[0] == len(end) - place + 4:
                return end[place + 4 :]
    except struct.error:  # too short
        pass
    return b""


def _bytes_of(mark: str) -> bytes:
    if not mark.isascii() or len(mark) > _MOST // 2 or not mark.isprintable():
        raise ArgumentValueError(f"mark: expected up to {_MOST // 2} printable ASCII characters, got {mark!r:.80}")
    return mark.encode("ascii")


def _check(picture: np.ndarray, kinds: tuple[type, ...]) -> None:
    if picture.dtype not in kinds or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise ArgumentValueError(
            f"picture: expected uint8 [H, W] or [H, W, 3], or uint16 [H, W] as PNG, got {picture.dtype} "
            f"{list(picture.shape)}"
        )


def _encoded(suffix: str, picture: np.ndarray, how: list[int]) -> bytes:
    if picture.ndim == 3 and picture.size:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    try:
        written, data = cv2.imencode(suffix, picture, how)
    except cv2.error:  # its text is about code of OpenCV
        written, data = False, picture
    if not written:
        raise ArgumentValueError(f"picture: {picture.shape[1]}x{picture.shape[0]} pixels cannot be encoded as {suffix}")
    return data.tobytes()
