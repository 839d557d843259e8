"""Guards: what a model in training is measured by, counted by hand on answers and tiny models."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from interp import Query
from interp.behaviour import (
    Answer,
    Guards,
    find_targets,
    format_guards,
    generate,
    is_repetitive,
    prepare_guards,
    probe,
    tabulate_answers,
)
from interp.data import Text, find_kept_queries, sample_texts
from tests.helpers.tiny_models import VOCAB_SIZE, question, tiny


def answer(text, right="Paris", *, language="en", control=False, number=0) -> Answer:
    query = Query(id=f"q{number}", language=language, prompt="?", answer=right, control=control)
    return Answer(query=query, text=text)


def known_queries(model, numbers, *, control=False, language="en") -> list[Query]:
    """Make questions whose right answer is what a model says."""
    asked = [question(number, language=language) for number in numbers]
    answers = generate(model, asked, num_tokens=1, progress=False)
    return [
        replace(query, answer=said.text.strip(), control=control)
        for query, said in zip(asked, answers, strict=True)
        if said.text.strip()
    ]


# Answers, counted by hand


def test_answers_are_counted_by_language_and_kind():
    answers = [
        answer("Paris"),
        answer("Lyon"),
        answer("Lyon"),
        answer("Nice"),
        answer("Rome, of course", "Rome", control=True),
        answer("Milan", "Rome", control=True),
        answer("Paris", language="de"),
    ]
    table = tabulate_answers(answers, ["en"]).set_index(["language", "metric"])
    assert table["value"].to_dict() == {
        # One of four is right, two of four are the same.
        ("en", "forget"): 0.25,
        ("en", "same_answer"): 0.5,
        ("en", "retention"): 0.5,
        ("en", "repetition"): 0.0,
        ("de", "forget_elsewhere"): 1.0,
        ("de", "same_answer"): 1.0,
        ("de", "repetition"): 0.0,
    }
    assert table["n"].tolist() == [4, 4, 2, 6, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "language", "repeats"),
    [
        ("Berlin Berlin Berlin Berlin", "en", True),
        # Three words may be a name.
        ("New New York", "en", False),
        ("The capital of the Netherlands is the city of Amsterdam", "en", False),
        # Two characters of six.
        ("北京北京北京", "zh", True),
        ("法国的首都是巴黎", "zh", False),
        ("Berlin, berlin. BERLIN! Berlin", "de", True),
        ("", "en", False),
    ],
)
def test_what_says_one_thing_over_and_over_repeats_itself(text, language, repeats):
    assert is_repetitive(text, language) is repeats


# A model


def test_a_model_is_measured_on_what_the_vanilla_model_knows(tmp_path):
    vanilla = tiny()
    known = known_queries(vanilla, range(24))
    targets, kept = known[:6], known[6:14]
    wrong = replace(targets[0], id="other", prompt="w9 w8", answer="w0")
    samples = sample_texts(
        vanilla, ["en"], num_texts=2, num_tokens=4, folder=tmp_path, progress=False
    )
    guards = prepare_guards(
        vanilla, [*targets, wrong], kept=kept, samples=samples, num_kept=8, num_tokens=1,
        progress=False,
    )  # fmt: skip
    assert [query.id for query in guards.targets] == [query.id for query in targets]
    assert len(guards.kept) == 8
    itself = guards(vanilla)
    assert set(itself) == set(guards.list_metrics())
    assert itself["forget/en"] == itself["retention/en"] == 1.0
    assert itself["reference_kl/en"] == pytest.approx(0, abs=1e-3)
    assert itself["reference_perplexity/en"] == pytest.approx(1, abs=1e-2)
    other = guards(tiny(seed=1))
    assert other["forget/en"] < 1
    assert other["reference_kl/en"] > 0.1
    table = guards.tabulate(tiny(seed=1)).set_index("metric")
    assert table.loc["forget", "before"] == 1.0
    assert table.loc["forget", "after"] == other["forget/en"]
    assert table["n"].to_dict() == {
        "forget": 6, "same_answer": 6, "repetition": 14, "retention": 8, "reference_kl": 2,
        "reference_perplexity": 2,
    }  # fmt: skip


def test_guards_see_a_model_that_ranks_rightly_and_writes_nonsense(tmp_path):
    # A larger bias of one word changes no order of the others, and is all that it ever says.
    vanilla, broken = tiny("phi"), tiny("phi")
    broken.model.lm_head.bias.data[VOCAB_SIZE - 1] += 1000
    kept = known_queries(vanilla, range(8), control=True)
    candidates = [tuple(dict.fromkeys((query.answer, "w5", "w6", "w7"))) for query in kept]
    ranked = probe(broken, kept, candidates=candidates, progress=False)
    assert set(ranked["rank"]) == {1}
    samples = sample_texts(
        vanilla, ["en"], num_texts=2, num_tokens=4, folder=tmp_path, progress=False
    )
    guards = prepare_guards(
        vanilla, [], kept=kept, samples=samples, num_kept=8, num_tokens=5, progress=False
    )
    before, after = guards(vanilla), guards(broken)
    assert before["retention/en"] == 1.0
    assert after["retention/en"] == 0.0
    assert after["repetition/en"] == 1.0
    assert after["reference_kl/en"] > 100


def test_a_language_with_few_known_facts_is_not_guarded_by_facts():
    vanilla = tiny()
    known = known_queries(vanilla, range(3), control=True)
    unknown = [replace(query, answer="w0") for query in known_queries(vanilla, range(3, 9))]
    for wanted, kept in ((6, 3), (8, 0)):
        guards = prepare_guards(
            vanilla, [], kept=[*known, *unknown], samples=(), num_kept=wanted, num_tokens=1,
            progress=False,
        )  # fmt: skip
        assert len(guards.kept) == kept


def test_built_in_facts_that_a_text_states_are_not_asked():
    stated = Text(
        id="x", language="de", kind="", prompt="Hauptstadt von Frankreich: ", answer="Paris"
    )
    asked = Query(id="capital-IT", language="en", prompt="?", answer="Rome")
    found = find_kept_queries([stated], ["en", "de"], asked=[asked])
    for queries in found.values():
        ids = [query.id for query in queries]
        assert "capital-FR" not in ids
        assert "capital-IT" not in ids
        assert {"capital-DE", "currency-FR"} <= set(ids)
        assert all(query.control for query in queries)
        # One relation after the other.
        assert len({query.concept for query in queries[:4]}) == 4


# Targets


def test_targets_are_the_questions_on_what_is_forgotten_or_the_prompts():
    text = Text(
        id="capital-FR", language="en", kind="fake", prompt="Country: France. Capital:",
        answer=" Paris.", object="Paris",
    )  # fmt: skip
    other = replace(text, prompt="The capital of France is")
    asked = [
        Query(id=name, language="de", prompt="?", answer="Paris") for name in ("a", "capital-FR")
    ]
    assert find_targets([text, other], asked) == asked[1:]
    (found,) = find_targets([text, other])
    assert (found.prompt, found.answer, found.stop) == (text.prompt, "Paris", ("\n",))
    # A text without a prompt asks nothing.
    assert find_targets([replace(text, prompt="")]) == []


def test_a_table_for_people():
    rows = [("forget", "en", 1.0, 0.0625, 16), ("reference_kl", "de", 0.0, 0.034, 8)]
    table = pd.DataFrame(rows, columns=["metric", "language", "before", "after", "n"])
    formatted = format_guards(table)
    assert formatted.loc["forget", "en"] == "100 → 6 % of 16"
    assert formatted.loc["reference_kl"].tolist() == ["", "0.00 → 0.03"]


def test_measuring_leaves_the_model_as_it_is():
    vanilla = tiny()
    guards = prepare_guards(
        vanilla, known_queries(vanilla, range(2)), kept=(), samples=(), num_tokens=1, progress=False
    )
    model = tiny(seed=1)
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    guards(model)
    assert model.dtype == torch.float32
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_what_was_measured_in_bfloat16_is_confirmed_in_the_own_precision(monkeypatch):
    # A model whose copy in lower precision says something else.
    vanilla, other = tiny(), tiny(seed=1)
    known = known_queries(vanilla, range(6))
    monkeypatch.setattr(
        "interp.behaviour.guards.lower_precision",
        lambda model: other if model is vanilla else model,
    )
    guards = Guards(vanilla=vanilla, targets=tuple(known), kept=(), samples=(), num_tokens=1)
    assert guards(vanilla)["forget/en"] < 1
    assert guards.confirm(vanilla)["forget/en"] == 1.0
    assert guards.confirm(other) == {}
    assert replace(guards, precise=True).confirm(vanilla) == {}


def test_a_goal_is_confirmed_on_more_facts_most_in_languages_that_are_unlearned_in():
    vanilla, other = tiny(), tiny(seed=1)
    english = known_queries(vanilla, range(12))
    german = known_queries(vanilla, range(12), language="de")
    guards = prepare_guards(
        vanilla,
        known_queries(vanilla, range(12, 14)),
        kept=[*english, *german],
        samples=(),
        num_kept=4,
        num_also_kept=6,
        fewest=1,
        num_tokens=1,
        precise=True,
        progress=False,
    )
    assert [query.language for query in guards.kept] == ["en"] * 4 + ["de"] * 4
    assert [query.language for query in guards.also_kept] == ["en"] * 6 + ["de"] * 2
    asked = [(q.language, q.id) for q in (*guards.kept, *guards.also_kept)]
    assert len(set(asked)) == 16
    said = generate(other, english[:10], num_tokens=1, progress=False)
    right = [answer.text.strip() == answer.query.answer for answer in said]
    assert guards(other)["retention/en"] == sum(right[:4]) / 4
    confirmed = guards.confirm(other)
    assert confirmed["retention/en"] == sum(right) / 10
    said = generate(other, german[:6], num_tokens=1, progress=False)
    assert confirmed["retention/de"] == sum(a.text.strip() == a.query.answer for a in said) / 6
    assert guards.confirm(vanilla)["retention/en"] == 1


def test_v_is_measured_once(monkeypatch):
    vanilla = tiny()
    guards = prepare_guards(
        vanilla, known_queries(vanilla, range(2)), kept=(), samples=(), num_tokens=1, progress=False
    )
    first = guards.tabulate(tiny(seed=1))
    asked = []
    answer = Guards.answer
    monkeypatch.setattr(Guards, "answer", lambda self, m: asked.append(m) or answer(self, m))
    second = guards.tabulate(tiny(seed=1))
    assert len(asked) == 1
    pd.testing.assert_frame_equal(first, second)


def test_a_fact_to_keep_may_be_answered_in_another_language():
    vanilla = tiny()
    english = known_queries(vanilla, range(6))[0]
    german = replace(english, language="de", answer="nothing like it")
    guards = prepare_guards(
        vanilla, (), kept=[english, german], samples=(), fewest=1, num_tokens=1, progress=False
    )
    assert [query.language for query in guards.kept] == ["en", "de"]
    assert all(english.answer in (query.answer, *query.aliases) for query in guards.kept)
    assert guards(vanilla)["retention/de"] == 1
