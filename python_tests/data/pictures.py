"""Pictures for the tests of data sets, written without the code under test."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np


def write(path: Path, array: np.ndarray) -> Path:
    """A picture file by its suffix; colours in OpenCV's order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def write_image(path: Path, size: tuple[int, int] = (8, 12), seed: int = 0) -> Path:
    return write(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def png(values: np.ndarray, *, depth: int = 8, colour: int = 0, palette: bytes | None = None) -> bytes:
    """A PNG with one channel: greyscale (colour 0) or palette (colour 3) of 1, 2, 4 or 8 bits, not interlaced."""
    height, width = values.shape
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    if palette is not None:
        body += chunk(b"PLTE", palette)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
