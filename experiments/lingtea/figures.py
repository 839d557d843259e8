"""Figures of forgetting in many languages: MA and PA, KRS, cost, and size of the forget set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from experiments.lingtea.config import LINGTEA, SEQUENTIAL, Config
from experiments.lingtea.tables import average_cost, select_curves, select_scores, summarise_scores
from experiments.study import Drawing
from interp.figures import (
    COLOURS,
    DASHES,
    check_table,
    choose_num_columns,
    lay_out,
    plot_heatmap,
    plot_spread,
    plot_target_unrelated,
)
from interp.report import Table

_MA, _PA = "memorization_accuracy", "accuracy"

COLUMNS = ("facet", "line", "x", "value", "ci_low", "ci_high", "n")


def make_figures(
    measurements: Mapping[str, pd.DataFrame], tables: Mapping[str, Table], config: Config
) -> dict[str, Drawing]:
    """Draw every figure of the study.

    Args:
        measurements: what `run.measure` returns.
        tables: what `make_tables` returns.
        config: the settings.
    """
    scores = select_scores(measurements, config)
    drawings = {}
    for name, rows in scores.items():
        drawings |= _plot_material(name, rows, tables["krs"].rows)
    for name, rows in select_curves(measurements).items():
        drawings[f"cost-{name}"] = _plot_cost(name, rows)
    for name in scores:
        if f"sizes-{name}" in tables:
            drawings[f"sizes-{name}"] = _plot_sizes(name, tables[f"sizes-{name}"].rows)
    return drawings


def _plot_material(name: str, scores: pd.DataFrame, krs: pd.DataFrame) -> dict[str, Drawing]:
    table = summarise_scores(scores)
    # The short name has room under the axes.
    accuracy = table.query("metric == @_MA").assign(metric="MA")
    drawn = {
        f"ma-{name}": Drawing(
            figure=plot_spread(accuracy, title=f"Memorization accuracy on {name} (MA)"),
            caption=f"MA per model and language on the {name} that are forgotten and on the test "
            "part, which no training saw.",
        ),
        f"kept-{name}": Drawing(
            figure=plot_target_unrelated(
                accuracy,
                target="forget",
                unrelated="test",
                title=f"What is left of the {name} to forget against the test part",
            ),
            caption="Lower right: forgets, and keeps the rest.",
        ),
    }
    probed = table.query("metric == @_PA").assign(metric="PA")
    if not probed.empty:
        drawn[f"pa-{name}"] = Drawing(
            figure=plot_spread(probed, title=f"Probing accuracy on {name} (PA)"),
            caption="Share of clozes whose right candidate ranks first; chance is in the hover.",
        )
    scored = krs.query("material == @name").drop(columns="material")
    drawn[f"krs-{name}"] = Drawing(
        figure=plot_heatmap(scored, title=f"Knowledge recovered by method, {name} forgotten"),
        caption="KRS per method, query language, site and layer.",
    )
    return drawn


def _plot_cost(name: str, curves: pd.DataFrame) -> Drawing:
    lines = {LINGTEA: "drawn anew", SEQUENTIAL: "one after the other"}
    return Drawing(
        figure=plot_bands(
            average_cost(curves, lines),
            x_title=f"{name} trained on, in any language",
            y_title="MA (%)",
            title=f"Forgetting {name}: the order of languages",
        ),
        caption="MA on the forget set, mean over languages, over the sequences of the forget set "
        "that training saw, with 95 % intervals over entries.",
    )


def _plot_sizes(name: str, rows: pd.DataFrame) -> Drawing:
    return Drawing(
        figure=plot_bands(
            rows,
            x_title=f"{name} to forget",
            y_title="MA (%)",
            title=f"Size of the forget set, {name}",
            log=True,
        ),
        caption="MA on the forget set and on the test part, mean over languages, with 95 % "
        "intervals over entries.",
    )


def plot_bands(
    table: pd.DataFrame, *, x_title: str, y_title: str, title: str | None = None, log: bool = False
) -> go.Figure:
    """Draw values over something with their intervals: a facet per `facet`, a line per `line`.

    Args:
        table: rows with `COLUMNS`; values are shares and are drawn as per cent.
        x_title: what `x` is.
        y_title: what the values are.
        title: above all of it.
        log: whether the x axis is logarithmic, with a tick at each `x`.

    Raises:
        ValueError: the table is empty or lacks columns.
    """
    check_table(table, COLUMNS, "values")
    facets = list(dict.fromkeys(table["facet"]))
    lines = list(dict.fromkeys(table["line"]))
    width = 330
    figure, places = lay_out(
        facets,
        num_columns=choose_num_columns(len(facets), width),
        size=(width, 240),
        left=70,
        right=40 + 9 * max(map(len, lines)),
        title=title,
        x_title=x_title,
    )
    for facet, (row, col) in zip(facets, places, strict=True):
        for number, name in enumerate(lines):
            rows = table.query("facet == @facet and line == @name").sort_values("x")
            if rows.empty:
                continue
            shared: dict[str, Any] = {"legendgroup": name, "row": row, "col": col}
            _add_line(figure, rows, number, name, showlegend=facet == facets[0], **shared)
    figure.update_xaxes(showgrid=False, zeroline=False)
    if log:
        ticks = sorted(set(table["x"]))
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(gridcolor="#e6e6e6", zeroline=False, rangemode="tozero")
    figure.update_yaxes(title_text=y_title, col=1)
    return figure


def _add_line(
    figure: go.Figure,
    rows: pd.DataFrame,
    number: int,
    name: str,
    *,
    showlegend: bool,
    legendgroup: str,
    row: int,
    col: int,
) -> None:
    """Add a line and the band of its intervals."""
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    inside = rows.dropna(subset=["ci_low", "ci_high"])
    band = go.Scatter(
        x=[*inside["x"], *inside["x"][::-1]],
        y=[*(100 * inside["ci_high"]), *(100 * inside["ci_low"][::-1])],
        fill="toself",
        fillcolor=f"rgba({colour},0.1)",
        line_width=0,
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=legendgroup,
    )
    hover = [
        f"<b>{name}</b><br>{each['x']:g}: {each['value']:.1%}, interval {each['ci_low']:.1%} to "
        f"{each['ci_high']:.1%}<br>n = {each['n']:.0f}"
        for each in rows.to_dict("records")
    ]
    line = go.Scatter(
        x=rows["x"],
        y=100 * rows["value"],
        mode="lines+markers",
        line={"color": f"rgb({colour})", "dash": dash, "width": 2},
        marker_size=6,
        name=name,
        legendgroup=legendgroup,
        showlegend=showlegend,
        hovertext=hover,
        hoverinfo="text",
    )
    figure.add_trace(band, row=row, col=col)
    figure.add_trace(line, row=row, col=col)
