"""Figures of a dissection that no other study has: what is kept, target against unrelated."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.behaviour.drift import COLUMNS
from interp.figures import depth
from interp.figures.facets import COLOURS, check_table, language_label, lay_out, num_columns
from interp.study.dissect.behaviour import TARGET, UNRELATED
from interp.study.dissect.recovery import is_trained
from interp.study.rows import where

_COLUMNS = ("method", "strength", "language", "questions", "bleu", "ci_low", "ci_high", "n")
_SIZES = (6, 9, 12, 15)


def tradeoff(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw BLEU on target against unrelated questions (Hong, Fig. 2), one facet per language.

    A line per method begins at V, where both are 100, and goes on to its strengths, the stronger
    the larger the mark. On the dotted line both fall alike; below it targets fall faster. MEMIT's
    lines are dashed.

    Args:
        table: that of `interp.study.dissect.behaviour.kept`.
        title: above all of it.

    Raises:
        ValueError: the table is empty or lacks columns.
    """
    check_table(table, _COLUMNS, "kept answers")
    languages, methods = (list(dict.fromkeys(table[name])) for name in ("language", "method"))
    width = 260
    figure, places = lay_out(
        [language_label(code) for code in languages],
        num_columns=num_columns(len(languages), width),
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
            rows = where(table, language=code, method=method)
            figure.add_trace(
                _path(rows, method, number, is_first=code == languages[0]), row=row, col=col
            )
    figure.update_layout(
        legend={"title": {"text": "from V to stronger", "font_size": 13}, "tracegroupgap": 0}
    )
    return figure


def mean_drift(drifts: pd.DataFrame, *, trained: bool, title: str | None = None) -> go.Figure:
    """Draw drift by layer and group, the mean over the models that were trained, or edited.

    Args:
        drifts: rows of `interp.behaviour.drift.drift` with the column `method`.
        trained: methods that train, else MEMIT.
        title: above all of it.

    Raises:
        ValueError: there are no such models.
    """
    names = {method for method in drifts["method"] if is_trained(method) == trained}
    rows = where(drifts, method=names)
    check_table(rows, COLUMNS, "the drift")
    cells: Any = rows.groupby(["layer", "group"], sort=False)
    means = cells[["cosine", "relative_change", "effective_rank", "num_parameters"]].mean()
    table = means.reset_index().astype({"num_parameters": int})
    return depth.drift(table, title=title)


def _path(rows: pd.DataFrame, method: str, number: int, *, is_first: bool) -> go.Scatter:
    """A method's way from V, through its strengths."""
    target, unrelated = (where(rows, questions=kind) for kind in (TARGET, UNRELATED))
    points = target.merge(unrelated, on="strength", suffixes=("_y", "_x"))
    points = points.sort_values("strength")
    hover = ["V", *(_hover(row, method) for row in points.to_dict("records"))]
    colour = f"rgb({COLOURS[number % len(COLOURS)]})"
    return go.Scatter(
        x=[100, *points["bleu_x"]],
        y=[100, *points["bleu_y"]],
        error_x=_error(points, "x"),
        error_y=_error(points, "y"),
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
        name=html.escape(method),
        legendgroup=method,
        showlegend=is_first,
        cliponaxis=False,
    )


def _error(points: pd.DataFrame, side: str) -> dict[str, object]:
    value = points[f"bleu_{side}"]
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 0.7,
        "width": 0,
        "array": [0, *(points[f"ci_high_{side}"] - value)],
        "arrayminus": [0, *(value - points[f"ci_low_{side}"])],
    }


def _hover(row: dict, method: str) -> str:
    lines = [f"<b>{html.escape(method)}</b>, strength {row['strength']:g}"]
    for name, side in (("target", "y"), ("unrelated", "x")):
        lines.append(
            f"{name}: BLEU {row[f'bleu_{side}']:.1f}, interval {row[f'ci_low_{side}']:.1f} to "
            f"{row[f'ci_high_{side}']:.1f}, n = {row[f'n_{side}']}"
        )
    return "<br>".join(lines)
