"""Facts about countries in many languages: capital, currency, official language, continent.

The names are read from `facts.json` (see `scripts/build_facts.py` for how it is made and which name
a language gets; `read_provenance()` for sources and licences). A language lacks a fact where it has
no checked name, and where the answer can be copied from the question (Algeria is Алжир, and so is
its capital). A fact that leaks so in three languages or more is dropped in all, because then the
two share a root (Brazil and Brasília, France and French).
"""

import json
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from interp.data.localized_names import add_own_names
from interp.data.normalization import normalize_unicode
from interp.languages import LANGUAGES

RELATIONS: tuple[str, ...] = ("capital", "currency", "official language", "continent")
"""Relations of the built-in facts, each from a country."""

_LEAKS_OF_A_SHARED_ROOT = 3
"""Leaking in this many languages, a fact is dropped in all."""

_SUFFIXES_OF_CHINESE = "语語文元"
"""法语 is French, 法国 France: what stands before is the country."""

_SWAHILI_CLASSES = ("ki", "u", "wa", "m")
"""Ureno is Portugal, Kireno Portuguese."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact in the languages that have it.

    Attributes:
        id: key of the fact, such as `capital-FR`.
        relation: what relates the two, one of `RELATIONS`.
        subject: what is asked about, by language code.
        object: the answer, by language code; the same languages as `subject`.
        aliases: other right spellings of the answer, by language code; few languages have any.
        forms: phrases of the subject by language code and slot, such as `of`: "of the Netherlands".
    """

    id: str
    relation: str
    subject: Mapping[str, str]
    object: Mapping[str, str]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def select_facts(relation: str, *, languages: Sequence[str] | None = None) -> list[Fact]:
    """Return the facts of a relation, best-known countries first.

    Args:
        relation: one of `RELATIONS`.
        languages: BCP-47 codes; only facts that exist in all of them are given. All facts if None.

    Raises:
        ValueError: the relation is not known, or a language has none of its facts.
    """
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}; valid: {', '.join(RELATIONS)}")
    facts = _build_facts()[relation]
    for code in languages or ():
        if not any(code in fact.object for fact in facts):
            valid = ", ".join(count_facts()[relation])
            raise ValueError(f"no facts in {code!r}; valid languages: {valid}")
    return [fact for fact in facts if all(code in fact.object for code in languages or ())]


def order_by_answer(facts: Sequence[Fact], language: str) -> list[Fact]:
    """Order facts so that any beginning has as many different answers as can be.

    First the first fact of every answer, then the second of every answer, and so on. Without it,
    "Africa" alone is right for one country in four.

    Args:
        facts: facts that all exist in the language.
        language: BCP-47 code in which answers are compared.
    """
    times: Counter[str] = Counter()
    ranked = []
    for fact in facts:
        ranked.append((times[fact.object[language]], fact))
        times[fact.object[language]] += 1
    return [fact for _, fact in sorted(ranked, key=lambda item: item[0])]


def count_facts() -> dict[str, dict[str, int]]:
    """Count the facts by relation and language, in the registry's order of languages."""
    counts = {
        relation: Counter(code for fact in facts for code in fact.object)
        for relation, facts in _build_facts().items()
    }
    return {
        relation: {code: numbers[code] for code in LANGUAGES if numbers[code]}
        for relation, numbers in counts.items()
    }


def read_provenance() -> dict[str, Any]:
    """Return where the facts come from: version and making of the file, sources with licences."""
    return {"version": _read_content()["version"], **_read_content()["provenance"]}


def is_leaky(subject: str, answer: str, language: str) -> bool:
    """Return whether the answer can be copied from the question's subject.

    True if one contains the other, if they share a word of three letters or more, or if a word of
    each starts with the same four letters, case and accents aside. Where fewer letters say as
    much, three: Chinese and Japanese (compared from the start of the whole name) and Hindi
    (compared without vowel signs). In Chinese a language or currency is also compared without its
    last sign (英语, 英国), in Swahili a word also without its class (Kireno, Ureno).
    """
    subject_words, answer_words = _split_words(subject, language), _split_words(answer, language)
    whole_subject, whole_answer = "".join(subject_words), "".join(answer_words)
    if whole_answer in whole_subject or whole_subject in whole_answer:
        return True
    if language in {"zh", "zh-Hant"} and whole_answer[-1] in _SUFFIXES_OF_CHINESE:
        before = whole_answer[:-1]
        return bool(before) and whole_subject.startswith(before)
    if {word for word in subject_words if len(word) >= 3} & set(answer_words):
        return True
    stem = 3 if language in {"zh", "zh-Hant", "ja", "hi"} else 4
    if language in {"zh", "zh-Hant", "ja"}:
        subject_words, answer_words = [whole_subject], [whole_answer]
    stems = {word[:stem] for word in subject_words if len(word) >= stem}
    return any(word[:stem] in stems for word in answer_words)


@cache
def _split_words(name: str, language: str) -> list[str]:
    decomposed = normalize_unicode("NFKD", name.casefold())
    letters = (char for char in decomposed if not unicodedata.category(char).startswith("M"))
    words = "".join(char if char.isalnum() else " " for char in letters).split()
    if language == "ar":
        # The article is written as part of the word.
        return [word.removeprefix("ال") for word in words]
    if language == "sw":
        return [_strip_class(word) for word in words]
    return words


def _strip_class(word: str) -> str:
    for prefix in _SWAHILI_CLASSES:
        if word.startswith(prefix) and len(word) > len(prefix) + 3:
            return word.removeprefix(prefix)
    return word


@cache
def _read_content() -> dict[str, Any]:
    """Read `facts.json` and the names of languages that bring their own with their templates."""
    here = files("interp.data")
    content = json.loads(here.joinpath("facts.json").read_text(encoding="utf-8"))
    built = {code for names in content["names"]["continent"].values() for code in names}
    for code in LANGUAGES:
        file = here.joinpath("templates", f"{code}.toml")
        if code not in built and file.is_file():
            table = tomllib.loads(file.read_text(encoding="utf-8")).get("names", {})
            content = add_own_names(content, code, table, str(file))
    return content


@cache
def _build_facts() -> Mapping[str, tuple[Fact, ...]]:
    content = _read_content()
    names, forms = content["names"], _group_forms(content["forms"])
    facts = {}
    for relation in RELATIONS:
        rows = []
        for country, key in content["relations"][relation].items():
            subject, answer = names["country"][country], names[relation][key]
            both = [code for code in answer if code in subject]
            kept = [code for code in both if not is_leaky(subject[code], answer[code], code)]
            if not kept or len(both) - len(kept) >= _LEAKS_OF_A_SHARED_ROOT:
                continue
            others = content["aliases"].get(relation, {}).get(key, {})
            rows.append(
                Fact(
                    id=f"{relation.replace(' ', '-')}-{country}",
                    relation=relation,
                    subject=MappingProxyType({code: subject[code] for code in kept}),
                    object=MappingProxyType({code: answer[code] for code in kept}),
                    aliases=MappingProxyType(
                        {code: tuple(others[code]) for code in kept if code in others}
                    ),
                    forms=forms[country],
                )
            )
        facts[relation] = tuple(rows)
    return MappingProxyType(facts)


def _group_forms(by_language: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping[str, str]]]:
    """Group the phrases by country, language and slot."""
    forms: dict[str, dict[str, dict[str, str]]] = {
        country: {} for country in _read_content()["names"]["country"]
    }
    for code, slots in by_language.items():
        for slot, phrases in slots.items():
            for country, phrase in phrases.items():
                forms[country].setdefault(code, {})[slot] = phrase
    return {country: MappingProxyType(value) for country, value in forms.items()}
