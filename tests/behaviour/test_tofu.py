"""TOFU's metrics: on a tiny model against plain forwards, and by hand."""

from __future__ import annotations

import math
import sys

import pandas as pd
import pytest
import torch

from interp.behaviour.answers import Answer, generate
from interp.behaviour.tofu import (
    METRICS,
    average_scores,
    compute_choice_probability,
    compute_forget_quality,
    compute_harmonic_mean,
    compute_log_truth_ratio,
    compute_model_utility,
    score_questions,
)
from interp.data import QuestionAnswer, make_queries
from tests.helpers.tiny_models import tiny

RECORDS = [
    QuestionAnswer(
        id="tofu:1",
        language="en",
        question="w5 w9",
        answer="w7 w40 w22",
        paraphrased_answer="w40 w7",
        perturbed_answers=("w7 w41 w22", "w3", "w8 w9 w10 w11 w12"),
        concept="tofu",
    ),
    QuestionAnswer(
        id="tofu:2",
        language="en",
        question="w6 w6 w30 w4",
        answer="w3",
        paraphrased_answer="w3 w3 w3",
        perturbed_answers=("w4", "w5 w30"),
        concept="tofu",
    ),
]


def answered(model, records):
    asked = make_queries(records, template="{question} w33")
    return generate(model, asked, num_tokens=6, progress=False)


def plain(model, prompt: str, answer: str) -> torch.Tensor:
    """Log-probabilities of the answer's tokens, from full logits."""
    first, ids = len(model.encode(prompt)), model.encode(f"{prompt} {answer}")
    logits = model.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return torch.stack([logits[place - 1, ids[place]] for place in range(first, len(ids))])


def per_token(model, record, answer: str) -> float:
    """P(a|q)^(1/|a|)."""
    return plain(model, f"{record.question} w33", answer).mean().exp().item()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.parametrize("kind", ["forget", "retain"])
@pytest.mark.parametrize("variant", ["paper", "tofu-code"])
def test_questions_with_a_paraphrase(model, kind, variant):
    table = score_questions(
        model, RECORDS, answered(model, RECORDS), kind=kind, variant=variant, progress=False
    )
    for record, row in zip(RECORDS, table.to_dict("records"), strict=True):
        assert row["probability"] == pytest.approx(per_token(model, record, record.answer))
        wrong = [per_token(model, record, text) for text in record.perturbed_answers]
        if variant == "paper":
            average = sum(wrong) / len(wrong)
        else:
            average = math.prod(wrong) ** (1 / len(wrong))
        ratio = average / per_token(model, record, record.paraphrased_answer)
        assert row["truth_ratio"] == pytest.approx(ratio, rel=1e-4)
        score = min(ratio, 1 / ratio) if kind == "forget" else max(0, 1 - ratio)
        assert row["truth_score"] == pytest.approx(score, abs=1e-4)
        assert row["reason"] == ""


@pytest.mark.parametrize("variant", ["paper", "tofu-code"])
def test_choices(model, variant):
    table = score_questions(
        model, RECORDS, answered(model, RECORDS), kind="choices", variant=variant, progress=False
    )
    for record, row in zip(RECORDS, table.to_dict("records"), strict=True):
        prompt = f"{record.question} w33"
        logprobs = [
            plain(model, prompt, text) for text in (record.answer, *record.perturbed_answers)
        ]
        if variant == "paper":
            right, *wrong = [values.sum().exp().item() for values in logprobs]
        else:
            right, *wrong = [values.mean().exp().item() for values in logprobs]
        assert row["probability"] == pytest.approx(right / (right + sum(wrong)), rel=1e-4)
        # The answer stands for its paraphrase, in words as they are.
        right, *wrong = [values.mean().exp().item() for values in logprobs]
        mean = sum(wrong) / len(wrong)
        if variant == "tofu-code":
            mean = math.prod(wrong) ** (1 / len(wrong))
        assert row["truth_ratio"] == pytest.approx(mean / right, rel=1e-4)
        assert row["truth_score"] == pytest.approx(max(0, 1 - mean / right), abs=1e-4)


def test_rouge_is_of_the_first_line(model):
    said = [
        Answer(query=query, text=text)
        for query, text in zip(
            make_queries(RECORDS), (" w40 and w22\nw7 w40 w22", "none"), strict=True
        )
    ]
    table = score_questions(model, RECORDS, said, kind="retain", progress=False)
    assert table["said"].tolist() == ["w40 and w22", "none"]
    assert table["rouge"].tolist() == pytest.approx([2 / 3, 0])


def test_what_is_missing_has_a_reason(model):
    bare = QuestionAnswer(id="a", language="en", question="w5", answer="w7", concept="tofu")
    only_wrong = QuestionAnswer(
        id="b",
        language="en",
        question="w5",
        answer="w7",
        perturbed_answers=("w8",),
        concept="tofu",
    )
    records = [bare, only_wrong]
    table = score_questions(model, records, answered(model, records), kind="forget", progress=False)
    assert table["truth_ratio"].isna().all()
    assert table["truth_score"].isna().all()
    assert table["probability"].notna().all()
    assert table["reason"].tolist() == [
        "no paraphrased answer; no perturbed answers",
        "no paraphrased answer",
    ]
    table = score_questions(
        model, records, answered(model, records), kind="choices", progress=False
    )
    assert table["probability"].isna().tolist() == [True, False]
    assert table["reason"].tolist() == ["no perturbed answers", ""]
    found = average_scores(table).set_index("metric")
    expected = "1 of 2 items have no value; one item: no interval"
    assert found.loc["probability", "reason"] == expected
    assert found.loc["probability", "value"] == table["probability"][1]


def test_answers_to_other_questions(model):
    with pytest.raises(ValueError, match="the 1 answers are not those to the 2 records"):
        score_questions(model, RECORDS, answered(model, RECORDS[:1]), kind="forget")
    with pytest.raises(ValueError, match="give one to each record's question, in the same order"):
        score_questions(model, RECORDS, answered(model, RECORDS[::-1]), kind="forget")


def test_unknown_settings(model, unchecked):
    with pytest.raises(ValueError, match="unknown kind 'mcq'; valid: forget, retain, choices"):
        score_questions(model, RECORDS, [], kind="mcq")
    with pytest.raises(ValueError, match="unknown variant 'code'; valid: paper, tofu-code"):
        score_questions(model, RECORDS, [], kind="forget", variant="code")


def test_truth_ratio_by_hand():
    wrong = [math.log(0.2), math.log(0.4)]
    # (0.2 + 0.4)/2 by 0.5, and √(0.2 · 0.4) by 0.5.
    assert compute_log_truth_ratio(math.log(0.5), wrong, variant="paper") == pytest.approx(
        math.log(0.6)
    )
    assert compute_log_truth_ratio(math.log(0.5), wrong, variant="tofu-code") == pytest.approx(
        math.log(math.sqrt(0.08) / 0.5)
    )
    # Probabilities of e^−2000 are no numbers, their ratio is.
    assert compute_log_truth_ratio(-2000.0, [-2001.0] * 5, variant="paper") == pytest.approx(-1)


def test_choice_probability_by_hand():
    assert compute_choice_probability(
        [math.log(p) for p in (0.1, 0.2, 0.05, 0.05)]
    ) == pytest.approx(0.25)
    assert compute_choice_probability([-2000.0, -2000.0]) == pytest.approx(0.5)


def table_of(kind, rows, *, language="en", variant="paper", ratios=None) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "language": language,
                "query_id": f"q{number}",
                "kind": kind,
                "variant": variant,
                **dict(zip(METRICS, row, strict=True)),
                "truth_ratio": math.nan if ratios is None else ratios[number],
            }
            for number, row in enumerate(rows)
        ]
    )


RETAIN = table_of("retain", [(0.4, 0.5, 0.2), (0.6, 0.5, 0.6)])
AUTHORS = table_of("choices", [(0.25, 0.8, 0.5)])
FACTS = table_of("choices", [(0.2, 1.0, 0.4), (0.2, 0.5, 0.4)])


def test_model_utility_by_hand():
    """Means 0.5, 0.5, 0.4; 0.25, 0.8, 0.5; 0.2, 0.75, 0.4; nine by the sum of their inverses."""
    found = compute_model_utility(RETAIN, AUTHORS, FACTS)
    inverses = (2 + 2 + 2.5) + (4 + 1.25 + 2) + (5 + 4 / 3 + 2.5)
    assert len(found) == 1
    row = found.iloc[0]
    assert row["value"] == pytest.approx(9 / inverses)
    assert (row["metric"], row["n"]) == ("model_utility", 5)
    assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_one_zero_makes_the_utility_zero():
    lost = table_of("retain", [(0.4, 0.0, 0.2), (0.6, 0.0, 0.6)])
    assert compute_model_utility(lost, AUTHORS, FACTS)["value"].tolist() == [0]
    assert compute_harmonic_mean(pd.Series([0.5, 0.0]).to_numpy()) == 0
    assert compute_harmonic_mean(pd.Series([0.5, 0.25]).to_numpy()) == pytest.approx(1 / 3)


def test_utility_needs_all_three_sets_in_a_language():
    german = [table.assign(language="de") for table in (RETAIN, AUTHORS)]
    no_rouge = FACTS.assign(language="fr", rouge=math.nan)
    french = [table.assign(language="fr") for table in (RETAIN, AUTHORS)]
    found = compute_model_utility(
        pd.concat([RETAIN, german[0], french[0]]),
        pd.concat([AUTHORS, german[1], french[1]]),
        pd.concat([FACTS, no_rouge]),
    ).set_index("language")
    assert found.loc["en", "value"] > 0
    assert math.isnan(found.loc["de", "value"])
    assert found.loc["de", "reason"] == "world_facts has no questions"
    assert found.loc["fr", "reason"] == "world_facts has 2 questions without a value"


def test_tables_that_do_not_belong_together():
    with pytest.raises(ValueError, match="table real_authors must be of kind 'choices', not 'ret"):
        compute_model_utility(RETAIN, RETAIN, FACTS)
    with pytest.raises(ValueError, match="of different variants: paper, tofu-code"):
        compute_model_utility(RETAIN, AUTHORS, FACTS.assign(variant="tofu-code"))
    with pytest.raises(ValueError, match="table retrained must be of kind 'forget', not 'retain'"):
        compute_forget_quality(forget([1.0]), RETAIN)
    with pytest.raises(ValueError, match="asked different questions"):
        compute_forget_quality(forget([1.0, 2.0]), forget([1.0]))


def forget(ratios, **settings) -> pd.DataFrame:
    return table_of("forget", [(0.5, 0.5, 0.5)] * len(ratios), ratios=ratios, **settings)


def test_forget_quality_by_hand():
    # Of the 20 ways to order three of each, two keep them apart.
    found = compute_forget_quality(forget([0.1, 0.2, 0.3]), forget([0.7, 0.5, 0.6])).iloc[0]
    assert found["value"] == pytest.approx(2 / 20)
    assert found["n"] == 3
    # The largest gap is one third, as in any order: the paths from corner to corner all have it.
    assert compute_forget_quality(forget([0.1, 0.3, 0.5]), forget([0.2, 0.4, 0.6]))["value"][0] == 1
    # Gap 3/4 of four: 16 of the 70 paths stray three steps or more from the diagonal.
    far = compute_forget_quality(forget([1.0, 2.0, 3.0, 6.0]), forget([4.0, 5.0, 7.0, 8.0]))
    assert far["value"][0] == pytest.approx(16 / 70)


def test_forget_quality_per_language_whatever_the_order():
    ratios = [0.1, 0.9, 0.4, 0.6]
    both = pd.concat([forget(ratios), forget([0.1, 0.2, 0.3], language="de")])
    other = pd.concat([forget([5.0, 6.0, 7.0], language="de"), forget(ratios)[::-1]])
    found = compute_forget_quality(both, other).set_index("language")["value"]
    assert found.to_dict() == pytest.approx({"en": 1.0, "de": 0.1})


def test_forget_quality_without_truth_ratios():
    row = compute_forget_quality(forget([0.1, math.nan]), forget([0.1, 0.2])).iloc[0]
    assert math.isnan(row["value"])
    assert row["reason"] == "1 of 4 truth ratios are not defined"


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"scipy: pip install 'interp\[behaviour\]'"):
        compute_forget_quality(forget([0.1]), forget([0.1]))
