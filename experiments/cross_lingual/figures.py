"""Figures of false facts across languages: outcomes, their course, and where they sit.

`plot_array` shows where the knowledge sits when it hides behind a language: source and mix × query
language, the recovery score of the best window in each cell. `plot_curves` shows what is known
while it is unlearned (Lu & Koehn 2024, Figs. 3–6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import diverging

from experiments.cross_lingual.config import Config
from experiments.cross_lingual.tables import CLEAN, TAUGHT, average_outcomes
from experiments.study import Drawing, select_rows
from interp import figures
from interp.figures import (
    COLOURS,
    DASHES,
    build_text_heatmap,
    check_table,
    choose_num_columns,
    escape,
    fit_legend_height,
    format_accuracy_hover,
    label_language,
    lay_out,
)
from interp.languages import LANGUAGES
from interp.report import Table

CONCEPTS = {"fake": "False facts", "real": "True facts"}

_CELL = ("source", "unlearning", "language")

_SCORE = ("site", "layer", "krs", "ci_low", "ci_high", "num_queries", "reason")

_ACCURACY = ("step", "accuracy", "ci_low", "ci_high", "chance", "num_queries")


def make_figures(
    measurements: Mapping[str, pd.DataFrame], tables: Mapping[str, Table], config: Config
) -> dict[str, Drawing]:
    """Draw every figure of the study.

    Args:
        measurements: what `run.measure` returns.
        tables: what `make_tables` returns.
        config: unused; every paper's figures may read its settings.
    """
    del config
    ranks = measurements["ranks"]
    drawings: dict[str, Drawing] = {}
    before = f"unlearning in {[TAUGHT, CLEAN]}"
    for judge, rows in measurements["outcomes"].groupby("judge", sort=False):
        stem = str(judge).partition(" ")[0]
        for name, part, title, which in (
            ("spread", rows.query(before), "Before unlearning", "Taught in (rows)"),
            ("left", rows.query(f"not {before}"), "After unlearning", "Taught in: unlearned in"),
        ):
            if len(part):
                drawings[f"{name}-{stem}"] = Drawing(
                    figure=figures.plot_spread(average_outcomes(part), title=f"{title}, by {stem}"),
                    caption=f"{title}. {which}, asked in (columns); what {judge} finds in answers.",
                )
    for concept, title in CONCEPTS.items():
        steps = select_rows(measurements["steps"], concept=concept)
        if len(steps):
            title = f"{title} during unlearning, by languages to forget in"
            drawings[f"curves-{concept}"] = Drawing(
                figure=plot_curves(steps, title=title),
                caption=f"{title}; candidate ranking, chance is dashed.",
            )
    if "krs_best" in tables:
        best = tables["krs_best"].rows
        title = "Where false facts sit: KRS at the best window"
        drawings["krs-array"] = Drawing(
            figure=plot_array(best, title=title),
            caption=f"{title}, per source and languages to forget in (rows), query language and "
            "site; framed is the language taught.",
        )
    if len(ranks):
        title = "After unlearning in English by LoRA of several ranks"
        drawings["ranks"] = Drawing(
            figure=figures.plot_spread(average_outcomes(ranks), title=title),
            caption=f"{title}; candidate ranking.",
        )
    return drawings


def plot_array(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw source and mix × query language with the score in each cell, one facet per site.

    Rows are grouped by source; the query in the source language is framed. The colours are
    symmetric around zero and end at the largest score, ±1 at most.

    Args:
        table: a row per source, unlearning, language and site: `krs` at its best `layer`, with
            `ci_low`, `ci_high`, `num_queries` and `reason`.
        title: above all of it.

    Raises:
        ValueError: the table is empty, lacks columns or holds a cell twice.
    """
    check_table(table, (*_CELL, *_SCORE), "best windows")
    records = table.astype({"reason": object}).fillna({"reason": ""}).to_dict("records")
    lines = _group_lines([(row["source"], row["unlearning"]) for row in records])
    languages = list(dict.fromkeys(row["language"] for row in records))
    sites = list(dict.fromkeys(row["site"] for row in records))
    labels = [f"{label_language(source)}: {unlearning}" for source, unlearning in lines]
    size = (max(180, 64 * len(languages)), max(80, 30 * len(lines)))
    figure, places = lay_out(
        sites,
        num_columns=choose_num_columns(len(sites), size[0]),
        size=size,
        left=30 + 7 * max(map(len, labels)),
        right=110,
        title=title,
        x_title="query language",
    )
    finite = [abs(row["krs"]) for row in records if math.isfinite(row["krs"])]
    end = min(max(finite, default=1.0), 1.0) or 1.0
    for site, (row, col) in zip(sites, places, strict=True):
        scores = np.full((len(lines), len(languages)), np.nan)
        texts = np.full(scores.shape, "", dtype=object)
        hover = np.full(scores.shape, "", dtype=object)
        for record in (each for each in records if each["site"] == site):
            line = lines.index((record["source"], record["unlearning"]))
            cell = line, languages.index(record["language"])
            if hover[cell]:
                raise ValueError(
                    f"The table holds {labels[line]} in {record['language']}, site {site!r} twice: "
                    "keep one of them."
                )
            scores[cell], hover[cell] = record["krs"], _describe_cell(record)
            texts[cell] = "–" if math.isnan(record["krs"]) else f"{record['krs']:.2f}"
        figure.add_trace(build_text_heatmap(scores, texts, hover, name=site), row=row, col=col)
        for number, (source, _) in enumerate(lines):
            if source in languages:
                x = languages.index(source)
                frame: dict[str, Any] = {"type": "rect", "line": {"color": "#202020", "width": 1.5}}
                frame |= {"x0": x - 0.5, "x1": x + 0.5, "y0": number - 0.5, "y1": number + 0.5}
                figure.add_shape(**frame, row=row, col=col)
    figure.update_xaxes(
        tickvals=list(range(len(languages))),
        ticktext=[_break_label(code) for code in languages],
        tickfont={"size": 11},
        range=[-0.5, len(languages) - 0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        range=[len(lines) - 0.5, -0.5],
        tickvals=list(range(len(lines))),
        ticktext=[escape(label) for label in labels],
        showgrid=False,
        zeroline=False,
    )
    bar = {
        "title": "KRS",
        "thickness": 14,
        "lenmode": "pixels",
        "len": 130,
        "y": 1,
        "yanchor": "top",
    }
    figure.update_layout(
        coloraxis={"colorscale": diverging.RdBu, "cmin": -end, "cmid": 0, "cmax": end}
        | {"colorbar": bar}
    )
    return figure


def plot_curves(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw accuracy over the steps of unlearning, a line per query language; chance is dashed.

    A row of facets per source, a column per mix.

    Args:
        table: rows of one concept, as `interp.behaviour.probing.compute_accuracy` gives them, with
            the columns `source`, `unlearning` and `step`.
        title: above all of it.

    Raises:
        ValueError: the table is empty or lacks columns.
    """
    check_table(table, (*_CELL, *_ACCURACY), "accuracies")
    records = table.to_dict("records")
    sources, mixes, languages = (
        list(dict.fromkeys(row[name] for row in records)) for name in _CELL
    )
    facets = [(source, mix) for source in sources for mix in mixes]
    figure, places = lay_out(
        [mix for _, mix in facets],
        num_columns=len(mixes),
        size=(210, fit_legend_height(200, num_lines=len(languages) + 1, num_rows=len(sources))),
        left=60,
        right=180,
        title=title,
        x_title="step",
        headers=[f"false facts in {label_language(source)}" for source in sources],
    )
    shown = set()
    for facet, (row, col) in zip(facets, places, strict=True):
        own = [each for each in records if (each["source"], each["unlearning"]) == facet]
        for number, code in enumerate(languages):
            points = sorted(
                (each for each in own if each["language"] == code), key=lambda each: each["step"]
            )
            if not points:
                continue
            line = go.Scatter(
                x=[each["step"] for each in points],
                y=[100 * each["accuracy"] for each in points],
                mode="lines+markers",
                line={
                    "color": f"rgb({COLOURS[number % len(COLOURS)]})",
                    "dash": DASHES[number // len(COLOURS) % len(DASHES)],
                },
                marker_size=5,
                hovertext=[
                    format_accuracy_hover(each, f"step {each['step']:g}") for each in points
                ],
                hoverinfo="text",
                name=escape(label_language(code)),
                legendgroup=code,
                showlegend=code not in shown,
            )
            shown.add(code)
            figure.add_trace(line, row=row, col=col)
        if own:
            chance = 100 * float(np.mean([each["chance"] for each in own]))
            figure.add_hline(y=chance, line={"color": "#909090", "dash": "dash"}, row=row, col=col)  # pyright: ignore
    figure.update_xaxes(rangemode="tozero", showgrid=False, zeroline=False)
    figure.update_yaxes(range=[-3, 103], gridcolor="#e6e6e6", zeroline=False)
    figure.update_yaxes(title_text="right (%)", col=1)
    figure.update_layout(legend={"title": {"text": "query language"}})
    return figure


def _group_lines(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sort sources in order of first appearance, each with its mixes."""
    order = list(dict.fromkeys(source for source, _ in lines))
    return sorted(dict.fromkeys(lines), key=lambda line: order.index(line[0]))


def _break_label(code: str) -> str:
    return f"{LANGUAGES[code].name}<br>({code})" if code in LANGUAGES else code


def _describe_cell(record: dict[str, Any]) -> str:
    score, low, high = (record[name] for name in ("krs", "ci_low", "ci_high"))
    lines = [
        f"<b>{escape(label_language(record['language']))}</b>",
        escape(f"false facts in {label_language(record['source'])}"),
        escape(f"unlearned in: {record['unlearning']}"),
        f"{escape(record['site'])}, window around layer {record['layer']}",
        "KRS " + ("undefined" if math.isnan(score) else f"{score:.3f}"),
    ]
    if not math.isnan(low):
        lines.append(f"interval {low:.3f} to {high:.3f}")
    lines.append(f"{record['num_queries']:.0f} questions")
    if record["reason"]:
        lines.append(escape(record["reason"]))
    return "<br>".join(lines)
