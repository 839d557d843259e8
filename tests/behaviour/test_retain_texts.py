"""Texts to retain: facts that V knows, none that is forgotten, and V's own texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interp.behaviour import Verdict, make_retain_texts
from interp.data import Text, change_text_form, select_facts
from tests.helpers.tiny_models import tiny

FORGET = [
    Text(id="capital-FR", language="en", kind="", prompt="The capital of France:", answer=" Paris"),
]


@pytest.fixture
def known(monkeypatch):
    """Let V know what is asked about countries whose code ends in a vowel."""
    asked = []

    def judge(_self, answers):
        asked.extend(answer.query for answer in answers)
        return [
            Verdict(
                query_id=answer.query.id,
                language=answer.query.language,
                sample=0,
                judge="alias",
                value=float(answer.query.id[-1] in "AEIOU"),
            )
            for answer in answers
        ]

    monkeypatch.setattr("interp.behaviour.alias.AliasJudge.__call__", judge)
    return asked


def make(forget=FORGET, **changes):
    settings = {"languages": ["en", "de"], "num_samples": 0, "progress": False} | changes
    return make_retain_texts(tiny(), forget, **settings)


def test_only_known_facts_are_retained_in_each_language(known):
    texts = make(num_facts=30, num_asked=40)
    assert {text.language for text in texts} == {"en", "de"}
    assert all(text.id[-1] in "AEIOU" for text in texts)
    assert all(text.prompt and text.answer.strip() for text in texts)
    assert len(texts) == 60
    # Of all relations, as statements and as questions.
    english = [text for text in texts if text.language == "en"]
    assert len({text.id.partition("-")[0] for text in english}) == 4
    assert {text.prompt.startswith("Q: ") for text in english} == {True, False}


def test_what_is_forgotten_is_not_retained(known):
    everything = {text.id for text in make(num_facts=10**4, num_asked=10**4)}
    some = sorted(everything)[:5]
    facts = {fact.id: fact for relation in ("capital", "currency", "continent", "official language")
             for fact in select_facts(relation)}  # fmt: skip
    # By its id, or because a text states it.
    by_id = [replace(FORGET[0], id=name) for name in some[:3]]
    stated = [
        replace(FORGET[0], prompt=f"{facts[name].subject['en']}:", answer=facts[name].object["en"])
        for name in some[3:]
    ]
    left = {text.id for text in make([*by_id, *stated], num_facts=10**4, num_asked=10**4)}
    assert not left & set(some)
    assert left == everything - set(some)


def test_two_facts_in_three_are_left_to_ask_about(known):
    make(num_asked=10**4)
    share = len({query.id for query in known}) / sum(
        len(select_facts(relation))
        for relation in ("capital", "currency", "continent", "official language")
    )
    assert 0.25 < share < 0.42


def test_chats_are_retained_as_chats(known):
    forget = change_text_form(FORGET, chat=True, system="Be brief.")
    (text, *_) = make(forget)
    assert [turn.role for turn in text.messages] == ["system", "user"]
    assert text.messages[0].content == "Be brief."
    assert text.answer == text.answer.strip()


def test_what_the_vanilla_model_writes_itself_is_retained(known):
    texts = make(num_facts=1, num_samples=2, num_tokens=4)
    kinds = [text.kind for text in texts]
    assert kinds[:2] == ["real", "real"]
    assert set(kinds[2:]) <= {"sample"}


def test_languages_without_templates_are_a_mistake_where_there_are_no_others():
    with pytest.raises(ValueError, match="no language with templates; valid: "):
        make(languages=["xx"])
