"""Reductions, what they go with, and shared subwords, by hand."""

import math
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from experiments.transfer.correlates import (
    BINARY,
    COLUMNS,
    GRADED,
    compute_reductions,
    correlate_reductions,
    measure_subword_overlap,
)
from experiments.transfer.correlates_figure import plot_transfer as draw
from interp.languages import LANGUAGES
from tests.helpers.tiny_models import tiny

stats = pytest.importorskip("scipy.stats", reason="scipy (extra `behaviour`)")

NAN = math.nan


def rates(**changes):
    """Unlearned in German: of what each language knew, the share that it lost."""
    columns = {
        "language": ["de", "en", "nl", "ru", "hy", "zh-Hant"],
        "before": [0.8, 0.5, 0.4, 0.8, 0.1, 0.5],
        "after": [0.2, 0.1, 0.2, 0.6, 0.1, 0.6],
    }
    return pd.DataFrame(columns | changes)


def predicted(reduction, **predictors):
    """A table as `compute_reductions` gives it, with these values; other predictors differ."""
    blank = {name: [True, False, *[True] * (len(reduction) - 2)] for name in BINARY}
    found = {"reduction": reduction, "unlearned_in": False, **blank, **predictors}
    return pd.DataFrame(found)


def row(table, predictor):
    return correlate_reductions(table).set_index("predictor").loc[predictor]


def test_reductions_by_hand():
    table = compute_reductions(rates(), unlearned_in=["de"])
    # (0.8 - 0.2) / 0.8, (0.5 - 0.1) / 0.5, …; Traditional Chinese got better.
    assert table["reduction"].tolist() == pytest.approx([0.75, 0.8, 0.5, 0.25, 0, -0.2])
    assert table["unlearned_in"].tolist() == [True, *[False] * 5]
    assert table["web_share"][1] == 43.4241
    assert np.isnan(table["web_share"][5])
    assert table["high_resource"].tolist() == [True, True, True, True, False, True]
    assert table["same_family"].tolist() == [True, True, True, False, False, False]
    assert table["same_script"].tolist() == [True, True, True, False, False, False]
    both = compute_reductions(rates(), unlearned_in=["de", "ru"])
    assert both["unlearned_in"].tolist() == [True, False, False, True, False, False]
    assert both["same_script"].tolist() == [True, True, True, True, False, False]


def test_without_anything_to_lose_there_is_no_reduction():
    table = rates(before=[0.8, 0.0, 0.0625, 0.05, NAN, 0.5], chance=0.0625)
    found = compute_reductions(table, unlearned_in=["de"])
    assert found["reduction"].isna().tolist() == [False, True, True, True, True, False]
    assert found["reason"].tolist() == [
        "",
        "there was nothing to lose: 0 before is not above chance, 0.0625",
        "there was nothing to lose: 0.0625 before is not above chance, 0.0625",
        "there was nothing to lose: 0.05 before is not above chance, 0.0625",
        "there is no rate before unlearning",
        "",
    ]
    without = compute_reductions(table.drop(columns="chance"), unlearned_in=["de"])
    assert without["reason"][1] == "there was nothing to lose: 0 before is not above 0"
    assert without["reason"][2] == ""


def test_spearmans_rho_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: the squared differences are 1 each, 1 - 6·4/(4·15).
    found = row(predicted([0.2, 0.1, 0.4, 0.3], web_share=[1, 10, 100, 1000]), "web_share")
    assert found["value"] == pytest.approx(1 - 6 * 4 / (4 * 15))
    assert found["statistic"] == "Spearman's rho"
    assert found["n"] == 4
    # One of 24 orders is as good as the right one, and one as bad as its reverse.
    for order in (1, -1):
        best = predicted([0.1, 0.2, 0.3, 0.4][::order], web_share=[1, 2, 3, 4])
        assert row(best, "web_share")["value"] == pytest.approx(order)
        assert row(best, "web_share")["p_value"] == pytest.approx(2 / 24)


def test_ties_share_their_ranks():
    # Ranks 1.5 1.5 3 4 against 1 2 3 4: deviations -1 -1 .5 1.5 and -1.5 -.5 .5 1.5.
    products, squares = 1.5 + 0.5 + 0.25 + 2.25, (1 + 1 + 0.25 + 2.25, 5)
    found = row(predicted([0.1, 0.2, 0.3, 0.4], jaccard=[0.1, 0.1, 0.5, 0.6]), "jaccard")
    assert found["value"] == pytest.approx(products / math.sqrt(squares[0] * squares[1]))
    # Of the 24 orders, two are equally good: the tied languages may change places.
    assert found["p_value"] == pytest.approx(2 * 2 / 24)


def test_rho_and_its_p_value_are_scipys_where_there_are_many_languages():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    found = row(predicted(y, web_share=x), "web_share")
    expected = stats.spearmanr(x, y)
    assert found["value"] == pytest.approx(expected.statistic)
    assert found["p_value"] == pytest.approx(expected.pvalue, rel=0.1)
    assert 0.01 < found["p_value"] < 0.03
    assert found["ci_low"] < found["value"] < found["ci_high"]


def test_the_difference_of_means_by_hand():
    table = predicted([0.9, 0.7, 0.2, 0.3, 0.1], same_family=[True, True, False, False, False])
    found = row(table, "same_family")
    assert found["statistic"] == "difference of means"
    assert found["value"] == pytest.approx((0.9 + 0.7) / 2 - (0.2 + 0.3 + 0.1) / 3)
    # Of ten ways to choose two of five none is as large, one as small.
    assert found["p_value"] == pytest.approx(2 * 1 / 10)
    # A resample has 0.7 to 0.9 in the one group and 0.1 to 0.3 in the other.
    assert 0.7 - 0.3 <= found["ci_low"] < found["value"] < found["ci_high"] <= 0.9 - 0.1


def test_a_group_of_one_language_has_no_interval():
    found = row(predicted([0.9, 0.1, 0.2, 0.3], same_family=[True, *[False] * 3]), "same_family")
    assert found["value"] == pytest.approx(0.9 - 0.2)
    assert found["p_value"] == pytest.approx(2 * 1 / 4)
    assert np.isnan([found["ci_low"], found["ci_high"]]).all()
    assert found["reason"] == "no interval: a group is a single language"


def test_what_cannot_be_computed_has_its_reason():
    found = row(predicted([0.1, 0.2], web_share=[1, 2]), "web_share")
    assert np.isnan(found[["value", "ci_low", "ci_high", "p_value"]].to_numpy(float)).all()
    assert found["reason"] == "2 languages are too few, 3 are needed"
    found = row(predicted([0.1, 0.2, NAN, 0.5], web_share=[1, NAN, 2, 3]), "web_share")
    assert found["reason"] == (
        "2 of 4 languages left out: a value is lacking; 2 languages are too few, 3 are needed"
    )
    same = predicted([0.1, 0.2, 0.3], web_share=[1, 1, 1], same_script=[True] * 3)
    for name in ("web_share", "same_script"):
        assert row(same, name)["reason"] == "the predictor is the same for all languages"
        assert np.isnan(row(same, name)["value"])
    same = predicted([0.1] * 4, web_share=[1, 2, 3, 4], same_script=[True, True, False, False])
    assert row(same, "web_share")["reason"] == "the reduction is the same in all languages"
    assert row(same, "same_script")[["value", "p_value"]].tolist() == pytest.approx([0, 1])


def test_the_languages_of_unlearning_are_left_out():
    table = compute_reductions(rates(), unlearned_in=["de"])
    found = correlate_reductions(table)
    assert tuple(found.columns) == COLUMNS
    assert found["predictor"].tolist() == ["web_share", *BINARY]
    # en nl ru hy by share of the web: ru 6.0, nl 1.8, hy 0.03; reductions .8 .5 .25 0.
    # Ranks 4 2 3 1 against 4 3 2 1: 1 - 6·2/(4·15).
    assert found["value"][0] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found["reason"][0] == "1 of 5 languages left out: a value is lacking"
    # hy alone is low-resource; en and nl are of the family.
    assert found["value"][1:3].tolist() == pytest.approx(
        [(0.8 + 0.5 + 0.25 - 0.2) / 4 - 0, (0.8 + 0.5) / 2 - (0.25 + 0 - 0.2) / 3]
    )
    assert found["n"].tolist() == [4, 5, 5, 5]


def test_subword_overlap_by_hand():
    model = tiny()
    texts = {"de": ["w4 w5", "w4 w6"], "en": ["w4 w7", "w5 w5"], "zh": ["w8", "w9"], "ru": ["", ""]}
    table = measure_subword_overlap(model, texts, "de").set_index("language")
    # Of w4 w5 w6 w7 two are in both; the beginning of the text, which all share, does not count.
    assert table["jaccard"][["de", "en", "zh"]].tolist() == [1, 2 / 4, 0]
    # Quarters: de 2 1 1 0, en 1 2 0 1; the smaller 1 1 0 0, the larger 2 2 1 1.
    assert table["weighted_jaccard"][["de", "en", "zh"]].tolist() == [1, 2 / 6, 0]
    assert table.loc["ru"].isna().all()
    joined = compute_reductions(rates(), unlearned_in=["de"], overlap=table.reset_index())
    assert joined["jaccard"][:2].tolist() == [1, 0.5]
    assert joined["jaccard"][2:].isna().all()
    assert correlate_reductions(joined)["predictor"].tolist() == [*GRADED, *BINARY]


def test_no_warnings_of_constant_resamples():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        correlate_reductions(
            predicted([0.1, 0.2, 0.3], web_share=[1, 1, 2], same_script=[True, True, False])
        )


def test_wrong_tables_are_one_sentence():
    with pytest.raises(ValueError, match="the table of rates lacks the columns after"):
        compute_reductions(rates().drop(columns="after"), unlearned_in=["de"])
    with pytest.raises(ValueError, match="duplicate language 'de'"):
        compute_reductions(pd.concat([rates(), rates()]), unlearned_in=["de"])
    for wrong in ([], "de"):
        with pytest.raises(ValueError, match="unlearned_in must be a list of language codes"):
            compute_reductions(rates(), unlearned_in=wrong)
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        compute_reductions(rates(), unlearned_in=["xx"])
    with pytest.raises(ValueError, match="reductions lacks the columns reduction, unlearned_in"):
        correlate_reductions(rates())
    with pytest.raises(ValueError, match="no texts in 'fr'; valid: de, en"):
        measure_subword_overlap(tiny(), {"de": ["w4"], "en": ["w4"]}, "fr")
    with pytest.raises(ValueError, match="2 in 'en', but 1 in 'de'"):
        measure_subword_overlap(tiny(), {"de": ["w4"], "en": ["w4", "w5"]}, "de")


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'interp\[behaviour\]'"):
        correlate_reductions(compute_reductions(rates(), unlearned_in=["de"]))


# The figure


def boxes(figure):
    """Pixels that each label covers, as a dot's label of seven pixels a letter, and each dot."""
    layout = figure.layout
    width = layout.width - layout.margin.l - layout.margin.r
    height = layout.height - layout.margin.t - layout.margin.b
    labels, dots = [], []
    for trace in figure.data:
        for x, y, text, place in zip(trace.x, trace.y, trace.text, trace.textposition, strict=True):
            x = math.log10(x) if layout.xaxis.type == "log" else x
            x, y = (
                (value - axis.range[0]) / (axis.range[1] - axis.range[0]) * size
                for value, axis, size in ((x, layout.xaxis, width), (y, layout.yaxis, height))
            )
            up, right = place.split()
            right = {"left": -1, "center": 0, "right": 1}[right]
            up = {"bottom": -1, "middle": 0, "top": 1}[up]
            half = 7 * len(text) / 2, 7.5
            x_label, y_label = x + right * (7 + half[0]), y + up * (7 + half[1])
            labels.append((x_label, y_label, *half))
            dots.append((x, y, 3, 3))
    return labels, dots, (width, height)


def apart(a, b):
    return abs(a[0] - b[0]) >= a[2] + b[2] or abs(a[1] - b[1]) >= a[3] + b[3]


def test_dots_are_the_reductions_over_the_web_share():
    table = compute_reductions(rates(), unlearned_in=["de"])
    figure = draw(table, title="<b>")
    others, own = figure.data
    assert list(own.text) == ["German"]
    assert own.marker.color == "white" != others.marker.color
    assert list(others.text) == ["English", "Dutch", "Russian", "Armenian"]
    assert list(others.x) == [LANGUAGES[code].web_share for code in ("en", "nl", "ru", "hy")]
    assert list(others.y) == pytest.approx([80, 50, 25, 0])
    assert list(others.error_y.array) == [0] * 4
    assert figure.layout.xaxis.type == "log"
    ticks = dict(zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True))
    assert (ticks[0.01], ticks[10]) == ("0.01", "10")
    low, high = (10**end for end in figure.layout.xaxis.range)
    assert low < 0.034 < 43.4 < high
    assert figure.layout.showlegend
    note = figure.layout.annotations[-1].text
    assert note == "not drawn, for lack of a value: Traditional Chinese"
    assert figure.layout.title.text == "&lt;b&gt;"
    assert others.hovertext[0].split("<br>") == [
        "<b>English (en)</b>",
        "reduction 80.0%",
        "share of web pages (%): 43.42",
    ]


def test_intervals_and_another_predictor():
    table = compute_reductions(rates(), unlearned_in=["de"]).iloc[1:]
    table = table.assign(jaccard=[0.1, 0.2, 0.3, 0.4, 0.5], reduction_low=NAN, reduction_high=NAN)
    table.iloc[0, -2:] = [0.5, 0.9]
    figure = draw(table, predictor="jaccard")
    (dots,) = figure.data
    assert list(dots.x) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert list(dots.error_y.array) == pytest.approx([10, 0, 0, 0, 0])
    assert list(dots.error_y.arrayminus) == pytest.approx([30, 0, 0, 0, 0])
    assert figure.layout.xaxis.type is None
    assert not figure.layout.showlegend
    assert "interval 50.0% to 90.0%" in dots.hovertext[0]
    low, high = figure.layout.yaxis.range
    assert low < -20 < 90 < high


@pytest.mark.parametrize("seed", range(5))
def test_labels_keep_off_each_other_and_the_dots(seed):
    rng = np.random.default_rng(seed)
    codes = [code for code in LANGUAGES if LANGUAGES[code].web_share][:20]
    table = pd.DataFrame({"language": codes, "before": 1.0, "after": rng.uniform(0, 1, 20)})
    labels, dots, (width, height) = boxes(draw(compute_reductions(table, unlearned_in=["de"])))
    clashes = sum(not apart(a, b) for at, a in enumerate(labels) for b in (*labels[:at], *dots))
    assert clashes <= 1
    for x, y, half_width, half_height in labels:
        assert half_width <= x <= width - half_width
        assert half_height <= y <= height - half_height


def test_labels_of_the_same_dot_go_to_different_sides():
    table = predicted([0.5] * 4, web_share=[1] * 4, language=["de", "en", "fr", "es"])
    (dots,) = draw(table).data
    assert len({*dots.textposition}) == 4


def test_codes_stand_where_names_would_cover_each_other():
    codes = ["fr", "pl", "it", "nl", "es", "pt", "vi", "id", "zh", "ru", "ja", "sv"]
    shares = [LANGUAGES[code].web_share for code in codes]
    figure = draw(predicted([1.0] * len(codes), web_share=shares, language=codes))
    assert list(figure.data[0].text) == codes
    labels, _, _ = boxes(figure)
    assert all(apart(a, b) for at, a in enumerate(labels) for b in labels[:at])
    few = draw(predicted([1.0, 0.2], web_share=[1, 10], language=["fr", "de"]))
    assert list(few.data[0].text) == ["French", "German"]


def test_what_is_no_table_of_reductions():
    table = compute_reductions(rates(), unlearned_in=["de"])
    with pytest.raises(ValueError, match="lacks the columns reduction, unlearned_in, web_share"):
        draw(rates())
    with pytest.raises(ValueError, match="lacks the columns jaccard"):
        draw(table, predictor="jaccard")
    with pytest.raises(ValueError, match="unknown predictor 'tier'; valid: web_share"):
        draw(table, predictor="tier")
    with pytest.raises(ValueError, match="no language with a reduction"):
        draw(table.iloc[5:])
