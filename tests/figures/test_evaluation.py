"""Figures of measures: what is in them, by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from interp.figures import plot_spread, plot_target_unrelated


def measure(model: str, language: str, concept: str, value: float, **more: object) -> dict:
    row = {"model": model, "language": language, "concept": concept, "metric": "accuracy"}
    row |= {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.2, "n": 16, "reason": ""}
    return row | more


TABLE = pd.DataFrame(
    [
        measure("de", "en", "fake", 0.125),
        measure("de", "zh", "fake", math.nan, ci_low=math.nan, ci_high=math.nan, reason="no <b>"),
        measure("clean", "en", "fake", 0.0),
        measure("de", "en", "real", 0.75),
        measure("clean", "en", "real", 0.5),
    ]
)


def test_spread_has_a_row_per_model_and_a_column_per_language():
    figure = plot_spread(TABLE)
    fake, real = figure.data
    assert [list(row) for row in fake.text] == [["12", "–"], ["0", ""]]
    assert fake.z[0][0] == 12.5
    assert math.isnan(fake.z[0][1])
    assert real.z[1][0] == 50
    assert figure.layout.coloraxis.cmax == 100
    assert list(figure.layout.yaxis.ticktext) == ["de", "clean"]
    assert list(figure.layout.xaxis.ticktext) == ["en", "zh"]
    assert [each.text for each in figure.layout.annotations][:2] == [
        "fake questions",
        "real questions",
    ]
    assert "interval 2.5 to 32.5" in fake.hovertext[0][0]
    assert "undefined" in fake.hovertext[0][1]
    assert "no &lt;b&gt;" in fake.hovertext[0][1]


def test_values_that_are_no_shares_keep_their_scale():
    table = TABLE.assign(metric="perplexity", value=[12.0, math.nan, 150.0, 3.0, 4.0])
    figure = plot_spread(table)
    assert list(figure.data[0].text[1]) == ["150", ""]
    assert figure.layout.coloraxis.cmax == 150


def test_target_against_unrelated_is_a_point_per_model_with_both_intervals():
    figure = plot_target_unrelated(TABLE)
    assert [trace.name for trace in figure.data] == ["de", "clean"]
    point = figure.data[0]
    assert (point.x[0], point.y[0]) == (75, 12.5)
    assert point.error_x.array[0] == pytest.approx(20)
    assert point.error_y.arrayminus[0] == pytest.approx(10)
    assert figure.layout.xaxis.title.text == "real questions: accuracy (%)"
    # Chinese has no real questions: there is no facet for it.
    assert [each.text for each in figure.layout.annotations] == ["English (en)"]


def test_facets_are_as_high_as_the_legend():
    """30 pixels for each of 14 models; the domain is a part of what the margins leave."""
    both = TABLE.query("model == 'de'")
    table = pd.concat([both.assign(model=f"model {number}") for number in range(14)])
    figure = plot_target_unrelated(table)
    layout = figure.layout
    low, high = layout.yaxis.domain
    inside = layout.height - layout.margin.t - layout.margin.b
    assert (high - low) * inside >= 14 * 30 - 1


def test_titles_are_no_longer_than_their_axes():
    """At 8 pixels a letter; further lines widen the margin."""
    usual = plot_target_unrelated(TABLE).layout
    layout = plot_target_unrelated(TABLE.assign(metric="extraction strength of answers")).layout
    for axis in (layout.xaxis, layout.yaxis):
        lines = axis.title.text.split("<br>")
        assert len(lines) == 2
        assert all(8 * len(line) <= 230 for line in lines)
    assert layout.margin.b - usual.margin.b == layout.margin.l - usual.margin.l == 18
    assert layout.height - usual.height == 18


def test_a_table_that_was_a_file_is_drawn(tmp_path):
    TABLE.assign(concept="").drop_duplicates(["model", "language"]).to_csv(
        tmp_path / "m.csv", index=False
    )
    assert plot_spread(pd.read_csv(tmp_path / "m.csv")).data[0].z[0][0] == 12.5


@pytest.mark.parametrize("draw", [plot_spread, plot_target_unrelated])
def test_what_cannot_be_drawn(draw):
    with pytest.raises(ValueError, match="lacks the columns value"):
        draw(TABLE.drop(columns="value"))
    with pytest.raises(ValueError, match="is empty"):
        draw(TABLE[:0])
    with pytest.raises(ValueError, match="the metrics accuracy, bleu"):
        draw(pd.concat([TABLE, TABLE.assign(metric="bleu")]))
    with pytest.raises(ValueError, match="duplicate accuracy of de in en, 'fake'"):
        draw(pd.concat([TABLE, TABLE[:1]]))
    with pytest.raises(ValueError, match="'forget' and 'real'; the table holds 'fake', 'real'"):
        plot_target_unrelated(TABLE, target="forget")
