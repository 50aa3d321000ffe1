"""Which font draws a character; what is no font is never handed to OpenCV."""

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_ext.engine import fonts, lettering

needs_fonts = pytest.mark.skipif(not fonts.AVAILABLE, reason="OpenCV 4 draws no fonts")
DEVANAGARI, LINEAR_B = "\u0915", "\U00010000"  # characters that no font of OpenCV's has


def cmap4(first: int, last: int) -> bytes:
    """A table of one run of characters, glyph 1 for the first, and the closing run that is asked for."""
    runs = [[last, 0xFFFF], [first, 0xFFFF], [(1 - first) % 65536, 1], [0, 0]]
    body = struct.pack(">4H", 4, 4, 1, 0) + struct.pack(">3H", *runs[0], 0)
    body += b"".join(struct.pack(">2H", *run) for run in runs[1:])
    return struct.pack(">3H", 4, 6 + len(body), 0) + body


def cmap12(first: int, last: int) -> bytes:
    return struct.pack(">HHIII3I", 12, 0, 28, 0, 1, first, last, 1)


def font(subtable: bytes, *, encoding: int = 1, outlines: bytes = b"glyf", blank: bool = False) -> bytes:
    """A TrueType font of two glyphs: nothing, and a square of 800 units of 1000."""
    square = struct.pack(">5h", 1, 100, 0, 900, 800) + struct.pack(">HH", 3, 0) + bytes([1] * 4)
    square += struct.pack(">4h", 100, 800, 0, -800) + struct.pack(">4h", 0, 0, 800, 0)
    glyphs = b"" if blank else square
    tables = {
        b"cmap": struct.pack(">HHHHI", 0, 1, 3, encoding, 12) + subtable,
        outlines: glyphs or bytes(4),
        b"head": struct.pack(">4I2Hqq4h2H3h", 65536, 0, 0, 0x5F0F3CF5, 3, 1000, 0, 0, 0, 0, 1000, 1000, 0, 8, 2, 1, 0),
        b"hhea": struct.pack(">IhhhHhhhhhhhhhhhH", 65536, 800, -200, 0, 1000, *[0] * 11, 2),
        b"hmtx": struct.pack(">HhHh", 1000, 0, 1000, 100),
        b"loca": struct.pack(">3I", 0, 0, len(glyphs)),
        b"maxp": struct.pack(">IH13H", 65536, 2, 4, 1, 0, 0, 2, *[0] * 8),
    }  # fmt: skip
    directory, body = b"", b""
    for tag, content in sorted(tables.items()):
        directory += struct.pack(">4sIII", tag, 0, 12 + 16 * len(tables) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    return b"\0\1\0\0" + struct.pack(">4H", len(tables), 64, 2, 48) + directory + body


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds all fonts of the system."""
    caches = (fonts.face_of, fonts._font_files, fonts._coverage, fonts._face, lettering._pieces)
    monkeypatch.setattr(fonts, "_font_folders", lambda: [tmp_path])
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def drawn(text: str) -> np.ndarray:
    page = np.full((60, 400, 3), 255, np.uint8)
    lettering.write(page, text, 10, 40, scale=1)
    return page


@needs_fonts
@pytest.mark.parametrize("text", ["a", "\u00fc", "\u0416", "\u03a9", "\u9053", "\u05d0", "\u0637", "\ud55c"])
def test_opencv_has_fonts_for_these(text: str) -> None:
    assert fonts.face_of(text) is fonts.embedded()


@needs_fonts
def test_letters_that_a_font_leaves_blank_or_has_not_are_known(system: Path) -> None:
    assert fonts.face_of("\u01ce") is None  # listed by the font of OpenCV 5.0, without ink
    assert fonts.face_of("\U0001f697") is None
    assert fonts.face_of("\u3000") is None


@needs_fonts
@pytest.mark.parametrize("character", [DEVANAGARI, LINEAR_B])
def test_a_font_of_the_system_draws_what_opencv_cannot(system: Path, character: str) -> None:
    code = ord(character)
    escaped = drawn(character)
    (system / "deep").mkdir()
    subtable = cmap4(code, code) if code < 65536 else cmap12(code, code)
    (system / "deep/own.ttf").write_bytes(font(subtable, encoding=1 if code < 65536 else 10))
    for cache in (fonts.face_of, fonts._font_files, lettering._pieces):
        cache.cache_clear()
    page = drawn(character)
    assert not np.array_equal(page, escaped)
    rows, columns = np.nonzero((page < 128).all(2))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height == pytest.approx(width, abs=2)  # the square
    assert len(rows) == pytest.approx(height * width, rel=0.05)
    assert np.ptp(rows) < lettering.width_of(character, 1) < 1.5 * width


@needs_fonts
def test_nothing_but_fonts_with_outlines_reaches_opencv(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = font(cmap4(0x0915, 0x0915))
    (system / "text.ttf").write_text("no font at all\n" * 100)
    (system / "empty.otf").write_bytes(b"")
    (system / "short.ttf").write_bytes(whole[:60])
    (system / "bitmaps.ttf").write_bytes(font(cmap4(0x0915, 0x0915), outlines=b"CBDT"))
    (system / "notes.txt").write_bytes(whole)
    (system / "others.ttf").write_bytes(font(cmap4(0x0B00, 0x0BFF)))
    (system / "folder.ttf").mkdir()
    monkeypatch.setattr(fonts, "_face", lambda file: pytest.fail(f"{file.name} was opened"))
    assert fonts.face_of(DEVANAGARI) is None


@needs_fonts
def test_a_font_that_lists_a_character_without_ink_is_passed_over(system: Path) -> None:
    (system / "a.ttf").write_bytes(font(cmap4(0x0915, 0x0915), blank=True))
    assert fonts.face_of(DEVANAGARI) is None
    (system / "b.ttf").write_bytes(font(cmap4(0x0915, 0x0915)))
    fonts.face_of.cache_clear()
    fonts._font_files.cache_clear()
    face = fonts.face_of(DEVANAGARI)
    assert face is not None
    assert face.getName().endswith("b.ttf")


def test_plain_fonts_come_first(system: Path) -> None:
    for name in ("A-BoldItalic.ttf", "B-Italic.otf", "C-Regular.ttf", "D-Sans.ttc", "LastResort.otf", "E.woff"):
        (system / name).write_bytes(b"")
    assert [file.name for file in fonts._font_files()] == [
        *("D-Sans.ttc", "C-Regular.ttf", "B-Italic.otf", "A-BoldItalic.ttf")
    ]


def test_the_first_font_of_a_collection_is_read(tmp_path: Path) -> None:
    single = font(cmap4(0x0915, 0x0917))
    moved = bytearray(single)
    for table in range(7):
        at = 12 + 16 * table + 8
        struct.pack_into(">I", moved, at, struct.unpack_from(">I", single, at)[0] + 16)
    (tmp_path / "two.ttc").write_bytes(b"ttcf" + struct.pack(">HHII", 1, 0, 1, 16) + moved)
    assert (0x0915, 0x0917) in fonts._coverage(tmp_path / "two.ttc")


@needs_fonts
def test_the_advance_is_where_the_next_letter_begins() -> None:
    face = fonts.embedded()
    page = np.zeros((40, 2000), np.uint8)
    (x, _), _ = cv2.putText(page, "some text " * 10, (0, 30), 255, face, 20, fonts.WEIGHT)
    assert fonts.advance(face, "some text " * 10, 20) == x
