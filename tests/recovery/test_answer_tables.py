"""Tables made of a sweep beside the score: answers, excess, retained readout, damage, what V knows.

All numbers are worked out by hand from losses and answers that are written down here.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from interp.launch import Recovery
from interp.recovery import (
    compute_answer_recovery,
    compute_damage,
    compute_excess,
    compute_krs,
    compute_retained,
    contrast,
)
from interp.statistics import compute_wilson_interval


def make_rows(
    name: str = "U",
    *,
    restored=(1.0, 1.0, 1.0, 1.0),
    unlearned=(4.0, 4.0, 4.0, 4.0),
    answered=(1, 1, 1, 0),
    own=(0, 0, 1, 0),
    known=(1, 1, 0, math.nan),
    language: str = "en",
    control: bool = False,
    site: str = "coef",
    direction: str = "restore",
    distance: str = "logit_mse",
) -> pd.DataFrame:
    """Make one cell's rows of four questions."""
    count = len(restored)
    first = 100 if control else 0
    return pd.DataFrame(
        {
            "vanilla": "V",
            "unlearned": name,
            "language": language,
            "query_id": [f"q{first + number}" for number in range(count)],
            "concept": "",
            "control": control,
            "known": known,
            "site": site,
            "layer": 2,
            "first_layer": 0,
            "last_layer": 4,
            "num_tokens": 3,
            "loss_unlearned": np.array(unlearned, float),
            "loss_restored": np.array(restored, float),
            "loss_self": 0.0,
            "answered_unlearned": np.array(own, float),
            "answered_restored": np.array(answered, float),
            "engine": "full",
            "dtype": "float32",
            "variant": "paper",
            "direction": direction,
            "distance": distance,
            "positions": "all",
            "reason": "",
        }
    )


def only(table: pd.DataFrame) -> pd.Series:
    assert len(table) == 1
    return table.iloc[0]


def test_answers_by_hand():
    row = only(compute_answer_recovery(make_rows()))
    low, high = compute_wilson_interval(3, 4)
    assert (row["recovered"], row["ci_low"], row["ci_high"]) == (0.75, low, high)
    # U itself gives one of the four answers; V is right on two of the three that can be judged.
    assert (row["unlearned"], row["num_queries"]) == (0.25, 4)
    assert (row["num_known"], row["num_asked"], row["reason"]) == (2, 4, "")


def test_tables_say_how_many_tokens_of_an_answer_are_scored():
    rows = make_rows()
    rows["num_tokens"] = [30, 1, 2, 3]
    # The same question in another window is no further one.
    rows = pd.concat([rows, rows.assign(layer=3)])
    for compute in (compute_answer_recovery, compute_krs):
        assert compute(rows)["num_tokens"].tolist() == [9, 9]


def test_what_was_not_measured_is_left_out_and_said():
    rows = make_rows()
    rows.loc[0, ["answered_restored", "answered_unlearned", "loss_restored"]] = np.nan
    rows.loc[0, "reason"] = "nothing scored: the answer is empty"
    row = only(compute_answer_recovery(rows))
    assert (row["recovered"], row["num_queries"]) == (pytest.approx(2 / 3), 3)
    assert row["reason"] == ("1 of 4 questions left out: nothing scored: the answer is empty")


def test_translations_of_a_fact_are_one_fact():
    """Two languages that agree on every fact say no more than one."""
    twice = pd.concat([make_rows(), make_rows(language="de")])
    row = only(compute_answer_recovery(twice, by=("vanilla",)))
    assert (row["recovered"], row["num_queries"]) == (0.75, 8)
    alone = only(compute_answer_recovery(make_rows(), by=("vanilla",)))
    eight = compute_wilson_interval(6, 8)
    assert row["ci_high"] - row["ci_low"] > eight[1] - eight[0]
    assert alone["recovered"] == row["recovered"]


def test_known_questions_alone():
    """Of q0 and q1, which V knows, both come back; the losses are 1 of 2 and 3 of 6."""
    rows = make_rows(restored=(1, 3, 8, 8), unlearned=(2, 6, 8, 8), answered=(1, 0, 0, 0))
    row = only(compute_answer_recovery(rows, only="known"))
    assert (row["recovered"], row["num_queries"], row["num_asked"]) == (0.5, 2, 4)
    score = only(compute_krs(rows, only="known"))
    assert (score["krs"], score["num_queries"], score["num_known"]) == (0.5, 2, 2)
    assert score["reason"] == (
        "2 of 4 questions left out: V does not give the right answer, "
        "it is not known whether V's answer is right"
    )
    assert only(compute_krs(rows))["krs"] == pytest.approx(1 - 20 / 24)


def test_a_language_of_which_v_knows_nothing_stays_in_the_table():
    rows = pd.concat([make_rows(), make_rows(language="ur", known=(0, 0, 0, 0))])
    table = compute_krs(rows, only="known").set_index("language")
    assert table.loc["ur", "num_queries"] == 0
    assert math.isnan(table.loc["ur", "krs"])
    assert (table.loc["ur", "num_known"], table.loc["ur", "num_asked"]) == (0, 4)
    with pytest.raises(ValueError, match="no question has a right answer"):
        compute_krs(make_rows(known=(math.nan,) * 4), only="known")
    with pytest.raises(ValueError, match="unknown only='right'; valid: known"):
        compute_krs(rows, only="right")


def test_controls_are_no_targets():
    kept = make_rows(control=True, restored=(2,) * 4, unlearned=(2,) * 4, answered=(1, 1, 1, 1))
    rows = pd.concat([make_rows(), kept])
    assert only(compute_krs(rows))["krs"] == 0.75
    assert only(compute_krs(rows, controls=True))["krs"] == 0
    assert only(compute_answer_recovery(rows, controls=True))["recovered"] == 1
    assert contrast(rows, lambda krs: krs["coef"][0]).value == 0.75
    with pytest.raises(ValueError, match="no control questions were measured"):
        compute_krs(make_rows(), controls=True)


def test_damage_by_hand():
    """Loss 4 on targets, (1 + 3) / 2 = 2 on controls; another site repeats the same losses."""
    kept = make_rows(control=True, unlearned=(1, 3, 1, 3))
    rows = pd.concat([make_rows(), kept, make_rows(site="value"), kept.assign(site="value")])
    row = only(compute_damage(rows))
    assert (row["damage"], row["loss_targets"], row["loss_controls"]) == (0.5, 4, 2)
    assert (row["num_targets"], row["num_controls"]) == (4, 4)
    # All targets have one loss: the interval is that of the mean of the controls, over 4.
    assert 0.25 <= row["ci_low"] < 0.5 < row["ci_high"] <= 0.75
    with pytest.raises(ValueError, match="no control questions"):
        compute_damage(make_rows())
    # Of nothing unlearned there is no damage to speak of.
    still = only(compute_damage(pd.concat([make_rows(unlearned=(0,) * 4), kept])))
    assert math.isnan(still["damage"])
    assert still["reason"] == "loss(V, U) on the targets is not above 0"


def test_excess_by_hand():
    """KRS_U = 1 - 4/16 = 0.75 and KRS_N = 1 - 8/16 = 0.5; 3 and 1 of 4 answers."""
    rows = pd.concat([make_rows(), make_rows("N", restored=(2,) * 4, answered=(1, 0, 0, 0))])
    row = only(compute_excess(rows, "N"))
    assert (row["score"], row["never"], row["excess"]) == (0.75, 0.5, 0.25)
    # All questions are alike, so that the interval has no width.
    assert (row["ci_low"], row["ci_high"], row["num_queries"]) == (0.25, 0.25, 4)
    row = only(compute_excess(rows, "N", value="answers"))
    assert (row["score"], row["never"], row["excess"]) == (0.75, 0.25, 0.5)
    # Questions are drawn once for both: of q0 to q3 the differences are 0, 1, 1, 0.
    assert 0 <= row["ci_low"] < 0.5 < row["ci_high"] <= 1


def test_excess_is_of_the_questions_that_both_have():
    own, never = make_rows(restored=(1, 1, 1, 9)), make_rows("N", restored=(2, 2, 2, 2))
    never.loc[3, "loss_restored"] = np.nan
    row = only(compute_excess(pd.concat([own, never]), "N"))
    assert (row["score"], row["never"], row["num_queries"]) == (0.75, 0.5, 3)
    with pytest.raises(ValueError, match="never='M' must be one of several models"):
        compute_excess(pd.concat([own, never]), "M")
    with pytest.raises(ValueError, match="different questions, sites or windows"):
        compute_excess(pd.concat([own, never.assign(site="attn")]), "N")


def test_retained_readout_by_hand():
    """V←U gives 3 of 4 answers at a fall of 1 nat, V←N 1 of 4 at 2 nats."""
    reverse = {"direction": "corrupt", "distance": "answer_logprob"}
    rows = pd.concat(
        [
            make_rows(**reverse),
            make_rows("N", restored=(2,) * 4, answered=(1, 0, 0, 0), **reverse),
        ]
    )
    row = only(compute_retained(make_rows(**reverse)))
    assert (row["retained"], row["fall"], row["fall_low"], row["fall_high"]) == (0.75, 1, 1, 1)
    row = only(compute_retained(rows, "N"))
    assert (row["model"], row["retained_never"], row["fall_never"]) == ("U", 0.25, 2)
    assert row["erased"] == pytest.approx((1 - 0.75) / (1 - 0.25))
    assert (row["erased_fall"], row["erased_fall_low"], row["erased_fall_high"]) == (0.5, 0.5, 0.5)
    # Where N's part costs V nothing, nothing is read there.
    rows = pd.concat(
        [
            make_rows(**reverse),
            make_rows("N", restored=(0.01,) * 4, answered=(1,) * 4, **reverse),
        ]
    )
    row = only(compute_retained(rows, "N"))
    assert math.isnan(row["erased"])
    assert math.isnan(row["erased_fall"])
    with pytest.raises(ValueError, match="needs the direction corrupt, or both"):
        compute_retained(make_rows())


def test_another_distance_tells_no_log_probabilities():
    row = only(compute_retained(make_rows(direction="corrupt")))
    assert row["retained"] == 0.75
    assert math.isnan(row["fall"])


def test_both_directions_in_one_recovery():
    reverse = {"direction": "corrupt", "distance": "answer_logprob"}
    rows = [
        make_rows(),
        make_rows("N", restored=(2,) * 4, answered=(1, 0, 0, 0)),
        make_rows(answered=(1, 1, 0, 0), **reverse),
        make_rows("N", restored=(2,) * 4, answered=(0, 0, 0, 0), **reverse),
    ]
    recovery = Recovery(losses=pd.concat(rows), never="N")
    assert recovery.list_values() == ["krs", "answers", "retained"]
    row = only(recovery.krs(never=True))
    assert (row["unlearned"], row["krs"], row["krs_never"], row["excess"]) == ("U", 0.75, 0.5, 0.25)
    row = only(recovery.answers(never="N"))
    assert (row["model"], row["unlearned"]) == ("U", 0.25)
    assert (row["recovered"], row["recovered_never"], row["excess"]) == (0.75, 0.25, 0.5)
    row = only(recovery.retained(never=True))
    assert (row["retained"], row["erased"], row["erased_fall"]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="never=True needs a sweep"):
        Recovery(losses=pd.concat(rows)).krs(never=True)


def test_tables_of_earlier_versions():
    old = make_rows().drop(columns=["control", "known", "answered_restored", "answered_unlearned"])
    row = only(compute_krs(old))
    assert (row["krs"], row["num_asked"]) == (0.75, 4)
    assert math.isnan(row["num_known"])
    with pytest.raises(ValueError, match="measured by an earlier version"):
        compute_answer_recovery(old)
    assert Recovery(losses=old).list_values() == ["krs"]


def test_hong2024_has_no_answers():
    rows = make_rows(answered=(math.nan,) * 4, own=(math.nan,) * 4)
    with pytest.raises(ValueError, match="use the variant paper"):
        compute_answer_recovery(rows)


def test_what_v_knows():
    kept = make_rows(control=True, unlearned=(2,) * 4, known=(1, 1, 1, 1))
    table = Recovery(losses=pd.concat([make_rows(), kept])).known()
    row = only(table)
    assert (row["num_known"], row["num_asked"], row["loss_unlearned"]) == (2, 4, 4)
    assert (row["num_controls_known"], row["num_controls"]) == (4, 4)
