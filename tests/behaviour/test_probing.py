"""Probing accuracy: scores against a plain forward, the guess by hand, Wilson's interval."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from interp import Query
from interp.behaviour.probing import (
    collect_candidates,
    compute_accuracy,
    compute_candidate_nll,
    probe,
)
from interp.statistics import compute_wilson_interval
from tests.helpers.every_architecture import make_tiny
from tests.helpers.tiny_models import ARCHITECTURES, tiny, wrap


def plain_nll(model, prompt: str, continuation: str) -> float:
    """One forward over the whole text, full logits."""
    prompt_ids, whole = model.encode(prompt), model.encode(prompt + continuation)
    assert whole[: len(prompt_ids)] == prompt_ids
    logits = model.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    places = range(len(prompt_ids), len(whole))
    return -sum(logits[place - 1, whole[place]].item() for place in places) / len(places)


HYBRIDS = ("Qwen3_5ForCausalLM", "BambaForCausalLM", "FalconH1ForCausalLM")


@pytest.mark.parametrize("name", [*ARCHITECTURES, *HYBRIDS])
def test_candidates_score_as_in_a_plain_forward(name):
    """Prompts longer than the sliding windows; continuations of one to five tokens."""
    model = wrap(make_tiny(name)) if name in HYBRIDS else tiny(name)
    prompt = "w5 w9 w13 w7 w40 w22 w8"
    continuations = [" w3", " w4 w5 w6 w7 w8", " w3 w9", " w30 w31 w32", " w9 w9 w9"]
    found = compute_candidate_nll(model, prompt, continuations)
    expected = [plain_nll(model, prompt, text) for text in continuations]
    assert found.tolist() == pytest.approx(expected, abs=2e-5)


def test_candidates_of_one_token_each():
    model = tiny()
    found = compute_candidate_nll(model, "w5 w6", [" w3", " w4"])
    assert found.tolist() == pytest.approx(
        [plain_nll(model, "w5 w6", text) for text in (" w3", " w4")], abs=1e-5
    )


def test_a_tokenizer_that_joins_prompt_and_continuation():
    """Without a space, "w5" + "6" is the word w56, which is unknown: what is shared shrinks."""
    model = tiny()
    joined = compute_candidate_nll(model, "w9 w4", ["6", " w7"])
    logits = model.model(torch.tensor([model.encode("w9 w4 w7")])).logits[0].log_softmax(-1)
    alone = model.model(torch.tensor([model.encode("w9 w46")])).logits[0].log_softmax(-1)
    # After <s> w9: the tokens w46, and w4 w7.
    w46, w4, w7 = (model.encode(word)[1] for word in ("w46", "w4", "w7"))
    assert joined.tolist() == pytest.approx(
        [-alone[1, w46].item(), -(logits[1, w4] + logits[2, w7]).item() / 2], abs=1e-5
    )


def asked(number: int, answer: str | None, *, language="en", concept="c") -> Query:
    return Query(
        id=f"q{number}", language=language, prompt=f"w{number} w8", answer=answer, concept=concept
    )


def test_the_guess_is_the_likeliest_candidate():
    model = tiny()
    queries = [asked(5, "w3"), asked(6, "w4 w9"), asked(7, "w11")]
    table = probe(model, queries, progress=False)
    for row, query in zip(table.to_dict("records"), queries, strict=True):
        scores = {
            answer: plain_nll(model, query.prompt, f" {answer}")
            for answer in ("w3", "w4 w9", "w11")
        }
        order = sorted(scores, key=scores.__getitem__)
        assert row["guess"] == order[0]
        assert row["rank"] == 1 + order.index(query.answer)
        assert row["right"] == (row["rank"] == 1)
        assert row["num_candidates"] == 3


def test_candidates_are_those_of_the_language_and_concept():
    queries = [
        asked(3, "w3"),
        asked(4, "w4"),
        asked(5, "w3"),
        asked(6, "w6", language="de"),
        asked(7, "w7", language="de"),
        asked(8, "w8", concept="d"),
        asked(9, "w9", concept="d"),
    ]
    assert collect_candidates(queries) == [
        *[("w3", "w4")] * 3,
        *[("w6", "w7")] * 2,
        *[("w8", "w9")] * 2,
    ]


def test_chinese_answers_follow_without_a_space(monkeypatch):
    from interp.behaviour import probing

    seen = []

    def encode(model, query, answer=None):
        seen.extend([] if answer is None else [answer])
        return model.encode(query.prompt + (answer or ""))

    monkeypatch.setattr(probing, "encode_query", encode)
    probe(tiny(), [asked(3, "w3", language="zh"), asked(4, "w4", language="zh")], progress=False)
    probe(tiny(), [asked(3, "w3", language="de"), asked(4, "w4", language="de")], progress=False)
    assert seen == ["w3", "w4"] * 2 + [" w3", " w4"] * 2


@pytest.mark.parametrize("most", [1, 3, 7])
def test_prompts_that_are_run_together_do_not_see_each_other(monkeypatch, most):
    from interp.behaviour import probing

    model = tiny()
    queries = [asked(number, "w3" if number % 2 else "w4") for number in range(5, 12)]
    queries += [
        replace(asked(12, "w3 w5 w6"), prompt="w7 w8"),
        replace(asked(13, "w4"), concept="d"),
    ]
    candidates = [("w3", "w4", "w3 w5 w6", "w4 w4")] * len(queries)
    monkeypatch.setattr(probing, "MAX_ROWS", 4 * most)
    table = probe(model, queries, candidates=candidates, progress=False)
    for row, query in zip(table.to_dict("records"), queries, strict=True):
        nll = [plain_nll(model, query.prompt, f" {option}") for option in candidates[0]]
        assert row["guess"] == candidates[0][nll.index(min(nll))]


def test_accuracy_by_hand():
    table = pd.DataFrame(
        {
            "language": ["en"] * 4 + ["de"] * 2,
            "concept": "c",
            "right": [True, True, True, False, False, False],
            "num_candidates": [4, 4, 4, 4, 2, 4],
        }
    )
    found = compute_accuracy(table).set_index("language")
    assert found.loc["en", "accuracy"] == 0.75
    assert found.loc["en", "chance"] == 0.25
    assert found.loc["de", "chance"] == 0.375
    assert found["num_queries"].tolist() == [4, 2]
    assert list(found.index) == ["en", "de"]
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with p = 3/4, n = 4.
    assert found.loc["en", ["ci_low", "ci_high"]].tolist() == pytest.approx(
        [0.3006, 0.9544], abs=1e-4
    )


def test_wilson_at_the_ends():
    assert compute_wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert compute_wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    for successes, trials in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no proportion"):
            compute_wilson_interval(successes, trials)


def test_errors_name_what_is_wrong():
    model = tiny()
    two = [asked(3, "w3"), asked(4, "w4")]
    with pytest.raises(ValueError, match="q5 in 'en' has no answer to probe for"):
        probe(model, [*two, asked(5, None)])
    with pytest.raises(ValueError, match="have one answer, 'w3'; probing needs at least two"):
        probe(model, [asked(3, "w3"), asked(4, "w3")])
    with pytest.raises(ValueError, match="'w3' of q3 in 'en' is not among its 2 candidates"):
        probe(model, two[:1], candidates=[["w5", "w6"]])
    with pytest.raises(ValueError, match="at least two candidates"):
        probe(model, two[:1], candidates=[["w3", "w3"]])
    with pytest.raises(ValueError, match="2 queries have 1 lists"):
        probe(model, two, candidates=[["w3", "w4"]])
