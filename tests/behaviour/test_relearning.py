"""Relearning: what is learned and held out, what is measured when, and the steps to recover."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from interp import Query
from interp.behaviour.knowledge import measure_knowledge
from interp.behaviour.relearning import (
    HELD_OUT,
    LEARNED,
    choose_texts,
    count_steps_to_recover,
    measure_relearning,
)
from interp.data import Text
from interp.figures import plot_training as figure
from interp.unlearning import Bound, TrainingConfig, make_examples, train
from tests.helpers.tiny_models import tiny

CONFIG = TrainingConfig(
    objective="finetune", learning_rate=1e-2, num_steps=6, batch_size=3, evaluate_every=2,
    autocast=False,
)  # fmt: skip

QUERIES = [
    Query(
        id=f"f{number}",
        language=code,
        prompt=f"w{number} w{13 if code == 'en' else 14}",
        answer=f"w{number + 20}",
        concept="c",
    )
    for code in ("en", "de")
    for number in (5, 6, 7, 8, 9)
]


def texts_of(*numbers, wordings=1):
    return [
        Text(
            id=f"f{number}", language="en", kind="fake", prompt=f"w{number} w13",
            answer=f" w{number + 20}", wording=wording,
        )
        for number in numbers
        for wording in range(1, wordings + 1)
    ]  # fmt: skip


def layer_weight(model):
    return {"weight": float(model.anatomy.layers[0].values.weight[0, 0])}


def ids_of(texts):
    return {text.id for text in texts}


# Which facts


def test_a_part_of_the_facts_with_all_their_texts():
    texts = texts_of(*range(3, 15), wordings=2)
    part = choose_texts(texts, 0.25)
    assert len(ids_of(part)) == 3
    assert part == [text for text in texts if text.id in ids_of(part)]
    assert ids_of(choose_texts(texts[::-1], 0.25)) == ids_of(part)
    assert ids_of(part) <= ids_of(choose_texts(texts, 0.5))
    assert len({frozenset(ids_of(choose_texts(texts, 0.25, seed=seed))) for seed in range(5)}) > 1


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.1, 0), (1.0, 3), (1.2, 4)])
def test_a_part_leaves_some_on_both_sides(share, number):
    with pytest.raises(ValueError, match=f"a share of {share} of 3 facts is {number}"):
        choose_texts(texts_of(3, 4, 5), share)


# What is measured when


def test_each_step_is_that_of_a_training_of_so_many_steps():
    models = {"vanilla": tiny(), "unlearned": tiny(seed=1)}
    before = {name: model.content_hash() for name, model in models.items()}
    texts = texts_of(5, 6, 7, 8)
    found = measure_relearning(models, texts, layer_weight, CONFIG, progress=False)
    assert {name: model.content_hash() for name, model in models.items()} == before
    expected = []
    for name, model in models.items():
        for steps in (0, 2, 4, 6):
            trained = model
            if steps:
                config = replace(CONFIG, num_steps=steps)
                trained = train(
                    model, {"retain": make_examples(texts)}, config, progress=False
                ).model
            expected.append([name, "", steps, "weight", layer_weight(trained)["weight"]])
    columns = ["model", "part", "step", "name", "value"]
    assert found[columns].values.tolist() == expected
    assert len({row[-1] for row in expected}) == 8
    assert set(found["ended"]) == {"all 6 steps"}


def test_learned_and_held_out_facts_have_candidates_of_their_own():
    model = tiny(num_layers=2)
    config = replace(CONFIG, num_steps=30, evaluate_every=30)
    found = measure_relearning({"U": model}, texts_of(5, 6, 7), QUERIES, config, progress=False)
    assert found.columns[:3].tolist() == ["model", "step", "part"]
    cells = found[["part", "step", "language", "num_queries", "chance"]].values.tolist()
    third, half = pytest.approx(1 / 3), 1 / 2
    assert cells == [
        [part, step, code, number, chance]
        for step in (0, 30)
        for part, number, chance in ((LEARNED, 3, third), (HELD_OUT, 2, half))
        for code in ("en", "de")
    ]
    first = measure_knowledge(model, [query for query in QUERIES if query.id in ("f8", "f9")])
    before = found.query("part == @HELD_OUT and step == 0")
    assert before["accuracy"].tolist() == first["accuracy"].tolist()
    # What was trained on is known.
    learned = found.query("part == @LEARNED and step == 30 and language == 'en'")
    assert learned["accuracy"].tolist() == [1.0]


def test_unrelated_texts_leave_all_facts_held_out():
    config = replace(CONFIG, num_steps=2)
    found = measure_relearning({"U": tiny()}, texts_of(30, 31), QUERIES, config, progress=False)
    assert set(found["part"]) == {HELD_OUT}
    assert found["chance"].tolist() == pytest.approx([1 / 5] * len(found))


def test_a_stop_on_an_accuracy_does_not_shift_the_steps():
    """Where a stop watches a metric, training evaluates before the first step, too."""
    texts, metric = texts_of(5, 6, 7), f"{HELD_OUT}: c/de"
    plain = measure_relearning({"U": tiny()}, texts, QUERIES, CONFIG, progress=False)
    never = replace(CONFIG, stops=(Bound(metric=metric, above=1.5),))
    pd.testing.assert_frame_equal(
        measure_relearning({"U": tiny()}, texts, QUERIES, never, progress=False), plain
    )
    at_once = replace(CONFIG, stops=(Bound(metric=metric, above=-0.5),))
    stopped = measure_relearning({"U": tiny()}, texts, QUERIES, at_once, progress=False)
    assert sorted(set(stopped["step"])) == [0, 2]
    assert stopped["ended"].iloc[0].startswith(f"{metric} reached")


def test_a_run_that_ends_before_it_is_evaluated_has_its_first_row():
    config = replace(CONFIG, stops=(Bound(metric="retain_ce", above=0.0),))
    found = measure_relearning({"U": tiny()}, texts_of(5, 6), layer_weight, config, progress=False)
    assert found["step"].tolist() == [0]
    assert found["ended"].iloc[0].startswith("retain_ce reached")


def test_settings_that_show_nothing_are_refused():
    with pytest.raises(ValueError, match="has the objective 'finetune', not 'gd'"):
        measure_relearning({}, texts_of(5), QUERIES, replace(CONFIG, objective="gd"))
    with pytest.raises(ValueError, match="evaluate_every must be at least 1"):
        measure_relearning({}, texts_of(5), QUERIES, replace(CONFIG, evaluate_every=0))


# Steps to recover


def rows(model, accuracies, *, language="de", part=HELD_OUT, ci_low=0.5, chance=0.1):
    """One row per step: 0, 2, 4, …"""
    return [
        {
            "model": model, "part": part, "step": 2 * number, "language": language, "concept": "c",
            "accuracy": value, "ci_low": ci_low, "ci_high": 1.0, "chance": chance,
            "num_queries": 10, "ended": "all 4 steps",
        }
        for number, value in enumerate(accuracies)
    ]  # fmt: skip


def test_steps_to_recover_by_hand():
    """Nine tenths of 0.8 are 0.72, whatever V learns or forgets later."""
    table = pd.DataFrame(
        [
            *rows("vanilla", [0.8, 1.0, 0.1]),
            *rows("unlearned", [0.1, 0.7, 0.75]),
            *rows("baseline", [0.1, 0.2, 0.7]),
            *rows("forgetful", [0.2, 0.9, 0.3]),
            *rows("vanilla", [0.2, 0.2, 0.2], language="ur", ci_low=0.05),
            *rows("unlearned", [0.0, 0.2, 0.2], language="ur"),
            *rows("unlearned", [0.0, 0.2, 0.2], part=LEARNED),
        ]
    )
    found = count_steps_to_recover(table)
    keys = ["model", "part", "language", "target", "steps", "reason"]
    values = found[keys].astype(object).where(found[keys].notna(), None).values.tolist()
    assert values == [
        ["unlearned", HELD_OUT, "de", pytest.approx(0.72), 4, ""],
        ["baseline", HELD_OUT, "de", pytest.approx(0.72), None, "not reached: all 4 steps"],
        ["forgetful", HELD_OUT, "de", pytest.approx(0.72), 2, ""],
        [
            *("unlearned", HELD_OUT, "ur", None, None),
            "vanilla cannot be told from chance: 20% (5% to 100%), chance 10%",
        ],
        ["unlearned", LEARNED, "de", None, None, "vanilla has no value"],
    ]
    half = count_steps_to_recover(table, 0.5).query("language == 'de' and part == @HELD_OUT")
    assert half["steps"].tolist()[0] == 2
    assert half["steps"].tolist()[1] == 4
    other = count_steps_to_recover(table, reference="baseline").query("model == 'vanilla'")
    assert other["steps"].tolist()[0] == 0


def test_steps_to_recover_of_any_measure():
    table = pd.DataFrame(
        [
            {"model": model, "part": "", "step": step, "name": "m", "value": value, "ended": "e"}
            for model, values in (("vanilla", (2.0, 2.0)), ("unlearned", (1.0, 1.9)))
            for step, value in zip((0, 5), values, strict=True)
        ]
    )
    (row,) = count_steps_to_recover(table).to_dict("records")
    assert row == {
        "model": "unlearned", "part": "", "name": "m", "target": 1.8, "steps": 5.0, "reason": ""
    }  # fmt: skip


def test_a_reference_that_is_missing_is_named():
    table = pd.DataFrame(rows("unlearned", [0.1]))
    with pytest.raises(ValueError, match="no model 'vanilla' to compare with; it has unlearned"):
        count_steps_to_recover(table)
    with pytest.raises(ValueError, match="must be above 0, not 0"):
        count_steps_to_recover(table, 0, reference="unlearned")
    nothing = pd.DataFrame([*rows("vanilla", [math.nan]), *rows("unlearned", [0.1])])
    assert count_steps_to_recover(nothing)["reason"].tolist() == ["vanilla has no value"]


def test_the_figure_of_training_draws_it():
    table = pd.DataFrame([*rows("vanilla", [0.8, 0.9]), *rows("unlearned", [0.1, 0.7])])
    drawn = figure(pd.DataFrame(), table.assign(concept=table["model"]))
    lines = [trace for trace in drawn.data if trace.y is not None and len(trace.y) == 2]
    assert [list(line.y) for line in lines] == [[80.0, 90.0], [10.0, 70.0]]
    assert [list(line.x) for line in lines] == [[0, 2]] * 2
