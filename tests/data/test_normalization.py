"""Normalisation that takes as long as the text is, and no other form than Unicode's."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.data import check_script
from interp.data.localized_names import normalize_name
from interp.data.normalization import MOST_MARKS, normalize_unicode

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Marks in the wrong order, alone and of a letter that becomes two of them.
HOSTILE = {"marks": "\u0315\u0300", "four": "\u05ae\u0315\u0300\u0334", "inside": "\u0f73\u0f71"}


@given(st.text(), st.sampled_from(FORMS))
def test_the_forms_are_unicodes(text, form):
    assert normalize_unicode(form, text) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text", ["Größe ", "한국어 ", "e\u0301\u0323 ", "ﷺ", "ไทย ", "क़\u093c्", "a "]
)
def test_the_forms_of_long_texts_are_unicodes(text, form):
    text *= 1000
    assert normalize_unicode(form, text) == unicodedata.normalize(form, text)


def test_of_many_marks_in_a_row_the_first_are_kept():
    long, accent = "x" * 1000, "\u0301"
    for count in (1, MOST_MARKS, MOST_MARKS + 1, 500):
        kept = min(count, MOST_MARKS)
        found = normalize_unicode("NFD", f"{long}a{accent * count}b{accent * count}")
        assert found == f"{long}a{accent * kept}b{accent * kept}"
        # A short text costs nothing.
        assert normalize_unicode("NFD", f"a{accent * count}") == f"a{accent * count}"


@pytest.mark.parametrize("kind", HOSTILE)
def test_marks_take_no_time(kind):
    """It was a minute."""
    text = (HOSTILE[kind] * 50_000)[:100_000]
    started = time.process_time()
    for form in FORMS:
        normalize_unicode(form, text)
    normalize_name(text)
    check_script(text, "de")
    assert time.process_time() - started < 5
