"""Which font draws a character: OpenCV's own fonts, else a font file of the system.

OpenCV 5 brings fonts for Latin, Greek, Cyrillic, Hebrew, Arabic, Chinese, Japanese and Korean, and draws a question
mark for everything else. OpenCV 4 has no fonts at all, only letters made of lines: see ``AVAILABLE``.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

AVAILABLE = hasattr(cv2, "FontFace")
WEIGHT = 400  # regular

_SUFFIXES = {".ttf", ".otf", ".ttc", ".otc"}
# Plain upright fonts come first.
_STYLES = re.compile("bold|black|heavy|light|thin|italic|oblique|condensed|mono|serif|math|display|ui", re.I)
_NOWHERE = "\uffff"  # no font has it
_SEVERAL_FONTS = b"ttcf"
_MOST_TABLES, _MOST_SUBTABLES = 512, 64


@lru_cache(maxsize=65536)
def face_of(characters: str) -> cv2.FontFace | None:
    """The font that draws a character together with the marks that follow it; None where no font does.

    Nothing but ``characters`` may need it: a font of OpenCV's is tried first, then those of the system by their names.
    """
    # OpenCV's own fonts set marks beside their letter.
    if characters.isascii() or (len(characters) == 1 and _is_drawn(embedded(), characters)):
        return embedded()
    for file in _font_files():
        if all(_has(file, ord(character)) for character in characters):
            face = _face(file)
            if face is not None and _draws(face, characters):
                return face
    return None


@lru_cache(maxsize=1)
def embedded() -> cv2.FontFace:
    """OpenCV's sans-serif font; what it lacks OpenCV takes from its second font by itself."""
    return cv2.FontFace("sans")


def advance(face: cv2.FontFace, text: str, size: int) -> int:
    """How many pixels to the right the next letter begins."""
    (x, _), _ = cv2.putText(np.zeros((1, 1), np.uint8), text, (0, 0), 0, face, size, WEIGHT)
    return x


def _draws(face: cv2.FontFace, characters: str) -> bool:
    if not all(_is_drawn(face, character) for character in characters):
        return False
    # A mark that moves the next letter stands beside its own.
    return len(characters) == 1 or advance(face, characters, 32) == advance(face, characters[0], 32)


@lru_cache(maxsize=65536)
def _is_drawn(face: cv2.FontFace, character: str) -> bool:
    """Whether there is ink, and other ink than for what is missing: some fonts list letters that they leave blank."""
    if unicodedata.category(character) in ("Zs", "Cs"):
        return character == " "
    ink = _ink(face, character)
    return bool(ink.any()) and not np.array_equal(ink, _ink(face, _NOWHERE))


def _ink(face: cv2.FontFace, character: str) -> np.ndarray:
    picture = np.zeros((64, 96), np.uint8)
    cv2.putText(picture, character, (32, 40), 255, face, 24, WEIGHT)
    return picture


@lru_cache(maxsize=64)
def _face(file: Path) -> cv2.FontFace | None:
    face = cv2.FontFace(str(file))
    return face if face.getName() else None


@lru_cache(maxsize=1)
def _font_files() -> tuple[Path, ...]:
    """The font files of the system, plain ones first."""
    found = {
        Path(folder, name)
        for root in _font_folders()
        for folder, _, names in os.walk(root)
        for name in names
        if Path(name).suffix.lower() in _SUFFIXES and "lastresort" not in name.lower()  # boxes for every character
    }
    return tuple(sorted(found, key=_preference))


def _preference(file: Path) -> tuple[int, bool, str]:
    return len(_STYLES.findall(file.stem)), "sans" not in file.stem.lower(), str(file)


def _font_folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        roots = [(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")]
        return [Path(*root) for root in (*roots, (os.environ.get("LOCALAPPDATA", home), "Microsoft/Windows/Fonts"))]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
    return [Path(folder, "fonts") for folder in (own, *shared.split(":"))] + [home / ".fonts"]


def _has(file: Path, code: int) -> bool:
    return any(first <= code <= last for first, last in _coverage(file))


@lru_cache(maxsize=4096)
def _coverage(file: Path) -> tuple[tuple[int, int], ...]:
    """First and last code of the runs of characters that a font file lists in its table ``cmap``.

    Empty for a file without outlines and for one that is no font: OpenCV, asked to read such a file, may crash.
    """
    try:
        with open(file, "rb") as stream:
            return tuple(_read_coverage(stream))
    except (OSError, struct.error):
        return ()


def _read_coverage(stream: BinaryIO) -> list[tuple[int, int]]:
    start = 0
    if stream.read(4) == _SEVERAL_FONTS:
        start = _numbers(stream, 12, ">I")[0]  # OpenCV reads the first of them
    kind, count = _numbers(stream, start, ">4sH")
    if kind not in (b"\0\1\0\0", b"true", b"OTTO") or count > _MOST_TABLES:
        return []
    tables: dict[bytes, int] = {}
    for index in range(count):
        tag, _, offset = _numbers(stream, start + 12 + 16 * index, ">4sII")
        tables[tag] = offset
    if b"cmap" not in tables or not {b"glyf", b"CFF "} & set(tables):
        return []
    runs: list[tuple[int, int]] = []
    _, subtables = _numbers(stream, tables[b"cmap"], ">HH")
    for index in range(min(subtables, _MOST_SUBTABLES)):
        platform, _, offset = _numbers(stream, tables[b"cmap"] + 4 + 8 * index, ">HHI")
        if platform in (0, 3):  # Unicode, Windows
            runs += _subtable(stream, tables[b"cmap"] + offset)
    return runs


def _subtable(stream: BinaryIO, at: int) -> list[tuple[int, int]]:
    (format_number,) = _numbers(stream, at, ">H")
    if format_number == 4:
        (twice,) = _numbers(stream, at + 6, ">H")
        lasts = _numbers(stream, at + 14, f">{twice // 2}H")
        firsts = _numbers(stream, at + 16 + twice, f">{twice // 2}H")
        return list(zip(firsts, lasts, strict=True))
    if format_number == 12:
        (count,) = _numbers(stream, at + 12, ">I")
        if count <= sys.maxunicode:
            numbers = _numbers(stream, at + 16, f">{3 * count}I")
            return list(zip(numbers[::3], numbers[1::3], strict=True))
    return []


def _numbers(stream: BinaryIO, at: int, layout: str) -> tuple:
    stream.seek(at)
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))
