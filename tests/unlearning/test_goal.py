"""A run with a goal goes on past broken guards, and back to its best evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from interp.unlearning.config import Bound, TrainingConfig
from interp.unlearning.examples import Example
from interp.unlearning.goal import (
    GUARDS,
    UNTIL,
    BestCheckpoint,
    drop_empty_bounds,
    find_broken,
    measure_distance,
)
from interp.unlearning.model_card import make_training_card
from interp.unlearning.training import train
from tests.helpers.tiny_models import tiny

SETS = {
    "forget": [Example(prompt="w3 w4", answer=" w5"), Example(prompt="w6 w7", answer=" w9 w10")],
    "retain": [Example(prompt="w11 w12", answer=" w13"), Example(prompt="w14", answer=" w15")],
}
FORGET = Bound(metric="forget", below=0.1)
RETENTION = Bound(metric="retention", above=0.8)
CONFIG = TrainingConfig(
    learning_rate=1e-3, num_steps=8, batch_size=2, autocast=False, evaluate_every=2,
    until=(FORGET,), guards=(RETENTION,),
)  # fmt: skip


def run(rows, *, config=CONFIG, out=None, kill_at=None, confirm=None):
    """Train with evaluations that are given: forgetting and retention before, and at each one.

    Returns what was trained, and the weights that each evaluation saw.
    """
    seen, at = [], iter(rows)

    def evaluate(model):
        if len(seen) == kill_at:
            raise KeyboardInterrupt
        seen.append({n: p.detach().clone() for n, p in model.model.named_parameters()})
        forget, retention = next(at)
        return {"forget/en": forget, "retention/en": 1.0, "retention/de": retention}

    done = train(tiny(), SETS, config, evaluate=evaluate, confirm=confirm, out=out, progress=False)
    return done, seen


def is_at(model, weights) -> bool:
    return all(
        bool((parameter == weights[name]).all())
        for name, parameter in model.model.named_parameters()
    )


# Bounds


def test_a_bound_without_a_language_is_on_each_language():
    metrics = {"forget/en": 0.3, "retention/en": 0.9, "retention/de": 0.7, "retentive/de": 0.0}
    assert RETENTION.find(metrics) == ["retention/en", "retention/de"]
    assert Bound(metric="retention/de", above=0.5).find(metrics) == ["retention/de"]
    # A metric of that very name is meant alone.
    assert RETENTION.find({**metrics, "retention": 0.8}) == ["retention"]
    assert list(find_broken([RETENTION], metrics, metrics)) == ["retention/de"]


@pytest.mark.parametrize(
    ("bound", "value", "gap"),
    [
        (Bound(metric="m", above=0.8), 0.5, 0.3),
        (Bound(metric="m", above=0.8), 0.8, 0.0),
        (Bound(metric="m", below=0.1), 0.35, 0.25),
        (Bound(metric="m", below=0.1), 0.0, 0.0),
        # Of 10 before, 80 % are 8.
        (Bound(metric="m", above=0.8, relative=True), 6.0, 2.0),
        (Bound(metric="m", below=0.1), math.nan, math.inf),
    ],
)
def test_the_gap_to_a_bound_by_hand(bound, value, gap):
    assert bound.measure_gap("m", value, {"m": 10.0}) == pytest.approx(gap)


def test_the_distance_is_the_sum_over_what_is_bounded():
    metrics = {"forget/en": 0.3, "forget/de": 0.6}
    assert measure_distance([FORGET], metrics, metrics) == pytest.approx(0.2 + 0.5)


def test_a_bound_is_written_as_the_command_line_reads_it():
    assert str(FORGET) == "forget<=0.1"
    assert str(Bound(metric="real/en", below=0.8, relative=True)) == "real/en<=80%"


def test_a_bound_in_a_language_that_is_not_measured_is_dropped_without_a_word():
    config = replace(CONFIG, until=UNTIL, guards=GUARDS)
    assert config.guards[0].metric == "retention/en"
    others = ["forget/de", "retention/de", "repetition/de", "reference_kl/de"]
    assert drop_empty_bounds(config, others).guards == GUARDS[1:]
    with pytest.warns(UserWarning, match="questions for reference_kl<=0.1: give"):
        kept = drop_empty_bounds(config, others[:3]).guards
    assert kept == GUARDS[1:3]
    with pytest.warns(UserWarning, match="for retention/en>=0.9, retention>=0.8: give"):
        drop_empty_bounds(config, ["forget/de", *others[2:]])


# Runs


def test_a_run_ends_where_the_goal_is_reached():
    done, seen = run([(1.0, 1.0), (0.5, 0.9), (0.1, 0.8), (0.0, 0.0)])
    assert done.reason == "the goal is reached at step 4"
    assert len(done.history) == 4
    assert is_at(done.model, seen[2])


def test_a_goal_that_a_closer_look_does_not_confirm_is_not_reached():
    # By the closer look a fifth is left at step 4, and nothing at step 6.
    asked = []

    def confirm(model):
        asked.append({n: p.detach().clone() for n, p in model.model.named_parameters()})
        return {"forget/en": 0.2 if len(asked) == 1 else 0.0}

    rows = [(1.0, 1.0), (0.5, 0.9), (0.0, 0.9), (0.0, 0.85), (0.0, 1.0)]
    done, seen = run(rows, confirm=confirm)
    assert done.reason == "the goal is reached at step 6"
    assert len(asked) == 2
    assert is_at(done.model, seen[3])
    assert [row["forget/en"] for row in done.history if "forget/en" in row] == [0.5, 0.2, 0.0]


def test_a_run_goes_on_past_a_broken_guard_and_back_to_the_best():
    # At step 4 nothing is left, but German is broken; at step 6 it has recovered.
    done, seen = run([(1.0, 1.0), (0.5, 0.9), (0.0, 0.3), (0.3, 0.85), (0.4, 0.9)])
    assert len(done.history) == 8
    assert done.reason == (
        "all 8 steps; back to step 6 of 8, the best at which all guards held: later ones are no "
        "nearer to the goal"
    )
    assert is_at(done.model, seen[3])


def test_the_reason_names_the_guard_that_the_best_model_meets_next():
    done, seen = run([(1.0, 1.0), (0.5, 0.9), (0.0, 0.3), (0.0, 0.2), (0.0, 0.1)])
    assert done.reason == (
        "all 8 steps; back to step 2 of 8, the best at which all guards held: at step 4 "
        "retention/de was 0.3 (guard retention>=0.8)"
    )
    assert is_at(done.model, seen[1])


def test_a_method_that_always_breaks_gives_the_vanilla_model_back():
    done, _ = run([(1.0, 1.0)] + [(0.0, 0.1)] * 4)
    assert "back to step 0 of 8" in done.reason
    assert is_at(done.model, dict(tiny().model.named_parameters()))


def test_the_last_step_is_evaluated_whatever_evaluate_every_is():
    config = replace(CONFIG, num_steps=3)
    done, seen = run([(1.0, 1.0), (0.5, 0.9), (0.2, 0.9)], config=config)
    assert done.reason == "all 3 steps; all guards hold at the last step, 3"
    assert is_at(done.model, seen[2])


def test_a_stop_on_a_loss_is_evaluated_before_the_run_goes_back():
    stops = (Bound(metric="forget_ce", above=0.0),)
    done, seen = run([(1.0, 1.0), (0.9, 1.0)], config=replace(CONFIG, stops=stops))
    assert "forget_ce reached" in done.reason
    assert len(seen) == 2


def test_a_killed_run_keeps_its_best_weights(tmp_path):
    rows = [(1.0, 1.0), (0.3, 0.9), (0.0, 0.3), (0.2, 0.1), (0.0, 0.1)]
    whole, _ = run(rows, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(rows, out=tmp_path / "killed", kill_at=3)
    # Before, and steps 2 and 4 were evaluated.
    resumed, seen = run(rows[3:], out=tmp_path / "killed")
    assert len(seen) == 2
    assert resumed.reason == whole.reason
    assert "back to step 2 of 8" in resumed.reason
    assert resumed.model.content_hash() == whole.model.content_hash()


def test_a_state_is_json_and_is_taken_up():
    best = BestCheckpoint(CONFIG)
    assert json.loads(json.dumps(best.state, allow_nan=False))["distance"] is None
    assert best.offer(0, {"forget": 0.5, "retention": 1.0}, {})
    other = BestCheckpoint(CONFIG)
    other.resume(json.loads(json.dumps(best.state)))
    assert not other.offer(2, {"forget": 0.5, "retention": 1.0}, {})
    assert other.offer(4, {"forget": 0.4, "retention": 1.0}, {})


def test_without_until_the_last_model_whose_guards_hold_is_made():
    config = replace(CONFIG, until=())
    done, seen = run([(1.0, 1.0), (0.5, 1.0), (0.6, 0.9), (0.1, 0.1), (0.1, 0.1)], config=config)
    assert "back to step 4 of 8" in done.reason
    assert is_at(done.model, seen[2])


# Mistakes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"guards": ()}, "until needs guards"),
        ({"evaluate_every": 0}, "'forget<=0.1' needs evaluate and evaluate_every"),
        (
            {"guards": (Bound(metric="retain_ce", below=3.0),)},
            "'retain_ce<=3' is on the loss of single batches",
        ),
        ({"guards": (Bound(metric="retain", above=0.9),)}, "unknown metric 'retain' in"),
    ],
)
def test_mistakes_are_one_sentence(changes, says):
    with pytest.raises(ValueError, match=says):
        run([(1.0, 1.0)], config=replace(CONFIG, **changes))


def test_a_guard_that_does_not_hold_before_training_is_a_mistake():
    with pytest.raises(ValueError, match=r"retention/de is 0.7 before any training"):
        run([(1.0, 0.7)])


def test_cards_name_the_goal_only_where_there_is_one():
    vanilla = tiny()
    card = make_training_card(vanilla, SETS, CONFIG)
    assert card["settings"]["until"] == [
        {"metric": "forget", "above": None, "below": 0.1, "relative": False}
    ]
    plain = make_training_card(vanilla, SETS, replace(CONFIG, until=(), guards=()))
    assert not {"until", "guards"} & plain["settings"].keys()
