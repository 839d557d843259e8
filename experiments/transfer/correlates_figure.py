"""Cross-lingual transfer of unlearning against its predictors (Neplenbroek et al. 2025).

The table is that of `experiments.transfer.correlates.compute_reductions`.
"""

import html
import math
from itertools import combinations, starmap
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures import COLOURS, label_language, lay_out
from interp.languages import LANGUAGES

PREDICTORS = {
    "web_share": "share of web pages (%)",
    "jaccard": "shared subwords (Jaccard)",
    "weighted_jaccard": "shared subwords (weighted Jaccard)",
}
"""Predictors that can be drawn, with the names of their axes; that of web shares is logarithmic."""

_COLUMNS = ("language", "reduction", "unlearned_in")
_INTERVAL = ("reduction_low", "reduction_high")

# Pixels: the plot, a label's letter and line, a dot, and from its middle to its label.
_SIZE = (520, 380)
_LETTER, _LINE, _DOT, _AWAY = 7, 15, 8, 7
_FONT_SIZE = 12

# Where a label may stand, the best first: plotly's name, and where its middle is from the dot, in
# half-widths to the right and half-heights upwards.
_PLACES = {
    "middle right": (1, 0),
    "top center": (0, 1),
    "bottom center": (0, -1),
    "middle left": (-1, 0),
    "top right": (1, 1),
    "bottom right": (1, -1),
    "top left": (-1, 1),
    "bottom left": (-1, -1),
}

# Left, bottom, right and top, in pixels.
Box: TypeAlias = tuple[float, float, float, float]


def plot_transfer(
    table: pd.DataFrame, *, predictor: str = "web_share", title: str | None = None
) -> go.Figure:
    """Draw the reduction of each language against a predictor, a labelled dot per language.

    Labels are names, or codes where names would cover each other.

    Languages that unlearning was in are hollow, since theirs is no transfer. Columns
    `reduction_low` and `reduction_high` are drawn as intervals. Languages that lack the reduction
    or the predictor are named below the axis.

    Raises:
        ValueError: the table lacks columns or has nothing to draw, or the predictor is none of
            `PREDICTORS`.
    """
    if predictor not in PREDICTORS:
        raise ValueError(f"unknown predictor {predictor!r}; valid: {', '.join(PREDICTORS)}")
    if missing := [column for column in (*_COLUMNS, predictor) if column not in table]:
        raise ValueError(f"The table of reductions lacks the columns {', '.join(missing)}.")
    rows = table.to_dict("records")
    drawn = [row for row in rows if not math.isnan(row["reduction"] + row[predictor])]
    if not drawn:
        raise ValueError("The table has no language with a reduction and a value of the predictor.")
    figure, _ = lay_out(
        [""],
        num_columns=1,
        size=_SIZE,
        left=60,
        right=20,
        title=title,
        x_title=PREDICTORS[predictor],
    )
    is_log = predictor == "web_share"
    x = np.array([row[predictor] for row in drawn], dtype=float)
    x = np.log10(x) if is_log else x
    low, y, high = (
        100 * np.array(column) for column in zip(*map(_get_interval, drawn), strict=True)
    )
    x_range, y_range = (
        _pad_range(x.min(), x.max()),
        _pad_range(min(0, low.min()), max(0, high.max())),
    )
    across = (x - x_range[0]) / (x_range[1] - x_range[0]) * _SIZE[0]
    upwards = [
        (each - y_range[0]) / (y_range[1] - y_range[0]) * _SIZE[1] for each in (low, y, high)
    ]
    labels = [_name_language(row["language"]) for row in drawn]
    places, covered = _place_labels(labels, across, *upwards)
    if covered:
        # Codes are shorter than names.
        codes = [row["language"] for row in drawn]
        of_codes, covered_by_codes = _place_labels(codes, across, *upwards)
        if covered_by_codes < covered:
            labels, places = codes, of_codes
    for hollow in sorted({bool(row["unlearned_in"]) for row in drawn}):
        chosen = [at for at, row in enumerate(drawn) if bool(row["unlearned_in"]) == hollow]
        error: dict[str, Any] = {"type": "data", "symmetric": False, "thickness": 1, "width": 0}
        error |= {"array": (high - y)[chosen], "arrayminus": (y - low)[chosen]}
        dots = go.Scatter(
            x=[drawn[at][predictor] for at in chosen],
            y=y[chosen],
            error_y=error | {"color": f"rgba({COLOURS[0]},0.45)"},
            mode="markers+text",
            marker={
                "size": _DOT,
                "color": "white" if hollow else f"rgb({COLOURS[0]})",
                "line": {"width": 1.5, "color": f"rgb({COLOURS[0]})"},
            },
            text=[html.escape(labels[at]) for at in chosen],
            textposition=[places[at] for at in chosen],
            textfont={"size": _FONT_SIZE},
            hovertext=[_format_hover(drawn[at], predictor) for at in chosen],
            hoverinfo="text",
            name="unlearned in" if hollow else "other languages",
        )
        figure.add_trace(dots, row=1, col=1)
    if is_log:
        ticks = [10.0**at for at in range(math.floor(x_range[0]), math.ceil(x_range[1]) + 1)]
        names = [np.format_float_positional(each, trim="-") for each in ticks]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=names)
    figure.update_xaxes(range=x_range, gridcolor="#e6e6e6", zeroline=False)
    figure.update_yaxes(
        range=y_range,
        title_text="reduction (% of the rate before)",
        gridcolor="#e6e6e6",
        zeroline=True,
        zerolinecolor="#909090",
        zerolinewidth=1,
    )
    figure.update_layout(
        showlegend=len({row["unlearned_in"] for row in drawn}) > 1,
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
    )
    if left_out := [_name_language(row["language"]) for row in rows if row not in drawn]:
        figure.add_annotation(
            text=html.escape(f"not drawn, for lack of a value: {', '.join(left_out)}"),
            x=0,
            xref="paper",
            xanchor="left",
            y=0,
            yref="paper",
            yshift=-68,
            showarrow=False,
            font={"size": 11, "color": "#707070"},
        )
    return figure


def _name_language(code: str) -> str:
    return LANGUAGES[code].name if code in LANGUAGES else code


def _get_interval(row: dict[str, Any]) -> tuple[float, float, float]:
    """Return the reduction between the ends of its interval, or thrice if it has none."""
    value = row["reduction"]
    low, high = (row.get(name, math.nan) for name in _INTERVAL)
    return (value, value, value) if math.isnan(low + high) else (low, value, high)


def _pad_range(low: float, high: float) -> list[float]:
    space = 0.08 * (high - low or 1)
    return [low - space, high + space]


def _format_hover(row: dict[str, Any], predictor: str) -> str:
    low, value, high = _get_interval(row)
    interval = f", interval {low:.1%} to {high:.1%}" if low < high else ""
    lines = [
        f"<b>{html.escape(label_language(row['language']))}</b>",
        f"reduction {value:.1%}{interval}",
        f"{PREDICTORS[predictor]}: {row[predictor]:.4g}",
    ]
    return "<br>".join(lines)


def _place_labels(
    labels: list[str], x: np.ndarray, low: np.ndarray, y: np.ndarray, high: np.ndarray
) -> tuple[list[str], float]:
    """Place each label so that it covers little: chosen in turn, until none moves.

    Returns:
        The places, and by how many pixels labels cover each other.
    """
    dots = [_make_box((x[at], y[at]), _DOT, _DOT) for at in range(len(labels))]
    lines = [(x[at] - 1, low[at], x[at] + 1, high[at]) for at in range(len(labels))]
    chosen = ["middle right"] * len(labels)

    def box(at: int, place: str) -> Box:
        right, up = _PLACES[place]
        width = _LETTER * len(labels[at])
        middle = x[at] + right * (_AWAY + width / 2), y[at] + up * (_AWAY + _LINE / 2)
        return _make_box(middle, width, _LINE)

    def cost(at: int, place: str) -> float:
        own = box(at, place)
        others = [box(other, chosen[other]) for other in range(len(labels)) if other != at]
        outside = _compute_area(own) - _compute_overlap(own, (0, 0, *_SIZE))
        covered = 3 * sum(_compute_overlap(own, each) for each in (*dots, *others))
        return 3 * outside + covered + sum(_compute_overlap(own, each) for each in lines)

    for _ in range(10):
        before = list(chosen)
        for at in range(len(labels)):
            costs = {place: cost(at, place) for place in _PLACES}
            chosen[at] = min(costs, key=costs.__getitem__)
        if chosen == before:
            break
    boxes = [box(at, place) for at, place in enumerate(chosen)]
    return chosen, sum(starmap(_compute_overlap, combinations(boxes, 2)))


def _make_box(middle: tuple[float, float], width: float, height: float) -> Box:
    x, y = middle
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _compute_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _compute_overlap(a: Box, b: Box) -> float:
    """Return the area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
