"""Text in pictures, in any script: see ``fonts`` for what draws a letter. What nothing draws is written in ASCII."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import cv2
import numpy as np

from hmsa_ext.engine import fonts
from hmsa_ext.engine.text_order import ZERO_WIDTH_JOINER, ZERO_WIDTH_NON_JOINER, clusters, joined, visual

INK, FAINT = (40, 40, 40), (110, 110, 110)
_LINES = cv2.FONT_HERSHEY_SIMPLEX  # letters made of lines, ASCII only: where OpenCV has no fonts
_PIXELS = 27  # font size at scale 1: letters as large as those of lines

# Letters that Unicode does not take apart into an ASCII letter and an accent: the letters, and what stands for each.
_ALPHABETS = (
    ("ßæœøđłþðıħ", "ss ae oe o d l th d i h"),
    (
        "абвгдежзиклмнопрстуфхцчшщъыьэюяієґ",
        "a b v g d e zh z i k l m n o p r s t u f kh ts ch sh shch ' y ' e iu ia i ie g",
    ),
    ("αβγδεζηθικλμνξοπρσςτυφχψω", "a v g d e z i th i k l m n x o p r s s t y f ch ps o"),
)
_LETTERS = {
    letter: latin for letters, latins in _ALPHABETS for letter, latin in zip(letters, latins.split(), strict=True)
}
# Dashes, quotation marks, the raised dot and the multiplication sign.
_MARKS = dict(zip("\u2013\u2014\u2018\u2019\u201c\u201d\u00b7\u00d7", "--''\"\".x", strict=True))


def ascii_of(text: str) -> str:
    r"""The text in ASCII: accents dropped, Latin, Cyrillic and Greek letters transliterated, the rest as ``\u....``.

    >>> ascii_of("Straße 12, Überführung")
    'Strasse 12, Uberfuhrung'
    >>> ascii_of("Москва 道")
    'Moskva \\u9053'
    """
    return "".join(_ascii_of_character(character) for character in unicodedata.normalize("NFC", text))


def _ascii_of_character(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else character.encode("unicode_escape").decode()
    if character in _MARKS:
        return _MARKS[character]
    base = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    small = base.lower()
    if small in _LETTERS:
        letters = _LETTERS[small]
        return letters if base == small else letters.capitalize()
    return base if base and base.isascii() else character.encode("unicode_escape").decode()


def width_of(text: str, scale: float = 0.45) -> int:
    """Width in pixels of the text as :func:`write` draws it."""
    if not fonts.AVAILABLE:
        return cv2.getTextSize(ascii_of(text), _LINES, scale, 1)[0][0]
    size = _size(scale)
    return sum(fonts.advance(face, piece, size) for face, piece in _pieces(text))


def write(
    page: np.ndarray,
    text: str,
    x: int,
    y: int,
    *,
    scale: float = 0.45,
    colour: tuple[int, int, int] = INK,
    width: int | None = None,
) -> None:
    """Draws the text into ``page`` uint8 [H, W, 3] with its base line at ``y``.

    Where it is wider than ``width`` pixels, dots stand for its beginning: names differ at their end.
    """
    if width is not None and width_of(text, scale) > width:
        units = clusters(text)
        while units and width_of("..." + "".join(units), scale) > width:
            del units[0]
        text = "..." + "".join(units)
    if not fonts.AVAILABLE:
        cv2.putText(page, ascii_of(text), (x, y), _LINES, scale, colour, 1, cv2.LINE_AA)
        return
    size = _size(scale)
    for face, piece in _pieces(text):
        cv2.putText(page, piece, (x, y), colour, face, size, fonts.WEIGHT)
        x += fonts.advance(face, piece, size)


def _size(scale: float) -> int:
    return max(1, round(scale * _PIXELS))


@lru_cache(maxsize=4096)
def _pieces(text: str) -> tuple[tuple[cv2.FontFace, str], ...]:
    """The text from left to right, cut where the font changes."""
    drawn = "".join(_drawable(cluster) for cluster in clusters(unicodedata.normalize("NFC", text)))
    shaped = joined(drawn)
    if any(fonts.face_of(cluster) is None for cluster in clusters(shaped)):
        shaped = drawn  # letters that are not joined can be read as well
    pieces: list[tuple[cv2.FontFace, str]] = []
    for cluster in clusters(visual(shaped)):
        face = fonts.face_of(cluster)
        if face is None:
            continue  # a sign that only controls joining
        if pieces and pieces[-1][0] is face:
            pieces[-1] = face, pieces[-1][1] + cluster
        else:
            pieces.append((face, cluster))
    return tuple(pieces)


def _drawable(cluster: str) -> str:
    """A letter with its marks if a font has it, else what stands for it."""
    if cluster in (ZERO_WIDTH_JOINER, ZERO_WIDTH_NON_JOINER):
        return cluster
    if len(cluster) > 1 and unicodedata.bidirectional(cluster[0]) in ("R", "AL"):
        cluster = cluster[0]  # vowel points, which OpenCV cannot place, are mostly left out in writing, too
    letter, marks = cluster[0], cluster[1:]
    if unicodedata.category(letter) == "Zs":
        shown = " "
    elif cluster.isprintable() and fonts.face_of(cluster) is not None:
        return cluster
    elif letter.isprintable() and fonts.face_of(letter) is not None:
        shown = letter
    else:
        shown = _ascii_of_character(letter)
    return shown + "".join(_ascii_of_character(mark) for mark in marks)
