"""One language's names beside those of all others: what `facts.json` is made of, and what is added.

A table of names is a TOML file's, such as `names/de.toml`: a section for every kind of name
(country, capital, currency, official language, continent), `aliases` by kind, and `form` with the
inflected phrases of countries by slot, where `default` holds for all that are not named.
"""

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

OTHER_SECTIONS = ("aliases", "form")
"""Sections of a table of names that hold no names by kind."""


def with_language(
    content: Mapping[str, Any],
    code: str,
    table: Mapping[str, Any],
    name: Callable[[str, str], str | None],
) -> dict[str, Any]:
    """The content of `facts.json` with one more language; what is given stays as it is.

    Args:
        content: `names` by kind, key and language, `aliases` alike, `forms` by language, slot and
            country, and whatever else.
        code: BCP-47 code of the language.
        table: its names, of which `aliases` and `form` are taken.
        name: the name of a kind's key in the language, None if it has none.
    """
    names, aliases = (
        {kind: {key: dict(known) for key, known in found.items()} for kind, found in part.items()}
        for part in (content["names"], content["aliases"])
    )
    for kind, found in names.items():
        for key in found:
            if spelled := name(kind, key):
                found[key][code] = spelled
    for kind, by_key in table.get("aliases", {}).items():
        for key, others in by_key.items():
            if code in names[kind].get(key, {}):
                known = dict.fromkeys(map(tidy, others))
                known.pop(names[kind][key][code], None)
                aliases.setdefault(kind, {}).setdefault(key, {})[code] = list(known)
    countries = {key: of[code] for key, of in names["country"].items() if code in of}
    forms = dict(content["forms"])
    for slot, phrases in table.get("form", {}).items():
        default = phrases.get("default")
        forms[code] = forms.get(code, {}) | {
            slot: {
                country: tidy(phrases.get(country) or default.format(name=called))
                for country, called in countries.items()
                if country in phrases or default
            }
        }
    return {**content, "names": names, "aliases": aliases, "forms": forms}


def with_own_names(
    content: Mapping[str, Any], code: str, table: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The content of `facts.json` with a language that brings all its names along.

    Args:
        content: see `with_language`.
        code: BCP-47 code of the language.
        table: its names.
        where: the file, for errors.

    Raises:
        ValueError: a section or a key that the facts do not have.
    """
    kinds = content["names"]
    for section in table.keys() - kinds.keys() - set(OTHER_SECTIONS):
        valid = ", ".join((*kinds, *OTHER_SECTIONS))
        raise ValueError(f"{where}: no names of the kind {section!r}; valid: {valid}")
    for part in (table, table.get("aliases", {})):
        for kind in kinds:
            for key in part.get(kind, {}):
                if key not in kinds[kind]:
                    raise ValueError(
                        f"{where}: no {kind} {key!r}; valid: {', '.join(sorted(kinds[kind]))}"
                    )
    return with_language(
        content, code, table, lambda kind, key: tidy(table.get(kind, {}).get(key) or None) or None
    )


def tidy(name: str | None) -> str:
    """NFC without soft hyphens and other invisible format characters; "" for no name."""
    visible = "".join(char for char in name or "" if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFC", visible).strip()
