"""Texts of one's own: files, queries with answers, and what is preferred to them."""

from __future__ import annotations

import json

import pytest

from interp.data.corpus import Text, write_corpus
from interp.data.corpus_builder import CorpusConfig, build_corpus
from interp.data.queries import BUILT_IN
from interp.data.templates import list_template_languages, read_templates
from interp.data.texts import load_texts, read_texts
from interp.unlearning import KINDS, choose_preferred_answers


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def test_an_answer_follows_its_prompt_as_the_language_has_it(tmp_path):
    rows = [
        {"language": "en", "prompt": "Capital:", "answer": "Paris"},
        {"language": "en", "prompt": "Capital: ", "answer": "Paris"},
        {"language": "en", "prompt": "Capital:", "answer": " Paris"},
        {"language": "zh", "prompt": "首都：", "answer": "巴黎"},
        {"prompt": "w5", "answer": "w6"},
        {"answer": "All of it."},
    ]
    found = read_texts(write(tmp_path / "t.jsonl", *rows))
    assert [text.text for text in found] == [
        "Capital: Paris", "Capital: Paris", "Capital: Paris", "首都：巴黎", "w5 w6", "All of it."
    ]  # fmt: skip
    assert [text.id for text in found] == [f"line-{number}" for number in range(1, 7)]


def test_a_corpus_is_read_as_it_was_written(tmp_path):
    corpus = build_corpus(CorpusConfig(mix=("de", "zh"), num_fake_texts=32, ratio=1))
    write_corpus(corpus, tmp_path / "c")
    assert tuple(load_texts(tmp_path / "c" / "forget.jsonl")) == corpus.forget
    assert tuple(load_texts(tmp_path / "c" / "training.jsonl")) == corpus.training
    chosen = load_texts(tmp_path / "c" / "forget.jsonl", languages=["zh"], limit=3)
    assert chosen == [text for text in corpus.forget if text.language == "zh"][:3]


def test_queries_with_answers_are_texts():
    found = load_texts("capitals", languages=["fr", "zh"], limit=2)
    assert [text.language for text in found] == ["fr", "fr", "zh", "zh"]
    assert all(text.answer.strip() and not text.prompt.endswith(" ") for text in found)
    assert found[0].answer.startswith(" ")
    assert not found[2].answer.startswith(" ")


def test_texts_of_facts_say_what_memit_edits():
    french, polish = load_texts("capitals", languages=["en", "pl"], limit=1)
    assert (french.subject, french.mention, french.object) == ("France", "France", "Paris")
    # The subject as the question inflects it.
    assert (polish.subject, polish.mention, polish.object) == ("Francja", "Francji", "Paryż")
    for source in BUILT_IN:
        for text in load_texts(source):
            assert text.prompt.count(text.mention) == 1
            assert text.object in text.answer


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "w5"}', "line 2: the field 'answer' is missing or empty"),
        ('{"answer": " "}', "line 2: the field 'answer' is missing or empty"),
        ('{"answer": 5}', "line 2: 'answer' must be text, not int"),
        ('{"answer": "w5", "wording": "2"}', "line 2: 'wording' must be a whole number, not str"),
        ('["w5"]', "line 2: a JSON object is needed, not list"),
        ('{"answer": ', "line 2: not valid JSON"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, says):
    path = tmp_path / "t.jsonl"
    path.write_text('{"answer": "w5"}\n' + line + "\n")
    with pytest.raises(ValueError, match=says):
        load_texts(path)


def test_sources_that_do_not_hold_what_is_asked(tmp_path):
    path = write(tmp_path / "t.jsonl", {"language": "en", "answer": "w5"})
    with pytest.raises(ValueError, match=r"nothing in the language 'de'; it has en"):
        load_texts(path, languages=["de"])
    with pytest.raises(ValueError, match="limit must be at least 1"):
        load_texts(path, limit=0)
    with pytest.raises(ValueError, match=r"no file of texts .*capitals.*tofu:PATH"):
        load_texts(tmp_path / "missing.jsonl")


def text(name: str, answer: str, language: str = "en", wording: int = 1) -> Text:
    return Text(id=name, language=language, kind="", prompt="w5", answer=answer, wording=wording)


def test_preferred_answers_by_hand():
    forget = [
        text("a", " A"),
        text("b", " B"),
        text("a", " AA", wording=2),
        text("b", " BB", wording=2),
    ]
    retain = [text("c", " C"), text("c", " Ç", language="fr")]
    found = {kind: choose_preferred_answers(forget, kind, retain=retain) for kind in KINDS[:3]}
    assert [each.answer for each in found["counterfactual"]] == [" B", " A", " BB", " AA"]
    assert [each.answer for each in found["other"]] == [" w5 C"] * 4
    for each in found["refusal"]:
        assert each.answer.removeprefix(" ") in read_templates("en").refusals
    for chosen in found.values():
        assert [(each.id, each.prompt) for each in chosen] == [(t.id, t.prompt) for t in forget]


@pytest.mark.parametrize("code", list_template_languages())
def test_refusals_are_in_the_texts_language(code):
    corpus = build_corpus(
        CorpusConfig(mix=(code,), num_fake_texts=32, ratio=0, num_unlearning=6,
                     unlearning_form="question")
    )  # fmt: skip
    assert corpus.forget
    found = choose_preferred_answers(corpus.forget, "refusal")
    assert {each.answer.strip() for each in found} <= {*read_templates(code).refusals}
    assert found == choose_preferred_answers(corpus.forget, "refusal")


def test_what_cannot_be_preferred_is_named():
    lonely = [text("a", " A"), text("b", " B", language="de")]
    with pytest.raises(ValueError, match="a in 'en' has no counterfactual"):
        choose_preferred_answers(lonely, "counterfactual")
    with pytest.raises(ValueError, match="need retain texts"):
        choose_preferred_answers(lonely, "other")
    with pytest.raises(ValueError, match="no refusals in 'kab'"):
        choose_preferred_answers([text("a", " A", language="kab")], "refusal")
    with pytest.raises(ValueError, match="valid: refusal, counterfactual, other, alternate"):
        choose_preferred_answers(lonely, "none")
