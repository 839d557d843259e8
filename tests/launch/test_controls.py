"""Sweeps with controls, with a model that never knew, and in both directions."""

from __future__ import annotations

from dataclasses import replace

import pytest

import interp
from interp.launch import Recovery
from interp.launch.worker import judge_known
from tests.helpers.tiny_models import question, save, tiny

QUESTIONS = [question(number) for number in range(4)]
KEPT = [question(number) for number in range(10, 13)]
OPTIONS = {"sites": ["coef"], "window": 1, "num_tokens": 3, "progress": False}


def test_controls_are_measured_beside_the_targets(tmp_path):
    vanilla, unlearned = tiny(), tiny(seed=1)
    swept = interp.sweep(vanilla, unlearned, QUESTIONS, controls=KEPT, out=tmp_path, **OPTIONS)
    for recovery in (swept, Recovery.read(tmp_path)):
        questions = recovery.losses.drop_duplicates("query_id").set_index("query_id")["control"]
        assert questions.sum() == 3
        assert not questions[[query.id for query in QUESTIONS]].any()
        alone = interp.sweep(vanilla, unlearned, KEPT, **OPTIONS).krs()
        found = recovery.krs(controls=True)["krs"].tolist()
        assert found == pytest.approx(alone["krs"].tolist(), abs=1e-6)
        targets = interp.sweep(vanilla, unlearned, QUESTIONS, **OPTIONS)
        found = recovery.krs()["krs"].tolist()
        assert found == pytest.approx(targets.krs()["krs"].tolist(), abs=1e-6)
        means = [
            each.losses.drop_duplicates("query_id")["loss_unlearned"].mean()
            for each in (interp.sweep(vanilla, unlearned, KEPT, **OPTIONS), targets)
        ]
        assert recovery.damage()["damage"].tolist() == pytest.approx([means[0] / means[1]])
    # A second run does nothing new, and knows the controls.
    again = interp.sweep(vanilla, unlearned, QUESTIONS, controls=KEPT, out=tmp_path, **OPTIONS)
    assert again.losses.equals(swept.losses) or len(again.losses) == len(swept.losses)


def test_a_model_that_never_knew(tmp_path):
    vanilla, unlearned, never = tiny(), tiny(seed=1), tiny(seed=2)
    path = save(never, tmp_path / "never")
    out = tmp_path / "run"
    swept = interp.sweep(vanilla, unlearned, QUESTIONS, never=path, out=out, **OPTIONS)
    assert swept.never == path
    read = Recovery.read(out)
    assert read.never == path
    alone = interp.sweep(vanilla, never, QUESTIONS, **OPTIONS).krs()
    own = interp.sweep(vanilla, unlearned, QUESTIONS, **OPTIONS).krs()
    for recovery in (swept, read):
        table = recovery.krs(never=True)
        assert set(table["unlearned"]) == {unlearned.name}
        assert table["krs_never"].tolist() == pytest.approx(alone["krs"].tolist(), abs=1e-6)
        assert table["excess"].tolist() == pytest.approx(
            (own["krs"] - alone["krs"]).tolist(), abs=1e-6
        )
    # It may be one of the unlearned models, and be named afterwards.
    both = interp.sweep(vanilla, [unlearned, never], QUESTIONS, never=never, **OPTIONS)
    assert len(both.losses) == len(swept.losses)
    with pytest.raises(ValueError, match="never must be one model"):
        interp.sweep(vanilla, unlearned, QUESTIONS, never=[never, never], **OPTIONS)


def test_both_directions_are_each_as_it_is_alone(tmp_path):
    vanilla, unlearned = tiny(), tiny(seed=1)
    both = interp.sweep(vanilla, unlearned, QUESTIONS, direction="both", out=tmp_path, **OPTIONS)
    restored = interp.sweep(vanilla, unlearned, QUESTIONS, **OPTIONS)
    reverse = interp.sweep(
        vanilla, unlearned, QUESTIONS, direction="corrupt", distance="answer_logprob", **OPTIONS
    )
    for recovery in (both, Recovery.read(tmp_path)):
        assert recovery.krs().equals(restored.krs())
        assert recovery.retained().equals(reverse.retained())
    with pytest.raises(ValueError, match="direction 'both' scores answers"):
        interp.sweep(vanilla, unlearned, QUESTIONS, direction="both", variant="hong2024", **OPTIONS)


def test_what_v_knows_is_judged_by_its_answer():
    vanilla = tiny()
    (item,) = interp.trajectories(vanilla, QUESTIONS[:1], num_tokens=3, progress=False)
    assert str(judge_known(item)) == "nan"
    word = item.answer.split()[0]
    assert judge_known(replace(item, query=replace(item.query, answer=word))) == 1
    assert judge_known(replace(item, query=replace(item.query, answer="elsewhere"))) == 0
    asked = [replace(QUESTIONS[0], answer=word), replace(QUESTIONS[1], answer="elsewhere")]
    recovery = interp.sweep(vanilla, tiny(seed=1), asked, **OPTIONS)
    table = recovery.known().iloc[0]
    assert (table["num_known"], table["num_asked"]) == (1, 2)
    assert recovery.krs(only="known")["num_queries"].tolist() == [1] * 5
    labels = recovery.heatmap().layout.yaxis.ticktext
    assert labels == ('<span style="color:#8c8c8c">English (en) · 1/2</span>',)
