"""Output files that say what they were made from, so that a run can be continued: PNG, JPEG and MP4 with a mark.

A mark is a short ASCII text, such as a digest of model, settings and source. It lies where other programs pass over it:
a tEXt chunk of a PNG, a comment of a JPEG, a free box of an MP4.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hmsa_ext.data.headers import JPEG_START, PNG_START
from hmsa_ext.data.opencv import cv2
from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError

KEYWORD = b"hmsa_ext"
MOST_BYTES = 1000  # of a mark
MOST_JPEG_SIDE = 65535

# PNG_RLE gave the smallest files of everything that takes below a second. Measured with OpenCV 5.0, one thread, 12
# megapixels: label map of 19 classes 65 ms and 521 kB (level 1 of the default strategy: 71 ms, 810 kB; level 6: 107 ms,
# 575 kB; level 9: 851 ms, 524 kB); confidence 163 ms and 3.3 MB (level 6: 899 ms, 3.5 MB); RGB picture 550 ms and
# 9.9 MB (level 6: 2.9 s, 10.8 MB). The level makes no difference to this strategy.
_PNG_PARAMETERS = [
    cv2.IMWRITE_PNG_COMPRESSION, 1,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
]  # fmt: skip

_PNG_HEADER_END = len(PNG_START) + 25  # behind IHDR, which is always the first chunk and of one length
_PNG_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
_JPEG_END = b"\xff\xd9"
_JPEG_COMMENT = b"\xff\xfe"


def encode_png(array: np.ndarray, mark: str = "") -> bytes:
    """A PNG file of uint8 or uint16 [H, W], or of uint8 RGB [H, W, 3], with a mark; without one where it is empty.

    Raises :class:`hmsa_ext.errors.ArgumentTypeError` and :class:`hmsa_ext.errors.ArgumentValueError`.
    """
    text = check_mark(mark) if mark else b""
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not grey and not _is_rgb(array):
        raise ArgumentTypeError(
            f"array: got {array.dtype} {list(array.shape)}, expected uint8 or uint16 [H, W], or uint8 [H, W, 3]"
        )
    content = _encode(".png", array, _PNG_PARAMETERS)
    if not mark:
        return content
    body = b"tEXt" + KEYWORD + b"\0" + text
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:_PNG_HEADER_END] + chunk + content[_PNG_HEADER_END:]


def encode_jpeg(rgb: np.ndarray, mark: str = "", quality: int = 92) -> bytes:
    """A JPEG file of uint8 RGB [H, W, 3] with a mark, without one where it is empty; quality from 1 to 100.

    Raises :class:`hmsa_ext.errors.ArgumentTypeError` and :class:`hmsa_ext.errors.ArgumentValueError`, also for a side
    of more than 65535 pixels, which the format cannot store.
    """
    text = check_mark(mark) if mark else b""
    if not _is_rgb(rgb):
        raise ArgumentTypeError(f"rgb: got {rgb.dtype} {list(rgb.shape)}, expected uint8 [H, W, 3]")
    if not 1 <= quality <= 100:
        raise ArgumentValueError(f"quality: got {quality}, expected 1 to 100")
    if max(rgb.shape) > MOST_JPEG_SIDE:
        raise ArgumentValueError(
            f"rgb: got {rgb.shape[1]}x{rgb.shape[0]} pixels; a JPEG has at most {MOST_JPEG_SIDE} along a side: "
            f"write it as PNG"
        )
    content = _encode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not mark:
        return content
    body = KEYWORD + b"\0" + text
    comment = _JPEG_COMMENT + struct.pack(">H", len(body) + 2) + body
    return content[:2] + comment + content[2:]


def append_mark(path: Path, mark: str) -> None:
    """Appends a mark to an MP4 file, as a box that players pass over. Raises OSError where it cannot be written."""
    body = b"free" + KEYWORD + b"\0" + check_mark(mark)
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(struct.pack(">I", len(body) + 4) + body)
        file.flush()
        os.fsync(file.fileno())


def read_mark(path: Path) -> str | None:
    """The mark of a PNG, JPEG or MP4 file; None where there is none, also for missing, damaged and foreign files.

    Only the first and the last bytes are read: a file that was cut off has no mark, a changed byte between them is not
    noticed.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_PNG_HEADER_END + 12 + len(KEYWORD) + 1 + MOST_BYTES)
            if start.startswith(PNG_START):
                text = _in_png(start, _last(file, len(_PNG_END)))
            elif start.startswith(JPEG_START):
                text = _in_jpeg(start, _last(file, len(_JPEG_END)))
            elif start[4:8] == b"ftyp":
                text = _in_mp4(_last(file, 8 + len(KEYWORD) + 1 + MOST_BYTES))
            else:
                return None
    except OSError:
        return None
    return text.decode("ascii", "replace") if text is not None and _fits(text) else None


def check_mark(mark: str) -> bytes:
    """The bytes of a mark. Raises :class:`hmsa_ext.errors.ArgumentValueError` for a text that cannot be one."""
    text = mark.encode("ascii", "replace") if mark.isascii() else b""
    if not _fits(text):
        raise ArgumentValueError(f"mark: got {mark!r}, expected 1 to {MOST_BYTES} printable ASCII characters")
    return text


def _in_png(start: bytes, end: bytes) -> bytes | None:
    place = _PNG_HEADER_END
    if end != _PNG_END or len(start) < place + 8:
        return None
    length, kind = struct.unpack_from(">I4s", start, place)
    body = start[place + 4 : place + 8 + length]
    checksum = start[place + 8 + length : place + 12 + length]
    if kind != b"tEXt" or checksum != struct.pack(">I", zlib.crc32(body)):
        return None
    return _behind_keyword(body[4:])


def _in_jpeg(start: bytes, end: bytes) -> bytes | None:
    if end != _JPEG_END or start[2:4] != _JPEG_COMMENT or len(start) < 6:
        return None
    (length,) = struct.unpack_from(">H", start, 4)
    return _behind_keyword(start[6 : 4 + length]) if 4 + length <= len(start) else None


def _in_mp4(end: bytes) -> bytes | None:
    place = end.rfind(b"free" + KEYWORD + b"\0")
    if place < 4:
        return None
    (length,) = struct.unpack_from(">I", end, place - 4)
    return _behind_keyword(end[place + 4 :]) if place - 4 + length == len(end) else None


def _behind_keyword(body: bytes) -> bytes | None:
    keyword, zero, text = body.partition(b"\0")
    return text if keyword == KEYWORD and zero else None


def _last(file: BinaryIO, count: int) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - count))
    return file.read(count)


def _fits(text: bytes) -> bool:
    return 0 < len(text) <= MOST_BYTES and all(32 <= byte < 127 for byte in text)


def _is_rgb(array: np.ndarray) -> bool:
    return array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8


def _encode(ending: str, array: np.ndarray, parameters: list[int]) -> bytes:
    """The file of an array in the order red, green, blue, or of one channel."""
    if array.size == 0:
        raise ArgumentValueError(f"array: got {list(array.shape)}, without pixels")
    if array.ndim == 3:
        array = cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2BGR)
    try:
        done, content = cv2.imencode(ending, np.ascontiguousarray(array), parameters)
    except cv2.error as error:
        done, content, reason = False, None, f": {error.err or error}"
    else:
        reason = ""
    if not done or content is None:
        size = f"{array.shape[1]}x{array.shape[0]}"
        raise ArgumentValueError(f"array: {size} pixels cannot be encoded as {ending[1:].upper()}{reason}")
    return content.tobytes()
