"""Reading pictures and label maps from disk: whole, right way up, or with an error that names the file.

OpenCV returns ``None``, or in some versions a half grey picture, for a damaged file. Training on that would be
silently wrong, so files are looked through before they are decoded: JPEG up to its end marker, PNG by the checksums of
its chunks.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import DataError

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"


def read_image(path: Path) -> np.ndarray:
    """The picture in a PNG or JPEG file, uint8 [H, W, 3], red, green, blue. Raises DataError."""
    data = read_bytes(path)
    picture_size(path, data)
    # Labels belong to the pixels as they are stored, so a camera's note on how to turn them is not followed.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise DataError(f"{path}: cannot be decoded; the file is damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path) -> np.ndarray:
    """The label map in a PNG file with one 8-bit channel, uint8 [H, W], values as stored. Raises DataError."""
    data = read_bytes(path)
    picture_size(path, data)
    label = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if label is None:
        raise DataError(f"{path}: cannot be decoded; the file is damaged")
    if label.ndim != 2:
        raise DataError(
            f"{path}: expected a label map with one channel of class numbers, got {label.shape[2]} channels. A palette "
            f"or colour PNG is decoded to its colours; store the class numbers themselves (8-bit greyscale)"
        )
    if label.dtype != np.uint8:
        raise DataError(f"{path}: expected 8-bit class numbers, got {label.dtype}")
    return label


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that is not empty. Raises DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise DataError(f"{path}: the file is empty")
    return data


def picture_size(path: Path, data: bytes) -> tuple[int, int]:
    """(height, width) from the header of a PNG or JPEG file, without decoding it.

    Raises DataError when the file is neither, ends early, or (PNG) has a wrong checksum.
    """
    if data.startswith(PNG_START):
        return _png_size(path, data)
    if data.startswith(JPEG_START):
        return _jpeg_size(path, data)
    raise DataError(f"{path}: neither a PNG nor a JPEG file")


def _png_size(path: Path, data: bytes) -> tuple[int, int]:
    size, position = None, len(PNG_START)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        kind = data[position + 4 : position + 8]
        (expected,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != expected:
            raise DataError(f"{path}: the file is damaged: wrong checksum in PNG chunk {kind.decode('latin-1')}")
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", data, position + 8)
            size = (height, width)
        if kind == b"IEND" and size is not None:
            return size
        position = end
    raise DataError(f"{path}: the file is damaged: it ends early, after {len(data)} bytes")


def _jpeg_size(path: Path, data: bytes) -> tuple[int, int]:
    size, position = None, 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise DataError(f"{path}: the file is damaged: no JPEG marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # padding before a marker
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        # Start of frame, in any of its forms; C4, C8 and CC in that range are something else.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and position + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = (height, width)
        position += 2 + length
        if marker == 0xDA:  # the compressed picture: FF D9 cannot occur in it but as the end marker
            if size is not None and data.find(b"\xff\xd9", position) >= 0:
                return size
            break
    raise DataError(f"{path}: the file is damaged: it ends early, after {len(data)} bytes")
