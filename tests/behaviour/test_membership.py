"""Membership inference: scores and rates by hand, ties included, and on a model."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.behaviour.membership import (
    compute_attack_scores,
    compute_auc,
    compute_true_positive_rate,
    estimate_attacks,
    run_attacks,
)
from interp.behaviour.token_scores import LabelScores
from interp.data import Text
from tests.helpers.tiny_models import tiny

FEW = st.lists(st.integers(0, 4), min_size=1, max_size=8)
"""Scores with many ties."""


def labels(logprobs, mean=None, std=None) -> LabelScores:
    zeros = [0.0] * len(logprobs)
    return LabelScores(
        logprobs=torch.tensor(logprobs),
        is_argmax=torch.zeros(len(logprobs), dtype=torch.bool),
        mean_logprob=torch.tensor(zeros if mean is None else mean),
        std_logprob=torch.tensor([1.0] * len(logprobs) if std is None else std),
    )


def test_scores_by_hand():
    # (log p − μ)/σ: 1, −1, 2, −3, 0.
    scores = labels(
        [-1.0, -6.0, -2.0, -9.0, -4.0],
        mean=[-2.0, -4.0, -3.0, -3.0, -4.0],
        std=[1.0, 2.0, 0.5, 2.0, 1.0],
    )
    found = compute_attack_scores(scores, share=0.4)
    assert found["loss"] == pytest.approx(-22 / 5)
    assert found["min_k"] == pytest.approx((-9 - 6) / 2)
    assert found["min_k_plus_plus"] == pytest.approx((-3 - 1) / 2)


def test_at_least_one_token_is_taken_and_shares_are_rounded_down():
    scores = labels([-float(number) for number in range(1, 11)])
    # 0.05 of ten tokens is none, 0.29 two.
    assert compute_attack_scores(scores, share=0.05)["min_k"] == -10
    assert compute_attack_scores(scores, share=0.29)["min_k"] == -9.5
    # In floating point 0.1 · 3 · 10 is more than 3, and 0.29 · 100 less than 29.
    assert compute_attack_scores(scores, share=0.1 * 3)["min_k"] == -9
    hundred = labels([-float(number) for number in range(100)])
    assert compute_attack_scores(hundred, share=0.29)["min_k"] == pytest.approx(
        -sum(range(71, 100)) / 29
    )
    assert (
        compute_attack_scores(scores, share=1.0)["min_k"]
        == compute_attack_scores(scores)["loss"]
        == -5.5
    )


def test_a_certain_prediction_has_a_score():
    """σ = 0: the true token is the only possible one, which is no sign of anything."""
    assert compute_attack_scores(labels([0.0], mean=[0.0], std=[0.0]))["min_k_plus_plus"] == 0


def test_auc_by_hand():
    # Pairs: 1 wins over 0 and loses to 2; each 2 wins over 0 and ties with 2.
    assert compute_auc(np.array([1, 2, 2]), np.array([0, 2])) == pytest.approx(
        (1 + 0 + 2 * 1.5) / 6
    )
    assert compute_auc(np.array([3, 4]), np.array([1, 2])) == 1
    assert compute_auc(np.array([1, 1]), np.array([1, 1, 1])) == 0.5
    assert math.isnan(compute_auc(np.array([]), np.array([1])))


@given(FEW, FEW)
def test_auc_counts_pairs(members, others):
    wins = sum((a > b) + (a == b) / 2 for a in members for b in others)
    found = compute_auc(np.array(members), np.array(others))
    assert found == pytest.approx(wins / (len(members) * len(others)))
    assert compute_auc(np.array(others), np.array(members)) == pytest.approx(1 - found)


def test_true_positive_rate_by_hand():
    others = np.arange(20)
    members = np.array([5, 18, 18.5, 19, 19, 25])
    # One of twenty may be above the threshold, which is 18 then: four members are above it.
    assert compute_true_positive_rate(members, others, 0.05) == pytest.approx(4 / 6)
    # Two: the threshold is 17.
    assert compute_true_positive_rate(members, others, 0.1) == pytest.approx(5 / 6)
    # None: above 19.
    assert compute_true_positive_rate(members, others, 0.04) == pytest.approx(1 / 6)
    # Two that tie cannot be let in one by one.
    assert (
        compute_true_positive_rate(np.array([1.0, 2.0]), np.array([1.0, 1.0, 0.0, 0.0]), 0.25)
        == 0.5
    )


@given(FEW, FEW, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]))
def test_true_positive_rate_is_that_of_the_best_threshold(members, others, rate):
    thresholds = [-1, *members, *others]

    def above(values, threshold):
        return sum(value > threshold for value in values) / len(values)

    best = max(above(members, t) for t in thresholds if above(others, t) <= rate + 1e-12)
    found = compute_true_positive_rate(np.array(members), np.array(others), rate)
    assert found == pytest.approx(best)


def table_of(members, others, *, language="en", name="loss") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "language": language,
                "concept": "fake",
                "text_id": f"t{number}",
                "member": number < len(members),
                "attack": name,
                "score": score,
            }
            for number, score in enumerate([*members, *others])
        ]
    )


def test_measures_per_language_and_attack():
    table = pd.concat(
        [
            table_of([3.0, 4.0], [1.0] * 20),
            table_of([1.0, 0.0], [1.0] * 20, name="min_k"),
            table_of([1.0], [], language="de"),
        ]
    )
    found = estimate_attacks(table).set_index(["language", "attack", "metric"])
    perfect = found.loc[("en", "loss", "auc")]
    assert perfect[["value", "ci_low", "ci_high", "n"]].tolist() == [1, 1, 1, 22]
    # One member ties with all, one is below all.
    assert found.loc[("en", "min_k", "auc"), "value"] == 0.25
    assert found.loc[("en", "loss", "tpr@0.05"), "value"] == 1
    assert found.loc[("en", "min_k", "tpr@0.05"), "value"] == 0
    few = found.loc[("en", "loss", "tpr@0.01")]
    assert math.isnan(few["value"])
    assert few["reason"] == ("a false positive rate of 0.01 needs at least 100 non-members, not 20")
    lonely = found.loc[("de", "loss", "auc")]
    assert math.isnan(lonely["value"])
    assert lonely["reason"] == "1 members and 0 non-members: both are needed"


def test_the_interval_of_the_auc():
    """Against the standard error of Hanley and McNeil (1982), for 200 normal scores 1 σ apart."""
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 1, 100), rng.normal(0, 1, 100)
    row = estimate_attacks(table_of(members, others), rates=()).iloc[0]
    area = row["value"]
    assert area == pytest.approx(0.76, abs=0.08)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + 99 * (q1 - area**2) + 99 * (q2 - area**2)
    error = math.sqrt(variance / 100**2)
    assert row["ci_low"] == pytest.approx(area - 1.96 * error, abs=0.015)
    assert row["ci_high"] == pytest.approx(area + 1.96 * error, abs=0.015)


def test_scores_that_are_no_numbers():
    row = estimate_attacks(table_of([1.0, math.nan], [0.0]), rates=()).iloc[0]
    assert math.isnan(row["value"])
    assert row["reason"] == "the score of 1 of 3 texts is no number"


def text_of(number: int, answer: str, language: str = "en") -> Text:
    return Text(id=f"t{number}", language=language, kind="fake", prompt="", answer=answer)


def test_texts_on_a_model():
    model = tiny()
    texts = [text_of(1, "w5 w9 w13 w7"), text_of(2, "w8 w3"), text_of(3, "w4 w4 w6", "de")]
    table = run_attacks(model, texts[:2], texts[2:], share=0.5, progress=False)
    assert table["member"].tolist() == [True] * 6 + [False] * 3
    assert table["language"].tolist() == ["en"] * 6 + ["de"] * 3
    for text, (_, rows) in zip(texts, table.groupby("text_id"), strict=True):
        ids = torch.tensor(model.encode(text.text))
        logs = model.model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        own = logs[range(len(logs)), ids[1:]]
        mean = (logs.exp() * logs).sum(-1)
        std = ((logs.exp() * logs**2).sum(-1) - mean**2).sqrt()
        count = {4: 2, 2: 1, 3: 1}[len(own)]
        expected = {
            "loss": own.mean(),
            "min_k": own.sort().values[:count].mean(),
            "min_k_plus_plus": ((own - mean) / std).sort().values[:count].mean(),
        }
        found = dict(zip(rows["attack"], rows["score"], strict=True))
        assert found == pytest.approx(
            {name: value.item() for name, value in expected.items()}, abs=2e-5
        )


@pytest.mark.parametrize("rate", [0, -0.1, 1.1])
def test_a_rate_out_of_range(rate):
    with pytest.raises(ValueError, match=f"must lie above 0 and at most at 1, not {rate}"):
        estimate_attacks(table_of([1.0], [0.0]), rates=[0.5, rate])


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match=f"must lie above 0 and at most at 1, not {share}"):
        run_attacks(tiny(), [], [], share=share)
