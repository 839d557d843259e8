"""Initials, numbers, signs and apostrophes: what a person takes for the same name, and what not."""

from __future__ import annotations

import pytest

from interp import Query
from interp.behaviour import AliasJudge, Answer
from interp.behaviour.alias import has_name

SAME = [
    ("It is U.S.A. now", "USA", "en"),
    ("the USA", "U.S.A.", "en"),
    ("U. S. A.", "U.S.A.", "en"),
    ("C++ of course", "C++", "en"),
    ("C# is it", "C#", "en"),
    ("F♯", "F#", "en"),
    ("€", "€", "en"),
    ("5 € each", "€", "en"),
    ("- ", "-", "en"),
    ("🇫🇷 yes", "🇫🇷", "en"),
    ("❤️", "❤", "en"),
    ("3.5 kg", "3.5", "en"),
    ("3,5 kg", "3.5", "de"),
    ("1,000 people", "1000", "en"),
    ("1000", "1,000", "en"),
    ("1.000", "1000", "de"),
    ("1\u202f000", "1000", "fr"),
    ("1,23,456", "123456", "en"),
    ("1,234.50", "1234.50", "en"),
    ("12.05.2024", "2024", "de"),
    ("N'Djamena", "Ndjamena", "en"),
    ("Ndjamena", "N'Djamena", "en"),
    ("N’Djamena", "N'Djamena", "en"),
    ("Addis-Abeba", "Addis Abeba", "en"),
    ("−40 °C", "-40", "en"),
    ("٥", "5", "ar"),
    ("1989년", "1989", "ko"),
    ("İSTANBUL", "istanbul", "tr"),
    ("ISTANBUL", "İstanbul", "tr"),
    ("STRASSE", "Straße", "de"),
    ("ΟΔΟΣ", "οδός", "el"),
    ("in the 1990s", "1990", "en"),
    ("J. R. R. Tolkien", "J.R.R. Tolkien", "en"),
    ("JRR Tolkien", "J.R.R. Tolkien", "en"),
    ("Paris###", "Paris", "en"),
    ("C", "C", "en"),
    ("C++11", "C++", "en"),
    ("有5个", "5", "zh"),
    ("1, 2, 3", "2", "en"),
    ("2-5", "5", "en"),
    ("Paris's", "Paris", "en"),
    ("It's 3.", "3", "en"),
    ("35.", "35", "en"),
]

OTHER = [
    ("C#", "C++", "en"),
    ("C++", "C#", "en"),
    ("C++", "C", "en"),
    ("C", "C++", "en"),
    ("well-known", "-", "en"),
    ("35", "3.5", "en"),
    ("3.5", "35", "en"),
    ("3.5", "5", "en"),
    ("3,5", "5", "de"),
    ("1,000", "1", "en"),
    ("100", "1,000", "en"),
    ("3.141", "3141", "en"),
    ("-5", "5", "en"),
    ("5", "-5", "en"),
    ("U.S.A.", "US", "en"),
    ("19895", "1989", "ko"),
    ("$", "€", "en"),
    ("👩\u200d🚀", "👩", "en"),
    ("3.141", "3141", "ko"),
]


@pytest.mark.parametrize(("text", "name", "language"), SAME)
def test_a_name_is_found_however_it_is_written(text, name, language):
    assert has_name(text, name, language)


@pytest.mark.parametrize(("text", "name", "language"), OTHER)
def test_another_name_is_not_taken_for_it(text, name, language):
    assert not has_name(text, name, language)


def test_a_name_with_nothing_to_see_has_no_verdict():
    asked = Query(id="q", language="en", prompt="?", answer="\u200b")
    (verdict,) = AliasJudge()([Answer(query=asked, text="Paris")])
    assert verdict.value is None
    assert "nothing to look for" in verdict.reason
