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


def tiff(array: np.ndarray, *, photometric: int = 1, extra: tuple[int, ...] = (), orientation: int = 1) -> bytes:
    """A TIFF [H, W] or [H, W, bands], not compressed; photometric 1 is grey, 2 RGB, 5 CMYK; extra 2 is alpha."""
    array = np.atleast_3d(array)
    height, width, bands = array.shape
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    shorts = {
        256: (width,), 257: (height,), 258: (8 * array.dtype.itemsize,) * bands, 259: (1,), 262: (photometric,),
        274: (orientation,), 277: (bands,), 278: (height,), 339: (kind,) * bands,
    } | ({338: extra} if extra else {})  # fmt: skip
    rest, place = b"", 8 + 2 + 12 * (len(shorts) + 2) + 4
    entries = {273: (4, 1, struct.pack("<I", 1000)), 279: (4, 1, struct.pack("<I", len(raw)))}
    for tag, values in shorts.items():
        body = struct.pack(f"<{len(values)}H", *values)
        if len(body) > 4:
            body, rest = struct.pack("<I", place + len(rest)), rest + body
        entries[tag] = (3, len(values), body.ljust(4, b"\0"))
    table = b"".join(struct.pack("<HHI", tag, *entry[:2]) + entry[2] for tag, entry in sorted(entries.items()))
    start = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + b"\0\0\0\0" + rest
    return start.ljust(1000, b"\0") + raw


def exif(orientation: int) -> bytes:
    """EXIF data with nothing but an orientation."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def turned_jpeg(path: Path, size: tuple[int, int], orientation: int, seed: int = 0) -> Path:
    """A JPEG with an EXIF orientation."""
    content, body = write_image(path, size, seed).read_bytes(), b"Exif\0\0" + exif(orientation)
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:])
    return path
