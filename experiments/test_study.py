"""Studies: what is written, which findings count as seen, and comparisons of curves by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from experiments.study import Drawing, Finding, Study
from interp.recovery import contrast
from interp.report import Table
from interp.statistics import Estimate, compute_percentile_interval, draw_counts, make_undefined


def finding(value: float, low: float, high: float, note: str = "") -> Finding:
    measure = Estimate(value=value, ci_low=low, ci_high=high, n=10)
    return Finding(
        signature="A is above B",
        source="Paper, Fig. 1",
        quantity="A − B",
        measure=measure,
        note=note,
    )


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.4, 0.1, 0.6), "seen"),
        ((-0.4, -0.6, -0.1), "contradicted"),
        ((0.4, -0.1, 0.6), "undecided"),
        ((0.4, 0.0, 0.6), "undecided"),
        ((0.4, math.nan, math.nan), "undecided"),
    ],
)
def test_a_finding_is_seen_where_the_whole_interval_says_so(interval, verdict):
    assert finding(*interval).verdict == verdict


def test_what_has_no_value_was_not_measured():
    item = Finding(signature="s", source="p", quantity="q", measure=make_undefined("no such data"))
    assert item.verdict == "not measured"


def a_study(**changes) -> Study:
    fields = {
        "name": "dissect",
        "title": "Where it sits",
        "command": "python -m experiments.dissect.run quick",
        "config": {"preset": "quick", "methods": ["gd"]},
        "tables": {"krs": Table(rows=pd.DataFrame({"krs": [0.5, None]}), caption="Scores.")},
        "figures": {"curves": Drawing(figure=go.Figure(go.Scatter(y=[1, 2])), caption="Lines.")},
        "findings": [
            finding(0.4, 0.1, 0.6, note="small model"),
            Finding(
                signature="s", source="p", quantity="q", measure=make_undefined("no such data")
            ),
        ],
    }
    return Study(**(fields | changes))


def test_a_study_is_written_and_written_again(tmp_path):
    for _ in range(2):
        written = a_study().write(tmp_path, formats=["html"])
    assert written == [tmp_path / "figures" / "curves.html"]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "figures/curves.html",
        "figures/curves.json",
        "findings.md",
        "study.json",
        "tables/krs.csv",
    ]
    # Strictly JSON: a browser reads no NaN.
    about = json.loads((tmp_path / "study.json").read_text(), parse_constant=pytest.fail)
    assert about["config"] == {"preset": "quick", "methods": ["gd"]}
    assert about["tables"] == {"krs": "Scores."}
    assert about["versions"]["torch"]
    seen, missing = about["findings"]
    assert (seen["verdict"], seen["value"], seen["n"]) == ("seen", 0.4, 10)
    assert (missing["verdict"], missing["value"]) == ("not measured", None)
    assert missing["note"] == "no such data"
    text = (tmp_path / "findings.md").read_text()
    assert (
        "| A is above B | Paper, Fig. 1 | **seen** | A − B | 0.40 (0.10 to 0.60), n = 10 |" in text
    )
    assert "| **not measured** | q | – | no such data |" in text
    assert "does not say" not in text
    guarded = a_study(limits="Little.")
    assert guarded.markdown().split("\n\n")[1] == (
        "**What this does not say.** Little. [Which number says what](../../docs/krs.md)."
    )
    assert go.Figure(json.loads((tmp_path / "figures" / "curves.json").read_text())).data


# Comparisons


def losses(table: dict[tuple[str, str, int], list[float]], unlearned: float = 1.0) -> pd.DataFrame:
    """Losses of R by (language, site, layer), a value per question."""
    return pd.DataFrame(
        [
            {
                "language": language,
                "concept": "c",
                "query_id": f"q{number}",
                "site": site,
                "layer": layer,
                "loss_unlearned": unlearned,
                "loss_restored": value,
            }
            for (language, site, layer), values in table.items()
            for number, value in enumerate(values)
        ]
    )


def test_items_are_drawn_within_their_stratum():
    strata = np.array(["b", "a", "b", "a", "a", "c"])
    counts = draw_counts(strata, num_resamples=2000, seed=1)
    assert counts.shape == (2000, 6)
    for name, number in (("a", 3), ("b", 2), ("c", 1)):
        assert (counts[:, strata == name].sum(1) == number).all()
    # Each of three items is drawn once on average; none of three draws is it in (2/3)³ = 0.296.
    of_a = counts[:, strata == "a"]
    assert of_a.mean(0) == pytest.approx([1, 1, 1], abs=0.06)
    assert (of_a == 0).mean(0) == pytest.approx([8 / 27] * 3, abs=0.04)
    assert (draw_counts(strata, num_resamples=2000, seed=1) == counts).all()


def test_percentiles_leave_out_what_is_no_number():
    assert compute_percentile_interval([math.nan, *range(41)]) == (1, 39)
    assert all(map(math.isnan, compute_percentile_interval([math.nan])))


def test_a_contrast_is_of_ratios_of_means():
    table = losses({("en", "coef", 0): [0.2, 0.4], ("en", "value", 0): [0.9, 0.9]})
    table.loc[table["query_id"] == "q1", "loss_unlearned"] = 3.0
    found = contrast(table, lambda krs: krs["coef"][0] - krs["value"][0])
    # (1 − 0.6 / 4) − (1 − 1.8 / 4)
    assert found.value == pytest.approx(0.3)
    # Only the first question: 0.9 − 0.2; only the second: (0.9 − 0.4) / 3.
    assert found.ci_low == pytest.approx(0.5 / 3)
    assert found.ci_high == pytest.approx(0.7)
    assert found.n == 2


def test_what_is_always_the_same_between_two_sites_has_no_uncertainty():
    """Single scores vary from question to question, their difference does not."""
    values = np.linspace(0.1, 0.9, 9)
    table = losses({("en", "a", 0): list(values), ("en", "b", 0): list(values + 0.05)})
    alone = contrast(table, lambda krs: krs["a"][0])
    assert alone.ci_high - alone.ci_low > 0.2
    paired = contrast(table, lambda krs: krs["a"][0] - krs["b"][0])
    assert (paired.ci_low, paired.ci_high) == pytest.approx((0.05, 0.05))


def test_curves_are_by_layer_and_by_what_is_named():
    table = losses({("en", "a", 1): [0.5], ("en", "a", 0): [0.2], ("de", "a", 0): [0.9]})
    seen = []
    contrast(table, lambda krs: seen.append(dict(krs)) or 0.0, by=["language"], num_resamples=1)
    curves = seen[-1]
    assert list(curves) == [("de", "a"), ("en", "a")]
    assert curves["en", "a"] == pytest.approx([0.8, 0.5])
    assert curves["de", "a"] == pytest.approx([0.1])


def test_questions_are_drawn_within_their_language():
    """Equal questions of each of two languages: every resample holds as many of both."""
    table = losses({("en", "a", 0): [0.0, 0.0], ("de", "a", 0): [1.0, 1.0]})
    found = contrast(table, lambda krs: krs["a"][0])
    assert (found.value, found.ci_low, found.ci_high) == (0.5, 0.5, 0.5)
    # The only one of a language would always be drawn.
    one = contrast(table[table["query_id"] == "q0"], lambda krs: krs["a"][0])
    assert one.value == 0.5
    assert math.isnan(one.ci_low)
    assert math.isnan(one.ci_high)
    assert one.reason == "one question per language: no interval"


def test_a_question_that_was_not_measured_is_left_out():
    table = losses({("en", "a", 0): [0.2, math.nan], ("en", "b", 0): [0.4, 0.6]})
    found = contrast(table, lambda krs: krs["a"][0])
    assert found.value == pytest.approx(0.8)
    nothing = table.assign(loss_restored=math.nan)
    assert contrast(nothing, lambda krs: krs["a"][0]).reason == "no losses"


def test_two_models_must_be_told_apart():
    table = pd.concat([losses({("en", "a", 0): [0.2, 0.3]})] * 2)
    with pytest.raises(ValueError, match="duplicate question"):
        contrast(table, lambda krs: krs["a"][0])
