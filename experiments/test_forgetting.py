"""The table of what methods forget and keep, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from experiments.forgetting import (
    NUM_CONFIRMING_ELSEWHERE,
    NUM_SEEN,
    is_passing,
    measure,
    read_measured,
    summarise,
)
from interp.behaviour import Guards
from interp.data import Query
from interp.tables import write_csv
from tests.helpers.tiny_models import tiny


def rows(method: str, seed: int, forget: float, german: float, kl: float) -> pd.DataFrame:
    values = [
        ("forget", "en", forget, 16),
        ("retention", "en", 0.95, 200),
        ("retention", "de", german, 40),
        ("unseen", "de", 0.1, 16),
        ("reference_kl", "en", kl, 4),
    ]
    columns = ["metric", "language", "after", "n"]
    table = pd.DataFrame(values, columns=columns).assign(before=1.0)
    return table.assign(method=method, seed=seed, seconds=100 + seed)


def test_a_row_has_means_and_ranges_over_seeds():
    table = pd.concat([rows("gd", 0, 0.0, 0.9, 0.01), rows("gd", 1, 0.125, 0.8, 0.04)])
    assert summarise(table).loc["gd"].to_dict() == {
        "passes": "1 of 2",
        "forget/en": "6 (0–12)",
        "retention/en": "95 (95–95)",
        "retention/de": "85 (80–90)",
        "reference_kl": "0.04",
        "seconds": "101",
    }


@pytest.mark.parametrize(
    ("forget", "german", "kl", "passes"),
    [
        (0.1, 0.8, 0.1, True),
        (0.11, 0.8, 0.1, False),
        (0.1, 0.79, 0.1, False),
        (0.1, 0.8, 0.11, False),
    ],
)
def test_a_model_passes_at_the_goal_with_all_guards(forget, german, kl, passes):
    assert is_passing(rows("gd", 0, forget, german, kl)) == passes


def test_facts_that_chose_the_checkpoint_are_left_out_of_the_unseen():
    model, chosen_by = tiny(), NUM_SEEN + NUM_CONFIRMING_ELSEWHERE
    asked = [
        Query(id=f"q{n}", language="en", prompt="w3 w4", answer="nothing", control=True)
        for n in range(chosen_by + 3)
    ]
    targets = (Query(id="t", language="en", prompt="w5", answer="nothing"),)
    guards = Guards(
        vanilla=model, targets=targets, kept=tuple(asked), samples=(), num_tokens=2, precise=True
    )
    assert guards.forgotten_in is None
    confirmed = replace(guards, forgotten_in=("en",))
    assert "unseen" not in measure(model, confirmed)["metric"].tolist()
    table = measure(model, guards).set_index("metric")
    assert table["n"].drop("repetition").to_dict() == {
        **{"forget": 1, "same_answer": 1, "retention": chosen_by + 3, "unseen": 3}
    }
    assert table.loc["unseen", "after"] == 0


def test_what_was_measured_is_of_one_model_and_its_questions(tmp_path):
    model, file = tiny(), tmp_path / "forgetting.csv"
    assert read_measured(file, model, "abc") is None
    about = {"model": model.content_hash(), "questions": "abc"}
    write_csv(file, rows("gd", 0, 0.0, 0.9, 0.01).assign(**about))
    found = read_measured(file, model, "abc")
    assert found is not None
    assert is_passing(found)
    assert read_measured(file, model, "other") is None
    assert read_measured(file, tiny(seed=1), "abc") is None
