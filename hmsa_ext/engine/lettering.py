"""Text in pictures. OpenCV's letters are ASCII; other characters are transliterated, or written as escapes."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np

INK, FAINT = (40, 40, 40), (110, 110, 110)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

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
    return cv2.getTextSize(ascii_of(text), _FONT, scale, 1)[0][0]


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
    """Draws the text into ``page`` [H, W, 3] with its base line at ``y``.

    Where it is wider than ``width`` pixels, dots stand for its beginning: names differ at their end.
    """
    text = ascii_of(text)
    if width is not None and width_of(text, scale) > width:
        while text and width_of(f"...{text}", scale) > width:
            text = text[1:]
        text = f"...{text}"
    cv2.putText(page, text, (x, y), _FONT, scale, colour, 1, cv2.LINE_AA)
