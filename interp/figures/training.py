"""Training curves: losses, and probing accuracy in every language.

The tables are those of `interp.pipelines.TrainingRun`.
"""

import pandas as pd
import plotly.graph_objects as go

from interp.figures.layout import (
    COLOURS,
    DASHES,
    FONT,
    escape,
    format_accuracy_hover,
    label_language,
    lay_out,
)

LOSSES = {"forget_ce": "forget set", "retain_ce": "retain set"}
"""Columns of a history that are drawn, in nats per token, with their names."""

_COLUMNS = ("step", "language", "concept", "accuracy", "ci_low", "ci_high", "chance", "num_queries")


def plot_training(
    history: pd.DataFrame, accuracies: pd.DataFrame, *, title: str | None = None
) -> go.Figure:
    """Draw the losses, and a facet per concept with a line per language; chance is dashed grey.

    Args:
        history: a row per step with `step` and the columns of `LOSSES` that the run has.
        accuracies: a row per step, language and concept, as `probing.accuracy` gives them.
        title: above all of it.

    Raises:
        ValueError: the run has neither losses nor accuracies, or a column is missing.
    """
    if missing := [name for name in _COLUMNS if not accuracies.empty and name not in accuracies]:
        raise ValueError(f"The table of accuracies lacks the columns {', '.join(missing)}.")
    losses = [name for name in LOSSES if name in history and not all(history[name].isna())]
    concepts = [] if accuracies.empty else list(dict.fromkeys(accuracies["concept"]))
    facets = ["loss (nats per token)"] * bool(losses)
    facets += [f"{concept or 'all'} facts, right (%)" for concept in concepts]
    if not facets:
        raise ValueError("The run has neither losses nor accuracies: there is nothing to draw.")
    figure, places = lay_out(
        facets,
        num_columns=len(facets),
        size=(260, 260),
        left=50,
        right=170,
        title=title,
        x_title="step",
    )
    figure.update_yaxes(matches=None, showticklabels=True, gridcolor="#e6e6e6")
    if losses:
        row, col = places[0]
        for number, name in enumerate(losses):
            there = history[history[name].notna()]
            trace = go.Scatter(
                x=there["step"],
                y=there[name],
                mode="lines",
                name=LOSSES[name],
                line={"color": "#202020", "dash": DASHES[number]},
                hovertemplate="step %{x}: %{y:.2f} nats per token",
                legend="legend2",
            )
            figure.add_trace(trace, row=row, col=col)
        figure.update_yaxes(rangemode="tozero", row=row, col=col)
    for concept, (row, col) in zip(concepts, places[len(places) - len(concepts) :], strict=True):
        table = accuracies.query("concept == @concept")
        first = concept == concepts[0]
        chance = 100 * float(table["chance"].iloc[0])
        for number, code in enumerate(dict.fromkeys(table["language"])):
            line = _draw_line(table.query("language == @code"), code, number, showlegend=first)
            figure.add_trace(line, row=row, col=col)
        # After the lines: plotly leaves empty facets out.
        figure.add_hline(y=chance, line={"color": "#909090", "dash": "dash"}, row=row, col=col)  # pyright: ignore
        figure.update_yaxes(range=[-3, 103], showticklabels=first, row=row, col=col)
    figure.update_layout(
        legend={"y": 1, "yanchor": "top", "tracegroupgap": 0},
        legend2={
            "y": 0,
            "yanchor": "bottom",
            "title": {"text": "loss on the", "font": {"size": FONT["size"]}},
        },
    )
    return figure


def _draw_line(rows: pd.DataFrame, code: str, number: int, *, showlegend: bool) -> go.Scatter:
    return go.Scatter(
        x=rows["step"],
        y=100 * rows["accuracy"],
        mode="lines+markers",
        line={
            "color": f"rgb({COLOURS[number % len(COLOURS)]})",
            "dash": DASHES[number // len(COLOURS) % len(DASHES)],
        },
        marker={"size": 6},
        name=escape(label_language(code)),
        legendgroup=code,
        showlegend=showlegend,
        hovertext=[
            format_accuracy_hover(row, f"step {row['step']:g}") for row in rows.to_dict("records")
        ],
        hoverinfo="text",
    )
