"""Rates of the behaviour and of abilities by language, before and after training.

The table is that of `interp.study.transfer.scores.cells`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.figures.facets import COLOURS, check_table, language_label, lay_out
from interp.study.transfer.findings import NAMES, VANILLA
from interp.study.transfer.scores import BEHAVIOUR, CONSISTENCY, DIVERSITY, PERPLEXITY

TITLES: Mapping[str, tuple[str, str]] = {
    BEHAVIOUR: ("behaviour", "unwanted answer preferred (%)"),
    CONSISTENCY: ("language consistency", "in the prompt's language (%)"),
    DIVERSITY: ("diversity", "distinct-2 of a continuation"),
    PERPLEXITY: ("perplexity", "of held-out texts (log scale)"),
}
"""The measures that are drawn, each with its facet's title and its axis'."""

_COLUMNS = ("model", "language", "measure", "value", "ci_low", "ci_high", "n", "reason")
_SYMBOLS = ("circle-open", "circle", "diamond")
_COLOURS = (COLOURS[5], COLOURS[0], COLOURS[1])
_WIDTH = 205
_LEGEND = 30
# How far apart the dots of a language stand, in rows.
_SPREAD = 0.24


def by_language(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw every measure of every model, a row per language, with its interval.

    Raises:
        ValueError: the table is empty or lacks columns.
    """
    check_table(table, _COLUMNS, "rates")
    drawn = [name for name in TITLES if name in set(table["measure"])]
    languages, models = (list(dict.fromkeys(table[name])) for name in ("language", "model"))
    labels = [language_label(code) for code in languages]
    figure, places = lay_out(
        [TITLES[name][0] for name in drawn],
        num_columns=len(drawn),
        size=(_WIDTH, max(120, 26 * len(languages))),
        left=30 + 8 * max(map(len, labels)),
        right=40,
        title=title,
        x_title="",
    )
    for name, (row, col) in zip(drawn, places, strict=True):
        scale = 100 if name in (BEHAVIOUR, CONSISTENCY) else 1
        for number, model in enumerate(models):
            cells = table.query(f"measure == {name!r} and model == {model!r}")
            rows = [each for each in cells.to_dict("records") if not math.isnan(each["value"])]
            offset = _SPREAD * (number - (len(models) - 1) / 2)
            dots = go.Scatter(
                x=[scale * each["value"] for each in rows],
                y=[languages.index(each["language"]) + offset for each in rows],
                error_x=_errors(rows, scale, f"rgba({_COLOURS[number % 3]},0.5)"),
                mode="markers",
                marker={
                    "color": f"rgb({_COLOURS[number % 3]})",
                    "symbol": _SYMBOLS[number % 3],
                    "size": 8,
                    "line": {"width": 1.5, "color": f"rgb({_COLOURS[number % 3]})"},
                },
                name=html.escape(_label(model)),
                legendgroup=model,
                showlegend=name == drawn[0],
                hovertext=[_hover(each, scale) for each in rows],
                hoverinfo="text",
            )
            figure.add_trace(dots, row=row, col=col)
        axis: dict[str, Any] = {"title_text": TITLES[name][1], "gridcolor": "#e6e6e6"}
        axis |= {"title_font_size": 13}
        if name == PERPLEXITY:
            ticks = [step * 10.0**power for power in range(7) for step in (1, 2, 5)]
            axis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{at:,.0f}" for at in ticks]}
        else:
            # Room for dots at the ends.
            axis |= {"range": [-4, 104] if scale == 100 else [-0.04, 1.04]}
        figure.update_xaxes(matches=None, zeroline=False, **axis, row=row, col=col)
    figure.update_yaxes(
        range=[len(languages) - 0.5, -0.5],
        tickvals=list(range(len(languages))),
        ticktext=labels,
        gridcolor="#f0f0f0",
        zeroline=False,
    )
    layout: Any = figure.layout
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0.005}
    figure.update_layout(
        legend=legend | {"yanchor": "bottom"},
        height=layout.height + _LEGEND,
        margin_b=layout.margin.b + _LEGEND,
    )
    return figure


def _label(model: str) -> str:
    return NAMES.get(model, "before training" if model == VANILLA else model)


def _errors(rows: list[dict[str, Any]], scale: int, colour: str) -> dict[str, Any]:
    """Intervals; an end that is not known is not drawn."""

    def length(low: float, high: float) -> float:
        return 0.0 if math.isnan(high - low) else scale * (high - low)

    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1.5,
        "width": 0,
        "color": colour,
        "array": [length(each["value"], each["ci_high"]) for each in rows],
        "arrayminus": [length(each["ci_low"], each["value"]) for each in rows],
    }


def _hover(row: Mapping[str, Any], scale: int) -> str:
    unit = " %" if scale == 100 else ""
    value, low, high = (scale * row[name] for name in ("value", "ci_low", "ci_high"))
    lines = [
        f"<b>{html.escape(language_label(row['language']))}</b>",
        html.escape(_label(row["model"])),
        f"{TITLES[row['measure']][0]} {value:.3g}{unit}"
        + ("" if math.isnan(low) else f", interval {low:.3g} to {high:.3g}"),
        f"n = {row['n']:.0f}",
        *([html.escape(row["reason"])] if row["reason"] else []),
    ]
    return "<br>".join(lines)
