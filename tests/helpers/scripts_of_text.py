"""Unicode scripts, for tests of what is written in which language."""

import unicodedata

SCRIPTS = {
    "Latn": {"LATIN"},
    "Cyrl": {"CYRILLIC"},
    "Grek": {"GREEK"},
    "Armn": {"ARMENIAN"},
    "Arab": {"ARABIC"},
    "Deva": {"DEVANAGARI"},
    "Beng": {"BENGALI"},
    "Telu": {"TELUGU"},
    "Hans": {"CJK"},
    "Hant": {"CJK"},
    "Jpan": {"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"},
}
"""First words of the Unicode names of a script's letters, by ISO 15924 code."""


def scripts_of(text: str) -> set[str]:
    """Return the scripts of all letters and marks: first words of their Unicode names."""
    letters = (char for char in text if unicodedata.category(char)[0] in "LM")
    scripts = {unicodedata.name(char).split()[0] for char in letters}
    # Combining marks of every script, the modifier apostrophe of Polynesian names (Nukuʻalofa).
    return scripts - {"COMBINING", "MODIFIER"}
