"""Weight drift by parameter group, and the logit lens over the layers.

`plot_drift` draws the table of `interp.behaviour.drift.measure_drift`, `plot_lens` that of
`interp.behaviour.logit_lens.average_by_layer`.
"""

import math
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.layout import (
    COLOURS,
    check_table,
    choose_num_columns,
    escape,
    label_language,
    lay_out,
    set_language_layer_axes,
    shorten,
)

_DRIFT_COLUMNS = ("layer", "group", "cosine", "relative_change", "effective_rank")
_DRIFT_COLUMNS += ("num_parameters",)
_LENS_COLUMNS = ("language", "layer", "logprob", "ci_low", "ci_high")
_LENS_COLUMNS += ("readable", "readable_low", "readable_high", "num_queries")

_GROUPS = {
    "qkv": "attention: q, k, v",
    "attn_out": "attention: output",
    "key": "MLP keys (gate, up)",
    "value": "MLP values (down)",
    "norms": "norms",
    "embed": "embedding",
    "final_norm": "final norm",
    "unembed": "unembedding",
}
_MEASURES = {
    "distance": "1 − cosine similarity",
    "relative_change": "relative change ‖ΔW‖ / ‖W‖",
    "effective_rank": "effective rank of ΔW",
}
# Groups of the whole model: where they stand before the first layer or after the last.
_PLACES = {"embed": -1.5, "final_norm": 1.5, "unembed": 3.0}
_SYMBOLS = {"embed": "diamond", "final_norm": "triangle-up", "unembed": "square"}

_EMBEDDINGS = -1
_FLOOR = -20
"""Nats: lower log-probabilities take the last colour."""


def plot_drift(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw a line per group over the layers, a facet per measure.

    Groups of the whole model are marks: the embedding before the first layer, the final norm and
    the unembedding after the last. The cosine is drawn as its distance from 1. The distance and
    the relative change have logarithmic axes, at the lower end of which 0 has a place of its own,
    below a dotted line. Values that are NaN are not drawn.

    Raises:
        ValueError: the table is empty, lacks columns or holds a group of a layer twice.
    """
    check_table(table, _DRIFT_COLUMNS, "the drift")
    _check_unique(table, ["layer", "group"], "drift")
    rows = [row | {"distance": 1 - row["cosine"]} for row in table.to_dict("records")]
    last = max(row["layer"] for row in rows)
    figure, places = lay_out(
        list(_MEASURES.values()),
        num_columns=len(_MEASURES),
        size=(290, 270),
        left=60,
        right=190,
        title=title,
        x_title="layer",
    )
    step = next(s for s in (1, 2, 5, 10, 20) if last / s < 8 or s == 20)
    figure.update_xaxes(
        range=[-2.5, last + 4],
        tickvals=list(range(0, last + 1, step)),
        zeroline=False,
        showgrid=False,
    )
    # Room for labels between facets.
    for axis in list(figure.select_xaxes())[1:]:
        start, end = axis.domain
        axis.domain = (start + 0.07 * (end - start), end)
    figure.update_yaxes(
        matches=None, showticklabels=True, ticks="outside", gridcolor="#e6e6e6", zeroline=False
    )
    groups = list(dict.fromkeys(row["group"] for row in rows))
    for measure, (row, col) in zip(_MEASURES, places, strict=True):
        values = [entry[measure] for entry in rows if not math.isnan(entry[measure])]
        bottom = 0.0
        if measure == "effective_rank":
            figure.update_yaxes(rangemode="tozero", row=row, col=col)
        elif positive := [value for value in values if value > 0]:
            axis, bottom = _make_log_axis(positive, with_zero=min(values) <= 0)
            figure.update_yaxes(row=row, col=col, **axis)
        for number, group in enumerate(groups):
            chosen = [e for e in rows if e["group"] == group and not math.isnan(e[measure])]
            trace = _draw_line(chosen, group, measure, number, last, bottom)
            trace.showlegend = measure == "relative_change"
            figure.add_trace(trace, row=row, col=col)
        if bottom:
            # After the lines: plotly leaves empty facets out.
            line = {"color": "#909090", "dash": "dot", "width": 1}
            figure.add_hline(y=bottom * 10**0.5, line=line, row=row, col=col)  # pyright: ignore
    figure.update_layout(legend={"y": 1, "yanchor": "top", "tracegroupgap": 0})
    return figure


def plot_lens(
    table: pd.DataFrame,
    *,
    column: Literal["logprob", "readable"] = "logprob",
    title: str | None = None,
) -> go.Figure:
    """Draw language × layer, one facet per model, on one colour scale.

    Columns that stand before `layer` besides language, such as `model`, tell facets apart. The
    layer −1, the input embeddings, is "emb". Log-probabilities below −20 take the last colour,
    which the colour bar then says; the traces and the hover hold the true ones.

    Args:
        table: the means by layer.
        column: `logprob`, the mean log-probability of the answer's tokens, or `readable`, the share
            of answers whose rank is within the table's `top_k`.
        title: above all of it.

    Raises:
        ValueError: no such column; the table is empty, lacks columns or holds a cell twice.
    """
    if column not in ("logprob", "readable"):
        raise ValueError(f"unknown column {column!r}; valid: logprob, readable")
    check_table(table, _LENS_COLUMNS, "the logit lens")
    before = list(table.columns[: list(table.columns).index("layer")])
    _check_unique(table, [*before, "layer"], "logit lens")
    keys = [name for name in before if name != "language"]
    facets: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        facets.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    languages = list(dict.fromkeys(table["language"]))
    layers = sorted(set(table["layer"]))
    labels = [label_language(code) for code in languages]
    width = int(np.clip(20 * len(layers), 240, 420))
    figure, places = lay_out(
        [shorten(", ".join(facet), width // 8) for facet in facets],
        num_columns=choose_num_columns(len(facets), width),
        size=(width, max(110, 24 * len(languages))),
        left=30 + 8 * max(map(len, labels)),
        right=130,
        title=title,
        x_title="layer",
    )
    for (facet, rows), (row, col) in zip(facets.items(), places, strict=True):
        values = np.full((len(languages), len(layers)), np.nan)
        hover = np.full(values.shape, "", dtype=object)
        for entry in rows:
            cell = languages.index(entry["language"]), layers.index(entry["layer"])
            values[cell], hover[cell] = entry[column], _format_lens_hover(entry, ", ".join(facet))
        cells = go.Heatmap(
            z=values,
            x=layers,
            y=languages,
            hovertext=hover,
            hoverinfo="text",
            hoverongaps=False,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
        figure.add_trace(cells, row=row, col=col)
    step = set_language_layer_axes(figure, languages, layers, width)
    shown = [layer for layer in layers if layer >= 0][::step]
    if _EMBEDDINGS in layers:
        # Too near for two labels where layers stand close.
        shown = [_EMBEDDINGS, *(shown if step == 1 else shown[1:])]
    figure.update_xaxes(
        tickvals=shown,
        ticktext=["emb" if layer == _EMBEDDINGS else str(layer) for layer in shown],
    )
    figure.update_layout(coloraxis=_make_coloraxis(table[column].tolist(), column))
    return figure


def _check_unique(table: pd.DataFrame, keys: list[str], what: str) -> None:
    if (twice := table.duplicated(keys)).any():
        row = table[twice].iloc[0]
        cell = ", ".join(f"{key} {row[key]}" for key in keys)
        raise ValueError(f"duplicate {cell} in the table of the {what}: draw each by itself")


def _make_log_axis(positive: list[float], *, with_zero: bool) -> tuple[dict[str, Any], float]:
    """Return a logarithmic axis labelled at powers of ten, and where it has 0, if anywhere."""
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    powers = range(high, low - 1, -max(1, math.ceil((high - low) / 6)))
    ticks = {10.0**power: f"10<sup>{power}</sup>".replace("-", "−") for power in powers}
    bottom = 10.0 ** (low - 1) if with_zero else 0.0
    if with_zero:
        ticks[bottom] = "0"
    axis: dict[str, Any] = {"type": "log", "range": [low - 1.5 * with_zero, high]}
    return axis | {"tickvals": list(ticks), "ticktext": list(ticks.values())}, bottom


def _draw_line(
    rows: list[dict[str, Any]], group: str, measure: str, number: int, last: int, bottom: float
) -> go.Scatter:
    """Draw a group's values over the layers, or a mark beside them; zeros at the bottom."""
    rows = sorted(rows, key=lambda row: row["layer"])
    whole = group in _PLACES
    place = _PLACES.get(group, 0) + (last if group in ("final_norm", "unembed") else 0)
    colour = COLOURS[number % len(COLOURS)]
    name = _GROUPS.get(group, group)
    return go.Scatter(
        x=[place if whole else row["layer"] for row in rows],
        y=[max(row[measure], bottom) for row in rows],
        mode="markers" if whole else "lines+markers",
        line={"color": f"rgb({colour})", "width": 2},
        marker={"size": 9 if whole else 5, "symbol": _SYMBOLS.get(group, "circle")},
        marker_color="#606060" if whole else f"rgb({colour})",
        hovertext=[_format_drift_hover(row, name) for row in rows],
        hoverinfo="text",
        cliponaxis=False,
        name=escape(name),
        legendgroup=group,
    )


def _format_drift_hover(row: dict[str, Any], name: str) -> str:
    lines = [
        f"<b>{escape(name)}</b>",
        *([f"layer {row['layer']}"] if row["group"] not in _PLACES else []),
        f"1 − cosine {row['distance']:.2e}",
        f"relative change {row['relative_change']:.2e}",
        f"effective rank {row['effective_rank']:.1f}",
        f"{row['num_parameters']:,} parameters",
    ]
    return "<br>".join(lines)


def _format_lens_hover(row: dict[str, Any], facet: str) -> str:
    layer = "embeddings" if row["layer"] == _EMBEDDINGS else f"after layer {row['layer']}"
    lines = [
        f"<b>{escape(label_language(row['language']))}</b>",
        escape(facet),
        layer,
        f"log-probability {row['logprob']:.2f}, "
        f"interval {row['ci_low']:.2f} to {row['ci_high']:.2f}",
        f"readable {row['readable']:.1%}, "
        f"interval {row['readable_low']:.1%} to {row['readable_high']:.1%}",
        f"{row['num_queries']} question" + ("" if row["num_queries"] == 1 else "s"),
    ]
    return "<br>".join(filter(None, lines))


def _make_coloraxis(values: list[float], column: str) -> dict[str, Any]:
    bar: dict[str, Any] = {"thickness": 14, "lenmode": "pixels", "len": 200}
    low, high, text = 0.0, 1.0, "share<br>readable"
    if column == "readable":
        bar |= {"tickformat": ".0%"}
    else:
        low, high, text = max(min(values), float(_FLOOR)), 0.0, "log-probability<br>(nats)"
        if min(values) < _FLOOR:
            text += f"<br>(below −{-_FLOOR}<br>shown as −{-_FLOOR})"
    bar |= {"title": {"text": text, "font": {"size": 14}}}
    return {"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": bar}
