"""The order in which the letters of a text stand from left to right, and the forms of Arabic letters.

OpenCV sets one letter beside the other as they come. Hebrew and Arabic are written from right to left, the letters of
an Arabic word are joined, and some vowel signs of Indian scripts stand before the letter that they follow in speech.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

ZERO_WIDTH_NON_JOINER, ZERO_WIDTH_JOINER = "\u200c", "\u200d"
_JOINERS = (ZERO_WIDTH_JOINER, "\u0640")  # the second is the line that lengthens a word
_MIRRORED = {a: b for pair in ("()", "[]", "{}", "<>", "«»", "\u2039\u203a") for a, b in (pair, pair[::-1])}
# Of Devanagari, Bengali, Gurmukhi, Gujarati, Oriya, Tamil, Malayalam and Sinhala.
_BEFORE_ITS_LETTER = set(
    "\u093f\u094e\u09bf\u09c7\u09c8\u0a3f\u0abf\u0b47\u0bc6\u0bc7\u0bc8\u0d46\u0d47\u0d48\u0dd9\u0dda\u0ddb"
)
_NEUTRAL = {"B", "S", "WS", "ON", "ES", "ET", "CS", "BN", "NSM"}


def clusters(text: str) -> list[str]:
    """The letters of a text, each with the marks that stand above or below it.

    >>> [len(cluster) for cluster in clusters("q" + chr(0x303) + "a")]
    [2, 1]
    """
    found: list[str] = []
    for character in text:
        if found and unicodedata.category(character) in ("Mn", "Me"):
            found[-1] += character
        else:
            found.append(character)
    return found


def visual(text: str) -> str:
    """The text in the order in which it stands from left to right.

    The bidirectional algorithm of Unicode (UAX 9) for one line without embeddings, overrides and isolates; brackets
    are neutral. The first letter with a direction gives that of the line.

    >>> visual("a " + chr(0x5d0) + chr(0x5d1)) == "a " + chr(0x5d1) + chr(0x5d0)
    True
    """
    units = _vowels_before(clusters(text))
    kinds = [unicodedata.bidirectional(unit[0]) or "L" for unit in units]
    if not {"R", "AL"} & set(kinds):
        return "".join(units)
    base = 0 if next(kind for kind in kinds if kind in ("L", "R", "AL")) == "L" else 1
    levels = _levels(kinds, base)
    for level in range(max(levels), 0, -1):
        start = 0
        while start < len(units):
            end = start
            while end < len(units) and levels[end] >= level:
                end += 1
            units[start:end] = units[start:end][::-1]
            levels[start:end] = levels[start:end][::-1]
            start = max(end, start + 1)
    return "".join(_MIRRORED.get(u, u) if level % 2 else u for u, level in zip(units, levels, strict=True))


def _levels(kinds: list[str], base: int) -> list[int]:
    """The embedding level of every letter: odd from right to left. The names are those of the rules in UAX 9."""
    kinds = list(kinds)
    before = "R" if base else "L"
    strong = before
    for i, kind in enumerate(kinds):  # W1, W2, W3
        if kind == "NSM":
            kinds[i] = kinds[i - 1] if i else before
        elif kind in ("L", "R", "AL"):
            strong = kind
        elif kind == "EN" and strong == "AL":
            kinds[i] = "AN"
    kinds = ["R" if kind == "AL" else kind for kind in kinds]
    for i in range(1, len(kinds) - 1):  # W4
        around = kinds[i - 1]
        separators = {"EN": ("CS", "ES"), "AN": ("CS",)}.get(around, ())
        if kinds[i + 1] == around and kinds[i] in separators:
            kinds[i] = around
    for i in [*range(len(kinds)), *reversed(range(len(kinds)))]:  # W5, once from each side
        if kinds[i] == "ET" and "EN" in (*kinds[max(0, i - 1) : i], *kinds[i + 1 : i + 2]):
            kinds[i] = "EN"
    strong = before
    for i, kind in enumerate(kinds):  # W7
        if kind in ("L", "R"):
            strong = kind
        elif kind == "EN" and strong == "L":
            kinds[i] = "L"
    sides = ["" if k in _NEUTRAL else "L" if k == "L" else "R" for k in kinds]
    start = 0
    while start < len(kinds):  # N1, N2
        end = start
        while end < len(kinds) and not sides[end]:
            end += 1
        left = sides[start - 1] if start else before
        right = sides[end] if end < len(kinds) else before
        kinds[start:end] = [left if left == right else before] * (end - start)
        start = end + 1
    if base:  # I1, I2
        return [1 if kind == "R" else 2 for kind in kinds]
    return [{"L": 0, "R": 1}.get(kind, 2) for kind in kinds]


def _vowels_before(units: list[str]) -> list[str]:
    for i in range(1, len(units)):
        if units[i][0] in _BEFORE_ITS_LETTER and unicodedata.category(units[i - 1][0]) == "Lo":
            units[i - 1 : i + 1] = units[i], units[i - 1]
    return units


def joined(text: str) -> str:
    """The text, in the order in which it is read, with its Arabic letters in the forms that join them.

    The forms are characters of their own in Unicode (U+FB50 and on, U+FE80 and on). The signs that only control
    joining are dropped.
    """
    forms = _forms()
    units = clusters(text)
    kept: list[str] = []
    joins = False  # whether what came before reaches out to this letter
    i = 0
    while i < len(units):
        unit, following = units[i], units[i + 1 : i + 2]
        letter = unit[0]
        # A lam and an alef are one letter.
        pair = letter + following[0][0] if following and unit == "\u0644" else ""
        if (pair, "isolated") in forms:
            kept.append(forms[pair, "final" if joins else "isolated"] + following[0][1:])
            joins, i = False, i + 2
            continue
        reaches = (letter, "initial") in forms
        on = reaches and bool(following) and ((following[0][0], "final") in forms or following[0][0] in _JOINERS)
        back = joins and (letter, "final") in forms
        form = {(True, True): "medial", (True, False): "final", (False, True): "initial"}.get((back, on), "isolated")
        if letter not in (ZERO_WIDTH_JOINER, ZERO_WIDTH_NON_JOINER):
            kept.append(forms.get((letter, form), letter) + unit[1:])
        joins, i = on or letter in _JOINERS, i + 1
    return "".join(kept)


@lru_cache(maxsize=1)
def _forms() -> dict[tuple[str, str], str]:
    """The form of a letter, or of a lam with an alef, by its place in the word."""
    forms = {}
    for code in (*range(0xFB50, 0xFC00), *range(0xFE80, 0xFEFD)):
        place, *letters = unicodedata.decomposition(chr(code)).split() or [""]
        if place.strip("<>") in ("isolated", "initial", "medial", "final"):
            forms["".join(chr(int(letter, 16)) for letter in letters), place.strip("<>")] = chr(code)
    return forms
