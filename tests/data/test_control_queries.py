"""Control questions: other facts, asked as the targets are."""

from __future__ import annotations

import pytest

import interp
from interp import Query
from interp.data import read_queries, write_queries


def test_as_many_other_facts_in_the_same_words():
    targets = interp.queries("capitals", languages=["en", "de"], limit=5)
    kept = interp.controls(targets)
    assert [query.language for query in kept] == ["en"] * 5 + ["de"] * 5
    assert all(query.control for query in kept)
    assert not {query.id for query in kept} & {query.id for query in targets}
    # The best-known of the others, the same in both languages, in the words of `queries`.
    every = interp.queries("capitals", languages=["en", "de"])
    plain = {(query.language, query.id): query.prompt for query in every}
    assert all(plain[query.language, query.id] == query.prompt for query in kept)
    assert [query.id for query in kept[:5]] == [query.id for query in kept[5:]]
    assert kept[0].id == [query.id for query in every][5]


@pytest.mark.parametrize(("form", "wording"), [("question", 2), ("cloze", 1), ("cloze", 2)])
def test_the_form_is_that_of_the_targets(form, wording):
    options = {"languages": ["fr"], "form": form, "wording": wording}
    targets = interp.queries("currencies", limit=3, **options)
    every = {query.id: query for query in interp.queries("currencies", **options)}
    for query in interp.controls(targets, limit=2):
        assert query.prompt == every[query.id].prompt
        assert (query.concept, query.answer) == ("currencies", every[query.id].answer)


def test_chats_and_stops_are_those_of_the_targets():
    targets = interp.queries("capitals", languages=["en"], limit=2, chat=True, system="Be brief.")
    kept = interp.controls(targets)
    assert [(q.chat, q.system, q.stop) for q in kept] == [(True, "Be brief.", ())] * 2
    (query, *_) = interp.controls(interp.queries("capitals", limit=1, stop="."))
    assert query.stop == (".",)


def test_relations_have_controls_of_their_own():
    targets = interp.queries("capitals", languages=["en"], limit=2)
    targets += interp.queries("currencies", languages=["en"], limit=3)
    assert [query.concept for query in interp.controls(targets)] == ["capitals"] * 2 + [
        "currencies"
    ] * 3


def test_facts_that_were_trained_on_are_left_out():
    targets = interp.queries("capitals", languages=["en"], limit=2)
    first = interp.controls(targets)
    others = interp.controls(targets, exclude=[query.id for query in first])
    assert not {query.id for query in first} & {query.id for query in others}
    # Controls among the questions are no targets.
    assert interp.controls([*targets, *first]) == first


def test_what_cannot_be_picked_is_said():
    with pytest.raises(ValueError, match="'q1' is no built-in question"):
        interp.controls([Query(id="q1", language="en", prompt="Who?")])
    everything = interp.queries("continents", languages=["en"])
    with pytest.raises(ValueError, match="no facts of 'continents' in 'en' are left"):
        interp.controls(everything)


def test_a_file_marks_its_own(tmp_path):
    file = tmp_path / "queries.jsonl"
    queries = [
        Query(id="a", language="en", prompt="One?"),
        Query(id="b", language="en", prompt="Two?", control=True),
    ]
    write_queries(queries, file)
    assert file.read_text().count("control") == 1
    assert read_queries(file) == queries
    table = tmp_path / "queries.csv"
    table.write_text("id,language,prompt,control\na,en,One?,\nb,en,Two?,true\n")
    assert read_queries(table) == queries
    table.write_text("id,language,prompt,control\na,en,One?,perhaps\n")
    with pytest.raises(ValueError, match="'control' must be true or false, not 'perhaps'"):
        read_queries(table)
