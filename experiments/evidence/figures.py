"""Figures: scores of unlearned models beside those of models that never knew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from experiments.evidence.config import CLEAN, UNTOUCHED, Config
from experiments.study import Drawing
from interp.figures import COLOURS, escape, label_language, lay_out
from interp.report import Table

UNLEARNED = "unlearned"

KINDS: Mapping[str, tuple[str, str, str]] = {
    UNLEARNED: ("unlearned", COLOURS[0], "circle"),
    CLEAN: ("trained alike, never knew", COLOURS[1], "diamond"),
    UNTOUCHED: ("before it was taught", "120,120,120", "square"),
}
"""Kinds of models: name, colour and symbol."""

_LEGEND = 34
_SPREAD = 0.22


def make_figures(tables: Mapping[str, Table], config: Config) -> dict[str, Drawing]:
    """Draw every figure of the study.

    Args:
        tables: what `make_tables` returns.
        config: the settings.
    """
    scores, residual = tables["scores"].rows, tables["residual"].rows
    return {
        "scores": Drawing(
            figure=plot_scores(
                scores.query("language == @config.source"),
                title="Never known scores like unlearned: the taught model's parts put into both",
            ),
            caption="Every dot a model, at the best window of five layers of each; questions in "
            f"{label_language(config.source)}, the language taught and unlearned.",
        ),
        "readout": Drawing(
            figure=plot_readout(
                residual, title="What the taught model reads in the others' residual stream"
            ),
            caption="Fall of the answer's log-probability when another model's residual stream "
            "after one layer is put into the taught model; thin lines models, thick ones means. "
            "Where the unlearned models' line is below, something is still readable.",
        ),
    }


def plot_scores(scores: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw each model's best score per site, KRS and answers side by side."""
    names = {"krs": "KRS", "answers": "share of answers"}
    drawn = [name for name in names if name in set(scores["value"])]
    sites = list(dict.fromkeys(scores["site"]))
    figure, places = lay_out(
        [names[name] for name in drawn],
        num_columns=len(drawn),
        size=(300, 62 * len(sites)),
        left=20 + 9 * max(map(len, sites)),
        right=40,
        title=title,
        x_title="best window of five layers",
    )
    for value, (row, col) in zip(drawn, places, strict=True):
        rows = scores.query("value == @value")
        for number, (kind, (label, colour, symbol)) in enumerate(KINDS.items()):
            if kind == UNLEARNED:
                cells = rows.drop_duplicates(["seed", "method", "site"])
                cells = cells.assign(shown=cells["score"])
            else:
                cells = rows.query("of == @kind").drop_duplicates(["seed", "site"])
                cells = cells.assign(shown=cells["best_never"], method=kind)
            offset = _SPREAD * (number - 1)
            dots = go.Scatter(
                x=cells["shown"],
                y=[sites.index(site) + offset for site in cells["site"]],
                mode="markers",
                marker={
                    "color": f"rgba({colour},0.55)",
                    "symbol": symbol,
                    "size": 9,
                    "line": {"width": 1, "color": f"rgb({colour})"},
                },
                name=label,
                legendgroup=kind,
                showlegend=value == drawn[0],
                hovertext=[
                    f"{escape(cell['method'])}, seed {cell['seed']}<br>{escape(cell['site'])} "
                    f"{cell['shown']:.2f}"
                    for cell in cells.to_dict("records")
                ],
                hoverinfo="text",
            )
            figure.add_trace(dots, row=row, col=col)
    figure.update_xaxes(range=[-0.04, 1.04], gridcolor="#e6e6e6", zeroline=False)
    figure.update_yaxes(
        range=[len(sites) - 0.5, -0.5],
        tickvals=list(range(len(sites))),
        ticktext=[escape(site) for site in sites],
        zeroline=False,
        gridcolor="#f0f0f0",
    )
    return _add_legend(figure)


def plot_readout(residual: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw the fall of the answer's log-probability over layers, a facet per language."""
    languages = list(dict.fromkeys(residual["language"]))
    figure, places = lay_out(
        [label_language(code) for code in languages],
        num_columns=min(2, len(languages)),
        size=(330, 240),
        left=70,
        right=40,
        title=title,
        x_title="layer whose residual stream is put in",
    )
    for code, (row, col) in zip(languages, places, strict=True):
        rows = residual.query("language == @code")
        curves: dict[str, Any] = {UNLEARNED: rows.drop_duplicates(["seed", "method", "layer"])}
        for kind in (CLEAN, UNTOUCHED):
            cells = rows.query("of == @kind").drop_duplicates(["seed", "layer"])
            curves[kind] = cells.assign(fall=cells["fall_never"], method=kind)
        for kind, cells in curves.items():
            label, colour, _ = KINDS[kind]
            for (seed, method), line in cells.groupby(["seed", "method"], sort=False):
                thin = go.Scatter(
                    x=line["layer"],
                    y=line["fall"],
                    mode="lines",
                    line={"color": f"rgba({colour},0.35)", "width": 1},
                    showlegend=False,
                    hovertext=f"{escape(method)}, seed {seed}",
                    hoverinfo="text+x+y",
                )
                figure.add_trace(thin, row=row, col=col)
            mean = cells.groupby("layer")["fall"].mean()
            thick = go.Scatter(
                x=mean.index,
                y=mean,
                mode="lines",
                line={"color": f"rgb({colour})", "width": 3},
                name=label,
                legendgroup=kind,
                showlegend=code == languages[0],
            )
            figure.add_trace(thick, row=row, col=col)
        if col == 1:
            figure.update_yaxes(title_text="fall, nats per token", row=row, col=col)
    figure.update_yaxes(gridcolor="#e6e6e6", zerolinecolor="#808080")
    return _add_legend(figure)


def _add_legend(figure: go.Figure) -> go.Figure:
    layout = figure.layout
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0.005}
    return figure.update_layout(
        legend=legend | {"yanchor": "bottom"},
        height=layout.height + _LEGEND,  # pyright: ignore[reportAttributeAccessIssue]
        margin_b=layout.margin.b + _LEGEND,  # pyright: ignore[reportAttributeAccessIssue]
    )
