"""Arrays of sources, mixes and query languages: what is in them, by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from experiments.cross_lingual.figures import plot_array, plot_curves


def score(unlearning: str, language: str, site: str, krs: float, **more: object) -> dict:
    row = {"source": "de", "unlearning": unlearning, "language": language, "site": site}
    row |= {"layer": 7, "krs": krs, "ci_low": krs - 0.1, "ci_high": krs + 0.1}
    return row | {"num_queries": 8, "reason": ""} | more


SCORES = pd.DataFrame(
    [
        score("english", "en", "attn", 0.5),
        score("english", "de", "attn", 0.25),
        score("same", "en", "attn", -3.0),
        score("same", "de", "attn", math.nan, ci_low=math.nan, ci_high=math.nan, reason="no <x>"),
        score("english", "de", "value", 0.125),
        score("english", "en", "attn", 0.75, source="fr"),
    ]
)


def test_an_array_has_a_row_per_source_and_mix_and_a_facet_per_site():
    figure = plot_array(SCORES, title="One < two")
    attn, value = figure.data
    assert [attn.name, value.name] == ["attn", "value"]
    assert [list(row) for row in attn.text] == [["0.50", "0.25"], ["-3.00", "–"], ["0.75", ""]]
    assert attn.z[1][0] == -3
    assert math.isnan(attn.z[2][1])
    assert value.text[0][1] == "0.12"
    assert list(figure.layout.yaxis.ticktext) == [
        "German (de): english",
        "German (de): same",
        "French (fr): english",
    ]
    assert list(figure.layout.xaxis.ticktext) == ["English<br>(en)", "German<br>(de)"]
    # The largest score is −3, the scale ends at one.
    scale = figure.layout.coloraxis
    assert (scale.cmin, scale.cmid, scale.cmax) == (-1, 0, 1)
    assert attn.hovertext[1][1].split("<br>")[2:] == [
        "unlearned in: same",
        "attn, window around layer 7",
        "KRS undefined",
        "8 questions",
        "no &lt;x&gt;",
    ]


def test_the_language_taught_is_framed():
    figure = plot_array(SCORES)
    frames = [(each.xref, each.x0, each.y0) for each in figure.layout.shapes]
    # German stands in the second column; French is not asked in.
    assert frames == [("x", 0.5, -0.5), ("x", 0.5, 0.5), ("x2", 0.5, -0.5), ("x2", 0.5, 0.5)]


def step(unlearning: str, number: int, language: str, accuracy: float) -> dict:
    row = {"source": "de", "unlearning": unlearning, "step": number, "language": language}
    row |= {"concept": "fake", "accuracy": accuracy, "ci_low": 0.0, "ci_high": 1.0}
    return row | {"chance": 0.25, "num_queries": 4}


STEPS = pd.DataFrame(
    [
        step("english", 6, "en", 0.25),
        step("english", 0, "en", 1.0),
        step("english", 0, "de", 0.75),
        step("same", 0, "de", 0.75),
        step("same", 6, "de", 0.5),
    ]
)


def test_curves_have_a_facet_per_mix_and_a_line_per_language():
    figure = plot_curves(STEPS, title="t")
    lines = [(each.name, list(each.x), list(each.y), each.xaxis) for each in figure.data]
    assert lines == [
        ("English (en)", [0, 6], [100, 25], "x"),
        ("German (de)", [0], [75], "x"),
        ("German (de)", [0, 6], [75, 50], "x2"),
    ]
    assert [each.showlegend for each in figure.data] == [True, True, False]
    assert {each.y0 for each in figure.layout.shapes} == {25}
    texts = [each.text for each in figure.layout.annotations]
    assert texts[:2] == ["english", "same"]
    assert "<b>false facts in German (de)</b>" in texts


def test_sources_have_a_row_each_with_room_for_mixes_that_they_lack():
    figure = plot_curves(pd.concat([STEPS, STEPS[3:].assign(source="fr")]))
    last = figure.data[-1]
    assert (last.xaxis, last.yaxis) == ("x4", "y4")


def test_the_legend_of_nine_languages_has_room_beside_one_row():
    codes = ("en", "de", "fr", "zh", "ru", "jv", "ur", "ha", "hy")
    figure = plot_curves(pd.concat([STEPS[:2].assign(language=code) for code in codes]))
    assert len([each for each in figure.data if each.showlegend]) == 9
    bottom, top = figure.layout.yaxis.domain
    margins = figure.layout.margin
    inside = figure.layout.height - margins.t - margins.b
    assert (top - bottom) * inside >= 10 * 28


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="lacks the columns krs"):
        plot_array(SCORES.drop(columns="krs"))
    with pytest.raises(ValueError, match=r"German \(de\): english in en, site 'attn' twice"):
        plot_array(pd.concat([SCORES, SCORES[:1]]))
    with pytest.raises(ValueError, match="is empty"):
        plot_curves(STEPS[:0])
    with pytest.raises(ValueError, match="lacks the columns chance"):
        plot_curves(STEPS.drop(columns="chance"))


def test_a_table_that_was_a_file_is_drawn(tmp_path):
    SCORES.to_csv(tmp_path / "scores.csv", index=False)
    assert plot_array(pd.read_csv(tmp_path / "scores.csv")) == plot_array(SCORES)
