"""Figures of a behaviour trained away: rates and abilities by language, transfer, KRS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from experiments.study import Drawing
from experiments.transfer.config import NAMES, VANILLA, Config
from experiments.transfer.correlates_figure import plot_transfer
from experiments.transfer.tables import (
    BEHAVIOUR,
    CONSISTENCY,
    DIVERSITY,
    PERPLEXITY,
    select_reductions,
)
from interp import figures
from interp.figures import COLOURS, check_table, escape, label_language, lay_out, place_legend_below
from interp.report import Table

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

# How far apart the dots of a language stand, in rows.
_SPREAD = 0.24


def make_figures(
    measurements: Mapping[str, pd.DataFrame], tables: Mapping[str, Table], config: Config
) -> dict[str, Drawing]:
    """Draw every figure of the study.

    Args:
        measurements: unused; every paper's figures may read its measurements.
        tables: what `make_tables` returns.
        config: unused, likewise.
    """
    del measurements, config
    drawings = {
        "by_language": Drawing(
            figure=plot_rates(
                tables["rates"].rows, title="The behaviour and its price, by language"
            ),
            caption="The behaviour, language consistency, diversity and perplexity before and after"
            " training in English, with 95 % intervals over items.",
        )
    }
    for method, table in select_reductions(tables).items():
        if len(table.dropna(subset=["reduction"])):
            drawings[f"transfer-{method}"] = Drawing(
                figure=plot_transfer(table, title=f"Transfer of {NAMES[method]} in English"),
                caption=f"Reduction of the behaviour by {NAMES[method]} in English against each "
                "language's share of web pages.",
            )
    krs = tables["krs"].rows
    named = krs.assign(unlearned=[NAMES[method] for method in krs["method"]])
    drawings["krs"] = Drawing(
        figure=figures.plot_heatmap(named, title="Recovery of the vanilla answers"),
        caption="KRS of restored parts, by query language and layer.",
    )
    return drawings


def plot_rates(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw every measure of every model, a row per language, with its interval.

    Raises:
        ValueError: the table is empty or lacks columns.
    """
    check_table(table, _COLUMNS, "rates")
    drawn = [name for name in TITLES if name in set(table["measure"])]
    languages, models = (list(dict.fromkeys(table[name])) for name in ("language", "model"))
    labels = [label_language(code) for code in languages]
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
                error_x=_make_error_bars(rows, scale, f"rgba({_COLOURS[number % 3]},0.5)"),
                mode="markers",
                marker={
                    "color": f"rgb({_COLOURS[number % 3]})",
                    "symbol": _SYMBOLS[number % 3],
                    "size": 8,
                    "line": {"width": 1.5, "color": f"rgb({_COLOURS[number % 3]})"},
                },
                name=escape(_name_model(model)),
                legendgroup=model,
                showlegend=name == drawn[0],
                hovertext=[_describe_rate(each, scale) for each in rows],
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
        ticktext=[escape(label) for label in labels],
        gridcolor="#f0f0f0",
        zeroline=False,
    )
    return place_legend_below(figure)


def _name_model(model: str) -> str:
    return NAMES.get(model, "before training" if model == VANILLA else model)


def _make_error_bars(rows: list[dict[str, Any]], scale: int, colour: str) -> dict[str, Any]:
    """Make intervals; an end that is not known is not drawn."""

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


def _describe_rate(row: Mapping[str, Any], scale: int) -> str:
    unit = " %" if scale == 100 else ""
    value, low, high = (scale * row[name] for name in ("value", "ci_low", "ci_high"))
    lines = [
        f"<b>{escape(label_language(row['language']))}</b>",
        escape(_name_model(row["model"])),
        f"{TITLES[row['measure']][0]} {value:.3g}{unit}"
        + ("" if math.isnan(low) else f", interval {low:.3g} to {high:.3g}"),
        f"n = {row['n']:.0f}",
        *([escape(row["reason"])] if row["reason"] else []),
    ]
    return "<br>".join(lines)
