"""Figures hold the table's numbers; exported files are whole and need no network."""

import builtins
import math
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from interp.figures import export, plot_accuracy, plot_heatmap, plot_lines, plot_training

NAN = math.nan


def score_table(*, name="krs", languages=("de", "xx"), sites=("coef", "attn"), layers=(0, 1, 2)):
    """Scores 0.00, 0.01, 0.02, … in the order of the rows, intervals of ±0.1."""
    rows = [
        (language, site, layer, max(0, layer - 2), layer + 2)
        for language in languages
        for site in sites
        for layer in layers
    ]
    table = pd.DataFrame(rows, columns=["language", "site", "layer", "first_layer", "last_layer"])
    table[name] = np.arange(len(table)) / 100
    table["ci_low"], table["ci_high"] = table[name] - 0.1, table[name] + 0.1
    table["num_queries"], table["noise_floor"], table["reason"] = 12, 2e-7, ""
    return table


def undefined_at(table, row, reason):
    table.loc[row, ["krs", "ci_low", "ci_high"]] = NAN
    table.loc[row, "num_queries"] = 0
    table.loc[row, "reason"] = reason
    return table


def test_heatmap_holds_the_scores_at_language_and_layer():
    table = score_table()
    figure = plot_heatmap(table.sample(frac=1, random_state=0).sort_values("site", ascending=False))
    assert [trace.name for trace in figure.data] == ["coef", "attn"]
    for trace in figure.data:
        assert list(trace.x) == [0, 1, 2]
        for row in table[table["site"] == trace.name].to_dict("records"):
            at = list(trace.y).index(row["language"]), list(trace.x).index(row["layer"])
            assert trace.z[at] == row["krs"]


def test_heatmap_axes_are_the_languages_names_and_the_layers():
    figure = plot_heatmap(score_table(layers=range(80)), title="One < two")
    assert list(figure.layout.yaxis.ticktext) == ["German (de)", "xx"]
    assert list(figure.layout.yaxis.range) == [1.5, -0.5]  # the first language is on top
    # 80 layers on 420 pixels: every fifth label would have 26.25 pixels, enough for two digits.
    assert list(figure.layout.xaxis.tickvals) == list(range(0, 80, 5))
    assert figure.layout.title.text == "One &lt; two"
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["MLP coefficients (coef)", "attention state (attn)"]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((30, 30), "30 tokens"),
        ((1.8, 2.2), "2 tokens"),
        ((9.7, 2.2), "2–10 tokens"),
        ((1, 1), "1 token"),
    ],
)
@pytest.mark.parametrize("draw", [plot_heatmap, plot_lines])
def test_the_axis_says_how_much_of_an_answer_is_scored(draw, counts, said):
    table = score_table(languages=("de", "en"), sites=("coef",))
    table["num_tokens"] = [counts[code == "en"] for code in table["language"]]
    title = draw(table).layout.xaxis.title.text.replace("<br>", " ")
    assert title == f"layer (window centre); {said} scored per answer"
    assert draw(table.drop(columns="num_tokens")).layout.xaxis.title.text == "layer (window centre)"


def test_all_facets_share_one_scale_with_zero_in_the_middle():
    table = score_table()
    table.loc[3, "krs"] = -0.4
    figure = plot_heatmap(table)
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    scale = figure.layout.coloraxis
    assert (scale.cmin, scale.cmid, scale.cmax) == (-0.4, 0, 0.4)
    assert scale.colorbar.title.text == "KRS"


def test_scores_beyond_one_keep_their_value_and_the_bar_says_so():
    table = score_table()
    table.loc[0, "krs"] = -7.25
    figure = plot_heatmap(table)
    scale = figure.layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-1, 1)
    assert scale.colorbar.title.text == "KRS<br>(below −1<br>shown as −1)"
    assert figure.data[0].z[0, 0] == -7.25
    assert "KRS -7.250" in figure.data[0].hovertext[0, 0]

    effect = score_table(name="effect")
    effect.loc[0, "effect"] = 1.5
    figure = plot_heatmap(effect)
    assert figure.layout.coloraxis.colorbar.title.text == "effect<br>(above 1<br>shown as 1)"
    assert "effect 1.500" in figure.data[0].hovertext[0, 0]


def test_hover_says_everything_about_a_cell():
    figure = plot_heatmap(score_table())
    assert figure.data[1].hovertext[0, 2].split("<br>") == [
        "<b>German (de)</b>",
        "attention state (attn)",
        "layers 0–4",
        "KRS 0.050",
        "bootstrap interval -0.050 to 0.150",
        "12 questions",
        "noise floor 2.0e-07",
    ]


def test_undefined_cells_are_grey_with_their_reason():
    figure = plot_heatmap(
        undefined_at(score_table(), 4, "2 of 2 questions left out: nothing scored")
    )
    assert [trace.name for trace in figure.data] == ["coef", "attn", "attn"]
    scores, grey = figure.data[1:]
    assert np.isnan(scores.z[0, 1])
    assert np.argwhere(grey.z == 1).tolist() == [[0, 1]]
    assert np.isnan(grey.z).sum() == 5
    assert [colour for _, colour in grey.colorscale] == ["#b3b3b3", "#b3b3b3"]
    text = grey.hovertext[0, 1].split("<br>")
    assert text[3:] == [
        "KRS undefined",
        "0 questions",
        "noise floor 2.0e-07",
        "2 of 2 questions left out: nothing scored",
    ]
    assert "undefined" in figure.layout.annotations[-1].text


def test_cells_that_were_not_measured_are_neither_scored_nor_grey():
    readout = score_table(sites=["unembed"], layers=[3]).assign(first_layer=3, last_layer=3)
    figure = plot_heatmap(pd.concat([score_table(), readout]))
    assert [trace.name for trace in figure.data] == ["coef", "attn", "unembed"]
    assert np.isnan(figure.data[2].z).tolist() == [[True, True, True, False]] * 2
    assert "readout above the last layer" in figure.data[2].hovertext[0, 3]
    assert figure.data[2].hovertext[0, 0] == ""


def test_models_have_a_row_of_facets_each():
    tables = [score_table().assign(unlearned=name, krs=k) for k, name in enumerate(["a", "b"])]
    table = pd.concat(tables)
    table.insert(0, "unlearned", table.pop("unlearned"))
    figure = plot_heatmap(table)
    assert [(trace.name, trace.z[0, 0]) for trace in figure.data] == [
        ("coef", 0),
        ("attn", 0),
        ("coef", 1),
        ("attn", 1),
    ]
    tops = [figure.layout[axis].domain[1] for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
    assert tops[0] == tops[1] > tops[2] == tops[3]
    headers = [note for note in figure.layout.annotations if note.text.startswith("<b>")]
    assert [note.text for note in headers] == ["<b>a</b>", "<b>b</b>"]
    assert [note.y for note in headers] == pytest.approx([tops[0], tops[2]])


def test_an_array_of_many_sites_is_no_wider_than_a_page():
    sites = ["coef", "attn", "coef+attn", "value", "key", "attn_weights", "mlp_out", "resid"]

    def drawn(num_sites: int):
        table = score_table(languages=["en"], sites=sites[:num_sites], layers=range(18))
        both = pd.concat([table.assign(unlearned=name) for name in ("a", "b")])
        both.insert(0, "unlearned", both.pop("unlearned"))
        return plot_heatmap(both).layout

    two, six, eight = (drawn(number) for number in (2, 6, 8))
    assert two.width - 2 * 360 == six.width - 6 * 250 - 4 * 28
    assert eight.width < 2000
    # What would cover its neighbour stands under its short name.
    titles = [note.text for note in eight.annotations]
    assert "coef+attn" in titles
    assert "MLP coefficients (coef)" in titles
    assert "coefficients + attention (coef+attn)" in [note.text for note in six.annotations]


def test_facets_keep_their_pixels_whatever_their_number():
    for num_languages, num_sites, num_layers in [(1, 1, 4), (9, 4, 18), (20, 8, 80)]:
        table = score_table(
            languages=[f"l{i}" for i in range(num_languages)],
            sites=[f"s{i}" for i in range(num_sites)],
            layers=range(num_layers),
        )
        layout = plot_heatmap(table).layout
        plot_width = layout.width - layout.margin.l - layout.margin.r
        plot_height = layout.height - layout.margin.t - layout.margin.b
        width = (layout.xaxis.domain[1] - layout.xaxis.domain[0]) * plot_width
        height = (layout.yaxis.domain[1] - layout.yaxis.domain[0]) * plot_height
        assert width == pytest.approx(min(max(20 * num_layers, 240), 420))
        assert height == pytest.approx(max(24 * num_languages, 110))


def test_lines_hold_the_scores_and_their_intervals():
    figure = plot_lines(score_table())
    curves = [trace for trace in figure.data if trace.fill is None]
    assert len(curves) == 4  # two languages, two sites
    assert list(curves[1].x) == [0, 1, 2]
    assert list(curves[1].y) == [0.03, 0.04, 0.05]
    assert [trace.name for trace in curves if trace.showlegend] == [
        "MLP coefficients (coef)",
        "attention state (attn)",
    ]
    band = figure.data[1]
    assert list(band.x) == [0, 1, 2, 2, 1, 0, 0, None]
    expected = [0.13, 0.14, 0.15, -0.05, -0.06, -0.07, 0.13]
    assert list(band.y)[:-1] == pytest.approx(expected)


def test_bands_break_where_a_score_is_undefined():
    table = undefined_at(score_table(languages=["de"], sites=["coef"], layers=range(4)), 1, "x")
    band, curve = plot_lines(table).data
    # Layer 0 stands alone and gets a band of some width, layers 2 and 3 make the other polygon.
    assert list(band.x) == [-0.2, 0.2, 0.2, -0.2, -0.2, None, 2, 3, 3, 2, 2, None]
    assert math.isnan(curve.y[1])


@pytest.mark.parametrize("draw", [plot_heatmap, plot_lines])
def test_bad_tables_are_one_sentence(draw):
    with pytest.raises(ValueError, match=r"lacks the columns site, krs\.$"):
        draw(score_table().drop(columns=["site", "krs"]))
    with pytest.raises(ValueError, match="is empty"):
        draw(score_table().iloc[:0])


def test_a_table_from_a_csv_file_draws_the_same(tmp_path):
    table = score_table()
    table.to_csv(tmp_path / "krs.csv", index=False)
    assert plot_heatmap(pd.read_csv(tmp_path / "krs.csv")) == plot_heatmap(table)


def test_a_cell_given_twice_is_refused():
    with pytest.raises(ValueError, match="duplicate score of de, site 'coef', layer 0"):
        plot_heatmap(pd.concat([score_table(), score_table()]))


def test_html_is_self_contained(tmp_path):
    stem = tmp_path / "new" / "gemma-3.1"
    assert export({stem: plot_heatmap(score_table())}, formats=["html"]) == [
        tmp_path / "new" / "gemma-3.1.html"
    ]
    page = (tmp_path / "new" / "gemma-3.1.html").read_text(encoding="utf-8")
    assert "attention state (attn)" in page
    assert not re.search(r"<script[^>]+src=", page)
    assert not re.search(r"<link[^>]+href=", page)
    assert "plotly.js v" in page[:20_000]
    assert [path.name for path in stem.parent.iterdir()] == ["gemma-3.1.html"]


def test_unknown_format_names_the_valid_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'gif'; valid: html, png, svg"):
        export({tmp_path / "a": go.Figure()}, formats=["gif"])
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_the_old_file_and_no_rest(tmp_path):
    class Broken(go.Figure):
        def to_html(self, *args, **kwargs):
            raise OSError("no space left")

    (tmp_path / "a.html").write_text("old")
    with pytest.raises(OSError, match="no space left"):
        export({tmp_path / "a": plot_heatmap(score_table()), tmp_path / "b": Broken()}, formats=[])
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").read_text() == "old"


def test_images_are_written_where_a_chrome_is_there(tmp_path):
    browsers = pytest.importorskip(
        "choreographer.browsers.chromium", reason="kaleido (extra `export`) is not installed"
    )
    if not browsers.Chromium.find_browser(skip_local=False):
        pytest.skip("no Chrome on this machine")
    figure = plot_heatmap(score_table())
    written = export({tmp_path / "a": figure, tmp_path / "b": plot_lines(score_table())})
    names = [f"{stem}.{kind}" for stem in "ab" for kind in ("html", "png", "svg", "pdf")]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    png = (tmp_path / "a.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    size = [int.from_bytes(png[start : start + 4], "big") for start in (16, 20)]
    assert size == [2 * figure.layout.width, 2 * figure.layout.height]
    assert "attention state" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_without_a_chrome_there_is_html_and_one_warning(tmp_path, monkeypatch):
    browsers = pytest.importorskip(
        "choreographer.browsers.chromium", reason="kaleido (extra `export`) is not installed"
    )
    for path, reason in ((None, "there is no Chrome"), ("/bin/false", "does not run")):
        monkeypatch.setattr(browsers.Chromium, "find_browser", lambda path=path, **options: path)
        with pytest.warns(UserWarning, match=f"Only HTML was written.*{reason}.*chromium"):
            written = export({tmp_path / "a": plot_heatmap(score_table())}, formats=["png", "pdf"])
        assert written == [tmp_path / "a.html"]
        assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_without_kaleido_the_warning_names_the_extra(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without_kaleido(name, *args, **kwargs):
        if name.partition(".")[0] == "kaleido":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_kaleido)
    with pytest.warns(UserWarning, match=r"pip install 'interp\[export\]'"):
        written = export({tmp_path / "a": plot_heatmap(score_table())})
    assert written == [tmp_path / "a.html"]


# Accuracy


def accuracies(**columns):
    rows = {
        "language": ["en", "ja", "en", "ja"],
        "concept": ["capitals", "capitals", "continents", "continents"],
        "accuracy": [1.0, 0.25, 0.5, 0.125],
        "ci_low": [0.75, 0.125, 0.25, 0.0],
        "ci_high": [1.0, 0.5, 0.75, 0.5],
        "chance": [0.0625, 0.0625, 0.25, 0.25],
        "num_queries": [16, 16, 8, 1],
    }
    return pd.DataFrame({**columns, **rows})


def test_accuracy_is_a_dot_per_language_with_its_interval():
    figure = plot_accuracy(accuracies(), title="What is known")
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    chances = [trace for trace in figure.data if trace.mode == "lines"]
    assert [list(trace.x) for trace in dots] == [[100, 25], [50, 12.5]]
    assert [list(trace.y) for trace in dots] == [[0, 1], [0, 1]]
    assert list(dots[0].error_x.arrayminus) == [25, 12.5]
    assert list(dots[0].error_x.array) == [0, 25]
    assert [trace.x[0] for trace in chances] == [6.25, 25]
    assert [each.text for each in figure.layout.annotations] == ["capitals", "continents"]
    assert list(figure.layout.yaxis.ticktext) == ["English (en)", "Japanese (ja)"]
    assert dots[1].hovertext[1].endswith("chance 25.0%, 1 question")
    assert figure.layout.title.text == "What is known"


def test_models_of_one_row_stand_side_by_side():
    both = pd.concat([accuracies(model="V"), accuracies(model="U")])
    figure = plot_accuracy(both)
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert [trace.name for trace in dots] == ["V", "U", "V", "U"]
    assert [trace.showlegend for trace in dots] == [True, True, False, False]
    assert dots[0].y[0] == -dots[1].y[0] < 0
    assert dots[0].marker.color != dots[1].marker.color
    with pytest.raises(ValueError, match="duplicate accuracy in en, 'capitals'"):
        plot_accuracy(pd.concat([accuracies(), accuracies()]))


def test_what_is_no_table_of_accuracies():
    with pytest.raises(ValueError, match="lacks the columns chance"):
        plot_accuracy(accuracies().drop(columns="chance"))
    with pytest.raises(ValueError, match="is empty"):
        plot_accuracy(accuracies().iloc[:0])


def steps_table(concepts=("fake", "real"), languages=("de", "en")):
    """Accuracies at three steps, 0.00, 0.05, 0.10, … in the order of the rows."""
    rows = [
        {"step": step, "language": language, "concept": concept}
        for concept in concepts
        for language in languages
        for step in (0, 4, 8)
    ]
    table = pd.DataFrame(rows)
    table["accuracy"] = np.arange(len(table)) / 20
    table["ci_low"], table["ci_high"] = table["accuracy"] - 0.1, table["accuracy"] + 0.1
    table["chance"], table["num_queries"] = 0.0625, 16
    return table


def history_table():
    return pd.DataFrame(
        {"step": range(1, 9), "forget_ce": np.arange(8.0), "retain_ce": [1.0, NAN] * 4}
    )


def test_a_runs_losses_and_accuracies_stand_over_its_steps():
    table = steps_table()
    figure = plot_training(history_table(), table, title="<npo>")
    forget, retain, *rest = figure.data
    assert (forget.name, list(forget.y)) == ("forget set", list(range(8)))
    assert list(retain.x) == [1, 3, 5, 7]
    assert [line.name for line in rest] == ["German (de)", "English (en)"] * 2
    for line, (_, rows) in zip(rest, table.groupby(["concept", "language"]), strict=True):
        assert list(line.x) == [0, 4, 8]
        assert list(line.y) == pytest.approx(list(100 * rows["accuracy"]))
    assert [line.showlegend for line in rest] == [True, True, False, False]
    assert "interval -5.0% to 15.0%" in rest[0].hovertext[1]
    assert figure.layout.title.text == "&lt;npo&gt;"
    (chance,) = {shape.y0 for shape in figure.layout.shapes}
    assert chance == 6.25


def test_a_run_without_losses_or_without_probes():
    assert len(plot_training(pd.DataFrame({"step": [1]}), steps_table()).data) == 4
    assert len(plot_training(history_table(), pd.DataFrame()).data) == 2
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_training(pd.DataFrame({"step": [1]}), pd.DataFrame())
    with pytest.raises(ValueError, match="lacks the columns ci_low, chance"):
        plot_training(history_table(), steps_table().drop(columns=["chance", "ci_low"]))
