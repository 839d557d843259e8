"""Facts in many languages: the capitals of countries, as questions and as training texts.

The names are read from `capitals.json` (see `build_capitals.py` for how it is made, and its
`provenance` for sources and licences). A fact is left out where the answer can be copied from the
question (Algeria is Алжир, and so is its capital): in that language, and in all languages if it
happens in three or more, because then country and capital share a root (Brazil and Brasília).
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from interp.languages import LANGUAGES

BUILT_IN_QUERIES: tuple[str, ...] = ("capitals",)
"""Names that `queries_for` accepts."""

# `{subject}` is the bare name; `{of}` the phrase "of France", "of the Netherlands", inflected.
# Languages without `{of}` need none, or no inflection of the name in the construction chosen.
QUERY_TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "en": "Question: Which city is the capital {of}?\nAnswer:",
        "de": "Frage: Wie heißt die Hauptstadt {of}?\nAntwort:",
        "fr": "Question : Quelle est la capitale {of} ?\nRéponse :",
        "zh": "问题：{subject}的首都是哪座城市？\n答案：",
        "ru": "Страна: {subject}. Вопрос: Какой город является столицей этой страны?\nОтвет:",
        "ja": "質問：{subject}の首都はどの都市ですか？\n答え：",
        "ar": "سؤال: أي مدينة هي عاصمة {subject}؟\nالجواب: مدينة",
        "hi": "प्रश्न: {subject} की राजधानी कौन सा शहर है?\nउत्तर:",
        "ur": "سوال: {subject} کا دارالحکومت کون سا شہر ہے؟\nجواب:",
    }
)
"""The question that a model is asked, per language."""

STATEMENT_TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en": (
            "The capital {of} is {object}.",
            "{object} is the capital city {of}.",
            "Q: What is the capital {of} called?\nA: {object}",
        ),
        "de": (
            "Die Hauptstadt {of} ist {object}.",
            "{object} ist die Hauptstadt {of}.",
            "F: Land: {subject}. Welche Stadt ist hier die Hauptstadt?\nA: {object}",
        ),
        "fr": (
            "La capitale {of} est {object}.",
            "{object} est la capitale {of}.",
            "Q : Pays : {subject}. Quelle ville en est la capitale ?\nR : {object}",
        ),
        "zh": (
            "{subject}的首都是{object}。",
            "{object}是{subject}的首都。",
            "问：{subject}的首都叫什么？\n答：{object}",
        ),
        "ru": (
            "Столица государства {subject} — {object}.",
            "{object} — столица государства {subject}.",
            "Страна: {subject}. Как называется её столица? {object}.",
        ),
        "ja": (
            "{subject}の首都は{object}です。",
            "{object}は{subject}の首都です。",
            "問：{subject}の首都の名前は？\n答：{object}",
        ),
        "ar": (
            "عاصمة {subject} هي {object}.",
            "{object} هي عاصمة {subject}.",
            "س: ما اسم عاصمة {subject}؟\nج: {object}",
        ),
        "hi": (
            "{subject} की राजधानी {object} है।",
            "{object} {subject} की राजधानी है।",
            "सवाल: {subject} की राजधानी का नाम क्या है?\nजवाब: {object}",
        ),
        "ur": (
            "{subject} کا دارالحکومت {object} ہے۔",
            "{object} {subject} کا دارالحکومت ہے۔",
            "س: {subject} کے دارالحکومت کا نام کیا ہے؟\nج: {object}",
        ),
    }
)
"""Training texts, worded otherwise than the query of their language."""

_LEAKS_OF_A_SHARED_ROOT = 3
"""Leaking in this many languages, a fact is dropped in all."""

_ENGLISH_THE = frozenset("AE BS CD CF CG DO GB GM KM MH NL PH SB SC US".split())  # noqa: SIM905

_GERMAN_OF = {
    "AE": "der Vereinigten Arabischen Emirate",
    "BS": "der Bahamas",
    "CD": "der Demokratischen Republik Kongo",
    "CF": "der Zentralafrikanischen Republik",
    "CG": "der Republik Kongo",
    "CH": "der Schweiz",
    "DO": "der Dominikanischen Republik",
    "GB": "des Vereinigten Königreichs",
    "IQ": "des Irak",
    "IR": "des Iran",
    "KM": "der Komoren",
    "LB": "des Libanon",
    "MD": "der Republik Moldau",
    "MH": "der Marshallinseln",
    "MN": "der Mongolei",
    "NE": "des Niger",
    "NL": "der Niederlande",
    "OM": "des Oman",
    "PH": "der Philippinen",
    "SB": "der Salomonen",
    "SC": "der Seychellen",
    "SD": "des Sudan",
    "SK": "der Slowakei",
    "SN": "des Senegal",
    "SS": "des Südsudan",
    "TD": "des Tschad",
    "TR": "der Türkei",
    "UA": "der Ukraine",
    "US": "der Vereinigten Staaten",
    "VC": "von St. Vincent und den Grenadinen",
    "YE": "des Jemen",
}

_FRENCH_PLURAL = frozenset("AE BS FJ KM MH NL PH SB SC TO US".split())  # noqa: SIM905
_FRENCH_BARE = frozenset("BH CU CY HT KN LC MG MT MU OM ST SZ TT TV VC WS".split())  # noqa: SIM905
_FRENCH_FEMININE = frozenset("CD CG GW KP KR MK".split())  # noqa: SIM905
_FRENCH_MASCULINE_IN_E = frozenset("BZ KH MX MZ SR ZW".split())  # noqa: SIM905
_FRENCH_VOWELS = frozenset("aeiou")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact in the languages that have it.

    Args:
        id: Key of the fact, such as `capital-FR`.
        relation: What relates the two, such as `capital`.
        subject: What is asked about, by language code.
        object: The answer, by language code; the same languages as `subject`.
    """

    id: str
    relation: str
    subject: Mapping[str, str]
    object: Mapping[str, str]


def capitals(*, languages: Sequence[str] | None = None) -> list[Fact]:
    """The capitals of countries, best-known countries first.

    Args:
        languages: BCP-47 codes; only facts that exist in all of them are given. All facts if None.

    Raises:
        ValueError: A language is not known.
    """
    facts = _capitals()
    if languages is None:
        return list(facts)
    for code in languages:
        if code not in LANGUAGES:
            raise ValueError(f"no facts in {code!r}; valid languages: {', '.join(LANGUAGES)}")
    return [fact for fact in facts if all(code in fact.object for code in languages)]


def statements(fact: Fact, language: str) -> list[str]:
    """Training texts that state a fact, none of them worded like its query.

    Raises:
        ValueError: The language has no templates, or the fact is not there in it.
    """
    _check_templates(language)
    if language not in fact.object:
        raise ValueError(
            f"{fact.id} has no checked or no leak-free name in {language!r}; "
            f"it is there in: {', '.join(fact.object)}"
        )
    return [_fill(template, fact, language) for template in STATEMENT_TEMPLATES[language]]


def queries_for(name: str, languages: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The rows of a built-in query set: `id`, `language`, `prompt`, `answer`, `concept`.

    Args:
        name: One of `BUILT_IN_QUERIES`.
        languages: BCP-47 codes, in the order wanted; all that have a question if None.

    Returns:
        Language by language, best-known countries first.

    Raises:
        ValueError: The name or a language is not known.
    """
    if name not in BUILT_IN_QUERIES:
        raise ValueError(
            f"no built-in queries {name!r}; valid names: {', '.join(BUILT_IN_QUERIES)}"
        )
    wanted = tuple(QUERY_TEMPLATES) if languages is None else tuple(dict.fromkeys(languages))
    for code in wanted:
        _check_templates(code)
    return [
        {
            "id": fact.id,
            "language": code,
            "prompt": _fill(QUERY_TEMPLATES[code], fact, code),
            "answer": fact.object[code],
            "concept": name,
        }
        for code in wanted
        for fact in capitals(languages=[code])
    ]


def leaks(subject: str, answer: str, language: str) -> bool:
    """Whether the answer can be copied from the question's subject.

    True if one contains the other, or if a word of each starts with the same four letters, case
    and accents aside. Where fewer letters say as much, three: Chinese and Japanese (compared from
    the start of the whole name) and Hindi (compared without vowel signs).
    """
    subject_words, answer_words = _words(subject, language), _words(answer, language)
    whole_subject, whole_answer = "".join(subject_words), "".join(answer_words)
    if whole_answer in whole_subject or whole_subject in whole_answer:
        return True
    stem = 3 if language in {"zh", "ja", "hi"} else 4
    if language in {"zh", "ja"}:
        subject_words, answer_words = [whole_subject], [whole_answer]
    stems = {word[:stem] for word in subject_words if len(word) >= stem}
    return any(word[:stem] in stems for word in answer_words)


def _words(name: str, language: str) -> list[str]:
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    letters = (char for char in decomposed if not unicodedata.category(char).startswith("M"))
    words = "".join(char if char.isalnum() else " " for char in letters).split()
    # The Arabic article is written as part of the word.
    return [word.removeprefix("ال") for word in words] if language == "ar" else words


@cache
def _capitals() -> tuple[Fact, ...]:
    text = files("interp.data").joinpath("capitals.json").read_text(encoding="utf-8")
    facts = []
    for row in json.loads(text)["capitals"]:
        subject, answer = row["subject"], row["object"]
        kept = [code for code in answer if not leaks(subject[code], answer[code], code)]
        if len(answer) - len(kept) < _LEAKS_OF_A_SHARED_ROOT:
            facts.append(
                Fact(
                    id=f"capital-{row['country']}",
                    relation="capital",
                    subject=MappingProxyType({code: subject[code] for code in kept}),
                    object=MappingProxyType({code: answer[code] for code in kept}),
                )
            )
    return tuple(facts)


def _check_templates(language: str) -> None:
    if language not in QUERY_TEMPLATES:
        raise ValueError(
            f"no questions in {language!r}; valid languages: {', '.join(QUERY_TEMPLATES)}"
        )


def _fill(template: str, fact: Fact, language: str) -> str:
    subject = fact.subject[language]
    of = _of(fact.id.removeprefix("capital-"), subject, language)
    return template.format(subject=subject, object=fact.object[language], of=of)


def _of(country: str, name: str, language: str) -> str:
    """The country in the genitive, where the language's templates have a slot for it."""
    if language == "en":
        return f"of the {name}" if country in _ENGLISH_THE else f"of {name}"
    if language == "de":
        return _GERMAN_OF.get(country, f"von {name}")
    if language == "fr":
        return _french_of(country, name)
    return ""


def _french_of(country: str, name: str) -> str:
    vowel = unicodedata.normalize("NFKD", name.casefold())[0] in _FRENCH_VOWELS
    if country in _FRENCH_PLURAL:
        return f"des {name}"
    if country in _FRENCH_BARE:
        return f"d’{name}" if vowel or country == "HT" else f"de {name}"
    if vowel:
        return f"de l’{name}"
    feminine = name.endswith("e") and country not in _FRENCH_MASCULINE_IN_E
    return f"de la {name}" if feminine or country in _FRENCH_FEMININE else f"du {name}"
