"""Reading pictures and label maps from disk: whole, pixel for pixel as stored, or with an error that names the file.

The EXIF orientation is never followed: label maps belong to the pixels as they are stored.

For a damaged file OpenCV returns ``None`` or, in some versions, a half grey picture. Training on that would be silently
wrong. Files are therefore checked before they are decoded: JPEG up to its end marker, PNG by the checksums of its
chunks.

OpenCV gives the colours of a palette picture and has no way to ask for the indices. Label files are therefore turned,
in memory, into greyscale files that store the same numbers.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hmsa_ext.data.headers import (
    PNG_START,
    FormatError,
    Header,
    check_readable,
    jpeg_segments,
    parse_header,
    plain_tiff,
)
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
WHITE = 65535  # of 16 bits

# OpenCV decodes 1, 2 and 4 bits to the range of 8; this finds the stored values again.
_UNSTRETCH = {depth: (np.arange(256) // (255 // (2**depth - 1))).astype(np.uint8) for depth in (1, 2, 4)}


def read_image(path: Path, *, white: int = WHITE) -> np.ndarray:
    """The picture in a PNG, JPEG, BMP, TIFF or WebP file, uint8 [H, W, 3], red, green, blue. Raises DataError.

    Alpha is left out, CMYK is converted, 16 bits are reduced to 8.

    white: the value of white in files of 16 bits, such as 4095 for 12 bits stored in 16; larger values become white.
    """
    data = read_bytes(path)
    header = check_whole(path, data)
    return reduce_depth(decode_image(path, data, header), white)


def decode_image(path: Path, data: bytes, header: Header) -> np.ndarray:
    """The picture in the bytes of a file, [H, W, 3], red, green, blue, uint8, or uint16 of files of 16 bits.

    The orientation is not followed. header: that which :func:`check_whole` returned. Raises DataError.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_ANYDEPTH if header.depth == 16 else 0)
    return cv2.cvtColor(_decode(path, _as_stored(data, header), flags), cv2.COLOR_BGR2RGB)


def reduce_depth(image: np.ndarray, white: int = WHITE) -> np.ndarray:
    """An image of 16 bits as one of 8: value / white * 255, larger values become white; one of 8 bits as it is.

    For 65535 this is the upper byte, as OpenCV does it when it decodes to 8 bits.
    """
    if image.dtype == np.uint8:
        return image
    if white == WHITE:
        return (image >> 8).astype(np.uint8)
    return np.minimum(np.arange(1 << 16) * 255 / white + 0.5, 255).astype(np.uint8)[image]


def largest_value(path: Path) -> int:
    """The largest value that an image file of 8 or 16 bits stores. Raises DataError."""
    data = read_bytes(path)
    check_whole(path, data)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
    return int(_decode(path, data, flags).max())


def read_label(path: Path) -> np.ndarray:
    """The label map in a PNG, BMP or TIFF file, values as stored: uint8 [H, W], or uint16 [H, W] of 16-bit files.

    Of palette files the indices; of files with 1, 2 or 4 bits the values 0..1, 0..3, 0..15; of colour files whose
    channels are all the same (also greyscale with alpha) that channel.

    Raises DataError for other colour files, for JPEG and WebP (they change values), and for damaged files.
    """
    data = read_bytes(path)
    header = check_whole(path, data)
    _refuse_lossy(path, header)
    if header.format == "PNG" and header.channels == 1:
        data = _png_as_greyscale(path, data)
    elif header.format == "BMP" and header.palette:
        data = _bmp_as_greyscale(data)
    elif header.palette:
        raise FormatError(f"{path}: a {header}: palettes are read from PNG and BMP; save the label map as one of these")
    label = _decode(path, _as_stored(data, header), cv2.IMREAD_UNCHANGED)
    if label.ndim == 3:
        if not all(np.array_equal(label[..., 0], label[..., k]) for k in (1, 2)):
            raise DataError(
                f"{path}: expected a label map with one channel of class numbers, got colours ({header}). "
                f"Store the class numbers themselves (8-bit greyscale or palette PNG); for colours that stand for "
                f"classes, describe the folder with masks: colours (see hmsa_ext.data.sets.folder)"
            )
        label = np.ascontiguousarray(label[..., 0])
    if label.dtype not in (np.uint8, np.uint16):
        raise FormatError(f"{path}: expected class numbers of 8 or 16 bits, unsigned, got {label.dtype}")
    if header.format == "PNG" and header.depth < 8:
        label = cv2.LUT(label, _UNSTRETCH[header.depth])
    return label


def read_colours(path: Path) -> np.ndarray:
    """The colours in a PNG, BMP or TIFF file as numbers, uint32 [H, W]: red * 65536 + green * 256 + blue.

    Palettes are followed, alpha is left out. Raises DataError for JPEG and WebP (they change colours) and for damaged
    files.
    """
    data = read_bytes(path)
    header = check_whole(path, data)
    _refuse_lossy(path, header)
    image = _decode(path, _as_stored(data, header), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    # Blue, green, red and a fourth byte are the bytes of a number, lowest first.
    return cv2.cvtColor(image, cv2.COLOR_BGR2BGRA).view("<u4")[..., 0] & np.uint32(0xFFFFFF)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that is not empty. Raises DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise DataError(f"{path}: the file is empty")
    return data


def check_whole(path: Path, data: bytes) -> Header:
    """The header of a picture file, given its bytes, once it is sure that they are all there.

    Raises DataError when the file is no picture, ends early (PNG, JPEG), or has a wrong checksum (PNG), and
    :class:`hmsa_ext.data.headers.FormatError` for a kind of picture that is not read. Damage in files of other formats
    is found when they are decoded.
    """
    header = parse_header(path, data)
    check_readable(path, header)
    if header.format == "PNG":
        for _ in _png_chunks(path, data):
            pass
    if header.format == "JPEG":
        ends = [position for marker, position, _ in jpeg_segments(path, io.BytesIO(data)) if marker == 0xDA]
        # In the compressed picture FF D9 cannot occur but as the end marker.
        if not ends or data.find(b"\xff\xd9", ends[0]) < 0:
            raise DataError(f"{path}: the file is damaged: it ends early, after {len(data)} bytes")
    return header


def _png_chunks(path: Path, data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk, up to the last; its checksum is right."""
    position = len(PNG_START)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        kind = data[position + 4 : position + 8]
        (expected,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != expected:
            raise DataError(f"{path}: the file is damaged: wrong checksum in PNG chunk {kind.decode('latin-1')}")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise DataError(f"{path}: the file is damaged: it ends early, after {len(data)} bytes")


def _png_as_greyscale(path: Path, data: bytes) -> bytes:
    """A greyscale or palette PNG as the plain greyscale PNG of the same numbers.

    Nothing but header and pixels is kept: palette, transparency and background mean something else there.
    """
    parts = [PNG_START]
    for kind, start, end in _png_chunks(path, data):
        if kind == b"IHDR":
            chunk = bytearray(data[start:end])
            chunk[17] = 0  # colour type: greyscale
            struct.pack_into(">I", chunk, len(chunk) - 4, zlib.crc32(chunk[4:-4]))
            parts.append(bytes(chunk))
        elif kind in (b"IDAT", b"IEND"):
            parts.append(data[start:end])
    return b"".join(parts)


def _bmp_as_greyscale(data: bytes) -> bytes:
    """A BMP with a palette in which index i has the colour i, i, i: decoding gives the indices."""
    changed = bytearray(data)
    header, entry = struct.unpack_from("<I", data, 14)[0], 4
    if header == 12:  # of the first version
        entry = 3
    table = 14 + header
    count = min(256, (struct.unpack_from("<I", data, 10)[0] - table) // entry)
    grey = np.repeat(np.arange(count, dtype=np.uint8)[:, None], entry, 1)
    changed[table : table + grey.size] = grey.tobytes()
    return bytes(changed)


def _refuse_lossy(path: Path, header: Header) -> None:
    if header.format in ("JPEG", "WebP"):
        raise FormatError(
            f"{path}: {header.format} is lossy: it alters labels at class borders. Regenerate the label maps as PNG; "
            f"converting this file does not restore the labels"
        )


def _as_stored(data: bytes, header: Header) -> bytes:
    return plain_tiff(data) if header.format == "TIFF" and (header.orientation != 1 or header.alpha) else data


def _decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err or error}") from error
    if picture is None:
        raise DataError(f"{path}: cannot be decoded; the file is damaged")
    return picture
