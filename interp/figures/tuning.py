"""Forgetting against retention: the curves of a method's trials."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.figures.layout import COLOURS, DASHES, check_table, lay_out, place_legend_below

_COLUMNS = ("trial", "step", "forget", "retention", "hold", "best")


def plot_tuning(trials: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw what is retained against what is forgotten, a line per trial in the order of its steps.

    Full marks are evaluations at which all guards held, a ring is the trial's best. The right upper
    corner is where to get.

    Args:
        trials: what `Tuning.trials` is.
        title: above all of it.

    Raises:
        ValueError: a column is missing, or there is no trial.
    """
    check_table(trials, _COLUMNS, "trials")
    figure, _ = lay_out(
        [""],
        num_columns=1,
        size=(420, 320),
        left=70,
        right=40,
        title=title,
        x_title="forgotten (%), the language that forgot least",
    )
    for number, trial in enumerate(dict.fromkeys(trials["trial"])):
        rows = trials[trials["trial"] == trial]
        colour = f"rgb({COLOURS[number % len(COLOURS)]})"
        forgotten, retained = 100 * (1 - rows["forget"]), 100 * rows["retention"]
        symbols = ["circle" if holds else "circle-open" for holds in rows["hold"]]
        figure.add_trace(
            go.Scatter(
                x=forgotten,
                y=retained,
                mode="lines+markers",
                name=_describe(rows.iloc[0].to_dict()),
                line={"color": colour, "dash": DASHES[number // len(COLOURS) % len(DASHES)]},
                marker={"symbol": symbols, "size": 7},
                customdata=rows["step"],
                hovertemplate="step %{customdata}: %{x:.0f} % forgotten, %{y:.0f} % retained",
            ),
            row=1,
            col=1,
        )
        best = rows[rows["best"]]
        figure.add_trace(
            go.Scatter(
                x=100 * (1 - best["forget"]),
                y=100 * best["retention"],
                mode="markers",
                marker={"symbol": "circle-open", "size": 15, "color": colour, "line": {"width": 2}},
                showlegend=False,
                hoverinfo="skip",
            ),
            row=1,
            col=1,
        )
    figure.update_xaxes(range=[-4, 104])
    figure.update_yaxes(range=[-4, 104], title="retained (%), the worst language")
    place_legend_below(figure)
    return figure


def _describe(row: dict[str, object]) -> str:
    """Name a trial by its settings."""
    text = f"learning rate {row.get('learning_rate', 0):.2g}"
    if isinstance(row.get("setting"), str):
        text += f", {row['setting']} {row['value']:.3g}"
    return text
