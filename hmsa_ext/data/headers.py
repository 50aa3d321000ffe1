"""What the first bytes of a picture file say: format, size, depth, channels. Nothing is decoded, little is read."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hmsa_ext.data.types import DataError

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"

# Colour types of PNG: channels per pixel.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_TIFF_SIZES = {1: 1, 3: 2, 4: 4}  # bytes of the integers that a TIFF tag may hold
_CHANNEL_NAMES = {1: "greyscale", 2: "greyscale and alpha", 3: "RGB", 4: "RGB and alpha"}


@dataclass(frozen=True)
class Header:
    """What a picture file says of itself.

    format: "PNG", "JPEG", "BMP", "TIFF" or "WebP".
    height, width: in pixels, as stored; a note on how to turn the picture is not followed.
    depth: bits per channel, or per palette index.
    channels: per pixel as stored: 1 greyscale or palette index, 2 with alpha, 3 RGB, 4 with alpha.
    palette: the one channel counts colours in a table.
    """

    format: str
    height: int
    width: int
    depth: int
    channels: int
    palette: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def __str__(self) -> str:
        kind = "palette" if self.palette else _CHANNEL_NAMES.get(self.channels, f"{self.channels} channels")
        return f"{self.depth}-bit {kind} {self.format}"


def read_header(path: Path) -> Header:
    """The header of a picture file. Raises DataError for a file that is no picture or ends within its header."""
    try:
        with path.open("rb") as file:
            return parse_header(path, file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_header(path: Path, file: BinaryIO | bytes) -> Header:
    """The header of an open file, or of the bytes of a whole one; the path is for the text of errors."""
    if isinstance(file, bytes):
        file = io.BytesIO(file)
    start = file.read(32)
    if not start:
        raise DataError(f"{path}: the file is empty")
    try:
        if start.startswith(PNG_START):
            return _png(start)
        if start.startswith(JPEG_START):
            return _jpeg(path, file)
        if start.startswith(b"BM"):
            return _bmp(start)
        if start[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(start, file)
        if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
            return _webp(start)
    except (struct.error, KeyError, IndexError) as error:
        raise DataError(f"{path}: the file is damaged: its header cannot be read") from error
    raise DataError(f"{path}: not a picture: expected a PNG, JPEG, BMP, TIFF or WebP file")


def jpeg_segments(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Marker, position after the segment and first bytes of each segment of a JPEG file, up to the compressed picture.

    Ends without a word where the file ends; raises DataError where there is no marker.
    """
    position = 2
    while True:
        file.seek(position)
        head = file.read(12)
        if len(head) < 4:
            return
        if head[0] != 0xFF:
            raise DataError(f"{path}: the file is damaged: no JPEG marker at byte {position}")
        if head[1] == 0xFF:  # padding before a marker
            position += 1
            continue
        position += 2 + struct.unpack_from(">H", head, 2)[0]
        yield head[1], position, head[4:]
        if head[1] == 0xDA:
            return


def _png(start: bytes) -> Header:
    width, height, depth, colour = struct.unpack_from(">IIBB", start, 16)
    return Header("PNG", height, width, depth, _PNG_CHANNELS[colour], colour == 3)


def _jpeg(path: Path, file: BinaryIO) -> Header:
    for marker, _, body in jpeg_segments(path, file):
        # Start of frame, in any of its forms; C4, C8 and CC in that range are something else.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            depth, height, width, channels = struct.unpack_from(">BHHB", body)
            return Header("JPEG", height, width, depth, channels)
    raise DataError(f"{path}: the file is damaged: it ends early, within its header")


def _bmp(start: bytes) -> Header:
    old = struct.unpack_from("<I", start, 14)[0] == 12  # the header of the first version
    width, height, _, bits = struct.unpack_from("<HHHH" if old else "<iiHH", start, 18)
    depth = min(bits, 8)
    return Header("BMP", abs(height), width, depth, max(1, bits // 8), bits <= 8)  # negative height: top row first


def _tiff(start: bytes, file: BinaryIO) -> Header:
    order = "<" if start[:2] == b"II" else ">"
    file.seek(struct.unpack_from(order + "I", start, 4)[0])
    (count,) = struct.unpack(order + "H", file.read(2))
    tags = {}
    for entry in struct.iter_unpack("12s", file.read(12 * count)):
        tag, kind, length = struct.unpack_from(order + "HHI", entry[0])
        size = _TIFF_SIZES.get(kind)
        if size is None:
            continue
        value = entry[0][8 : 8 + size]
        if size * length > 4:  # more than fits here: the values are elsewhere
            here = file.tell()
            file.seek(struct.unpack_from(order + "I", entry[0], 8)[0])
            value = file.read(size)
            file.seek(here)
        (tags[tag],) = struct.unpack(order + {1: "B", 2: "H", 4: "I"}[size], value)
    return Header("TIFF", tags[257], tags[256], tags.get(258, 1), tags.get(277, 1), tags.get(262) == 3)


def _webp(start: bytes) -> Header:
    kind = start[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(start[k : k + 3], "little") for k in (24, 27))
        return Header("WebP", height, width, 8, 4 if start[20] & 0x10 else 3)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 21)
        return Header("WebP", 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF), 8, 4 if bits >> 28 & 1 else 3)
    width, height = struct.unpack_from("<HH", start, 26)
    return Header("WebP", height & 0x3FFF, width & 0x3FFF, 8, 3)
