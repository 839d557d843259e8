"""Figures of drift and of the logit lens hold the table's numbers where they belong."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from interp.figures.depth import plot_drift, plot_lens

NAN = math.nan


def drift_table() -> pd.DataFrame:
    rows = [
        (0, "value", 1 - 1e-4, 1e-2, 30.0),
        (1, "value", 1 - 1e-6, 1e-3, 20.0),
        (0, "norms", 1.0, 0.0, NAN),
        (1, "norms", 1 - 1e-8, 1e-4, NAN),
        (-1, "embed", 1.0, 0.0, 0.0),
        (-1, "final_norm", 1 - 1e-7, 2e-4, NAN),
        (-1, "unembed", NAN, NAN, 3.0),
    ]
    columns = ["layer", "group", "cosine", "relative_change", "effective_rank"]
    return pd.DataFrame(rows, columns=columns).assign(num_parameters=1000, reason="")


def traces(figure, facet: int) -> dict[str, tuple[list, list]]:
    """x and y of each line of a facet, from 0, by its group."""
    axis = "x" if facet == 0 else f"x{facet + 1}"
    return {t.legendgroup: (list(t.x), list(t.y)) for t in figure.data if t.xaxis == axis}


def test_drift_has_a_line_per_group_and_a_facet_per_measure():
    figure = plot_drift(drift_table().sample(frac=1, random_state=0).sort_values("group"))
    distance, change, rank = (traces(figure, facet) for facet in range(3))
    assert distance["value"][0] == [0, 1]
    assert distance["value"][1] == pytest.approx([1e-4, 1e-6])
    assert change["value"] == ([0, 1], [1e-2, 1e-3])
    assert rank["value"] == ([0, 1], [30, 20])
    # No rank of vectors, no cosine of what has none.
    assert rank["norms"] == rank["final_norm"] == distance["unembed"] == ([], [])
    # Before the first layer, and after the last, which is 1.
    assert change["final_norm"] == ([2.5], [2e-4])
    assert rank["embed"] == ([-1.5], [0])
    assert rank["unembed"] == ([4], [3])
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [
        "1 − cosine similarity",
        "relative change ‖ΔW‖ / ‖W‖",
        "effective rank of ΔW",
    ]
    assert [t.name for t in figure.data if t.showlegend] == [
        "embedding",
        "final norm",
        "norms",
        "unembedding",
        "MLP values (down)",
    ]


def test_an_unchanged_group_is_drawn_at_a_zero_below_the_logarithmic_axis():
    """Least change: 1e-4, so that 0 stands where 1e-5 would."""
    figure = plot_drift(drift_table())
    assert traces(figure, 1)["embed"] == ([-1.5], [1e-5])
    assert traces(figure, 1)["norms"] == ([0, 1], [1e-5, 1e-4])
    axis = figure.layout.yaxis2
    assert axis.type == "log"
    assert list(axis.tickvals) == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5])
    powers = [f"10<sup>−{power}</sup>" for power in (2, 3, 4)]
    assert list(axis.ticktext) == [*powers, "0"]
    assert list(axis.range) == [-5.5, -2]
    # The dotted line is half a power of ten above.
    lines = {shape.yref: shape.y0 for shape in figure.layout.shapes}
    assert lines["y2"] == pytest.approx(10**-4.5)
    assert "y3 domain" not in lines
    assert figure.layout.yaxis3.type != "log"
    zero = next(t for t in figure.data if t.legendgroup == "embed")
    assert "relative change 0.00e+00" in zero.hovertext[0]


def test_without_a_zero_the_axis_has_none():
    table = drift_table()
    figure = plot_drift(table[table["relative_change"] > 0])
    assert list(figure.layout.yaxis2.range) == [-4, -2]
    assert "0" not in figure.layout.yaxis2.ticktext
    assert not figure.layout.shapes


def test_models_that_are_the_same_are_drawn():
    table = drift_table().query("group == 'embed'")
    for facet in range(3):
        assert traces(plot_drift(table), facet) == {"embed": ([-1.5], [0])}


def lens_table(languages=("de", "xx"), models=("V", "U"), layers=(-1, 0, 1)) -> pd.DataFrame:
    """Log-probabilities −0.5, −1.5, …, readable shares 0, 0.01, … in the order of the rows."""
    cells = [(m, code, layer) for m in models for code in languages for layer in layers]
    table = pd.DataFrame(cells, columns=["model", "language", "layer"])
    number = np.arange(len(table))
    table["logprob"], table["ci_low"], table["ci_high"] = -0.5 - number, -1 - number, -number
    table["readable"], table["readable_low"], table["readable_high"] = number / 100, 0.0, 0.5
    return table.assign(num_queries=16)


@pytest.mark.parametrize("column", ["logprob", "readable"])
def test_the_lens_holds_each_value_at_its_language_and_layer(column):
    table = lens_table()
    figure = plot_lens(table.sample(frac=1, random_state=1).sort_values("model"), column=column)
    assert [note.text for note in figure.layout.annotations] == ["U", "V"]
    for trace, model in zip(figure.data, ("U", "V"), strict=True):
        rows = table[table["model"] == model].to_dict("records")
        assert trace.z.shape == (2, 3)
        for row in rows:
            at = list(trace.y).index(row["language"]), list(trace.x).index(row["layer"])
            assert trace.z[at] == row[column]
            assert f"log-probability {row['logprob']:.2f}" in trace.hovertext[at]
            assert f"readable {row['readable']:.1%}" in trace.hovertext[at]


def test_the_axes_name_languages_and_layers():
    axes = plot_lens(lens_table()).layout
    assert list(axes.yaxis.ticktext) == ["German (de)", "xx"]
    assert list(axes.yaxis.range) == [1.5, -0.5]  # the first language is on top
    assert list(axes.xaxis.tickvals) == [-1, 0, 1]
    assert list(axes.xaxis.ticktext) == ["emb", "0", "1"]
    # 27 layers on 420 pixels: every second has a label, but none so near to the embeddings'.
    many = plot_lens(lens_table(layers=range(-1, 26))).layout.xaxis
    assert list(many.ticktext) == ["emb", *(str(layer) for layer in range(2, 26, 2))]
    without = plot_lens(lens_table(layers=range(26))).layout.xaxis
    assert list(without.tickvals) == list(range(0, 26, 2))


def test_low_log_probabilities_keep_their_value_and_the_bar_says_so():
    table = lens_table()
    scale = plot_lens(table).layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-11.5, 0)
    assert scale.colorbar.title.text == "log-probability<br>(nats)"
    table.loc[0, "logprob"] = -510.0
    figure = plot_lens(table)
    scale = figure.layout.coloraxis
    assert scale.cmin == -20
    assert scale.colorbar.title.text.endswith("(below −20<br>shown as −20)")
    assert figure.data[0].z[0, 0] == -510
    shares = plot_lens(table, column="readable").layout.coloraxis
    assert (shares.cmin, shares.cmax, shares.colorbar.tickformat) == (0, 1, ".0%")


def test_a_cell_that_the_table_lacks_stays_empty():
    figure = plot_lens(lens_table().drop(index=0))
    assert np.isnan(figure.data[0].z[0, 0])
    assert figure.data[0].hovertext[0, 0] == ""


def test_errors_name_what_is_wrong():
    table = drift_table()
    with pytest.raises(ValueError, match="of the drift lacks the columns cosine"):
        plot_drift(table.drop(columns="cosine"))
    with pytest.raises(ValueError, match="of the drift is empty"):
        plot_drift(table[:0])
    with pytest.raises(
        ValueError, match="duplicate layer 0, group value in the table of the drift"
    ):
        plot_drift(pd.concat([table, table[:1]]))
    table = lens_table()
    with pytest.raises(ValueError, match="unknown column 'rank'; valid: logprob, readable"):
        plot_lens(table, column="rank")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="logit lens lacks the columns num_queries"):
        plot_lens(table.drop(columns="num_queries"))
    with pytest.raises(ValueError, match="logit lens is empty"):
        plot_lens(table[:0])
    with pytest.raises(ValueError, match="duplicate model V, language de, layer -1"):
        plot_lens(pd.concat([table, table[:1]]))
