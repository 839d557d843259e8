"""Script identification of texts, by Unicode's names of their letters.

Scripts that two languages share cannot tell them apart: German from English, Urdu from Arabic, nor
simplified characters from traditional ones.
"""

from __future__ import annotations

import unicodedata
from itertools import groupby

from interp.data.normalization import normalize_unicode
from interp.languages import get_language

MIN_SHARE = 0.6
"""At least this share of a text's words must be in its language's script; names may be in others.

Chinese, Japanese and Thai write no spaces, so there every character counts as a word.
"""

MAX_WITHOUT_KANA = 20
"""Longest Japanese text, in characters, that may be in Chinese characters alone."""

# ISO 15924 code: how Unicode's names of the script's letters begin.
LETTERS = {
    "Arab": ("ARABIC",),
    "Armn": ("ARMENIAN",),
    "Beng": ("BENGALI",),
    "Cyrl": ("CYRILLIC",),
    "Deva": ("DEVANAGARI",),
    "Ethi": ("ETHIOPIC",),
    "Geor": ("GEORGIAN",),
    "Grek": ("GREEK",),
    "Gujr": ("GUJARATI",),
    "Guru": ("GURMUKHI",),
    "Hang": ("HANGUL",),
    "Hans": ("CJK",),
    "Hant": ("CJK",),
    "Hebr": ("HEBREW",),
    "Jpan": ("CJK", "HIRAGANA", "KATAKANA"),
    "Khmr": ("KHMER",),
    "Knda": ("KANNADA",),
    "Kore": ("HANGUL", "CJK"),
    "Laoo": ("LAO",),
    "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",),
    "Mymr": ("MYANMAR",),
    "Olck": ("OL",),
    "Orya": ("ORIYA",),
    "Sinh": ("SINHALA",),
    "Taml": ("TAMIL",),
    "Telu": ("TELUGU",),
    "Tfng": ("TIFINAGH",),
    "Thai": ("THAI",),
    "Tibt": ("TIBETAN",),
}
_WITHOUT_SPACES = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}
_OF_ANY_SCRIPT = {"COMBINING", "MODIFIER"}


def check_script(text: str, code: str) -> str | None:
    """Return why a text cannot be in a language, in one sentence; None if its script is right.

    Digits, punctuation and symbols count for nothing.

    Args:
        text: the text.
        code: BCP-47 code of the language.

    Raises:
        ValueError: the language is not registered, or nothing is known of its script.
    """
    expected = get_language(code)
    if expected.script not in LETTERS:
        raise ValueError(
            f"the script {expected.script!r} of the language {code!r} cannot be recognised; known "
            f"are {', '.join(LETTERS)}"
        )
    words = _find_word_scripts(text)
    if not words:
        return "it holds no letters"
    share = sum(word in LETTERS[expected.script] for word in words) / len(words)
    if share < MIN_SHARE:
        return (
            f"only {share:.0%} of its words are in the script of {expected.name} "
            f"({expected.script}), less than {MIN_SHARE:.0%}"
        )
    if expected.script == "Jpan" and len(words) > MAX_WITHOUT_KANA and {*words} == {"CJK"}:
        return "it is in Chinese characters alone, without kana, so it is not Japanese"
    return None


def _find_word_scripts(text: str) -> list[str]:
    """Find the script of every word, or of every character where words are not spaced."""
    scripts: list[str] = []
    letters = (find_script(char) for char in normalize_unicode("NFKC", text))
    for script, run in groupby(letter for letter in letters if letter is not None):
        if script:
            scripts += [script] * (len(list(run)) if script in _WITHOUT_SPACES else 1)
    return scripts


def find_script(char: str) -> str | None:
    """Return the first word of a letter's name, "" between words, None for what is ignored."""
    category = unicodedata.category(char)
    # Joiners stand inside words of Arabic and Indian scripts.
    if category == "Cf":
        return None
    if category[0] not in "LM":
        return ""
    name = unicodedata.name(char, "UNNAMED").replace("-", " ").split()[0]
    if name in _OF_ANY_SCRIPT:
        return None
    return "CJK" if name == "IDEOGRAPHIC" else name
