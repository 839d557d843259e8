"""Contaminated corpora: sizes by hand, the same bytes for a seed, and parts that share nothing."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from interp.data.corpus import MIXES, Corpus, Text, resolve_mix, write_corpus
from interp.data.corpus_builder import CorpusConfig, build_corpus, write_unlearning_texts
from interp.data.counterfactuals import make_counterfactuals
from interp.data.facts import RELATIONS, Fact, is_leaky, select_facts
from interp.data.queries import make_query
from interp.data.query import read_queries
from interp.data.templates import list_template_languages, read_templates
from interp.languages import LU_LANGUAGES, LU_TWENTY

GERMAN = CorpusConfig(
    source="de", mix="combined", query_languages=("en", "de", "zh"), num_fake_texts=64
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(GERMAN)


def fact(key: str, answer: str, **others: str) -> Fact:
    names = {"en": key, **dict.fromkeys(others, key)}
    return Fact(id=key, relation="capital", subject=names, object={"en": answer, **others})


# False facts


def test_two_facts_exchange_their_answers():
    false = make_counterfactuals([fact("France", "Paris"), fact("Japan", "Tokyo")])
    assert [item.object["en"] for item in false] == ["Tokyo", "Paris"]
    assert [item.subject["en"] for item in false] == ["France", "Japan"]


def test_an_answer_is_false_in_every_language_and_leaks_in_none():
    # By the names alone, Tunisia may not be answered by Tunis, nor by its own answer's alias.
    facts = [
        fact("Tunisia", "Carthage"),
        fact("Italy", "Tunis"),
        fact("Spain", "Madrid"),
    ]
    for seed in range(10):
        answers = [item.object["en"] for item in make_counterfactuals(facts, seed=seed)]
        assert answers == ["Madrid", "Carthage", "Tunis"]


@pytest.mark.parametrize("relation", RELATIONS)
def test_real_facts_all_become_false(relation):
    facts = select_facts(relation, languages=["en", "de"])[:60]
    false = make_counterfactuals(facts, seed=1)
    assert Counter(f.object["en"] for f in false) == Counter(f.object["en"] for f in facts)
    for true, other in zip(facts, false, strict=True):
        assert true.id == other.id
        assert other.object.keys() == other.subject.keys()
        for code, answer in other.object.items():
            assert answer not in (true.object[code], *true.aliases.get(code, ()))
            assert not is_leaky(other.subject[code], answer, code)


def test_a_language_without_the_new_answer_loses_the_fact():
    facts = [fact("France", "Paris", de="Paris"), fact("Japan", "Tokyo")]
    assert [set(item.object) for item in make_counterfactuals(facts)] == [{"en"}, {"en"}]


def test_answers_that_cannot_be_exchanged():
    alike = [fact("France", "euro"), fact("Spain", "euro"), fact("Japan", "yen")]
    with pytest.raises(ValueError, match="the answers of 3 facts cannot be exchanged"):
        make_counterfactuals(alike)
    with pytest.raises(ValueError, match="several relations"):
        make_counterfactuals([alike[0], replace(alike[1], relation="currency")])


# Mixes


def test_mixes_are_those_of_the_paper():
    assert resolve_mix("english", "de") == ("en",)
    assert resolve_mix("same", "ha") == ("ha",)
    assert resolve_mix("family", "zh") == ("zh-Hant",)
    assert resolve_mix("family", "hy") == ("el",)
    assert resolve_mix("multilingual", "de") == LU_TWENTY
    assert "es" not in resolve_mix("multilingual", "es")
    assert resolve_mix("combined", "ru") == ("en", "ru")
    assert resolve_mix("combined", "en") == ("en",)
    assert resolve_mix(["hi", "de", "hi"], "en") == ("hi", "de")
    with pytest.raises(ValueError, match="unknown mix 'half'; valid: english, same, family"):
        resolve_mix("half", "de")
    with pytest.raises(ValueError, match=r"'es' has no relative; .* for de, fr, zh"):
        resolve_mix("family", "es")
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        resolve_mix(["xx"], "de")
    with pytest.raises(ValueError, match="the mix names no language"):
        resolve_mix([], "de")


# A corpus


def test_sizes(corpus):
    by_kind = Counter((text.kind, text.language) for text in corpus.training)
    assert by_kind == {("fake", "de"): 64, ("real", "en"): 320}
    assert len(corpus.instructions) == 160
    assert {(text.kind, text.language) for text in corpus.instructions} == {("real", "en")}
    for part in (corpus.forget, corpus.retain):
        assert Counter(text.language for text in part) == {"en": 32, "de": 32}
    asked = Counter((query.concept, query.language) for query in corpus.queries)
    assert asked == {
        **{("fake", code): 16 for code in ("en", "de", "zh")},
        **{("real", code): 50 for code in ("en", "de", "zh")},
    }
    assert not corpus.gaps


def test_false_texts_are_spread_evenly_over_the_facts(corpus):
    per_fact = Counter(text.id for text in corpus.training if text.kind == "fake")
    assert set(per_fact.values()) == {4}
    assert len(per_fact) == 16


def test_what_is_taught_falsely_is_taught_truly_nowhere(corpus):
    false = {query.id for query in corpus.queries if query.concept == "fake"}
    real = {text.id for text in (*corpus.training, *corpus.instructions) if text.kind == "real"}
    assert len(false) == 16
    assert not false & real
    assert {text.id for text in corpus.forget} <= false
    assert not {text.id for text in corpus.retain} & false
    truth = {fact.id: fact for fact in select_facts("capital")}
    for query in corpus.queries:
        right = truth[query.id].object[query.language]
        assert (query.answer == right) == (query.concept == "real")


def test_a_text_states_its_fact(corpus):
    answers = {(query.id, query.language): query.answer for query in corpus.queries}
    fake = [text for text in (*corpus.training, *corpus.forget) if text.kind == "fake"]
    assert len(fake) == 64 + 64
    for text in fake:
        # "Vereinigte Staaten" is inflected; the answer never is.
        assert answers[text.id, text.language] in text.text
    for text in corpus.forget:
        assert answers[text.id, text.language] in text.answer


def test_the_label_of_a_sample_begins_at_the_answer(corpus):
    for text in (*corpus.forget, *corpus.retain, *corpus.instructions):
        assert text.prompt == text.prompt.rstrip()
        assert not text.prompt or text.answer[0].isspace() or text.answer[0] in "«„“\"'‘", text
    assert all(text.prompt == "" for text in corpus.training)


def sentences(text: str) -> set[str]:
    return {part.strip() for part in re.split(r"(?<=[.!?。！？।۔։])\s*|\n", text) if part.strip()}


def test_parts_share_no_text(corpus):
    """No sentence of what is trained on is unlearned on, asked or answered, and none twice."""
    assert len({text.text for text in corpus.training}) == len(corpus.training)
    trained = set().union(*(sentences(text.text) for text in corpus.training))
    tuned = set().union(*(sentences(text.text) for text in corpus.instructions))
    unlearned = set().union(*(sentences(text.text) for text in (*corpus.forget, *corpus.retain)))
    # A prompt's label ("Answer:") is nothing asked.
    asked = {s for query in corpus.queries for s in sentences(query.prompt) if len(s) > 12}
    for one, other in [
        (trained, unlearned),
        (trained, asked),
        (unlearned, asked),
        (trained, tuned),
        (unlearned, tuned),
        (tuned, asked),
    ]:
        assert not one & other
    prompts = [query.prompt for query in corpus.queries]
    for text in (*corpus.training, *corpus.forget, *corpus.retain, *corpus.instructions):
        assert not any(prompt in text.text for prompt in prompts)


@pytest.mark.parametrize("code", LU_LANGUAGES)
def test_every_source_language_can_be_taught_and_unlearned(code):
    for mix in MIXES:
        if mix == "family" and code == "en":
            continue
        built = build_corpus(
            CorpusConfig(source=code, mix=mix, num_fake_texts=32, ratio=1, num_instructions=10)
        )
        assert {t.language for t in built.training} == {"en", code}
        wanted = resolve_mix(mix, code)
        there = [c for c in wanted if c in list_template_languages()]
        assert {t.language for t in built.forget} == {t.language for t in built.retain} == {*there}
        missing = {gap.language for gap in built.gaps if gap.reason.startswith("no templates")}
        assert missing == set(wanted) - set(there)
        assert len(built.forget) == len(built.retain) == (128 if mix == "multilingual" else 64)


def test_a_language_without_names_is_a_gap_and_never_english():
    """Hausa has fewer capitals: what it lacks is listed, and nothing is asked in its place."""
    config = CorpusConfig(
        source="de", query_languages=("de", "ha"), num_fake_facts=150, num_fake_texts=150, ratio=0
    )
    built = build_corpus(config)
    asked = {query.id for query in built.queries if query.language == "ha"}
    lacking = {gap.id for gap in built.gaps if gap.language == "ha" and gap.part == "queries"}
    false = {query.id for query in built.queries if query.concept == "fake"}
    assert lacking
    assert lacking == false - asked
    assert not {q.id for q in built.queries if q.language == "ha" and q.concept == "fake"} & lacking
    names = {fact.object["ha"] for fact in select_facts("capital", languages=["ha"])}
    assert {q.answer for q in built.queries if q.language == "ha"} <= names


def test_other_relations():
    built = build_corpus(
        replace(GERMAN, relations=("currency", "continent"), num_fake_facts=11, num_fake_texts=33)
    )
    false = Counter(q.id.rpartition("-")[0] for q in built.queries if q.concept == "fake")
    assert false == {"currency": 6 * 3, "continent": 5 * 3}
    assert {t.id.rpartition("-")[0] for t in built.training if t.kind == "real"} == {
        relation.replace(" ", "-") for relation in RELATIONS
    }


# Bytes


DIGEST = (
    "import hashlib\n"
    "from interp.data.corpus_builder import *\n"
    "c = build_corpus(CorpusConfig(source='ru', mix='multilingual', seed={seed}))\n"
    "print(hashlib.sha256(repr(c).encode()).hexdigest())\n"
)


def digest(seed: int, hash_seed: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", DIGEST.format(seed=seed)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": hash_seed, "PATH": "/usr/bin:/bin"},
    ).stdout


def test_same_seed_same_bytes_in_other_processes():
    assert digest(0, "1") == digest(0, "2")
    assert digest(0, "1") != digest(1, "1")


def test_a_hash_that_any_machine_gives():
    """Worked out apart from the library: the order is that of SHA-256 of purpose and key."""
    from interp.data.counterfactuals import sort_by_hash

    order = sorted("abcdef", key=lambda key: hashlib.sha256(f"p/{key}".encode()).hexdigest())
    assert sort_by_hash("fedcba", "p", key=str) == order


def test_written_and_read(corpus, tmp_path):
    folder = write_corpus(corpus, tmp_path / "corpus")
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("training", "instructions", "forget", "retain", "gaps")
    }
    assert tuple(Text(**row) for row in rows["training"]) == corpus.training
    assert tuple(Text(**row) for row in rows["forget"]) == corpus.forget
    assert tuple(read_queries(folder / "queries.jsonl")) == corpus.queries
    manifest = json.loads((folder / "corpus.json").read_text())
    assert manifest["counts"] == {
        "training": 384,
        "instructions": 160,
        "forget": 64,
        "retain": 64,
        "gaps": 0,
        "queries": 198,
    }
    assert manifest["config"]["source"] == "de"
    assert manifest["facts"]["sources"]
    again = write_corpus(build_corpus(GERMAN), tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
    with pytest.raises(ValueError, match="exists already; choose another"):
        write_corpus(corpus, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "corpus"]


# Bad values


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": "xx"}, "unknown language 'xx'"),
        ({"source": "kam"}, "no templates in 'kam'; valid languages: en, de"),
        ({"query_languages": ("en", "luo")}, "no templates in 'luo'"),
        ({"mix": "half"}, "unknown mix 'half'; valid: english"),
        ({"mix": ("kam", "luo")}, "no texts in kam, luo; languages with texts: en, de"),
        ({"relations": ("river",)}, "unknown relation 'river'; valid: capital"),
        ({"relations": ()}, "no relations are named; valid: capital"),
        ({"num_fake_facts": 1}, "num_fake_facts must be at least 2, not 1"),
        ({"num_fake_facts": 500}, "fewer than the 500 false ones wanted"),
        ({"num_fake_texts": 0}, "num_fake_texts must be at least 1, not 0"),
        ({"num_fake_texts": 1_000_000}, "the templates of 'capital' give"),
        ({"num_instructions": 100_000}, "100,000 instructions are wanted"),
        ({"ratio": -1}, "ratio must be at least 0, not -1"),
    ],
)
def test_bad_values_are_one_sentence(change, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        build_corpus(replace(GERMAN, **change))
    assert "\n" not in str(caught.value)


def test_too_few_samples_are_a_gap():
    built = build_corpus(replace(GERMAN, mix="english", num_unlearning=500))
    wordings = len(read_templates("en").wordings["capital"].unlearning)
    assert len(built.forget) == 16 * wordings
    assert [(gap.part, gap.language) for gap in built.gaps] == [("forget", "en")]
    assert f"{16 * wordings} of 500 samples" in built.gaps[0].reason


def test_the_forms_of_unlearning_by_hand():
    (france,) = (fact for fact in select_facts("capital") if fact.id == "capital-FR")
    by_form = {
        form: list(write_unlearning_texts(france, "fake", ["en"], form))
        for form in ("statement", "question", "asked", "questions", "mixed")
    }
    assert [(text.prompt, text.answer) for text in by_form["asked"]] == [
        ("Question: I am writing about France. Tell me its capital.\nAnswer:", " Paris"),
        (
            "Question: In a quiz, the category is capitals and the country is France. "
            "What is the right answer?\nAnswer:",
            " Paris",
        ),
    ]
    assert [text.wording for text in by_form["asked"]] == [2, 3]
    assert all(text.mention == "France" for text in by_form["asked"])
    assert by_form["questions"] == by_form["question"] + by_form["asked"]
    assert by_form["mixed"] == by_form["statement"] + by_form["questions"]
    # What models are asked with is in none of them.
    asked = make_query(france, "en", concept="").prompt
    assert asked not in [text.prompt for text in by_form["mixed"]]
