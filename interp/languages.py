"""The languages that the library knows: BCP-47 code, names, script and writing direction."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language of the registry.

    Args:
        code: BCP-47 code, such as `de`.
        name: Its English name.
        own_name: Its name in the language itself.
        script: ISO 15924 code of the script that it is written in, such as `Latn`.
        right_to_left: Whether that script runs from right to left.
    """

    code: str
    name: str
    own_name: str
    script: str
    right_to_left: bool = False


_REGISTERED = (
    Language(code="en", name="English", own_name="English", script="Latn"),
    Language(code="de", name="German", own_name="Deutsch", script="Latn"),
    Language(code="fr", name="French", own_name="français", script="Latn"),
    Language(code="zh", name="Chinese", own_name="中文", script="Hans"),
    Language(code="ru", name="Russian", own_name="русский", script="Cyrl"),
    Language(code="ja", name="Japanese", own_name="日本語", script="Jpan"),
    Language(code="ar", name="Arabic", own_name="العربية", script="Arab", right_to_left=True),
    Language(code="hi", name="Hindi", own_name="हिन्दी", script="Deva"),
    Language(code="ur", name="Urdu", own_name="اردو", script="Arab", right_to_left=True),
    Language(code="es", name="Spanish", own_name="español", script="Latn"),
)

LANGUAGES: Mapping[str, Language] = MappingProxyType({entry.code: entry for entry in _REGISTERED})
"""Every known language by its code, in a fixed order."""


def language(code: str) -> Language:
    """Look a language up by its BCP-47 code.

    Raises:
        ValueError: The code is not registered; the message names the valid ones.
    """
    if code not in LANGUAGES:
        raise ValueError(f"unknown language {code!r}; valid languages: {', '.join(LANGUAGES)}")
    return LANGUAGES[code]
