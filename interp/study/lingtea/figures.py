"""Figures of Choi, Min & Choo 2024's experiments: what is left over the cost, over the set's size.

The tables are made from those of `interp.study.lingtea.scores` and `interp.study.lingtea.runs`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.behaviour.measure import resampled
from interp.figures.facets import COLOURS, DASHES, check_table, lay_out, num_columns

COLUMNS = ("facet", "line", "x", "value", "ci_low", "ci_high", "n")


def bands(
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
        num_columns=num_columns(len(facets), width),
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
            _add(figure, rows, number, name, showlegend=facet == facets[0], **shared)
    figure.update_xaxes(showgrid=False, zeroline=False)
    if log:
        ticks = sorted(set(table["x"]))
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(gridcolor="#e6e6e6", zeroline=False, rangemode="tozero")
    figure.update_yaxes(title_text=y_title, col=1)
    return figure


def cost_table(curves: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """What is left of the forget set over the sequences trained, the mean over languages.

    Args:
        curves: tables of `runs.curve`.
        names: what each run's line is called.

    Returns:
        The rows that `bands` draws, with intervals over entries.
    """
    found = []
    groups: dict[Any, Any] = dict(list(curves.groupby(["run", "sequences"], sort=False)))
    for (run, sequences), rows in groups.items():
        right, tokens = (
            rows.pivot(index="language", columns="text_id", values=name).to_numpy(dtype=float)
            for name in ("num_right", "num_tokens")
        )

        def known(items: Any, right: Any = right, tokens: Any = tokens) -> float:
            return float((right[:, items].sum(-1) / tokens[:, items].sum(-1)).mean())

        measure = asdict(resampled(right.shape[1], known))
        found.append({"facet": "forget set", "line": names[run], "x": sequences} | measure)
    return pd.DataFrame(found)


def _add(
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
    """A line and the band of its intervals."""
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
