"""Names of countries, capitals, currencies, languages and continents, language by language.

A table of names is a TOML file's, such as `names/de.toml`: a section for every kind of name
(country, capital, currency, official language, continent), `aliases` by kind, and `form` with the
inflected phrases of countries by slot, where `default` holds for all that are not named.
"""

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from interp.data.normalization import normalize_unicode

OTHER_SECTIONS = ("aliases", "form")
"""Sections of a table of names that hold no names by kind."""


def add_language(
    content: Mapping[str, Any],
    code: str,
    table: Mapping[str, Any],
    name: Callable[[str, str], str | None],
) -> dict[str, Any]:
    """Add a language to a copy of the content of `facts.json`.

    Args:
        content: `names` by kind, key and language, `aliases` alike, `forms` by language, slot and
            country, and whatever else.
        code: BCP-47 code of the language.
        table: its names, of which `aliases` and `form` are taken.
        name: the name of a kind's key in the language, None if it has none.
    """
    names, aliases = (
        {kind: {key: dict(known) for key, known in by_key.items()} for kind, by_key in part.items()}
        for part in (content["names"], content["aliases"])
    )
    for kind, by_key in names.items():
        for key in by_key:
            if spelled := name(kind, key):
                by_key[key][code] = spelled
    for kind, by_key in table.get("aliases", {}).items():
        for key, others in by_key.items():
            if code in names[kind].get(key, {}):
                known = dict.fromkeys(map(normalize_name, others))
                known.pop(names[kind][key][code], None)
                aliases.setdefault(kind, {}).setdefault(key, {})[code] = list(known)
    countries = {key: of[code] for key, of in names["country"].items() if code in of}
    forms = dict(content["forms"])
    for slot, phrases in table.get("form", {}).items():
        default = phrases.get("default")
        forms[code] = forms.get(code, {}) | {
            slot: {
                country: normalize_name(phrases.get(country) or default.format(name=called))
                for country, called in countries.items()
                if country in phrases or default
            }
        }
    return {**content, "names": names, "aliases": aliases, "forms": forms}


def add_own_names(
    content: Mapping[str, Any], code: str, table: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Add a language that brings all its names along to a copy of the content of `facts.json`.

    Args:
        content: see `add_language`.
        code: BCP-47 code of the language.
        table: its names.
        where: the file, for errors.

    Raises:
        ValueError: a section or a key that the facts do not have.
    """
    kinds = content["names"]
    for section in table.keys() - kinds.keys() - set(OTHER_SECTIONS):
        valid = ", ".join((*kinds, *OTHER_SECTIONS))
        raise ValueError(f"{where}: unknown kind of names {section!r}; valid: {valid}")
    for part in (table, table.get("aliases", {})):
        for kind in kinds:
            for key in part.get(kind, {}):
                if key not in kinds[kind]:
                    raise ValueError(
                        f"{where}: unknown {kind} {key!r}; valid: {', '.join(sorted(kinds[kind]))}"
                    )
    return add_language(
        content,
        code,
        table,
        lambda kind, key: normalize_name(table.get(kind, {}).get(key) or None) or None,
    )


def normalize_name(name: str | None) -> str:
    """Return a name in NFC, without invisible format characters; "" for no name."""
    visible = "".join(char for char in name or "" if unicodedata.category(char) != "Cf")
    return normalize_unicode("NFC", visible).strip()
