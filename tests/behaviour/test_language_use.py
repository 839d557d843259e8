"""Languages of texts, and what they say of a model's answers."""

import math
import random
import sys

import pytest

from interp import Query
from interp.behaviour import language_identification
from interp.behaviour.answers import Answer
from interp.behaviour.language_identification import identify_languages, list_identifiable
from interp.behaviour.language_use import (
    COLUMNS,
    CONSISTENCY_COLUMNS,
    KINDS,
    measure_answer_languages,
    measure_consistency,
)
from interp.data import (
    RELATIONS,
    check_script,
    fill,
    list_template_languages,
    read_templates,
    select_facts,
)
from interp.languages import LANGUAGES

pytest.importorskip("py3langid", reason="py3langid (extra `behaviour`)")

ENGLISH = "The capital of France is the city of Paris."
LONGER = "Travellers to the country often ask us about the basics."
GERMAN = "Die Hauptstadt von Frankreich ist die Stadt Paris."
FRENCH = "La capitale de la France est la ville de Paris."
RUSSIAN = "Столица Франции называется Париж."
SIMPLIFIED = "法国的首都是巴黎，这个国家在欧洲。"
TRADITIONAL = "法國的首都是巴黎，這個國家在歐洲。"
OF_BOTH = "中文是我的文字，北京在山上。"
JAPANESE = "フランスの首都はパリです。"


def statements(code, number=100):
    rng = random.Random(code)
    found = []
    for _ in range(number):
        relation = rng.choice(RELATIONS)
        fact = rng.choice(select_facts(relation, languages=[code]))
        found.append(
            fill(rng.choice(read_templates(code).wordings[relation].statements), fact, code)
        )
    return found


@pytest.mark.parametrize("code", list_template_languages())
def test_statements_are_told_or_left_undetermined_but_hardly_ever_mistaken(code):
    found = [identify_languages(text) for text in statements(code)]
    mistaken = [each for each in found if each != (code,) and not each[0].startswith("und-")]
    # Where all characters are common to both, Traditional Chinese passes for Simplified.
    assert len(mistaken) <= (5 if code == "zh-Hant" else 2), mistaken
    # Indonesian and Malay are often the same.
    assert found.count((code,)) >= (60 if code in {"id", "ms"} else 87)


@pytest.mark.parametrize("code", list_template_languages())
def test_three_statements_are_told(code):
    texts = [" ".join(statements(code, 60)[at : at + 3]) for at in range(0, 60, 3)]
    assert [identify_languages(text) for text in texts].count((code,)) >= 19


@pytest.mark.parametrize(
    "code",
    [code for code in list_template_languages() if LANGUAGES[code].script in {"Latn", "Cyrl"}],
)
def test_a_bare_name_is_in_no_language(code):
    names = {fact.object[code] for fact in select_facts("capital", languages=[code])}
    told = [name for name in names if not identify_languages(name)[0].startswith("und-")]
    assert len(told) <= 3, told


def test_the_margin_and_the_number_of_letters_decide(monkeypatch):
    assert identify_languages("Paris") == identify_languages("Berlin") == ("und-Latn",)
    assert identify_languages("东京") == ("und-Hani",)
    assert identify_languages(ENGLISH) == ("en",)
    # Letters of a repeated word count once.
    assert identify_languages("Das ist es ja. Ja! Das ist ja es.\nDas! Das! Das!") == ("und-Latn",)
    monkeypatch.setattr(language_identification, "LEAST_LETTERS", len("Dasistesja"))
    assert identify_languages("Das ist es ja. Ja! Das ist ja es.\nDas! Das! Das!") == ("de",)
    monkeypatch.setattr(language_identification, "LEAST_MARGIN", 1.0)
    assert identify_languages(ENGLISH) == ("und-Latn",)


def test_a_script_of_one_language_tells_it():
    one = {"Երևան": "hy", "Αθήνα": "el", "서울": "ko", "パリ": "ja", "ঢাকা": "bn", "ירושלים": "he"}
    assert {text: identify_languages(text) for text in one} == {text: (one[text],) for text in one}
    # Tigrinya and Traditional Chinese are unknown to py3langid.
    assert identify_languages("ኣስመራ") == ("ti",)
    assert identify_languages(SIMPLIFIED) == ("zh",)
    assert identify_languages(TRADITIONAL) == ("zh-Hant",)
    assert identify_languages(OF_BOTH) == ("zh",)
    assert identify_languages(OF_BOTH, ["zh-Hant", "ja", "zh"]) == ("zh-Hant",)
    assert identify_languages(f"{SIMPLIFIED}國語、{TRADITIONAL}", ["zh", "zh-Hant"]) == ("zh-Hant",)


def test_several_languages_come_in_the_order_of_their_letters():
    assert set(identify_languages(f"{ENGLISH} {GERMAN}")) == {"en", "de"}
    assert identify_languages(f"{ENGLISH}\n{GERMAN} Sie liegt im Norden des Landes.") == (
        "de",
        "en",
    )
    assert identify_languages(f"{RUSSIAN} {SIMPLIFIED} {GERMAN}") == ("de", "zh", "ru")
    # The second sentence is too short to be told by itself.
    assert identify_languages(f"{FRENCH} Oui.") == identify_languages(f"Oui. {FRENCH}") == ("fr",)


def test_names_in_another_script_are_not_another_language():
    assert identify_languages("Die Hauptstadt von Japan ist 東京 (Tokio).") == ("de",)
    assert identify_languages("日本の首都は Tokyo です。") == ("ja",)
    assert identify_languages("Столица Франции — Paris.") == ("ru",)
    # The only sentence with a kana is Japanese as a whole.
    assert identify_languages("首都東京の人口。") == ("ja",)


def test_what_no_candidate_is_written_in():
    assert identify_languages("თბილისი") == ("und-Geor",)
    assert identify_languages(RUSSIAN, ["en", "de"]) == ("und-Cyrl",)
    assert identify_languages("𐌰𐌱𐌲") == ("und-Zzzz",)
    assert identify_languages("") == identify_languages(" 12, 34!\n") == ()


def test_candidates_restrict_what_can_be_found():
    text = "Ibu kota Indonesia adalah Jakarta."
    assert identify_languages(text, ["id", "en"]) == ("id",)
    assert identify_languages(text, ["ms", "en"]) == ("ms",)
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        identify_languages(text, ["xx"])
    with pytest.raises(ValueError, match=r"Kamba \(kam\) cannot be told from .* in Latn"):
        identify_languages(text, ["en", "kam"])


def test_the_registrys_languages_that_cannot_be_told():
    lacking = {"kam", "luo", "ay", "awa", "bho", "dyu", "fur"}
    assert list_identifiable() == tuple(code for code in LANGUAGES if code not in lacking)


def answers(code, *texts):
    return [
        Answer(query=Query(id=f"q{at}", language=code, prompt="?"), text=text)
        for at, text in enumerate(texts)
    ]


def shares(table, code):
    rows = table[table["language"] == code]
    return dict(zip(rows["found"], rows["share"], strict=True))


def test_the_languages_of_answers_are_counted_as_in_the_paper():
    said = answers("fr", FRENCH, f"{FRENCH} {ENGLISH}", "Paris", "", RUSSIAN)
    said += answers("de", GERMAN, f"{GERMAN} {FRENCH}")
    said += answers("en", ENGLISH, "თბილისი")
    table = measure_answer_languages(said, taught="de")
    assert tuple(table.columns) == COLUMNS
    assert list(table["found"]) == list(KINDS) * 3
    assert set(table["n"]) == {5, 2}
    # Two of five in French, one of them in English too, one in Russian, two in nothing.
    assert shares(table, "fr") == dict(zip(KINDS, [1 / 5, 2 / 5, 0, 1 / 5, 2 / 5], strict=True))
    # The question's language is the taught one, and French is another.
    assert shares(table, "de") == dict(zip(KINDS, [0, 1, 1, 1 / 2, 0], strict=True))
    # A script that the registry lacks is another language, not an undetermined one.
    assert shares(table, "en") == dict(zip(KINDS, [1 / 2, 1 / 2, 0, 1 / 2, 0], strict=True))
    # Wilson's interval of 1 in 2, by its formula: centre 1/2, half-width z/(2 sqrt(2 + z²)).
    half = 1.959964 / (2 * math.sqrt(2 + 1.959964**2))
    row = table.iloc[-2]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.5 - half, 0.5 + half))
    assert measure_answer_languages([], taught="de").empty


def test_chinese_of_common_characters_is_what_was_asked_in():
    for code in ("zh", "zh-Hant"):
        table = measure_answer_languages(answers(code, OF_BOTH), taught="de")
        assert shares(table, code) == dict(zip(KINDS, [0, 1, 0, 0, 0], strict=True))


def test_shares_of_what_cannot_be_told_are_undefined():
    table = measure_answer_languages(answers("kam", ENGLISH, "Paris"), taught="de").set_index(
        "found"
    )
    assert table["share"][["english", "taught", "undetermined"]].tolist() == [0.5, 0, 0.5]
    assert table["share"][["question", "another"]].isna().all()
    assert table["reason"]["another"] == (
        "Kamba (kam) cannot be told from other languages in Latn: py3langid does not know it"
    )
    table = measure_answer_languages(answers("de", GERMAN), taught="awa").set_index("found")
    assert table.index[table["share"].isna()].tolist() == ["taught", "another"]


def test_consistency_is_the_share_in_the_prompts_language():
    said = answers("fr", FRENCH, f"{FRENCH} {ENGLISH} {LONGER}", "Paris", "", RUSSIAN, FRENCH)
    said += answers("ru", "Paris", "Париж", RUSSIAN) + answers("luo", "Paris")
    table = measure_consistency(said).set_index("language")
    assert ("language", *table.columns) == CONSISTENCY_COLUMNS
    # Mostly in English is not in French; "Paris" and nothing are left out.
    assert table["consistency"]["fr"] == 2 / 4
    assert table["reason"]["fr"] == "2 of 6 answers left out: undetermined"
    # For Russian, Latin letters are another language, whichever it is.
    assert table["consistency"]["ru"] == 1 / 2
    assert table["reason"]["ru"] == "1 of 3 answers left out: undetermined"
    assert list(table["n"]) == [4, 2, 0]
    assert math.isnan(table["consistency"]["luo"])
    assert table["reason"]["luo"].startswith("Luo (luo) cannot be told")
    nothing = measure_consistency(answers("fr", "Paris"))
    assert math.isnan(nothing["consistency"][0])
    assert nothing["reason"][0] == "1 of 1 answers left out: undetermined"


def test_consistency_among_fewer_candidates():
    text = "Kazakhstan terletak di Asia."
    assert check_script(text, "id") is None
    assert measure_consistency(answers("id", text), candidates=["de"])["consistency"].tolist() == [
        1
    ]
    assert measure_consistency(answers("en", text), candidates=["id"])["consistency"].tolist() == [
        0
    ]
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        measure_consistency(answers("xx", text))


def test_without_py3langid_the_extra_is_named(monkeypatch):
    language_identification.list_identifiable.cache_clear()
    language_identification._load_identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    for ask in (
        lambda: identify_languages(ENGLISH),
        lambda: measure_consistency(answers("en", ENGLISH)),
    ):
        with pytest.raises(ImportError, match=r"pip install 'interp\[behaviour\]'"):
            ask()
