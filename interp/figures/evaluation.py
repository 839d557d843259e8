"""Metrics of `interp.evaluate` by model and language.

`plot_spread` shows models × query languages (Lu & Koehn 2024, Fig. 2), `plot_target_unrelated` what
a model keeps of what it should forget against what it keeps of the rest (Hong et al. 2024, Fig. 2).
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sequential

from interp.figures import depth
from interp.figures.layout import (
    COLOURS,
    build_text_heatmap,
    check_table,
    choose_num_columns,
    escape,
    fit_legend_height,
    label_language,
    lay_out,
    shorten,
    wrap_title,
)

_COLUMNS = ("model", "language", "concept", "metric", "value", "ci_low", "ci_high", "n", "reason")
_LENS = {
    "lens_logprob": ("logprob", "ci_low", "ci_high"),
    "lens_readable": ("readable", "readable_low", "readable_high"),
}
# What is worth holding against what is kept of the rest (Hong's figure has BLEU).
_KNOWLEDGE = ("accuracy", "alias", "o_f", "rouge_l", "bleu", "chrf", "memorization_accuracy")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def plot_measures(table: pd.DataFrame) -> dict[str, go.Figure]:
    """Draw every figure that a table of measures has, by name.

    `plot_spread` of each metric; `plot_target_unrelated` of those of knowledge, where there are
    false and true facts; the logit lens; drift by layer, a figure per model.
    """
    figures = {}
    by_metric: dict[str, list[dict[str, Any]]] = {}
    by_layer: dict[tuple, dict[str, Any]] = {}
    moved: dict[str, dict[tuple, dict[str, Any]]] = {}
    for row in _read_rows(table):
        metric, layer = row["metric"], row["layer"]
        if math.isnan(layer):
            by_metric.setdefault(metric, []).append(row)
        elif metric in _LENS:
            place = {name: row[name] for name in ("model", "concept", "language")}
            place["layer"] = int(layer)
            cell = by_layer.setdefault(tuple(place.values()), place | {"num_queries": row["n"]})
            values = (row["value"], row["ci_low"], row["ci_high"])
            cell |= dict(zip(_LENS[metric], values, strict=True))
        elif metric.startswith("drift_"):
            place = {"layer": int(layer), "group": row["concept"], "num_parameters": row["n"]}
            cell = moved.setdefault(row["model"], {}).setdefault(tuple(place.values()), place)
            cell[metric.removeprefix("drift_")] = row["value"]
    for name, rows in by_metric.items():
        stem = name.replace("/", "-")
        figures[stem] = plot_spread(pd.DataFrame(rows))
        if name in _KNOWLEDGE and {"fake", "real"} <= {row["concept"] for row in rows}:
            figures[f"{stem}-target-unrelated"] = plot_target_unrelated(pd.DataFrame(rows))
    if by_layer:
        read = pd.DataFrame([*by_layer.values()])
        for column in ("logprob", "readable"):
            figures[f"logit-lens-{column}"] = depth.plot_lens(read, column=column)
    for number, (model, cells) in enumerate(moved.items(), start=1):
        name = "drift" if len(moved) == 1 else f"drift-{number}"
        title = f"Drift of {model}"
        figures[name] = depth.plot_drift(pd.DataFrame([*cells.values()]), title=title)
    return figures


def plot_spread(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw models × query languages with the value in each cell, one facet per concept.

    Models stand in the order of the table; that of a study of contamination is the order of the
    languages in which false facts were taught.

    Args:
        table: rows of one metric.
        title: above all of it; the metric's name if None.

    Raises:
        ValueError: the table is empty, lacks columns, holds several metrics or a cell twice.
    """
    rows = _read_rows(table)
    metric = _get_only_metric(rows)
    models, languages, concepts = (
        list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "language", "concept")
    )
    scale = 100 if _are_shares(rows) else 1
    labels = [shorten(model, 30) for model in models]
    width = max(160, 46 * len(languages))
    figure, places = lay_out(
        [f"{concept} questions" if concept else metric for concept in concepts],
        num_columns=choose_num_columns(len(concepts), width),
        size=(width, max(90, 30 * len(models))),
        left=30 + 7 * max(map(len, labels)),
        right=110,
        title=title or metric,
        x_title="query language",
    )
    ends = [scale * row["value"] for row in rows if not math.isnan(row["value"])] or [0.0]
    top = 100 if scale == 100 else max(ends)
    for concept, (row, col) in zip(concepts, places, strict=True):
        values = np.full((len(models), len(languages)), np.nan)
        texts = np.full(values.shape, "", dtype=object)
        hover = np.full(values.shape, "", dtype=object)
        for entry in (entry for entry in rows if entry["concept"] == concept):
            cell = models.index(entry["model"]), languages.index(entry["language"])
            values[cell] = scale * entry["value"]
            texts[cell] = "–" if math.isnan(entry["value"]) else _format_value(values[cell], scale)
            hover[cell] = _format_hover(entry, scale)
        figure.add_trace(build_text_heatmap(values, texts, hover), row=row, col=col)
    figure.update_xaxes(
        tickvals=list(range(len(languages))),
        ticktext=[*map(escape, languages)],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        range=[len(models) - 0.5, -0.5],
        tickvals=list(range(len(models))),
        ticktext=[*map(escape, labels)],
        showgrid=False,
        zeroline=False,
    )
    bar = {"title": "%" if scale == 100 else "", "thickness": 14, "lenmode": "pixels", "len": 130}
    figure.update_layout(
        coloraxis={
            "colorscale": sequential.Blues,
            "cmin": min(0.0, *ends),
            "cmax": top or 1,
            "colorbar": bar,
        }
    )
    return figure


def plot_target_unrelated(
    table: pd.DataFrame, *, target: str = "fake", unrelated: str = "real", title: str | None = None
) -> go.Figure:
    """Draw a metric on target questions against unrelated ones: a point per model, with intervals.

    One facet per language. A method that forgets and keeps the rest lies at the lower right.

    Args:
        table: rows of one metric.
        target: the concept of the questions about what was to be forgotten.
        unrelated: the concept of the others.
        title: above all of it.

    Raises:
        ValueError: the table is empty, lacks columns, holds several metrics, a cell twice, or
            neither concept.
    """
    rows = _read_rows(table)
    metric = _get_only_metric(rows)
    by_cell = {(row["model"], row["language"], row["concept"]): row for row in rows}
    models, languages = (list(dict.fromkeys(key[place] for key in by_cell)) for place in (0, 1))
    pairs = {
        (model, code): (by_cell[model, code, unrelated], by_cell[model, code, target])
        for model in models
        for code in languages
        if (model, code, target) in by_cell and (model, code, unrelated) in by_cell
    }
    if not pairs:
        held = ", ".join(repr(name) for name in dict.fromkeys(row["concept"] for row in rows))
        raise ValueError(
            f"No model has both concepts, {target!r} and {unrelated!r}; the table holds {held}."
        )
    languages = [code for code in languages if any(key[1] == code for key in pairs)]
    scale = 100 if _are_shares(rows) else 1
    unit = " (%)" if scale == 100 else ""
    width = 230
    columns = choose_num_columns(len(languages), width)
    num_rows = math.ceil(len(languages) / columns)
    height = fit_legend_height(width, num_lines=len(models), num_rows=num_rows)
    y_title = wrap_title(f"{target} questions: {metric}{unit}", height)
    figure, places = lay_out(
        [label_language(code) for code in languages],
        num_columns=columns,
        size=(width, height),
        left=80 + 18 * y_title.count("<br>"),
        right=40 + 8 * min(36, max(len(model) for model in models)),
        title=title,
        x_title=f"{unrelated} questions: {metric}{unit}",
    )
    figure.update_yaxes(gridcolor="#e6e6e6", zeroline=False)
    figure.update_xaxes(gridcolor="#e6e6e6", zeroline=False)
    figure.update_yaxes(title_text=y_title, col=1)
    for number, model in enumerate(models):
        shown = False
        for code, (row, col) in zip(languages, places, strict=True):
            if (model, code) not in pairs:
                continue
            x, y = pairs[model, code]
            point = go.Scatter(
                x=[scale * x["value"]],
                y=[scale * y["value"]],
                error_x=_make_error_bar(x, scale),
                error_y=_make_error_bar(y, scale),
                mode="markers",
                marker={
                    "color": f"rgb({COLOURS[number % len(COLOURS)]})",
                    "symbol": _SYMBOLS[number // len(COLOURS) % len(_SYMBOLS)],
                    "size": 9,
                    "opacity": 0.85,
                },
                name=escape(shorten(model, 36)),
                legendgroup=model,
                showlegend=not shown,
                hovertext=_format_hover(y, scale) + "<br>" + _format_hover(x, scale),
                hoverinfo="text",
            )
            figure.add_trace(point, row=row, col=col)
            shown = True
    return figure


def _get_only_metric(rows: list[dict[str, Any]]) -> str:
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    if len(metrics) > 1:
        raise ValueError(
            f"The table holds the metrics {', '.join(metrics)}: choose the rows of one to draw."
        )
    return metrics[0]


def _read_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    check_table(table, _COLUMNS, "measures")
    keys = ["model", "language", "concept", "metric", *(["layer"] if "layer" in table else [])]
    if (twice := table.duplicated(keys)).any():
        row = table[twice].iloc[0]
        raise ValueError(
            f"duplicate {row['metric']} of {row['model']} in {row['language']}, "
            f"{row['concept']!r}: keep one of them"
        )
    # Tables that went through a CSV file have NaN for empty text.
    texts = {"concept": "", "reason": ""}
    return table.astype(dict.fromkeys(texts, object)).fillna(texts).to_dict("records")


def _are_shares(rows: list[dict[str, Any]]) -> bool:
    return all(math.isnan(row["value"]) or 0 <= row["value"] <= 1 for row in rows)


def _format_value(value: float, scale: int) -> str:
    return f"{value:.0f}" if scale == 100 else f"{value:.3g}"


def _make_error_bar(row: dict[str, Any], scale: int) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "width": 0,
        "array": [scale * (row["ci_high"] - row["value"])],
        "arrayminus": [scale * (row["value"] - row["ci_low"])],
    }


def _format_hover(row: dict[str, Any], scale: int) -> str:
    unit = " %" if scale == 100 else ""
    value, low, high = (scale * row[name] for name in ("value", "ci_low", "ci_high"))
    lines = [
        f"<b>{escape(row['model'])}</b>",
        escape(f"{label_language(row['language'])}, {row['concept']} questions"),
        f"{escape(row['metric'])} "
        + ("undefined" if math.isnan(value) else f"{value:.3g}{unit}")
        + ("" if math.isnan(low) else f", interval {low:.3g} to {high:.3g}"),
        f"n = {row['n']:.0f}",
    ]
    if row["reason"]:
        lines.append(escape(row["reason"]))
    return "<br>".join(lines)
