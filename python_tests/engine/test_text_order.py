"""Letters from left to right, joined Arabic letters."""

import pytest

from hmsa_ext.engine.text_order import clusters, joined, visual

ALEF, BET, GIMEL = "\u05d0", "\u05d1", "\u05d2"
HEBREW = ALEF + BET + GIMEL
BEH, REH, LAM, ARABIC_ALEF = "\u0628", "\u0631", "\u0644", "\u0627"


@pytest.mark.parametrize(
    ("read", "seen"),
    [
        ("plain 12.5 % (text)", "plain 12.5 % (text)"),
        (HEBREW, HEBREW[::-1]),
        (f"a {HEBREW} b", f"a {HEBREW[::-1]} b"),
        (f"a {ALEF} {BET} b", f"a {BET} {ALEF} b"),
        (f"{ALEF} b c", f"b c {ALEF}"),
        (f"{ALEF} 12", f"12 {ALEF}"),  # numbers keep their order
        (f"{ALEF} 12.5", f"12.5 {ALEF}"),
        (f"{ALEF} 12%", f"12% {ALEF}"),
        (f"a {ALEF} 12", f"a 12 {ALEF}"),
        (f"{ALEF} ({BET})", f"({BET}) {ALEF}"),  # the brackets still open and close
        (f"a ({ALEF}) b", f"a ({ALEF}) b"),
        (f"folder/{HEBREW}.png", f"folder/{HEBREW[::-1]}.png"),
        (f"{BEH} 1.2", f"1.2 {BEH}"),
        (f"...{HEBREW}", f"{HEBREW[::-1]}..."),
        ("", ""),
    ],
)
def test_text_stands_in_the_order_of_the_bidirectional_algorithm(read: str, seen: str) -> None:
    assert visual(read) == seen


def test_marks_stay_behind_their_letter() -> None:
    assert visual(f"{ALEF}\u05b8{BET}") == f"{BET}{ALEF}\u05b8"
    assert clusters("a\u0301b") == ["a\u0301", "b"]
    assert clusters("") == []


def test_vowel_signs_of_indian_scripts_stand_before_their_letter() -> None:
    assert visual("\u0915\u093f") == "\u093f\u0915"  # Devanagari
    assert visual("\u0b95\u0bc6\u0b95") == "\u0bc6\u0b95\u0b95"  # Tamil
    assert visual("\u0915\u093e") == "\u0915\u093e"


@pytest.mark.parametrize(
    ("read", "forms"),
    [
        (BEH, "\ufe8f"),
        (BEH * 2, "\ufe91\ufe90"),
        (BEH * 3, "\ufe91\ufe92\ufe90"),
        (BEH + REH + BEH, "\ufe91\ufeae\ufe8f"),  # reh does not reach out to the next letter
        (f"{BEH} {BEH}", "\ufe8f \ufe8f"),
        (LAM + ARABIC_ALEF, "\ufefb"),  # one letter
        (BEH + LAM + ARABIC_ALEF + BEH, "\ufe91\ufefc\ufe8f"),
        ("\u067e\u06cc", "\ufb58\ufbfd"),  # Persian
        (f"{BEH}\u200c{BEH}", "\ufe8f\ufe8f"),  # a sign keeps them apart
        (f"{BEH}\u200d", "\ufe91"),
        (f"{BEH}\u064e{BEH}", "\ufe91\u064e\ufe90"),  # a vowel point does not
        (f"a {HEBREW}", f"a {HEBREW}"),
    ],
)
def test_arabic_letters_are_joined(read: str, forms: str) -> None:
    assert joined(read) == forms
