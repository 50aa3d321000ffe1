"""Text in pictures: what becomes of letters that OpenCV cannot draw."""

import numpy as np
import pytest

from hmsa_ext.engine import lettering


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
