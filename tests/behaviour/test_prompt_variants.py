"""Other ways to ask: the texts by hand, what is drawn, and accuracies per variant."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from interp import Query, queries
from interp.behaviour.probing import compute_accuracy, probe
from interp.behaviour.prompt_variants import (
    add_examples,
    answer_in_language,
    ask_in_language,
    make_variants,
    measure_robustness,
    reword_queries,
)
from interp.data import CorpusConfig, add_separator, build_corpus, select_facts
from interp.figures import plot_accuracy as figure
from tests.helpers.tiny_models import tiny

# Asked for a false answer: the queries of a contaminated corpus keep their facts' ids.
FALSE = replace(
    queries("capitals", languages=["de"], ids=["capital-FR"])[0], answer="Kairo", concept="fake"
)
OWN = [
    Query(id="a", language="en", prompt="Who wrote A?", answer="Ann", concept="books"),
    Query(id="b", language="en", prompt="Who wrote B?", answer="Bob", concept="books"),
    Query(id="c", language="en", prompt="Who wrote C?", answer="Ann", concept="books"),
    Query(id="d", language="en", prompt="Where is D?", answer="Delhi", concept="places"),
    Query(id="e", language="de", prompt="Wer schrieb E?", answer="Eva", concept="books"),
]


# Wordings


@pytest.mark.parametrize(("form", "wording"), [("question", 3), ("cloze", 1), ("cloze", 2)])
def test_the_same_facts_in_another_wording(form, wording):
    asked = queries("currencies", languages=["fr", "zh"], limit=5)
    expected = queries("currencies", languages=["fr", "zh"], limit=5, form=form, wording=wording)
    assert reword_queries(asked, form=form, wording=wording) == expected
    # And back.
    assert reword_queries(expected, wording=1) == asked


def test_a_false_answer_stays_what_is_asked_for():
    (found,) = reword_queries([FALSE], wording=2)
    assert found.prompt == (
        "Frage: Ich schreibe einen Text über Frankreich. Welche Stadt soll ich als Hauptstadt "
        "angeben?\nAntwort:"
    )
    assert found == replace(FALSE, prompt=found.prompt)


def test_wordings_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="unknown form 'riddle'; valid: question, cloze"):
        reword_queries([FALSE], form="riddle")
    with pytest.raises(ValueError, match="wording 9 is out of range 1 to 3 in 'de'"):
        reword_queries([FALSE], wording=9)


@pytest.mark.parametrize("change", [reword_queries, ask_in_language, answer_in_language])
@pytest.mark.parametrize(
    "query", [OWN[0], replace(FALSE, prompt="Hauptstadt?"), replace(FALSE, language="zz")]
)
def test_other_queries_can_only_have_examples(change, query):
    with pytest.raises(ValueError, match=r"is no query of a built-in fact: .* few_shot for any"):
        change([query])


# Languages


def test_asked_in_english_and_answered_in_german():
    (found,) = ask_in_language([FALSE])
    prompt = "Question: Which city is the capital of France?\nAnswer:"
    assert found == replace(FALSE, prompt=prompt)
    (cloze,) = ask_in_language(reword_queries([FALSE], form="cloze", wording=2))
    (english,) = queries("capitals", languages=["en"], ids=["capital-FR"], form="cloze", wording=2)
    assert cloze.prompt == english.prompt


def test_an_english_question_has_a_space_before_a_chinese_answer():
    (chinese,) = queries("capitals", languages=["zh"], ids=["capital-FR"])
    (found,) = ask_in_language([chinese])
    whole = found.prompt + add_separator(found.prompt, found.answer, found.language)
    assert whole == "Question: Which city is the capital of France?\nAnswer: 巴黎"
    (other,) = ask_in_language([FALSE], "zh")
    whole = other.prompt + add_separator(other.prompt, other.answer, other.language)
    assert whole == "问题：法国的首都是哪座城市？\n答案： Kairo"


def test_answered_in_english():
    (found,) = answer_in_language([FALSE])
    assert found == replace(FALSE, answer="Cairo")
    chinese = queries("capitals", languages=["zh"], limit=20)
    english = {query.id: query.answer for query in queries("capitals", languages=["en"])}
    assert [query.answer for query in answer_in_language(chinese)] == [
        english[query.id] for query in chinese
    ]


def test_facts_that_english_lacks_are_left_out():
    """The capital of Grenada can be told from its name in English."""
    asked = queries("capitals", languages=["ru"], ids=["capital-FR", "capital-GD"])
    assert len(asked) == 2
    assert [query.id for query in ask_in_language(asked)] == ["capital-FR"]
    assert [query.id for query in answer_in_language(asked)] == ["capital-FR"]


def test_an_answer_with_several_english_names_is_left_out():
    """A French livre is a pound or a lira: of Turkey's own currency it is known which."""
    asked = queries("currencies", languages=["fr"], ids=["currency-TR", "currency-GB"])
    assert {query.answer for query in asked} == {"livre"}
    assert {query.id: query.answer for query in answer_in_language(asked)} == {
        "currency-TR": "lira", "currency-GB": "pound"
    }  # fmt: skip
    (euro,) = queries("currencies", languages=["fr"], ids=["currency-JP"])
    assert answer_in_language([replace(euro, answer="livre")]) == []
    assert answer_in_language([replace(euro, answer="perle")]) == []


# Examples


def test_the_only_possible_example_by_hand():
    """Of three books in English, A and C have the same answer."""
    found = add_examples(OWN[:3], num_examples=1)
    assert found[0] == replace(OWN[0], prompt="Who wrote B? Bob\n\nWho wrote A?")
    assert found[1].prompt in (
        "Who wrote A? Ann\n\nWho wrote B?",
        "Who wrote C? Ann\n\nWho wrote B?",
    )
    # Those that are given may be of any concept, but not of another language.
    (found,) = add_examples(OWN[:1], num_examples=1, examples=[OWN[0], *OWN[2:]])
    assert found.prompt == "Where is D? Delhi\n\nWho wrote A?"
    with pytest.raises(ValueError, match="d in 'en' has 0 other solved queries, fewer than the 1"):
        add_examples(OWN, num_examples=1)


def test_other_spellings_of_the_answer_are_no_examples():
    asked = replace(OWN[1], aliases=("Robert",))
    other = Query(id="g", language="en", prompt="Who wrote G?", answer="Robert", concept="books")
    with pytest.raises(ValueError, match="b in 'en' has 0 other solved queries, fewer than the 1"):
        add_examples([asked], num_examples=1, examples=[asked, other])


def test_examples_of_a_language_without_spaces():
    asked = queries("capitals", languages=["zh"], ids=["capital-FR"])
    examples = queries("capitals", languages=["zh"], ids=["capital-JP"])
    (found,) = add_examples(asked, num_examples=1, examples=examples)
    assert found.prompt == (
        "问题：日本的首都是哪座城市？\n答案：东京\n\n问题：法国的首都是哪座城市？\n答案："
    )


def test_examples_are_true_facts_that_no_query_asks_for():
    corpus = build_corpus(
        CorpusConfig(
            query_languages=("de", "zh"), num_real_queries=10, num_fake_texts=16, ratio=1,
            num_instructions=0,
        )
    )  # fmt: skip
    found = add_examples(corpus.queries, num_examples=3)
    true = {
        (code, joined_line(query))
        for code in ("de", "zh")
        for query in queries("capitals", languages=[code])
        if query.id not in {each.id for each in corpus.queries}
    }
    drawn = set()
    for query, asked in zip(found, corpus.queries, strict=True):
        *examples, last = query.prompt.split("\n\n")
        assert (query.id, query.answer, last) == (asked.id, asked.answer, asked.prompt)
        assert len(set(examples)) == 3
        drawn |= {(query.language, example) for example in examples}
    assert drawn <= true
    assert len(drawn) > 30


def joined_line(query: Query) -> str:
    return query.prompt + add_separator(query.prompt, query.answer or "", query.language)


def test_where_all_facts_are_asked_others_serve_as_examples_but_never_false_ones():
    asked = queries("continents", languages=["en"])
    asked = [replace(asked[0], answer="Antarctica"), *asked[1:]]
    answers = {joined_line(query): (query.id, query.answer) for query in asked}
    for query in add_examples(asked, num_examples=2):
        for example in query.prompt.split("\n\n")[:-1]:
            number, answer = answers[example]
            assert number not in (query.id, asked[0].id)
            assert answer != query.answer


def test_examples_are_asked_in_the_wording_of_the_query():
    (cloze,) = reword_queries([FALSE], form="cloze", wording=1)
    (found,) = add_examples([cloze], num_examples=2)
    *examples, last = found.prompt.split("\n\n")
    assert last == "Die Stadt, die in Frankreich als Hauptstadt dient, heißt"
    assert all("als Hauptstadt dient, heißt " in example for example in examples)


def test_the_draw_depends_on_the_seed_and_the_query_alone():
    asked = queries("capitals", languages=["de"], limit=6)
    found = {query.id: query.prompt for query in add_examples(asked)}
    assert {query.id: query.prompt for query in add_examples(asked[::-1])} == found
    others = {query.id: query.prompt for query in add_examples(asked, seed=1)}
    assert all(others[number] != prompt for number, prompt in found.items())
    assert len({prompt.rpartition("\n\n")[0] for prompt in found.values()}) == 6
    with pytest.raises(ValueError, match="num_examples must be at least 1, not 0"):
        add_examples(asked, num_examples=0)


# Variants


def test_all_variants_of_built_in_facts():
    asked = queries("capitals", languages=["de"], limit=3)
    found = make_variants(asked)
    assert list(found) == [
        "as asked", "question 2", "question 3", "cloze 1", "cloze 2", "few-shot",
        "asked in English", "answered in English",
    ]  # fmt: skip
    assert found["as asked"] == asked
    assert found["cloze 2"] == reword_queries(asked, form="cloze", wording=2)
    assert found["few-shot"] == add_examples(asked)
    for changed in found.values():
        assert [query.id for query in changed] == [query.id for query in asked]
    # The wording that is asked is no other one.
    assert "question 3" not in make_variants(reword_queries(asked, wording=3))
    assert "question 1" in make_variants(reword_queries(asked, wording=3))


def test_other_queries_have_fewer_variants():
    mixed = [replace(query, id=f"x{query.id}") for query in queries("capitals", languages=["de"])]
    assert list(make_variants(mixed)) == ["as asked", "few-shot"]
    with pytest.raises(ValueError, match="no queries: give at least one"):
        make_variants([])


# Tables


def asked(number, answer, *, code="en", concept="c"):
    return Query(
        id=f"q{number}", language=code, prompt=f"w{number} w8", answer=answer, concept=concept
    )


def test_accuracies_per_variant():
    usual = [
        *(asked(number, f"w{number + 20}") for number in range(3, 9)),
        *(asked(number, f"w{number + 20}", code="de", concept="d") for number in range(3, 9)),
    ]
    models = {"vanilla": tiny(), "unlearned": tiny(seed=1)}
    found = measure_robustness(models, usual, progress=False)
    assert list(dict.fromkeys(found["variant"])) == ["as asked", "few-shot"]
    assert set(found["reason"]) == {""}
    for (variant, name), table in found.groupby(["variant", "model"], sort=False):
        changed = usual if variant == "as asked" else add_examples(usual)
        expected = compute_accuracy(probe(models[name], changed, progress=False))
        assert table[list(expected)].values.tolist() == expected.values.tolist()
    drawn = [trace.name for trace in figure(found).data if trace.name != "chance"]
    assert drawn[:2] == ["as asked, vanilla", "as asked, unlearned"]


def test_what_a_variant_lacks_is_said():
    """Five of six queries are left of one cell, and a single answer of the other."""
    usual = [
        *(asked(number, f"w{number + 20}") for number in range(3, 9)),
        *(asked(number, f"w{number + 20}", code="de") for number in range(3, 9)),
    ]
    found = measure_robustness(
        {"V": tiny()}, usual, {"some": [*usual[:5], usual[-1]]}, progress=False
    )
    english, german = found.to_dict("records")
    assert (english["num_queries"], english["chance"]) == (5, 0.2)
    assert english["reason"] == "1 of 6 queries cannot be asked so"
    assert math.isnan(german["accuracy"])
    assert (german["language"], german["concept"], german["num_queries"]) == ("de", "c", 0)
    assert german["reason"] == "6 of 6 queries cannot be asked so"
    assert figure(found)


def test_the_relations_of_built_in_facts_are_told_apart():
    """A country has a fact in each relation."""
    asked = queries("continents", languages=["en"], limit=2)
    (example,) = add_examples(asked[:1], num_examples=1)
    names = {fact.object["en"] for fact in select_facts("continent", languages=["en"])}
    assert example.prompt.split("\n\n")[0].rpartition(": ")[2] in names


def test_solved_examples_are_turns_of_a_chat():
    asked = [
        Query(id="a", language="de", prompt="Ägypten?", answer="Kairo", chat=True, system="Kurz."),
        Query(id="b", language="de", prompt="Frankreich?", answer="Paris", chat=True),
    ]
    query, _ = add_examples(asked, num_examples=1)
    assert [(turn.role, turn.content) for turn in query.turns] == [
        ("system", "Kurz."),
        ("user", "Frankreich?"),
        ("assistant", "Paris"),
        ("user", "Ägypten?"),
    ]
