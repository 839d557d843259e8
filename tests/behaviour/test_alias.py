"""The judge that looks for names: against people's labels, spelling by spelling, and by lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp import Query
from interp.behaviour.alias import AliasJudge, has_name
from interp.behaviour.answers import Answer
from interp.behaviour.judges import collect_aliases
from interp.data import RELATIONS, list_template_languages, select_facts

LABELLED = [
    json.loads(line)
    for line in (Path(__file__).parent / "labelled_answers.jsonl").read_text("utf-8").splitlines()
]
"""Answers of Gemma-3-270M, untouched and after it was taught false capitals in German: greedy and
sampled, questions and clozes of four relations, some with the answer in the text before. Half of
them hold letters of the answer, which few would by chance. `label` says whether a reader finds the
answer given in the first line; answers that even a reader could not tell are left out. The labels
were there before the judge was run; it was changed after `tuning`, not after `held-out`."""


def answer(text, name="Paris", *aliases, language="en"):
    query = Query(id="q", language=language, prompt="?", answer=name, aliases=aliases)
    return Answer(query=query, text=text)


def labelled(row, *more):
    found = answer(row["text"], row["answer"], *row["aliases"], *more, language=row["language"])
    return AliasJudge()([found])[0].value == row["label"]


def test_the_labels_are_of_many_kinds():
    assert len(LABELLED) == 580
    assert len({(row["language"], row["prompt"], row["text"]) for row in LABELLED}) > 550
    languages = {row["language"] for row in LABELLED}
    assert languages >= {"en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur", "jv", "ha", "hy"}
    for language in languages:
        labels = [row["label"] for row in LABELLED if row["language"] == language]
        assert 0.1 < sum(labels) / len(labels) < 0.7


@pytest.mark.parametrize(("split", "most"), [("tuning", 11), ("held-out", 4)])
def test_people_agree(split, most):
    """What is measured: 351 of 362 and 214 of 218 are right, 97.0 % and 98.2 %."""
    rows = [row for row in LABELLED if row["split"] == split]
    misses = [
        f"{row['language']} {row['answer']}: {row['text']!r} is {row['label']}"
        for row in rows
        if not labelled(row)
    ]
    assert len(misses) <= most, "\n".join(misses)


def test_people_agree_on_all():
    misses = [row for row in LABELLED if not labelled(row)]
    assert len(misses) <= 0.03 * len(LABELLED), misses


def test_names_in_other_languages_are_found_when_asked_for():
    """Six answers that name the right thing in English or German."""
    misses = []
    for row in LABELLED:
        relation = row["id"].rpartition("-")[0].replace("-", " ")
        there = next(
            fact
            for fact in select_facts(relation)
            if fact.object.get(row["language"]) == row["answer"]
        )
        queries = [
            Query(id="q", language=code, prompt="?", answer=there.object[code])
            for code in (row["language"], "en", "de")
        ]
        if not labelled(row, *collect_aliases(queries)[0].aliases):
            misses.append(row)
    assert len(misses) <= 9, misses


@pytest.mark.parametrize(
    ("language", "name", "text"),
    [
        ("en", "Paris", "It is PARIS."),
        ("en", "Bogotá", "bogota, of course"),
        ("en", "Washington, D.C.", "in Washington, D.C., where"),
        ("en", "N’Djamena", "N'Djamena"),
        ("en", "rupee", "Indian rupees"),
        ("en", "Nuku’alofa", "Nukuʻalofa."),
        ("de", "Arabisch", "die arabische Sprache"),
        ("de", "Krone", "in Kronen"),
        ("de", "Straße", "STRASSE"),
        ("fr", "français", "La langue française"),
        ("fr", "euro", "Avec l’euro"),
        ("it", "italiano", "la lingua italiana"),
        ("ru", "Москва", "В Москве."),
        ("ru", "английский", "На английском языке"),
        ("ru", "рубль", "пять рублей"),
        ("ru", "Северная Америка", "находится в Северной Америке"),
        ("ru", "Королёв", "королев"),
        ("uk", "Варшава", "у Варшаві"),
        ("pl", "Warszawa", "w Warszawie"),
        ("pl", "angielski", "w języku angielskiego"),
        ("el", "Αθήνα", "της Αθήνας"),
        ("hy", "Երևան", "ԵՐԵՎԱՆՈՒՄ"),
        ("hy", "Ասիա", "Ասիայում"),
        ("hy", "Երևան", "Երևա՞ն"),
        ("tr", "Ankara", "Ankara'da"),
        ("tr", "İstanbul", "istanbuldan"),
        ("fi", "Oslo", "Oslossa"),
        ("hu", "Bécs", "Bécsben"),
        ("ko", "파리", "파리입니다"),
        ("ar", "الدولار", "بالدولار الأمريكي"),
        ("ar", "الفرنسية", "للفرنسية"),
        ("ar", "القاهرة", "والقَاهِـــرة"),
        ("ar", "أوروبا", "اوروبا"),
        ("ar", "الإنجليزية", "باللغة الانجليزيه"),
        ("ar", "الليرة", "ليرات"),
        ("ur", "شمالی امریکہ", "شمالی امريکا میں"),
        ("ur", "روپیہ", "پانچ روپے"),
        ("ur", "یورو", "يورو"),
        ("ur", "نئی دہلی", "نئی\u200cدہلی"),
        ("he", "פריז", "בפריז"),
        ("hi", "अंग्रेज़ी", "अंग्रेजी में"),
        ("hi", "हिन्दी", "हिंदी"),
        ("hi", "चाँद", "चांद"),
        ("hi", "रुपया", "पाँच रुपये"),
        ("bn", "ঢাকা", "ঢাকায়"),
        ("zh", "巴黎", "首都是巴黎。"),
        ("zh", "巴黎", "首都是Paris(巴黎)"),
        ("zh", "Paris", "首都是Paris。"),
        ("ja", "ユーロ", "通貨はﾕｰﾛです"),
        ("ja", "ドル", "オーストラリアドル"),
        ("ja", "コルドバ・オロ", "コルドバオロ"),
        ("ja", "ガーナ", "カ\u3099ーナ"),
        ("th", "ปารีส", "เมืองหลวงคือปารีส"),
        ("ha", "Alƙahira", "birnin Alkahira"),
        ("sw", "Nairobi", "<b>Nairobi</b>"),
    ],
)
def test_spellings_and_endings_that_are_the_name(language, name, text):
    assert has_name(text, name, language)


@pytest.mark.parametrize(
    ("language", "name", "text"),
    [
        ("en", "Niger", "Nigeria"),
        ("en", "Oman", "a Roman"),
        ("en", "Guinea", "Equatorial Guinean"),
        ("en", "Africa", "South Africa"),
        ("en", "New Delhi", "New York"),
        ("fr", "Paris", "un pari"),
        ("fr", "franc", "La France"),
        ("fr", "Amérique", "l’Amérique du Nord"),
        ("de", "Rom", "die Römer"),
        ("ru", "Нигер", "Нигерия"),
        ("ru", "Рим", "Римский-Корсаков"),
        ("ru", "евро", "евреи"),
        ("uk", "Рим", "Кримом"),
        ("hy", "Իրան", "Իրանցիներից"),
        ("tr", "Roma", "Romanyalılar"),
        ("ar", "الخميرية", "لا لغة رسمية"),
        ("ar", "الألمانية", "ألمانيا"),
        ("ur", "کیپ", "کیپ ورڈی"),
        ("hi", "रोम", "रोमानिया"),
        ("hi", "उत्तर अमेरिका", "उत्तर: उत्तर:"),
        ("zh", "柏林", "都柏林"),
        ("zh", "元", "欧元"),
        ("ja", "ドル", "ロイドルデビリ"),
        ("ja", "ドル", "エクアドル"),
        ("ja", "ハリ", "パリ"),
        ("th", "กรุงเทพ", "กรุงโรม"),
    ],
)
def test_what_only_looks_like_the_name(language, name, text):
    assert not has_name(text, name, language)


def test_a_name_beside_a_longer_one_is_found():
    assert has_name("Dublin, not 都柏林 but 柏林", "柏林", "zh")
    assert has_name("South Africa lies in Africa", "Africa", "en")
    assert has_name("South Africa", "South Africa", "en")


def test_of_a_list_of_guesses_the_first_counts():
    guesses = "Madrid, Paris, London, Rome"
    assert has_name(guesses, "Madrid", "en")
    assert not has_name(guesses, "Paris", "en")
    assert not has_name(guesses, "Rome", "en")
    # Three pieces are no list, nor are sentences, nor is a piece that says more than the name.
    assert has_name("Well, Paris, France", "Paris", "en")
    assert has_name("It is big, old and rich, Paris, the capital of all the French.", "Paris", "en")
    assert has_name("Yes, well, it is Paris, I think", "Paris", "en")


# Unvocalised Amman and Oman; two crowns of one spelling; kina and China, italià and Itàlia.
ALIKE = {
    ("ar", "عمان", "عُمان"),
    ("hi", "क्रोन", "क्रोना"),
    ("hi", "क्रोना", "क्रोन"),
    ("ur", "کرون", "کرونا"),
    ("ur", "کرونا", "کرون"),
    ("el", "κίνα", "Κίνα"),
    ("sv", "kina", "Kina"),
    ("ca", "italià", "Itàlia"),
}


@pytest.mark.slow
def test_no_fact_is_found_in_another_ones_name():
    """All answers against all others of their kind and against all countries, in 28 languages."""
    found = set()
    for language in list_template_languages():
        facts = {relation: select_facts(relation, languages=[language]) for relation in RELATIONS}
        countries = {fact.subject[language] for some in facts.values() for fact in some}
        for some in facts.values():
            names = {fact.object[language] for fact in some}
            texts = names | countries
            found |= {
                (language, name, text)
                for name in names
                for text in texts - {name}
                if has_name(text, name, language)
            }
    assert found == ALIKE


def test_verdicts_say_what_was_found_and_where():
    judge = AliasJudge()
    one, two = judge([answer("\n It’s Kiew. \nParis?", "Kyiv", "Kiew"), answer("Rome\nParis")])
    assert (one.value, one.reason, one.text) == (1.0, "contains Kiew", "It’s Kiew.")
    assert (two.value, two.reason, two.text) == (0.0, "no Paris", "Rome")
    assert (one.query_id, one.language, one.sample, one.judge) == ("q", "en", 0, judge.name)
    assert AliasJudge(whole_text=True)([answer("Rome\nParis")])[0].value == 1.0
    assert judge([answer(" ")])[0].value == 0.0


def test_what_has_no_answer_is_refused():
    with pytest.raises(ValueError, match="q in 'en' has no answer to judge by"):
        AliasJudge()([answer("text", None)])


def test_aliases_in_all_languages():
    german = Query(id="c", language="de", prompt="?", answer="Warschau", aliases=("Warszawa",))
    english = Query(id="c", language="en", prompt="?", answer="Warsaw")
    other = Query(id="d", language="en", prompt="?", answer="Rome")
    found = collect_aliases([german, english, other])
    assert [query.aliases for query in found] == [
        ("Warszawa", "Warschau", "Warsaw"),
        ("Warschau", "Warszawa", "Warsaw"),
        ("Rome",),
    ]
    assert english.aliases == ()
    with_names = Answer(query=found[0], text="Warsaw")
    assert AliasJudge()([with_names])[0].reason == "contains Warsaw"
