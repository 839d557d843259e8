"""MEMIT on Gemma-3-270M: what it answers freely after edits of three strengths."""

from __future__ import annotations

from dataclasses import replace

import pytest

import interp
from interp.behaviour import AliasJudge, generate
from interp.data import load_texts
from interp.unlearning import METHODS, build_edits, edit_at_strengths
from interp.unlearning.memit_removal import measure_own_moments, measure_retained_moments


def count_right(model, queries):
    verdicts = AliasJudge()(generate(model, queries, num_tokens=12, progress=False))
    return sum(verdict.value == 1 for verdict in verdicts)


@pytest.mark.gemma
@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "strengths"), [("empty", (0.1, 0.2, 0.3)), ("entropy", (0.03, 0.1, 0.3))]
)
def test_three_strengths_forget_three_amounts_and_keep_the_rest(objective, strengths):
    vanilla = interp.load("gemma-3-270m")
    # C on few tokens, but more than d_mlp = 2048; both objectives share them.
    config = replace(
        METHODS[f"memit_{objective}"].config, moment_tokens=3000, moment_languages=("en",)
    )
    assert config.layers is not None
    capitals = interp.queries("capitals", languages=["en"], limit=6)
    retain = [
        *load_texts("capitals", languages=["en"], limit=60)[6:],
        *load_texts("currencies", languages=["en"], limit=40),
        *load_texts("official-languages", languages=["en"], limit=40),
    ]
    others = interp.queries("capitals", languages=["en"], limit=22)[6:]
    others += interp.queries("official-languages", languages=["en"], limit=16)
    known = count_right(vanilla, others)
    assert count_right(vanilla, capitals) == 6
    answered, logprobs = [], []
    for _, model, table in edit_at_strengths(
        vanilla,
        build_edits(load_texts("capitals", languages=["en"], limit=6)),
        measure_own_moments(vanilla, config.layers, config, progress=False),
        config,
        retained=measure_retained_moments(vanilla, config.layers, retain, progress=False),
        strengths=strengths,
        progress=False,
    ):
        answered.append(count_right(model, capitals))
        logprobs.append(table["answer_logprob_after"].mean())
        kept = count_right(model, others) / known
        assert kept >= 0.9
    assert answered[0] > answered[-1] == 0
    assert logprobs[0] > logprobs[1] + 1 > logprobs[2] + 2
