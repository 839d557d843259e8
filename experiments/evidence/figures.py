"""Figures: scores of unlearned models beside those of models that never knew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from experiments.evidence.config import CLEAN, UNTOUCHED, Config
from experiments.study import Drawing
from interp.figures import COLOURS, escape, label_language, lay_out, place_legend_below
from interp.report import Table

UNLEARNED = "unlearned"

DAMAGED = "damaged"

KINDS: Mapping[str, tuple[str, str, str]] = {
    UNLEARNED: ("unlearned", COLOURS[0], "circle"),
    DAMAGED: ("unlearned, and lost more", COLOURS[0], "circle-open"),
    CLEAN: ("trained alike, never knew", COLOURS[1], "diamond"),
    UNTOUCHED: ("before it was taught", "120,120,120", "square"),
}
"""Kinds of models: name, colour and symbol."""

_LEGEND = 34
_SPREAD = 0.2


def make_figures(tables: Mapping[str, Table], config: Config) -> dict[str, Drawing]:
    """Draw every figure of the study.

    Args:
        tables: what `make_tables` returns.
        config: the settings.
    """
    scores, residual = (
        _mark_damaged(tables[name].rows, tables["models"].rows, config.source)
        for name in ("scores", "residual")
    )
    return {
        "scores": Drawing(
            figure=plot_scores(
                scores.query("language == @config.source"),
                title="Never known scores like unlearned: the taught model's parts put into both",
            ),
            caption="Every dot a model, at the best window of five layers of each; questions in "
            f"{label_language(config.source)}, the language taught and unlearned. Open: models "
            "that did not forget, or did not keep the rest.",
        ),
        "readout": Drawing(
            figure=plot_readout(
                residual, title="What the taught model reads in the others' residual stream"
            ),
            caption="Fall of the answer's log-probability when another model's residual stream "
            "after one layer is put into the taught model; thin lines models, thick ones means; "
            "unlearned models that forgot and kept the rest. Where their line is below the others, "
            "more is readable in them; above, what was written there pushes the answer away.",
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
            if kind in (UNLEARNED, DAMAGED):
                cells = rows.loc[rows["damaged"] == (kind == DAMAGED)]
                cells = cells.drop_duplicates(["seed", "method", "site"])
                cells = cells.assign(shown=cells["score"])
            else:
                cells = rows.query("of == @kind").drop_duplicates(["seed", "site"])
                cells = cells.assign(shown=cells["best_never"], method=kind)
            offset = _SPREAD * (number - 1.5)
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
    return place_legend_below(figure, _LEGEND)


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
        own = rows.loc[~rows["damaged"]].drop_duplicates(["seed", "method", "layer"])
        curves: dict[str, Any] = {UNLEARNED: own}
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
    return place_legend_below(figure, _LEGEND)


def _mark_damaged(table: pd.DataFrame, models: pd.DataFrame, language: str) -> pd.DataFrame:
    """Mark the models that did not forget, or did not keep the rest, in the language taught."""
    rows = models.loc[models["passes"] & (models["language"] == language)]
    passing = set(zip(rows["seed"], rows["method"], strict=True))
    named = zip(table["seed"], table["method"], strict=True)
    return table.assign(damaged=[name not in passing for name in named])
