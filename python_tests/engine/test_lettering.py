"""Text in pictures: every script, the width of it, and what becomes of letters that no font has."""

import numpy as np
import pytest

from hmsa_ext.engine import fonts, lettering

needs_fonts = pytest.mark.skipif(not fonts.AVAILABLE, reason="OpenCV 4 draws no fonts")


def drawn(text: str, width: int | None = None) -> np.ndarray:
    page = np.full((40, 600, 3), 255, np.uint8)
    lettering.write(page, text, 5, 25, scale=0.9, width=width)
    return page


def columns_of(page: np.ndarray) -> np.ndarray:
    """Columns with ink."""
    return np.flatnonzero((page != 255).any(axis=(0, 2)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name_1/2.png", "plain name_1/2.png"),
        ("Stra\u00dfe \u00fcber \u00c5rhus", "Strasse uber Arhus"),
        ("u\u0308ber", "uber"),  # as file systems of macOS have it
        ("\u041c\u043e\u0441\u043a\u0432\u0430 \u0429\u0438", "Moskva Shchi"),
        ("\u0391\u03b8\u03ae\u03bd\u03b1", "Athina"),
        ("\u9053\u8def 3", r"\u9053\u8def 3"),
        ("\U0001f697", r"\U0001f697"),
        ("a\u2013b \u201cc\u201d 2\u00d73", 'a-b "c" 2x3'),
        ("tab\there", r"tab\there"),
        ("\udcff", r"\udcff"),  # a file name that is no UTF-8
    ],
)
def test_text_becomes_ascii_that_can_be_read(text: str, shown: str) -> None:
    assert lettering.ascii_of(text) == shown
    assert lettering.ascii_of(text).isascii()


def test_different_names_stay_different() -> None:
    assert lettering.ascii_of("\u9053") != lettering.ascii_of("\u8def")


@needs_fonts
@pytest.mark.parametrize(
    "text", ["\u9053\u8def", "\u00fcber", "\u0429\u0438", "\u05e9\u05dc\u05d5\u05dd", "\u0637\u0631\u064a\u0642"]
)
def test_letters_of_other_scripts_are_drawn_as_they_are(text: str) -> None:
    assert not np.array_equal(drawn(text), drawn(lettering.ascii_of(text)))
    assert not np.array_equal(drawn(text), drawn("?" * len(text)))


@needs_fonts
def test_hebrew_runs_from_right_to_left() -> None:
    alone = columns_of(drawn("\u05d9"))  # narrow
    pair = drawn("\u05d9\u05e9")  # narrow, then wide
    last = columns_of(pair)[-len(alone) :]
    assert np.array_equal(pair[:, last], drawn("\u05d9")[:, alone])


@needs_fonts
def test_what_no_font_has_is_escaped_and_never_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_font_files", lambda: ())
    fonts.face_of.cache_clear()
    lettering._pieces.cache_clear()
    for text, shown in [
        ("car \U0001f697", "car \\U0001f697"),
        ("\u0915", "\\u0915"),
        ("\udcff", "\\udcff"),
        ("tab\there", "tab\\there"),
        ("a\u3000b", "a b"),
        ("\u01ce", "a"),
        ("q\u0303", "q\\u0303"),
        ("e\u0301", "\u00e9"),
    ]:
        assert np.array_equal(drawn(text), drawn(shown)), shown
        assert lettering.width_of(text) == lettering.width_of(shown)
    fonts.face_of.cache_clear()
    lettering._pieces.cache_clear()


def test_without_fonts_text_is_drawn_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "AVAILABLE", False)
    assert np.array_equal(drawn("Stra\u00dfe \u9053"), drawn(r"Strasse \u9053"))
    assert columns_of(drawn("x" * 99, width=200)).max() < 5 + 200 + 4


@pytest.mark.parametrize(
    "text",
    [
        "share of scale 0.5",
        "\u9053\u8def 3",
        "\u05e9\u05dc\u05d5\u05dd abc",
        "\u0637\u0631\u064a\u0642 12 %",
        "\u00e9 \u0915",
    ],
)
def test_the_width_is_that_of_the_ink(text: str) -> None:
    assert columns_of(drawn(text)).max() + 1 - 5 == pytest.approx(lettering.width_of(text, 0.9), abs=4)


def test_nothing_is_drawn_for_no_text() -> None:
    assert (drawn("") == 255).all()
    assert lettering.width_of("") <= 1


def test_text_that_is_too_wide_loses_its_beginning() -> None:
    page = np.full((40, 600, 3), 255, np.uint8)
    lettering.write(page, "a" * 200 + "end", 5, 20, width=200)
    columns = np.flatnonzero((page != 255).any(axis=(0, 2)))
    assert columns.max() < 5 + 200 + 4
    whole, tail = page.copy(), np.full((40, 600, 3), 255, np.uint8)
    lettering.write(tail, "end", 5, 20)
    ink = np.flatnonzero((tail != 255).any(axis=(0, 2)))
    end = tail[:, ink.min() : ink.max() + 1]
    assert (whole[:, columns.max() - (ink.max() - ink.min()) : columns.max() + 1] != 255).sum() == pytest.approx(
        (end != 255).sum(), rel=0.3
    )
