"""Spelling of texts as they are compared: words of letters, numbers as one word each, signs.

Letters are folded as `alias` says. Dotted initials are one word (`U.S.A.` is `USA`); a number keeps
its sign and its decimal point and loses its thousands separators (`1,000` is `1000`, and `35` is
not in `3.5`); plus and number signs behind a word are words (`C++` is not `C#`).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from interp.data.normalization import normalize_unicode

_SAME_LETTERS = str.maketrans(
    {"ى": "ي", "ی": "ي", "ې": "ي", "ك": "ک", "ۃ": "ه", "ة": "ه", "ہ": "ه", "ھ": "ه", "ە": "ه"}
    | {"ٱ": "ا", "ـ": "", "ı": "i", "ł": "l", "đ": "d", "ø": "o", "æ": "ae", "œ": "oe"}
    | {"ɗ": "d", "ɓ": "b", "ƙ": "k", "ƴ": "y", "ʻ": " ", "ʼ": " ", "ँ": "ं"}
    | {"՛": "", "՜": "", "՞": ""}
)

_MARKS = re.compile("[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u093c\u09bc]")
"""Accents, Arabic and Hebrew vowels, nuktas: what a spelling may leave out."""

_NASAL = re.compile("[ङञणनम]\u094d(?=[क-म])")
_FINAL_VIRAMA = re.compile("[\u094d\u09cd](?!\\w)")

UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Tibetan, Burmese, Khmer, kana and Chinese: scripts without spaces."""

_BORDER = re.compile(f"(?<=[^{UNSPACED}])(?=[{UNSPACED}])|(?<=[{UNSPACED}])(?=[^{UNSPACED}])")

_INITIALS = re.compile(r"(?<![\w.])(?:[^\W\d_]\.){2,}(?:[^\W\d_](?!\w))?")

_WITH_COMMA = "ca de el es eu fi fr hu hy id it jv nl pl pt ru sv tr uk vi"
DECIMAL_COMMA = frozenset(_WITH_COMMA.split())
"""Languages in which 1,234 is between one and two."""

_NARROW_SPACES = "\u00a0\u2009\u202f"
_NUMBER = re.compile(rf"\d+(?:[.,'’٫٬{_NARROW_SPACES}]\d+)*")
_MINUS = re.compile(r"(?<![\w.,)\]])[-−](?=\d)")
# Letters in no text of the languages here, which stay when signs go.
POINT, _NEGATIVE = "ꞏ", "ꟷ"
_TRAILING = re.compile(r"(?<=\w)(\+\+|[+#](?!\w))")
_PLUS, _SHARP = "ᚁ", "ᚂ"
_APOSTROPHES = re.compile("(?<=[^\\W\\d_])['’ʼ`‐‑-](?=[^\\W\\d_])")

SIGNS = re.compile(f"[{_PLUS}{_SHARP}]")


@lru_cache(maxsize=2**14)
def normalise_text(text: str, language: str = "", *, joined: bool = False) -> str:
    """Return a text's words as they are compared, separated by spaces; see the module.

    Args:
        text: the text.
        language: BCP-47 code, which says whether a comma or a point is the decimal one.
        joined: leave apostrophes and hyphens within words out, instead of taking them for spaces.
    """
    text = _NUMBER.sub(lambda match: _join_number(match[0], language), text)
    text = normalize_unicode("NFKC", _MINUS.sub(_NEGATIVE, text).replace("♯", "#")).casefold()
    text = _MARKS.sub("", normalize_unicode("NFD", text).translate(_SAME_LETTERS))
    text = normalize_unicode("NFC", text).replace("եւ", "եվ")
    text = _INITIALS.sub(lambda match: match[0].replace(".", "") + " ", text)
    text = _TRAILING.sub(_name_signs, text)
    if joined:
        text = _APOSTROPHES.sub("", text)
    text = "".join(
        str(unicodedata.decimal(char, char)) if category[0] in "LMN" else " "
        for char in text
        if (category := unicodedata.category(char)) != "Cf"
    )
    text = _FINAL_VIRAMA.sub("", _NASAL.sub("ं", text))
    return " ".join(_BORDER.sub(" ", text).split())


def normalise_signs(text: str) -> str:
    """Return a text without spaces and variation selectors, for names without letters (€, 🙂)."""
    text = normalize_unicode("NFKC", text)
    return "".join(char for char in text if not char.isspace() and char not in "\ufe0e\ufe0f")


def is_sign(name: str) -> bool:
    """Return whether a name has punctuation or symbols that can be seen."""
    return any(unicodedata.category(char)[0] in "PS" for char in normalise_signs(name))


def has_sign(text: str, name: str) -> bool:
    """Return whether a text contains a name that has no letters and no digits.

    A currency sign or a symbol stands anywhere; punctuation only where it is not part of a word, as
    the hyphen in "well-known".

    Raises:
        ValueError: the name has nothing that can be seen.
    """
    sign = normalise_signs(name)
    if not is_sign(name):
        raise ValueError(f"{name!r} has nothing to look for")
    border = r"(?<!\w){}(?!\w)" if unicodedata.category(sign[0])[0] == "P" else "{}(?!\u200d)"
    spaced = normalize_unicode("NFKC", text)
    spaced = "".join(char for char in spaced if char not in "\ufe0e\ufe0f")
    return re.search(border.format(r"\s*".join(map(re.escape, sign))), spaced) is not None


def _join_number(number: str, language: str) -> str:
    """Return a number without thousands separators, or what only looks like one as it was."""
    separators = re.findall(r"\D", number)
    first, *groups = re.split(r"\D", number)
    if not groups:
        return number
    last = separators[-1]
    point = last if last in ".,٫" and separators.count(last) == 1 else ""
    decimal = "," if language in DECIMAL_COMMA else "."
    # One separator before three digits: which it is depends on the language.
    if point and len(separators) == 1 and len(groups[0]) == 3 and first.strip("0"):
        point = point if last in (decimal, "٫") and len(first) <= 3 else ""
        point = last if len(first) > 3 else point
    whole = groups[:-1] if point else groups
    widths = [len(group) for group in whole]
    if widths and not (widths[-1] == 3 and set(widths) <= {2, 3} and len(first) <= 3):
        return number
    if len(set(separators[: len(whole)])) > 1:
        return number
    joined = first + "".join(whole)
    return f"{joined}{POINT}{groups[-1]}" if point else joined


def _name_signs(match: re.Match[str]) -> str:
    return " " + match[0].replace("+", _PLUS).replace("#", _SHARP) + " "
