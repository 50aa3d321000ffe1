"""Format, size, depth, channels and orientation of a picture file, from its first bytes. Nothing is decoded."""

from __future__ import annotations

import io
import os
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
# Values of TIFF tags: kinds of samples, and of colours.
_SAMPLES = {1: "", 2: "signed ", 3: "float "}
_GREY, _RGB, _CMYK, _YCBCR = (0, 1), 2, 5, 6
_REDUCED, _MASK = 1, 4  # bits of the tag that tells overviews and masks from pages
_ORIENTATION, _EXTRA_SAMPLES, _DNG_VERSION = 274, 338, 50706
_EXIF_BYTES = 4096  # the tag of the orientation is among the first

MOST_PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
MOST_SIDE = 1 << 20


def _most_pixels() -> int:
    """How many pixels OpenCV decodes. It reads the variable once, when it is loaded."""
    text = os.environ.get(MOST_PIXELS_VARIABLE, "")
    return int(text) if text.isdecimal() else 1 << 30


MOST_PIXELS = _most_pixels()


class FormatError(DataError):
    """A picture file that is whole, but of a kind that is not read."""


@dataclass(frozen=True)
class Header:
    """The content of the header of a picture file.

    format: "PNG", "JPEG", "BMP", "TIFF" or "WebP".
    height, width: in pixels, as stored; the orientation is not followed.
    depth: bits per channel, or per palette index.
    channels: per pixel as stored: 1 greyscale or palette index, 2 with alpha, 3 RGB, 4 with alpha or CMYK.
    palette: the one channel counts colours in a table.
    colours: the channels in words: "greyscale", "RGB and alpha", "CMYK", ...
    orientation: EXIF orientation, 1 to 8; 1 is upright.
    refusal: why the pixels cannot be read; empty when they can.
    """

    format: str
    height: int
    width: int
    depth: int
    channels: int
    palette: bool = False
    colours: str = ""
    orientation: int = 1
    refusal: str = ""

    @property
    def alpha(self) -> bool:
        """Whether a channel is alpha."""
        return self._kind.endswith("alpha")

    @property
    def cmyk(self) -> bool:
        """Whether the colours are those of a printer."""
        return self._kind == "CMYK"

    @property
    def turned(self) -> tuple[int, int]:
        """(height, width) as viewers show the picture, which follow the orientation."""
        return (self.width, self.height) if self.orientation >= 5 else self.size

    @property
    def _kind(self) -> str:
        if self.palette:
            return "palette"
        return self.colours or _CHANNEL_NAMES.get(self.channels, f"{self.channels} channels")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.depth}-bit {self._kind} {self.format}"


def check_readable(path: Path, header: Header) -> None:
    """Raises :class:`FormatError` for a picture of a kind that is not read, and for one that is too large."""
    if header.refusal:
        raise FormatError(f"{path}: {header.refusal}")
    if header.height * header.width > MOST_PIXELS or max(header.size) > MOST_SIDE:
        raise FormatError(
            f"{path}: {header.width}x{header.height} pixels are more than OpenCV decodes ({MOST_PIXELS}, and "
            f"{MOST_SIDE} along a side); cut the picture into parts, or raise the first limit by setting the "
            f"environment variable {MOST_PIXELS_VARIABLE} before the program starts"
        )


def turned_note(header: Header) -> str:
    """The text about an image whose orientation is not 1; empty for 1."""
    if header.orientation == 1:
        return ""
    height, width = header.turned
    return (
        f"the EXIF orientation {header.orientation} of the image is not followed: pixels are read as they are stored "
        f"({header.width}x{header.height}); viewers show {width}x{height}"
    )


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
            return _png(start, file)
        if start.startswith(JPEG_START):
            return _jpeg(path, file)
        if start.startswith(b"BM"):
            return _bmp(start)
        if start[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(file)
        if start[:4] in (b"II+\0", b"MM\0+"):
            raise FormatError(f"{path}: BigTIFF is not read; save the picture as TIFF or PNG")
        if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
            return _webp(start, file)
    except (struct.error, KeyError, IndexError) as error:
        raise DataError(f"{path}: the file is damaged: its header cannot be read") from error
    raise DataError(f"{path}: not a picture: expected a PNG, JPEG, BMP, TIFF or WebP file")


def tiff_pages(path: Path, file: BinaryIO | bytes) -> list[int]:
    """The positions of the directories of a TIFF file that describe pages; those of overviews and masks do not.

    Raises DataError where the file ends before one of them.
    """
    if isinstance(file, bytes):
        file = io.BytesIO(file)
    file.seek(0)
    start = file.read(8)
    order = "<" if start[:2] == b"II" else ">"
    found: dict[int, bool] = {}
    try:
        (position,) = struct.unpack_from(order + "I", start, 4)
        while position and position not in found:  # a directory that comes again would be a circle
            tags = _tiff_tags(file, position)
            found[position] = not tags.get(254, 0) & (_REDUCED | _MASK)
            file.seek(position)
            (count,) = struct.unpack(order + "H", file.read(2))
            file.seek(position + 2 + 12 * count)
            (position,) = struct.unpack(order + "I", file.read(4))
    except struct.error as error:
        raise DataError(
            f"{path}: the file is damaged: the directory of page {len(found) + 1} cannot be read"
        ) from error
    return [position for position, is_page in found.items() if is_page] or list(found)[:1]


def at_page(data: bytes, position: int) -> bytes:
    """The TIFF file that begins with another of its pages, given the position of the directory of that page."""
    order = "<" if data[:2] == b"II" else ">"
    start = data[:4] + struct.pack(order + "I", position)
    return data if data.startswith(start) else start + data[8:]


def jpeg_segments(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Marker, position after the segment and first bytes of each segment of a JPEG file, up to the compressed picture.

    Ends silently where the file ends; raises DataError where there is no marker.
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
        body = head[4:]
        if head[1] == 0xE1 and body.startswith(b"Exif"):
            body += file.read(_EXIF_BYTES)
        yield head[1], position, body
        if head[1] == 0xDA:
            return


def _png(start: bytes, file: BinaryIO) -> Header:
    width, height, depth, colour = struct.unpack_from(">IIBB", start, 16)
    orientation, position = 1, len(PNG_START)
    while True:  # the chunks before the compressed picture
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            break
        if head[4:] == b"eXIf":
            orientation = _orientation(file.read(_EXIF_BYTES))
        position += 12 + struct.unpack(">I", head[:4])[0]
    return Header("PNG", height, width, depth, _PNG_CHANNELS[colour], colour == 3, orientation=orientation)


def _jpeg(path: Path, file: BinaryIO) -> Header:
    orientation = 1
    for marker, _, body in jpeg_segments(path, file):
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation(body[6:])
        # Start of frame, in any of its forms; C4, C8 and CC in that range are something else.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            depth, height, width, channels = struct.unpack_from(">BHHB", body)
            colours = "CMYK" if channels == 4 else ""
            return Header("JPEG", height, width, depth, channels, colours=colours, orientation=orientation)
    raise DataError(f"{path}: the file is damaged: it ends early, within its header")


def _bmp(start: bytes) -> Header:
    old = struct.unpack_from("<I", start, 14)[0] == 12  # the header of the first version
    width, height, _, bits = struct.unpack_from("<HHHH" if old else "<iiHH", start, 18)
    depth = min(bits, 8)
    return Header("BMP", abs(height), width, depth, max(1, bits // 8), bits <= 8)  # negative height: top row first


def _tiff(file: BinaryIO) -> Header:
    tags = _tiff_tags(file)
    bands, depth, photometric = tags.get(277, 1), tags.get(258, 1), tags.get(262)
    alpha, samples = tags.get(_EXTRA_SAMPLES) in (1, 2), tags.get(339, 1)
    colours, refusal = "", ""
    if _DNG_VERSION in tags:
        refusal = "a raw photo of a camera (DNG) is not read; develop it to PNG, JPEG or TIFF"
    elif samples not in (1, 4) or depth > 16:
        kind = f"{_SAMPLES.get(samples, '')}{depth}-bit samples"
        refusal = f"a TIFF with {kind} is not read; save the picture with 8 or 16 bits, unsigned"
    elif photometric == _CMYK and bands == 4:
        colours = "CMYK"
    elif bands == 4 and photometric in (_RGB, None) and not alpha:
        colours = "RGB and a fourth band"
    elif bands == 2 and alpha:
        colours = "greyscale and alpha"
    elif bands not in (1, 3, 4) or (bands > 1 and photometric in _GREY):
        colours = f"{bands} bands"
        refusal = (
            f"a TIFF with {bands} bands that are not said to be red, green and blue is not read: "
            "save images as RGB, and label maps with one band"
        )
    orientation = _upright(tags.get(_ORIENTATION, 1))
    return Header("TIFF", tags[257], tags[256], depth, bands, photometric == 3, colours, orientation, refusal)


def _tiff_tags(file: BinaryIO, position: int | None = None) -> dict[int, int]:
    """The first value of each tag with integers in a directory of a TIFF file; the first one unless told."""
    file.seek(0)
    start = file.read(8)
    order = "<" if start[:2] == b"II" else ">"
    file.seek(struct.unpack_from(order + "I", start, 4)[0] if position is None else position)
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
    return tags


def plain_tiff(data: bytes) -> bytes:
    """The TIFF file with an orientation of 1, and with alpha by which the colours are said to be multiplied already.

    OpenCV follows the orientation of a TIFF even with IMREAD_IGNORE_ORIENTATION, and multiplies colours by their alpha.
    """
    order = "<" if data[:2] == b"II" else ">"
    (place,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, place)
    changed = bytearray(data)
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        if struct.unpack_from(order + "HH", data, entry) in ((_ORIENTATION, 3), (_EXTRA_SAMPLES, 3)):
            struct.pack_into(order + "H", changed, entry + 8, 1)
    return bytes(changed)


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data, which have the form of a TIFF file; 1 where they cannot be read."""
    try:
        return _upright(_tiff_tags(io.BytesIO(exif)).get(_ORIENTATION, 1))
    except struct.error:
        return 1


def _upright(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


def _webp(start: bytes, file: BinaryIO) -> Header:
    kind = start[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(start[k : k + 3], "little") for k in (24, 27))
        orientation = _webp_orientation(file) if start[20] & 0x08 else 1
        return Header("WebP", height, width, 8, 4 if start[20] & 0x10 else 3, orientation=orientation)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 21)
        return Header("WebP", 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF), 8, 4 if bits >> 28 & 1 else 3)
    width, height = struct.unpack_from("<HH", start, 26)
    return Header("WebP", height & 0x3FFF, width & 0x3FFF, 8, 3)


def _webp_orientation(file: BinaryIO) -> int:
    position = 12
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return 1
        if head[:4] == b"EXIF":
            return _orientation(file.read(_EXIF_BYTES).removeprefix(b"Exif\0\0"))
        length = struct.unpack("<I", head[4:])[0]
        position += 8 + length + length % 2
