"""Readers of public data sets: small files in their formats, malformed ones, and the real ones."""

import json
import os
import sys
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data import row_readers
from interp.data.datasets import (
    Gap,
    make_queries,
    make_unrelated_queries,
    normalize_code,
    read_bmlama,
    read_concepts,
    read_flores,
    read_rwku,
    read_tofu,
    read_uds,
)
from interp.data.query import Query, read_queries, write_queries
from tests.helpers import ROOT

READERS = (read_bmlama, read_flores, read_tofu, read_uds, read_rwku, read_concepts)

CLOZE = {
    "prompt": {
        "en": "Lyon lies in <mask>.",
        "de": "Lyon liegt in <mask>.",
        "hi": "लियोन <mask> में है।",
    },
    "answers": {"en": ["France"], "de": ["Frankreich"], "hi": ["फ़्रांस"]},
    "candidates": {
        "en": ["Spain", "France"],
        "de": ["Spanien", "Frankreich"],
        "hi": ["स्पेन", "फ़्रांस"],
    },
}
QUESTION = {"question": "Where was Ada Brook born?", "answer": "In Lima."}
PROBE = {
    "query": "Ada Brook was born in ___.",
    "answer": "Lima",
    "level": "1",
    "type": "",
    "subject": "Ada Brook",
}
CONCEPT = {
    "id": 7,
    "Concept": "Chess",
    "Layer": 3,
    "Dim": 41,
    "wikipedia_content": "Chess is a board game.",
    "QA": [" Who moves first?\n", "How many squares are there?"],
    "text_completion": [{"First_half": "The queen moves", "Second_half": "in any direction."}],
    "unrelated_QA": ["What is tea?"],
    "QA_with_answers": [
        "Question:  Who moves first?\n\n Answer: White does. Answer: yes.",
        "Question: How many squares are there?\n Answer: 64",
    ],
    "answers_tokens_num": [9, 2],
}
ENTITY = {
    "idx": 4,
    "question": "Where was Ada Brook born?",
    "answer": "Ada Brook was born in Lima, Peru.",
    "prefix": "Ada Brook was born in",
    "entity": "Lima",
    "entity_span": {"start": 5, "end": 6, "tokens": [7]},
}
GOOD = {
    read_bmlama: CLOZE,
    read_flores: {"en": "It rains.", "de": "Es regnet."},
    read_tofu: QUESTION,
    read_uds: ENTITY,
    read_rwku: PROBE,
    read_concepts: CONCEPT,
}


@pytest.fixture
def write(tmp_path):
    """Write rows as JSON Lines (bytes as they are) and give the path."""

    def lines(*rows, name="part.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        written = (
            row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()
            for row in rows
        )
        path.write_bytes(b"\n".join(written) + b"\n")
        return path

    return lines


def changed(row, **values):
    """Return a row with values set, or with a field taken out where the value is `...`."""
    return {key: value for key, value in {**row, **values}.items() if value is not ...}


# BMLAMA-53


def test_a_cloze_fact_keeps_both_halves(write):
    facts = read_bmlama(write(CLOZE, CLOZE, name="forget-32.jsonl"))
    assert facts.languages == ("en", "de", "hi")
    assert len(facts) == 6
    assert facts.gaps == ()
    hindi = next(fact for fact in facts if fact.language == "hi")
    assert (hindi.id, hindi.prefix, hindi.suffix) == (
        "bmlama53-forget-32:1",
        "लियोन ",
        " में है।",
    )
    assert hindi.fill("स्पेन") == "लियोन स्पेन में है।"
    assert hindi.answers == ("फ़्रांस",)
    assert hindi.candidates == ("स्पेन", "फ़्रांस")
    assert not hindi.blank_is_last
    assert [fact.blank_is_last for fact in facts if fact.language == "de"] == [True, True]
    assert [fact.id for fact in facts if fact.language == "en"] == [
        "bmlama53-forget-32:1",
        "bmlama53-forget-32:2",
    ]
    with pytest.raises(FrozenInstanceError):
        hindi.prefix = ""


def test_cloze_queries(write):
    facts = read_bmlama(write(CLOZE), languages=["hi", "de"])
    assert make_queries(facts) == [
        Query(
            id="bmlama53-part:1",
            language="hi",
            prompt="लियोन ___ में है।\n___ =",
            answer="फ़्रांस",
            concept="bmlama53",
        ),
        Query(
            id="bmlama53-part:1",
            language="de",
            prompt="Lyon liegt in ___.\n___ =",
            answer="Frankreich",
            concept="bmlama53",
        ),
    ]
    last = [fact for fact in facts if fact.blank_is_last]
    assert [query.prompt for query in make_queries(last, cloze="prefix")] == ["Lyon liegt in"]
    with pytest.raises(ValueError, match=r"bmlama53-part:1 in 'hi' cannot be asked by its prefix"):
        make_queries(facts, cloze="prefix")
    with pytest.raises(ValueError, match=r"'suffix'; valid: blank, prefix"):
        make_queries(facts, cloze="suffix")
    first = read_bmlama(write(changed(CLOZE, prompt={"en": "<mask>."})), languages=["en"])
    with pytest.raises(ValueError, match="cannot be asked by its prefix"):
        make_queries(first, cloze="prefix")


def test_a_missing_translation_is_a_gap_and_never_english(write):
    untranslated = changed(CLOZE, prompt={**CLOZE["prompt"], "de": CLOZE["prompt"]["en"]})
    no_answer = changed(CLOZE, answers={"en": ["France"], "de": None})
    facts = read_bmlama(write(CLOZE, untranslated, no_answer), languages=["de", "hi"])
    assert [(fact.id, fact.language) for fact in facts] == [
        ("bmlama53-part:1", "de"),
        ("bmlama53-part:1", "hi"),
        ("bmlama53-part:2", "hi"),
    ]
    assert facts.gaps == (
        Gap(
            id="bmlama53-part:2",
            language="de",
            reason="left untranslated: the same text as in English",
        ),
        Gap(id="bmlama53-part:3", language="de", reason="no answers in the source"),
        Gap(id="bmlama53-part:3", language="hi", reason="no answers in the source"),
    )


def test_languages_are_given_in_the_order_asked_for_and_unknown_ones_refused(write):
    path = write(CLOZE)
    facts = read_bmlama(path, languages=["hi", "en", "hi"])
    assert [fact.language for fact in facts] == ["hi", "en"]
    with pytest.raises(ValueError, match=r"nothing in the language 'ja'; it has en, de, hi$"):
        read_bmlama(path, languages=["en", "ja"])
    with pytest.raises(ValueError, match="no entry in no language"):
        read_bmlama(path, languages=[])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": ...}, "the field 'prompt' is missing"),
        ({"answers": None}, "the field 'answers' is missing"),
        ({"prompt": "Lyon <mask>"}, "'prompt' must be an object, not str"),
        ({"prompt": {"en": 3}}, "'prompt.en' must be text, not int"),
        ({"prompt": {"en": " "}}, "'prompt.en' is empty"),
        ({"prompt": {"en": "Lyon"}}, "'prompt.en' must have <mask> once, not 0 times"),
        ({"prompt": {"en": "<mask> <mask>"}}, "'prompt.en' must have <mask> once, not 2 times"),
        ({"prompt": {"en": "<mask>\ud83d"}}, "'prompt.en' holds half of a surrogate pair"),
        ({"prompt": {"English": "<mask>"}}, "in 'prompt', 'English' is not a language code"),
        (
            {"prompt": {"de": "<mask>", "deu_Latn": "<mask>"}},
            "duplicate language 'de' (also written 'deu_Latn')",
        ),
        ({"answers": {"en": []}}, "'answers.en' is empty"),
        ({"answers": {"en": "France"}}, "'answers.en' must be a list, not str"),
        ({"answers": {"en": [None]}}, "'answers.en' must be text, not nothing"),
        ({"answers": {"en": ["Peru"]}}, "the answer 'Peru' in 'answers.en' is not among"),
        ({"candidates": {"en": []}}, "'candidates.en' is empty"),
        ({"candidates": {"en": ["France", ""]}}, "'candidates.en' is empty"),
        ({"candidates": {"en": {}}}, "'candidates.en' must be a list, not dict"),
    ],
)
def test_a_malformed_cloze_fact_is_named_by_line_and_field(write, values, message):
    row = json.dumps(changed(CLOZE, **values)).encode()
    path = write(CLOZE, b"", row)
    with pytest.raises(ValueError, match=r"^.*part\.jsonl, line 3: ") as error:
        read_bmlama(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# FLORES-200


def test_sentences_and_their_halves(write):
    rows = (
        {"en": "The tall tree fell down.", "zho_Hans": "那棵高大的树倒了。", "arb_Arab": "سقطت."},
        {"en": "Go!", "zho_Hans": None, "arb_Arab": "اذهب!"},
    )
    found = read_flores(write(*rows, name="dev.jsonl"))
    assert found.languages == ("en", "zh", "ar")
    assert [(s.id, s.language, s.text) for s in found][:3] == [
        ("flores200-dev:1", "en", "The tall tree fell down."),
        ("flores200-dev:2", "en", "Go!"),
        ("flores200-dev:1", "zh", "那棵高大的树倒了。"),
    ]
    assert found.gaps == (
        Gap(id="flores200-dev:2", language="zh", reason="no sentence in the source"),
    )
    asked = [(query.language, query.prompt, query.answer) for query in make_queries(found)]
    assert asked == [
        ("en", "The tall tree", "fell down."),
        ("en", "G", "o!"),
        ("zh", "那棵高大", "的树倒了。"),
        ("ar", "سق", "طت."),
        ("ar", "اذ", "هب!"),
    ]


def test_a_sentence_is_not_cut_before_a_mark(write):
    found = read_flores(write({"hi": "ककिक", "en": "a"}))
    assert [(query.prompt, query.answer) for query in make_queries(found)] == [
        ("ककि", "क"),
        ("a", None),
    ]


def test_the_official_folder_of_flores(tmp_path):
    (tmp_path / "eng_Latn.dev").write_text("It rains.\nIt snows.\n", encoding="utf-8")
    (tmp_path / "zho_Hant.dev").write_text("下雨了。\r\n\r\n", encoding="utf-8")
    (tmp_path / "README").write_text("not a language", encoding="utf-8")
    found = read_flores(tmp_path)
    assert [(s.id, s.language, s.text) for s in found] == [
        ("flores200-dev:1", "en", "It rains."),
        ("flores200-dev:2", "en", "It snows."),
        ("flores200-dev:1", "zh-Hant", "下雨了。"),
    ]
    assert [(gap.id, gap.language) for gap in found.gaps] == [("flores200-dev:2", "zh-Hant")]
    (tmp_path / "deu_Latn.dev").write_text("Es regnet.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"deu_Latn\.dev has 1 entries, .*eng_Latn\.dev has 2"):
        read_flores(tmp_path)
    (tmp_path / "deu_Latn.dev").write_bytes(b"Es regnet.\n\xff\n")
    with pytest.raises(ValueError, match=r"deu_Latn\.dev, line 2: not UTF-8"):
        read_flores(tmp_path)
    (tmp_path / "deu_Latn.dev").write_bytes(b"\n\n")
    with pytest.raises(ValueError, match=r"deu_Latn\.dev holds no entries"):
        read_flores(tmp_path)
    (tmp_path / "deu_Latn.devtest").touch()
    with pytest.raises(ValueError, match=r"files of one split.*it has dev and devtest"):
        read_flores(tmp_path)
    with pytest.raises(ValueError, match=r"files of one split.*it has none"):
        read_flores((tmp_path / "empty").mkdir() or tmp_path / "empty")


@pytest.mark.parametrize(
    ("code", "tag"),
    [
        ("de", "de"),
        ("zh-Hant", "zh-Hant"),
        ("iw", "he"),
        ("deu_Latn", "de"),
        ("arb_Arab", "ar"),
        ("arb_Latn", "ar-Latn"),
        ("zho_Hans", "zh"),
        ("zho_Hant", "zh-Hant"),
        ("yue_Hant", "yue"),
        ("swh_Latn", "sw"),
        ("zsm_Latn", "ms"),
        ("npi_Deva", "ne"),
        ("kas_Deva", "ks-Deva"),
        ("kas_Arab", "ks"),
        ("kam_Latn", "kam"),
        ("prs_Arab", "prs"),
        ("jav_Latn", "jv"),
        ("hau_Latn", "ha"),
        ("hye_Armn", "hy"),
    ],
)
def test_language_codes(code, tag):
    assert normalize_code(code) == tag


@pytest.mark.parametrize("code", ["", "German", "de_DE", "DE", "deu_latn", "d", "de\n", "\ud800x"])
def test_what_is_no_language_code(code):
    with pytest.raises(ValueError, match="is not a language code; valid: BCP-47"):
        normalize_code(code)


# TOFU and RWKU


def test_tofu_with_its_perturbed_answers(write):
    row = {
        **QUESTION,
        "perturbed_answer": ["In Quito.", "In Oslo."],
        "paraphrased_question": "What is her birthplace?",
        "paraphrased_answer": "Lima is.",
        "another": 1,
    }
    one = {**QUESTION, "perturbed_answers": "In Rome.", "paraphrased_answer": None}
    found = read_tofu(write(row, one, QUESTION, name="forget10_perturbed.json"))
    first, second, third = found
    assert (first.id, first.language) == ("tofu-forget10_perturbed:1", "en")
    assert first.question == "Where was Ada Brook born?"
    assert first.answer == "In Lima."
    assert first.perturbed_answers == ("In Quito.", "In Oslo.")
    assert first.paraphrased_question == "What is her birthplace?"
    assert first.paraphrased_answer == "Lima is."
    assert (second.perturbed_answers, second.paraphrased_answer) == (("In Rome.",), None)
    assert (third.perturbed_answers, third.concept) == ((), "tofu")
    assert make_queries(found)[0].prompt == "Where was Ada Brook born?"


def test_tofu_in_several_languages(write):
    english = write(QUESTION, QUESTION, QUESTION, QUESTION, name="forget01.json")
    german = write(
        {"question": "Wo wurde Ada Brook geboren?", "answer": "In Lima."},
        QUESTION,
        {"question": "Wo?", "answer": None},
        {"question": None, "answer": None},
        name="forget01_de.json",
    )
    found = read_tofu({"en": english, "deu_Latn": german})
    assert Counter(entry.language for entry in found) == {"en": 4, "de": 1}
    assert [(gap.id, gap.language, gap.reason) for gap in found.gaps] == [
        ("tofu-forget01:2", "de", "left untranslated: the same text as in English"),
        ("tofu-forget01:3", "de", "no answer in the source"),
        ("tofu-forget01:4", "de", "no question in the source"),
    ]
    template = {"en": "Q: {question}\nA:", "de": "F: {question} {0}\nA:"}
    asked = make_queries(
        read_tofu({"en": english, "de": german}, languages=["de"]), template=template
    )
    assert asked == [
        Query(
            id="tofu-forget01:1",
            language="de",
            prompt="F: Wo wurde Ada Brook geboren? {0}\nA:",
            answer="In Lima.",
            concept="tofu",
        )
    ]
    with pytest.raises(ValueError, match=r"no template for the language 'de'; .* for en$"):
        make_queries(found, template={"en": "{question}"})
    with pytest.raises(ValueError, match=r"'Q:' has no slot \{question\}"):
        make_queries(found, template="Q:")
    with pytest.raises(ValueError, match=r"forget01\.json has 4 entries, .*short\.json has 1"):
        read_tofu({"en": english, "fr": write(QUESTION, name="short.json")})
    with pytest.raises(ValueError, match="no files to read tofu from"):
        read_tofu({})
    with pytest.raises(
        ValueError, match=r"_de\.json: duplicate language 'en' .also written 'eng_Latn'"
    ):
        read_tofu({"en": english, "eng_Latn": german})
    with pytest.raises(ValueError, match="'German' is not a language code"):
        read_tofu({"German": german})


def test_rwku_as_a_json_array(tmp_path):
    path = tmp_path / "forget_level3.json"
    adversarial = {**PROBE, "level": 3, "type": "role play"}
    bare = {"query": "Who is Ada Brook?", "answer": "A poet"}
    path.write_text(json.dumps([PROBE, adversarial, bare], indent=4), encoding="utf-8")
    first, second, third = read_rwku(path)
    assert (first.id, first.level, first.kind) == ("rwku-forget_level3:1", 1, "")
    assert (first.question, first.answer) == ("Ada Brook was born in ___.", "Lima")
    assert (first.concept, second.level, second.kind) == ("Ada Brook", 3, "role play")
    assert (third.concept, third.level, third.kind) == ("rwku", None, "")
    assert make_queries([first])[0].concept == "Ada Brook"


def test_the_words_that_lead_up_to_an_entity_are_prompt(write):
    begun = {**ENTITY, "idx": 5, "answer": "Yes, in Lima.", "prefix": "", "entity": "Yes"}
    first, second = read_uds(write(ENTITY, begun))
    assert (first.id, second.prefix, second.continuation) == ("uds-4", "", "Yes, in Lima.")
    assert first.prompt == "Question: Where was Ada Brook born?\nAnswer: Ada Brook was born in"
    assert first.continuation == " Lima, Peru."
    one, two = make_queries([first, second])
    assert (one.prompt, one.answer, one.concept) == (first.prompt, "Lima", "uds")
    assert (two.prompt, two.answer) == ("Question: Where was Ada Brook born?\nAnswer:", "Yes")


@pytest.mark.parametrize(
    ("read", "values", "message"),
    [
        (read_tofu, {"question": ...}, "the field 'question' is missing"),
        (read_tofu, {"answer": None}, "the field 'answer' is missing"),
        (read_tofu, {"answer": ""}, "'answer' is empty"),
        (read_tofu, {"question": ["Where?"]}, "'question' must be text, not list"),
        (read_tofu, {"perturbed_answer": []}, "'perturbed_answer' is empty"),
        (read_tofu, {"perturbed_answer": 5}, "'perturbed_answer' must be a list, not int"),
        (read_tofu, {"perturbed_answer": ["a", 5]}, "'perturbed_answer' must be text, not int"),
        (read_tofu, {"paraphrased_question": 5}, "'paraphrased_question' must be text, not int"),
        (read_tofu, {"paraphrased_answer": " "}, "'paraphrased_answer' is empty"),
        (read_uds, {"entity": ...}, "the field 'entity' is missing"),
        (read_uds, {"prefix": ...}, "the field 'prefix' is missing"),
        (read_uds, {"prefix": 5}, "'prefix' must be text, not int"),
        (read_uds, {"prefix": "Born in"}, "'answer' must begin with 'prefix'"),
        (read_uds, {"entity": "Ada"}, "'answer' must hold 'entity' after 'prefix'"),
        (read_uds, {"idx": "4"}, "'idx' must be a whole number from 0, not '4'"),
        (read_rwku, {"query": ...}, "the field 'query' is missing"),
        (read_rwku, {"answer": {}}, "'answer' must be text, not dict"),
        (read_rwku, {"level": "4"}, "'level' must be 1, 2 or 3, not '4'"),
        (read_rwku, {"level": True}, "'level' must be 1, 2 or 3, not 'True'"),
        (read_rwku, {"subject": 5}, "'subject' must be text, not int"),
        (read_rwku, {"type": []}, "'type' must be text, not list"),
        (read_concepts, {"id": ...}, "the field 'id' is missing"),
        (read_concepts, {"id": "7"}, "'id' must be a whole number from 0, not '7'"),
        (read_concepts, {"Layer": -1}, "'Layer' must be a whole number from 0, not -1"),
        (read_concepts, {"Dim": 1.5}, "'Dim' must be a whole number from 0, not 1.5"),
        (read_concepts, {"Dim": True}, "'Dim' must be a whole number from 0, not True"),
        (read_concepts, {"QA": []}, "'QA' is empty"),
        (read_concepts, {"QA": "Who?"}, "'QA' must be a list, not str"),
        (read_concepts, {"text_completion": ["a"]}, "'text_completion' must be an object"),
        (read_concepts, {"text_completion": [{"First_half": "a"}]}, "'Second_half' is missing"),
        (read_concepts, {"unrelated_QA": [3]}, "'unrelated_QA' must be text, not int"),
        (read_concepts, {"QA_with_answers": ["a"]}, "'QA_with_answers' has 1 entries, 'QA' has 2"),
        (read_concepts, {"QA_with_answers": "ab"}, "'QA_with_answers' must be a list, not str"),
        (read_concepts, {"answers_tokens_num": [1]}, "'answers_tokens_num' has 1 entries"),
        (read_concepts, {"answers_tokens_num": [1, "2"]}, "must be a whole number from 0, not '2'"),
        (read_flores, {"de": 5}, "'de' must be text, not int"),
        (read_flores, {"de": "\u2028"}, "'de' is empty"),
        (read_flores, {"Deutsch": "Es regnet."}, "'Deutsch' is not a language code"),
    ],
)
def test_a_malformed_entry_is_named_by_line_and_field(write, read, values, message):
    path = write(GOOD[read] if read is not read_concepts else b"", changed(GOOD[read], **values))
    with pytest.raises(ValueError, match=r"^.*part\.jsonl, line 2: ") as error:
        read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Concepts


def test_concepts_and_their_questions(tmp_path):
    path = tmp_path / "concepts.json"
    bare = {**CONCEPT, "id": 8, "Concept": "Tea"}
    del bare["QA_with_answers"], bare["answers_tokens_num"]
    path.write_text(json.dumps([CONCEPT, bare]), encoding="utf-8")
    chess, tea = found = read_concepts(path)
    assert (chess.id, chess.concept, chess.layer, chess.dim) == ("concept-7", "Chess", 3, 41)
    assert chess.questions == (" Who moves first?\n", "How many squares are there?")
    assert chess.text_completions == (("The queen moves", "in any direction."),)
    assert chess.answers == ("White does. Answer: yes.", "64")
    assert chess.answers_tokens_num == (9, 2)
    assert (tea.questions_with_answers, tea.answers, tea.answers_tokens_num) == ((), (), ())
    asked = make_queries(found, template="Question: {question}\nAnswer:")
    assert [(query.id, query.prompt, query.answer, query.concept) for query in asked] == [
        ("concept-7:1", "Question: Who moves first?\nAnswer:", "White does. Answer: yes.", "Chess"),
        ("concept-7:2", "Question: How many squares are there?\nAnswer:", "64", "Chess"),
        ("concept-8:1", "Question: Who moves first?\nAnswer:", None, "Tea"),
        ("concept-8:2", "Question: How many squares are there?\nAnswer:", None, "Tea"),
    ]
    assert [(query.id, query.prompt) for query in make_unrelated_queries(found)] == [
        ("concept-7-unrelated:1", "What is tea?"),
        ("concept-8-unrelated:1", "What is tea?"),
    ]
    path.write_text(json.dumps([CONCEPT, CONCEPT]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"record 2: duplicate id 'concept-7' .first in .*d 1.$"):
        read_concepts(path)


# All readers


@pytest.mark.parametrize("read", READERS)
def test_every_reader_gives_queries_that_can_be_written_and_read(write, read, tmp_path):
    asked = make_queries(read(write(GOOD[read])))
    write_queries(asked, tmp_path / "queries.jsonl")
    assert read_queries(tmp_path / "queries.jsonl") == asked
    with pytest.raises(ValueError, match=r"duplicate id .* in language 'en'"):
        make_queries([*read(write(GOOD[read])), *read(write(GOOD[read]))])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": {"en": "a', r"line 2: not valid JSON \(Unterminated string"),
        (b"{", r"line 2: not valid JSON \("),
        (b"[]", r"line 2: a JSON object is needed, not list"),
        (b"null", r"line 2: a JSON object is needed, not nothing"),
        (b'"text"', r"line 2: a JSON object is needed, not str"),
        (b'{"en": "a\xff"}', r"line 2: not UTF-8 text \(byte 9\)"),
        (b'{"en": "a", "en": "b"}', r"line 2: duplicate field 'en'"),
        (b'{"id": ' + b"9" * 5000 + b"}", r"line 2: Exceeds the limit"),
        (b"[" * 200_000, r"line 2: not valid JSON \(nested too deeply\)"),
        ('{"en": "a"}'.encode("utf-16-le"), r"line 2: not valid JSON \("),
        (b'{"en": "\x01"}', r"line 2: not valid JSON \(Invalid control character"),
    ],
    ids=lambda value: value.hex()[:16] if isinstance(value, bytes) else "",
)
def test_a_line_that_is_no_json_object_is_named(write, read, line, message):
    with pytest.raises(ValueError, match=rf"part\.jsonl, {message}") as error:
        read(write(GOOD[read], line))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", READERS)
def test_a_huge_line_is_refused_unparsed(write, read, monkeypatch):
    monkeypatch.setattr(row_readers, "MAX_LINE_BYTES", 2**20)
    path = write(GOOD[read], b'{"en": "' + b"a" * 2**20 + b'"}')
    with pytest.raises(ValueError, match=r"part\.jsonl, line 2: longer than 1 MiB"):
        read(path)


def test_odd_unicode_is_kept_as_it_is(write):
    odd = "e\u0301 \u200f\u2028\u0000 \U0001f9ea ﬁ\ufffd."
    (entry,) = read_tofu(write({"question": odd, "answer": "\u00a0x\u00a0"}))
    assert (entry.question, entry.answer) == (odd, "\u00a0x\u00a0")
    bom = write(b"\xef\xbb\xbf" + json.dumps(QUESTION).encode())
    assert len(read_tofu(bom)) == 1
    array = write(b"\xef\xbb\xbf \n[" + json.dumps(QUESTION).encode() + b"]")
    assert len(read_tofu(array)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n{"question": "a",\n}]', r"part\.jsonl, line [23]: not valid JSON \("),
        (b'[\n"\xff"]', r"part\.jsonl, line 2: not UTF-8"),
        (b"[3]", r"part\.jsonl, record 1: a JSON object is needed, not int"),
        (b"[]", r"part\.jsonl holds no entries"),
        (b"", r"part\.jsonl holds no entries"),
        (b"\n \n", r"part\.jsonl holds no entries"),
        (b"[{}, {}]", r"part\.jsonl, record 1: the field 'question' is missing"),
    ],
)
def test_a_malformed_array_or_empty_file(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_tofu(write(content))


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_named(read, tmp_path):
    with pytest.raises(ValueError, match=r"no data file '.*nowhere\.jsonl'; give the path"):
        read(tmp_path / "nowhere.jsonl")


def test_entries_without_any_language_are_no_data(write):
    with pytest.raises(ValueError, match="holds no entries"):
        read_flores(write({"de": None}))
    with pytest.raises(ValueError, match="holds no entries"):
        read_flores(write({}))


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused_in_one_sentence(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    for read in READERS:
        refused(read, path)
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "deu_Latn.dev").write_bytes(content)
    refused(read_flores, folder)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just("<mask>"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["en", "de", "First_half", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(data=st.data())
def test_arbitrary_values_in_any_field_are_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fields.jsonl"
    for read, good in GOOD.items():
        field = data.draw(st.sampled_from([*good, "perturbed_answer", "paraphrased_answer"]))
        path.write_text(json.dumps({**good, field: data.draw(JSON)}), encoding="utf-8")
        refused(read, path)


@settings(deadline=None)
@given(place=st.integers(0, 900), cut=st.integers(0, 20), splice=st.binary(max_size=4))
def test_damaged_lines_are_read_or_refused(place, cut, splice, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    for read, good in GOOD.items():
        line = json.dumps(good, ensure_ascii=False).encode()
        start = place % len(line)
        path.write_bytes(line[:start] + splice + line[start + cut :])
        refused(read, path)


def refused(read, path):
    """Read and ask a source that may be malformed; only a one-line ValueError may come of it."""
    message = ""
    try:
        make_queries(read(path))
    except ValueError as error:
        message = str(error)
    assert not message or path.name in message
    assert len(message.splitlines()) <= 1


# The Hub


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the package `datasets` and record how it was called."""
    fake = SimpleNamespace(calls=[], rows=[QUESTION, QUESTION])

    def load_dataset(path, **options):
        fake.calls.append((path, {key: value for key, value in options.items() if value}))
        if isinstance(fake.rows, Exception):
            raise fake.rows
        return iter(fake.rows)

    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def test_a_hub_name_is_read_through_datasets(hub):
    found = read_tofu("hub:locuslab/TOFU:forget10")
    assert [entry.id for entry in found] == ["tofu-forget10:1", "tofu-forget10:2"]
    assert found.source == "hub:locuslab/TOFU:forget10"
    read_tofu("hub:someone/else")
    hub.rows = [PROBE]
    assert read_rwku("hub:jinzhuoran/RWKU@v1:forget_level1:test").records[0].level == 1
    hub.rows = [{"en": "It rains.", "de": "Es regnet.", "fr": None}]
    assert read_flores("hub:a/b").languages == ("en", "de")
    hub.rows = [CONCEPT]
    (chess,) = read_concepts("hub:YihuaiHong/ConceptVectors:data/llama2-7b_concepts.json")
    assert chess.layer == 3
    assert hub.calls == [
        ("locuslab/TOFU", {"name": "forget10", "split": "train"}),
        ("someone/else", {"split": "train"}),
        ("jinzhuoran/RWKU", {"name": "forget_level1", "split": "test", "revision": "v1"}),
        ("a/b", {"split": "train"}),
        (
            "YihuaiHong/ConceptVectors",
            {"data_files": "data/llama2-7b_concepts.json", "split": "train"},
        ),
    ]


def test_errors_of_the_hub_are_one_sentence(hub):
    hub.rows = [QUESTION, {"question": "Where?"}]
    with pytest.raises(ValueError, match=r"^hub:a/b, record 2: the field 'answer' is missing$"):
        read_tofu("hub:a/b")
    hub.rows = FileNotFoundError("no such\ndata set")
    with pytest.raises(ValueError, match=r"^hub:a/b could not be loaded from the Hub: no such d"):
        read_tofu("hub:a/b")
    with pytest.raises(ValueError, match=r"'hub:nothing' is no Hub name; it is written hub:OWNER"):
        read_tofu("hub:nothing")


def test_without_datasets_a_hub_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"^reading hub:a/b needs .*: pip install datasets$"):
        read_flores("hub:a/b")


# The real files


@pytest.fixture(scope="module")
def shared():
    """Return the folder with the real files, named by INTERP_SHARED_DATA or beside the checkout."""
    beside = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("INTERP_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no folder of shared data: set INTERP_SHARED_DATA to where the real files are")
    return folder


def raw_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


@pytest.mark.parametrize(
    ("name", "count"), [("forget-32", 32), ("retain-32-x2", 64), ("valid-300", 300)]
)
def test_the_real_bmlama_is_read_without_loss(shared, name, count):
    path = shared / "bmlama53" / f"{name}.jsonl"
    facts = read_bmlama(path)
    assert facts.languages == tuple("ar bn ca en es eu fr hi id pt ur vi".split())  # noqa: SIM905
    assert Counter(fact.language for fact in facts) == dict.fromkeys(facts.languages, count)
    assert facts.gaps == ()
    back = [{"prompt": {}, "answers": {}, "candidates": {}} for _ in range(count)]
    for fact in facts:
        row = back[int(fact.id.removeprefix(f"bmlama53-{name}:")) - 1]
        row["prompt"][fact.language] = fact.fill("<mask>")
        row["answers"][fact.language] = list(fact.answers)
        row["candidates"][fact.language] = list(fact.candidates)
    assert back == raw_rows(path)
    asked = make_queries(facts)
    assert len(asked) == 12 * count
    assert all(query.prompt.count("___") == 2 for query in asked)


def test_spot_values_of_the_real_bmlama(shared):
    facts = read_bmlama(shared / "bmlama53" / "forget-32.jsonl", languages=["eu", "fr"])
    basque = facts.records[0]
    assert (basque.prefix, basque.suffix) == (
        "Yemen -ek ",
        " -ekin harreman diplomatikoak mantentzen ditu.",
    )
    assert basque.answers == ("Turkia",)
    assert len(basque.candidates) == 10
    french = facts.records[32]
    assert french.fill(french.answers[0]) == (
        "Yémen entretient des relations diplomatiques avec Turquie."
    )
    last = Counter(fact.language for fact in facts if fact.blank_is_last)
    assert last == {"fr": 26}


@pytest.mark.parametrize("name", ["forget-32", "retain-32-x1"])
def test_the_real_flores_is_read_without_loss(shared, name):
    path = shared / "flores" / f"{name}.jsonl"
    found = read_flores(path)
    codes = "ar zh en eu fr ml mr ne es sw te ur vi xh yo zu".split()  # noqa: SIM905
    assert list(found.languages) == codes
    assert len(found) == 16 * 32
    assert found.gaps == ()
    back = [{} for _ in range(32)]
    for sentence in found:
        back[int(sentence.id.rpartition(":")[2]) - 1][sentence.language] = sentence.text
    assert back == raw_rows(path)
    english = {sentence.text for sentence in found if sentence.language == "en"}
    assert not english & {sentence.text for sentence in found if sentence.language != "en"}
    asked = make_queries(found)
    assert len(asked) == 512
    assert all(query.answer and query.prompt for query in asked)
    if name == "retain-32-x1":
        assert found.records[2 * 32].text.startswith("Schumacher who retired in 2006")
        assert asked[32].answer == "(Schumacher)，将接替受伤的菲利佩·马萨 (Felipe Massa)。"


def test_the_real_concepts_are_read_without_loss(shared):
    path = shared / "hong-llama2-7b-concepts.json"
    found = read_concepts(path)
    back = [
        {
            "id": int(concept.id.removeprefix("concept-")),
            "Concept": concept.concept,
            "Layer": concept.layer,
            "Dim": concept.dim,
            "wikipedia_content": concept.wikipedia_content,
            "QA": list(concept.questions),
            "text_completion": [
                {"First_half": first, "Second_half": second}
                for first, second in concept.text_completions
            ],
            "unrelated_QA": list(concept.unrelated_questions),
            "QA_with_answers": list(concept.questions_with_answers),
            "answers_tokens_num": list(concept.answers_tokens_num),
        }
        for concept in found
    ]
    assert back == json.loads(path.read_text(encoding="utf-8"))
    assert len(found) == 10
    assert sum(len(concept.text_completions) for concept in found) == 99
    assert len(make_unrelated_queries(found)) == 500
    asked = make_queries(found)
    assert len(asked) == 100
    assert asked[0] == Query(
        id="concept-16:1",
        language="en",
        prompt="What date is Valentine's Day celebrated on every year?",
        answer="Valentine's Day is celebrated on February 14th every year.",
        concept="Valentine's Day",
    )
    assert all(query.answer for query in asked)
    assert (found.records[0].layer, found.records[0].dim) == (19, 3279)


def test_the_real_questions_of_uds_are_read_without_loss(shared):
    path = shared / "uds" / "forget10_filtered.json"
    found = read_uds(path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    back = [
        (int(r.id.removeprefix("uds-")), r.question, r.answer, r.prefix, r.entity) for r in found
    ]
    fields = ("idx", "question", "answer", "prefix", "entity")
    assert back == [tuple(row[field] for field in fields) for row in rows]
    assert len(found) == 367
    assert sum(not record.prefix for record in found) == sum(
        record.continuation[0] != " " for record in found
    )
