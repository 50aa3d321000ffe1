"""Photos as users have them, in files or in memory, as upright RGB pixels of 8 bits.

The EXIF orientation is followed, so that a photo is seen as viewers show it; :func:`as_stored` turns a result back to
the pixels as the file stores them. (Data sets never follow it, see :mod:`hmsa_ext.data.files`: there a label map lies
beside each image.)
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmsa_ext.data.files import WHITE, check_whole, decode_image, read_bytes, reduce_depth
from hmsa_ext.data.headers import FormatError, Header, at_page, tiff_pages
from hmsa_ext.data.types import DataError
from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError

READ_FORMATS = "PNG, JPEG, BMP, TIFF and WebP"

_ORIENTATION_TAG = 274
_TIFF_STARTS = (b"II*\0", b"MM\0*")
# Camera makers store raw photos as TIFF files, whose first page is a thumbnail.
_RAW_SUFFIXES = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
_FOREIGN_STARTS = {
    b"GIF8": "a GIF",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"\0\0\0\x0cJXL ": "a JPEG XL file",
    b"\xff\x0a": "a JPEG XL file",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF document",
    b"v/1\x01": "an OpenEXR file",
    b"<svg": "a drawing (SVG)",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched (git lfs pull)",
}


@dataclass(frozen=True, eq=False)
class Photo:
    """An upright photo.

    pixels: uint8 [H, W, 3], red, green, blue. May share the memory of the array that it was made from.
    orientation: EXIF orientation, 1 to 8, that was undone; 1 where the file stores the photo upright.
    name: the name of the file; empty for arrays.
    notes: what was done to it, in words worth saying.
    """

    pixels: np.ndarray
    orientation: int = 1
    name: str = ""
    notes: tuple[str, ...] = ()


def read_photo(path: str | os.PathLike[str], *, page: int = 0, white: int = WHITE) -> Photo:
    """The photo in a PNG, JPEG, BMP, TIFF or WebP file.

    The EXIF orientation is followed, alpha is left out, grey becomes three equal channels, CMYK is converted.

    page: of a TIFF with several pages, from 0. Overviews and masks of a GeoTIFF are no pages.
    white: the value of white in files of 16 bits, such as 4095 for 12 bits stored in 16; larger values become white.

    Raises :class:`hmsa_ext.data.DataError`, which names the file, where it is damaged, incomplete or of a kind that is
    not read, and :class:`hmsa_ext.errors.ArgumentValueError` for a page that is not there and for a wrong ``white``.
    """
    _check_white(white)
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: a folder; expected a picture (hmsa predict takes folders and videos)")
    if path.is_char_device():  # such as /dev/zero, which has no end
        raise DataError(f"{path}: a device; expected a picture")
    data = read_bytes(path)
    _refuse_foreign(path, data)
    data, notes = _turn_to_page(path, data, page)
    header = check_whole(path, data)
    pixels = decode_image(path, data, header)
    notes += _notes_of(header)
    if data[:4] == b"RIFF" and data[12:16] == b"VP8X" and data[20] & 0x02:
        notes += ("the first picture of an animation",)
    pixels, reduced = _to_8_bits(pixels, white)
    return Photo(_upright(pixels, header.orientation), header.orientation, path.name, notes + reduced)


def count_pages(path: str | os.PathLike[str]) -> int:
    """How many pages a picture file has: 1 but for some TIFF files. Only its headers are read. Raises DataError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return len(tiff_pages(path, file)) if file.read(4) in _TIFF_STARTS else 1
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def as_photo(image: Any, *, white: int = WHITE) -> Photo:
    """One photo, given as any of these:

    - a path, see :func:`read_photo`;
    - a PIL image of any mode but F; its EXIF orientation is followed;
    - a numpy array, uint8 or uint16, [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], in the order red, green, blue, alpha.
      Blue first, as OpenCV has it, cannot be recognised: convert it before;
    - a torch tensor on any device, [H, W], [1, H, W], [3, H, W] or [4, H, W], in the same order: uint8, or floating
      point with values from 0 to 1.

    white: the value of white in images of 16 bits.

    Raises :class:`hmsa_ext.errors.ArgumentTypeError` and :class:`hmsa_ext.errors.ArgumentValueError` for what is none
    of these, and :class:`hmsa_ext.data.DataError` for files.
    """
    if isinstance(image, str | os.PathLike):
        return read_photo(image, white=white)
    _check_white(white)
    if isinstance(image, np.ndarray):
        return _of_array(image, white)
    if isinstance(image, torch.Tensor):
        return _of_tensor(image)
    pillow = sys.modules.get("PIL.Image")  # whoever has a PIL image has imported it
    if pillow is not None and isinstance(image, pillow.Image):
        return _of_pillow(image, white)
    raise ArgumentTypeError(
        f"image: got {type(image).__name__}, expected a path, a PIL image, a numpy array [H, W, 3] or a torch tensor "
        f"[3, H, W]"
    )


def as_stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """An array [H, W, ...] over the upright photo, turned to the pixels as the file stores them; contiguous.

    orientation: that of the :class:`Photo`, 1 to 8.
    """
    # Turning left undoes turning right; every other orientation undoes itself.
    return _upright(array, {6: 8, 8: 6}.get(orientation, orientation))


# ---- files ------------------------------------------------------------------------------------------------------


def _refuse_foreign(path: Path, data: bytes) -> None:
    """Raises for files that other programs take for pictures, with the name of their kind."""
    start = data[:64].lstrip() if data[:1] in b" \r\n\t" else data[:64]
    kind = next((kind for magic, kind in _FOREIGN_STARTS.items() if start.startswith(magic)), "")
    if data[4:8] == b"ftyp":
        brands = data[8:64]
        if b"avif" in brands or b"avis" in brands:
            kind = "an AVIF file"
        elif any(brand in brands for brand in (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1")):
            kind = "a HEIC photo"
        else:
            kind = "a video or a file of a related format"
    if path.suffix.lower() in _RAW_SUFFIXES:
        kind = "a raw photo of a camera"
    if kind:
        raise FormatError(
            f"{path}: {kind} is not read; {READ_FORMATS} are. Convert it to one of these, or open it with Pillow and "
            f"pass the image in Python"
        )


def _turn_to_page(path: Path, data: bytes, page: int) -> tuple[bytes, tuple[str, ...]]:
    pages = tiff_pages(path, data) if data[:4] in _TIFF_STARTS else [0]
    if not 0 <= page < len(pages):
        counted = "1 page" if len(pages) == 1 else f"{len(pages)} pages"
        raise ArgumentValueError(f"page: got {page}, but {path} has {counted}; the first is 0")
    if data[:4] in _TIFF_STARTS:
        data = at_page(data, pages[page])
    return data, (f"page {page + 1} of {len(pages)}",) if len(pages) > 1 else ()


def _notes_of(header: Header) -> tuple[str, ...]:
    notes = ()
    if header.alpha:
        notes += ("alpha left out",)
    elif header.colours == "RGB and a fourth band":
        notes += ("the fourth band left out",)
    if header.cmyk:
        notes += ("CMYK converted to RGB",)
    return notes


# ---- images in memory -------------------------------------------------------------------------------------------


def _of_array(image: np.ndarray, white: int) -> Photo:
    unsigned = image.dtype.kind == "u" and image.dtype.itemsize <= 2
    if not unsigned:
        advice = "convert it with image.astype(np.uint8) where its values are 0..255"
        if image.dtype.kind == "f":
            advice = "for values from 0 to 1 pass (image * 255).round().astype(np.uint8)"
        elif image.dtype.kind == "b":
            advice = "pass image.astype(np.uint8) * 255"
        raise ArgumentTypeError(
            f"image: got a numpy array of {image.dtype}, expected uint8 with 0..255, or uint16; {advice}"
        )
    if image.ndim == 4:
        raise ArgumentValueError(f"image: got a batch {list(image.shape)}, expected one image; pass a list of images")
    if image.ndim == 3 and image.shape[2] not in (1, 3, 4) and image.shape[0] in (1, 3, 4):
        raise ArgumentValueError(
            f"image: got a numpy array {list(image.shape)}; its channels come last, [H, W, 3]: pass "
            f"image.transpose(1, 2, 0)"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ArgumentValueError(
            f"image: got a numpy array {list(image.shape)}, expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
        )
    if image.size == 0:
        raise ArgumentValueError(f"image: got a numpy array {list(image.shape)} without pixels")
    notes: tuple[str, ...] = ()
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] == 4:
        image, notes = image[..., :3], ("alpha left out",)
    if image.dtype.itemsize == 2:
        image = image.astype(np.uint16)  # of this machine's byte order
    image, reduced = _to_8_bits(image, white)
    if image.shape[2] == 1:
        image = np.broadcast_to(image, (*image.shape[:2], 3))
    return Photo(np.ascontiguousarray(image), notes=notes + reduced)


def _of_tensor(image: torch.Tensor) -> Photo:
    shape = list(image.shape)
    if image.ndim == 4:
        raise ArgumentValueError(f"image: got a batch {shape}, expected one image; pass a list of images")
    if image.ndim == 3 and shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
        raise ArgumentValueError(
            f"image: got a tensor {shape}; channels come first in tensors, [3, H, W]: pass image.permute(2, 0, 1)"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and shape[0] not in (1, 3, 4)):
        raise ArgumentValueError(f"image: got a tensor {shape}, expected [3, H, W], [1, H, W], [4, H, W] or [H, W]")
    if image.numel() == 0:
        raise ArgumentValueError(f"image: got a tensor {shape} without pixels")
    image = image.detach()
    if image.dtype.is_floating_point:
        smallest, largest = (float(value) for value in torch.aminmax(image.float()))
        if not (smallest >= 0 and largest <= 1):  # NaN fulfils neither
            raise ArgumentValueError(
                f"image: got {image.dtype} values from {smallest:g} to {largest:g}, expected 0 to 1. "
                f"{_explain_values(smallest, largest)}"
            )
        image = (image.float() * 255).round().to(torch.uint8)
    elif image.dtype != torch.uint8:
        raise ArgumentTypeError(
            f"image: got a tensor of {image.dtype}, expected uint8 with 0..255, or floating point with 0..1; "
            f"of 16 bits pass a numpy array of uint16"
        )
    array = image.cpu().numpy()
    return _of_array(array if array.ndim == 2 else array.transpose(1, 2, 0), WHITE)


def _explain_values(smallest: float, largest: float) -> str:
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        return "Some values are not finite"
    if smallest < -0.1:
        return "This looks normalised: pass the image as it is before that, since the predictor normalises"
    if largest > 2:
        return "This looks like 0..255: pass image / 255, or image.to(torch.uint8)"
    return "Where these are overshoots of resizing, pass image.clamp(0, 1)"


def _of_pillow(image: Any, white: int) -> Photo:
    name = Path(getattr(image, "filename", "") or "").name
    try:
        image.load()  # opening alone decodes nothing; TIFF files are turned here
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        notes = ("alpha left out",) if image.mode.endswith(("A", "a")) or "transparency" in image.info else ()
        if image.mode.startswith("I;16"):
            array = np.asarray(image)
        elif image.mode == "I":
            array = _of_32_bits(np.asarray(image))
        elif image.mode == "F":
            raise ArgumentTypeError(
                "image: got a PIL image of mode F, expected one of 8 or 16 bits per channel; for values from 0 to 1 "
                "pass (np.asarray(image) * 255).round().astype(np.uint8)"
            )
        else:
            array = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ArgumentValueError):
            raise
        raise DataError(f"{name or 'image'}: Pillow cannot decode or convert this image: {error}") from error
    photo = _of_array(array, white)
    return Photo(_upright(photo.pixels, orientation), orientation, name, notes + photo.notes)


def _of_32_bits(values: np.ndarray) -> np.ndarray:
    if values.size and (values.min() < 0 or values.max() > WHITE):
        raise ArgumentValueError(
            f"image: got a PIL image of mode I with values from {values.min()} to {values.max()}, expected 0 to {WHITE}"
        )
    return values.astype(np.uint16)


# ---- pixels -----------------------------------------------------------------------------------------------------


def _check_white(white: int) -> None:
    if not 1 <= white <= WHITE:
        raise ArgumentValueError(f"white: expected a value from 1 to {WHITE}, got {white}")


def _to_8_bits(image: np.ndarray, white: int) -> tuple[np.ndarray, tuple[str, ...]]:
    if image.dtype == np.uint8:
        return image, ()
    largest = int(image.max())
    note = f"16 bits reduced to 8 with white={white} (largest value: {largest})"
    if 4 * largest <= white:  # cameras store 10, 12 or 14 bits in 16
        note += f"; where photos are too dark, set white, perhaps to {(1 << largest.bit_length()) - 1}"
    return reduce_depth(image, white), (note,)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """The array [H, W, ...] as viewers show it, given its EXIF orientation; contiguous."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
