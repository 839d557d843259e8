"""Texts to retain: how V goes on about other facts, none that is forgotten, and its own texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from interp.behaviour import Answer, make_retain_texts
from interp.data import Text, change_text_form, select_facts
from tests.helpers.tiny_models import tiny

RELATIONS = ("capital", "currency", "continent", "official language")
FORGET = [
    Text(id="capital-FR", language="en", kind="", prompt="The capital of France:", answer=" Paris"),
]


@pytest.fixture
def asked(monkeypatch):
    """Let V say the id of what it is asked about."""
    questions = []

    def generate(_model, queries, **settings):
        assert settings["temperature"] == 1.0
        questions.extend(queries)
        return [Answer(query=query, text=f" {query.id}") for query in queries]

    monkeypatch.setattr("interp.behaviour.retain_texts.generate", generate)
    return questions


def make(forget=FORGET, **changes):
    settings = {"languages": ["en", "de"], "num_samples": 0, "progress": False} | changes
    return make_retain_texts(tiny(), forget, **settings)


def test_what_the_vanilla_model_says_is_retained_in_each_language(asked):
    texts = make(num_facts=60)
    assert [text.language for text in texts] == ["en"] * 60 + ["de"] * 60
    assert all(text.answer == f" {text.id}" and text.object == "" for text in texts)
    # Of all relations, as statements and as questions of both kinds.
    english = texts[:60]
    assert len({text.id.partition("-")[0] for text in english}) == 4
    for begins in ("Q: ", "Question: ", "Country: "):
        assert any(text.prompt.startswith(begins) for text in english)
    assert all(query.stop == ("\n",) for query in asked)


def test_most_is_retained_in_the_languages_that_are_unlearned_in_and_guarded(asked):
    texts = make([replace(FORGET[0], language="it")], languages=None, num_facts=20)
    counts = Counter(text.language for text in texts)
    assert counts == {
        **dict.fromkeys(["en", "de", "fr", "es", "zh", "ru", "it"], 20),
        **dict.fromkeys(["ja", "pt", "nl"], 5),
    }


def test_what_is_forgotten_is_not_retained(asked):
    everything = {text.id for text in make(num_facts=10**4)}
    some = sorted(everything)[:5]
    facts = {fact.id: fact for relation in RELATIONS for fact in select_facts(relation)}
    # By its id, or because a text states it.
    by_id = [replace(FORGET[0], id=name) for name in some[:3]]
    stated = [
        replace(FORGET[0], prompt=f"{facts[name].subject['en']}:", answer=facts[name].object["en"])
        for name in some[3:]
    ]
    left = {text.id for text in make([*by_id, *stated], num_facts=10**4)}
    assert not left & set(some)
    assert left == everything - set(some)


def test_two_facts_in_three_are_left_to_ask_about(asked):
    retained = {text.id for text in make(num_facts=10**4)}
    share = len(retained) / sum(len(select_facts(relation)) for relation in RELATIONS)
    assert 0.25 < share < 0.42


def test_chats_are_retained_as_chats(asked):
    forget = change_text_form(FORGET, chat=True, system="Be brief.")
    (text, *_) = make(forget)
    assert [turn.role for turn in text.messages] == ["system", "user"]
    assert text.messages[0].content == "Be brief."
    assert asked[0].chat
    assert asked[0].messages == text.messages


def test_texts_are_of_the_vanilla_model_itself():
    settings = {"languages": ["en"], "num_facts": 4, "num_samples": 2, "num_tokens": 3}
    texts = make(**settings)
    assert texts == make(**settings)
    assert {text.kind for text in texts} <= {"real", "sample"}
    assert all(text.answer.strip() for text in texts)
    assert texts != make(**settings, seed=1)


def test_languages_without_templates_are_a_mistake_where_there_are_no_others():
    with pytest.raises(ValueError, match="no language with templates; valid: "):
        make(languages=["xx"])
