"""Unicode normalisation of texts that nobody vouches for, in linear time."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Literal

MOST_MARKS = 30
"""Combining marks in a row; no language has more (Unicode Annex 15, stream-safe text format)."""

_SHORT = 1000
"""Characters; a text of so many takes no time, whatever is in it."""


def normalize_unicode(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
    """Normalise a text as `unicodedata.normalize` does; of long ones, without marks by the hundred.

    To put n marks in a row in order takes time that grows with the square of n: of a hundred
    thousand, a minute. In texts of more than a thousand characters `MOST_MARKS` in a row are kept.
    """
    if len(text) > _SHORT and not text.isascii():
        text = _drop_marks(text)
    return unicodedata.normalize(form, text)


def _drop_marks(text: str) -> str:
    kept: list[str] = []
    in_a_row = 0
    for char in text:
        in_a_row = in_a_row + 1 if _is_mark(char) else 0
        if in_a_row <= MOST_MARKS:
            kept.append(char)
    return "".join(kept)


@cache
def _is_mark(char: str) -> bool:
    """Return whether a character combines with the one before, or becomes one that does."""
    return unicodedata.combining(unicodedata.normalize("NFKD", char)[0]) > 0
