"""Figures of the dissection: KRS curves, target against unrelated answers, drift of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from experiments.dissect.config import Config, is_trained
from experiments.dissect.data import TARGET, UNRELATED
from experiments.study import Drawing, select_rows
from interp import figures
from interp.behaviour import DRIFT_COLUMNS
from interp.data import REAL_LANGUAGE
from interp.figures import COLOURS, check_table, choose_num_columns, escape, label_language, lay_out
from interp.figures import plot_drift as plot_library_drift
from interp.report import Table

_COLUMNS = ("method", "strength", "language", "questions", "bleu", "ci_low", "ci_high", "n")

_SIZES = (6, 9, 12, 15)


def make_figures(
    measurements: Mapping[str, pd.DataFrame], tables: Mapping[str, Table], config: Config
) -> dict[str, Drawing]:
    """Draw every figure of the study.

    Args:
        measurements: what `run.measure` returns.
        tables: what `make_tables` returns.
        config: what was dissected.
    """
    name = config.model.rpartition("/")[2]
    mean, drifts = tables["krs-mean"].rows, measurements["drift"]
    in_english = select_rows(tables["krs"].rows, language=REAL_LANGUAGE)
    drawings = {
        "curves": Drawing(
            figure=figures.plot_lines(
                mean, title=f"KRS over the layers, mean over methods, {name}"
            ),
            caption="KRS per site and query language, the mean over methods that train, with 95 % "
            "bootstrap intervals over the questions of all concepts (Hong, Fig. 1).",
        ),
        "curves-methods": Drawing(
            figure=figures.plot_lines(in_english, title=f"KRS by method, asked in English, {name}"),
            caption="KRS per site and method, asked in English. MEMIT edits value vectors.",
        ),
        "heatmap": Drawing(
            figure=figures.plot_heatmap(mean, title=f"KRS by query language, {name}"),
            caption="KRS per site, query language and layer, the mean over methods that train.",
        ),
        "target-unrelated": Drawing(
            figure=plot_tradeoff(tables["kept"].rows, title=f"What answers keep, {name}"),
            caption="Sentence BLEU against V's answers on target and on unrelated questions, the "
            "mean over questions and concepts, from V to each method's strongest (Hong, Fig. 2). "
            "Below the dotted line targets lose more.",
        ),
    }
    for trained, label in ((True, "trained"), (False, "memit")):
        if trained in {is_trained(method) for method in drifts["method"]}:
            models = "methods that train" if trained else "MEMIT"
            drawings[f"drift-{label}"] = Drawing(
                figure=plot_mean_drift(
                    drifts, trained=trained, title=f"Drift of the weights, {models}, {name}"
                ),
                caption="U against V by layer and group of weights, the mean over models: "
                f"{models}.",
            )
    return drawings


def plot_tradeoff(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw BLEU on target against unrelated questions (Hong, Fig. 2), one facet per language.

    A line per method begins at V, where both are 100, and goes on to its strengths, the stronger
    the larger the mark. On the dotted line both fall alike; below it targets fall faster. MEMIT's
    lines are dashed.

    Args:
        table: that of `experiments.dissect.tables.average_overlap`.
        title: above all of it.

    Raises:
        ValueError: the table is empty or lacks columns.
    """
    check_table(table, _COLUMNS, "kept answers")
    languages, methods = (list(dict.fromkeys(table[name])) for name in ("language", "method"))
    width = 260
    figure, places = lay_out(
        [label_language(code) for code in languages],
        num_columns=choose_num_columns(len(languages), width),
        size=(width, width),
        left=70,
        right=170,
        title=title,
        x_title="BLEU, unrelated questions",
    )
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(range=[-3, 104], tickvals=[0, 25, 50, 75, 100], gridcolor="#e6e6e6", zeroline=False)
    figure.update_yaxes(title_text="BLEU, target questions", col=1)
    for code, (row, col) in zip(languages, places, strict=True):
        diagonal = go.Scatter(
            x=[0, 100],
            y=[0, 100],
            mode="lines",
            line={"color": "#909090", "dash": "dot", "width": 1},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_trace(diagonal, row=row, col=col)
        for number, method in enumerate(methods):
            rows = select_rows(table, language=code, method=method)
            figure.add_trace(
                _trace_method(rows, method, number, is_first=code == languages[0]), row=row, col=col
            )
    figure.update_layout(
        legend={"title": {"text": "from V to stronger", "font_size": 13}, "tracegroupgap": 0}
    )
    return figure


def plot_mean_drift(drifts: pd.DataFrame, *, trained: bool, title: str | None = None) -> go.Figure:
    """Draw drift by layer and group, the mean over the models that were trained, or edited.

    Args:
        drifts: rows of `interp.behaviour.drift.measure_drift` with the column `method`.
        trained: methods that train, else MEMIT.
        title: above all of it.

    Raises:
        ValueError: there are no such models.
    """
    names = {method for method in drifts["method"] if is_trained(method) == trained}
    rows = select_rows(drifts, method=names)
    check_table(rows, DRIFT_COLUMNS, "the drift")
    cells: Any = rows.groupby(["layer", "group"], sort=False)
    means = cells[["cosine", "relative_change", "effective_rank", "num_parameters"]].mean()
    table = means.reset_index().astype({"num_parameters": int})
    return plot_library_drift(table, title=title)


def _trace_method(rows: pd.DataFrame, method: str, number: int, *, is_first: bool) -> go.Scatter:
    """Draw a method's way from V, through its strengths."""
    target, unrelated = (select_rows(rows, questions=kind) for kind in (TARGET, UNRELATED))
    points = target.merge(unrelated, on="strength", suffixes=("_y", "_x"))
    points = points.sort_values("strength")
    hover = ["V", *(_describe_point(row, method) for row in points.to_dict("records"))]
    colour = f"rgb({COLOURS[number % len(COLOURS)]})"
    return go.Scatter(
        x=[100, *points["bleu_x"]],
        y=[100, *points["bleu_y"]],
        error_x=_make_error_bars(points, "x"),
        error_y=_make_error_bars(points, "y"),
        mode="lines+markers",
        line={"color": colour, "width": 1.5, "dash": "solid" if is_trained(method) else "dash"},
        marker={
            "color": colour,
            "size": [4, *(_SIZES[min(place, 3)] for place in range(len(points)))],
            "symbol": "circle" if number < len(COLOURS) else "diamond",
            "opacity": 0.9,
        },
        hovertext=hover,
        hoverinfo="text",
        name=escape(method),
        legendgroup=method,
        showlegend=is_first,
        cliponaxis=False,
    )


def _make_error_bars(points: pd.DataFrame, side: str) -> dict[str, object]:
    value = points[f"bleu_{side}"]
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 0.7,
        "width": 0,
        "array": [0, *(points[f"ci_high_{side}"] - value)],
        "arrayminus": [0, *(value - points[f"ci_low_{side}"])],
    }


def _describe_point(row: dict, method: str) -> str:
    lines = [f"<b>{escape(method)}</b>, strength {row['strength']:g}"]
    for name, side in (("target", "y"), ("unrelated", "x")):
        lines.append(
            f"{name}: BLEU {row[f'bleu_{side}']:.1f}, interval {row[f'ci_low_{side}']:.1f} to "
            f"{row[f'ci_high_{side}']:.1f}, n = {row[f'n_{side}']}"
        )
    return "<br>".join(lines)
