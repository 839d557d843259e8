"""Probing accuracy as dots with intervals, beside chance.

The table is that of `interp.behaviour.probing.compute_accuracy`.
"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.figures.layout import (
    COLOURS,
    check_table,
    choose_num_columns,
    escape,
    format_accuracy_hover,
    label_language,
    lay_out,
)

_COLUMNS = ("language", "concept", "accuracy", "ci_low", "ci_high", "chance", "num_queries")
_CHANCE = "#707070"


def plot_accuracy(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw accuracy by language, one facet per concept; chance is a grey bar in each row.

    Columns that stand before `accuracy` besides language and concept, such as `model`, tell dots
    of one row apart by their colour. Languages and concepts keep the order of the table.

    Raises:
        ValueError: the table is empty, lacks columns or holds a cell twice.
    """
    check_table(table, _COLUMNS, "accuracies")
    before = list(table.columns[: list(table.columns).index("accuracy")])
    keys = [column for column in before if column not in ("language", "concept")]
    if (twice := table.duplicated(["language", "concept", *keys])).any():
        row = table[twice].iloc[0]
        raise ValueError(
            f"duplicate accuracy in {row['language']}, {row['concept']!r}: name what tells them "
            "apart in a column before `accuracy`"
        )
    rows = [
        row | {"series": ", ".join(str(row[key]) for key in keys)}
        for row in table.to_dict("records")
    ]
    languages = list(dict.fromkeys(row["language"] for row in rows))
    concepts = list(dict.fromkeys(str(row["concept"]) for row in rows))
    series = list(dict.fromkeys(row["series"] for row in rows))
    labels = [label_language(code) for code in languages]
    width = 230
    figure, places = lay_out(
        concepts,
        num_columns=choose_num_columns(len(concepts), width),
        size=(width, max(110, (14 + 12 * len(series)) * len(languages))),
        left=30 + 8 * max(map(len, labels)),
        right=130,
        title=title,
        x_title="accuracy (%)",
    )
    for concept, (row, col) in zip(concepts, places, strict=True):
        first = (row, col) == places[0]
        chosen = [entry for entry in rows if str(entry["concept"]) == concept]
        figure.add_trace(_draw_chance(chosen, languages, showlegend=first), row=row, col=col)
        for number, name in enumerate(series):
            dots = _draw_dots(
                [entry for entry in chosen if entry["series"] == name],
                languages,
                offset=0.5 * (number - (len(series) - 1) / 2) / len(series),
                colour=COLOURS[number % len(COLOURS)],
                showlegend=first and bool(name),
            )
            figure.add_trace(dots, row=row, col=col)
    figure.update_xaxes(range=[-3, 103], tickvals=[0, 25, 50, 75, 100], gridcolor="#e6e6e6")
    figure.update_yaxes(
        range=[len(languages) - 0.4, -0.6],
        tickvals=list(range(len(languages))),
        ticktext=[*map(escape, labels)],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _draw_chance(
    rows: list[dict[str, Any]], languages: list[str], *, showlegend: bool
) -> go.Scatter:
    """Draw a short upright stroke in each language's row."""
    x: list[float | None] = []
    y: list[float | None] = []
    for code, chance in {row["language"]: 100 * row["chance"] for row in rows}.items():
        place = languages.index(code)
        x += [chance, chance, None]
        y += [place - 0.36, place + 0.36, None]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": _CHANCE, "width": 3},
        hoverinfo="skip",
        name="chance",
        legendgroup="chance",
        showlegend=showlegend,
    )


def _draw_dots(
    rows: list[dict[str, Any]],
    languages: list[str],
    *,
    offset: float,
    colour: str,
    showlegend: bool,
) -> go.Scatter:
    """Draw a dot per language with its interval."""
    name = rows[0]["series"] if rows else ""
    interval: dict[str, Any] = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 0}
    interval["array"] = [100 * (row["ci_high"] - row["accuracy"]) for row in rows]
    interval["arrayminus"] = [100 * (row["accuracy"] - row["ci_low"]) for row in rows]
    return go.Scatter(
        x=[100 * row["accuracy"] for row in rows],
        y=[languages.index(row["language"]) + offset for row in rows],
        error_x=interval,
        mode="markers",
        marker={"color": f"rgb({colour})", "size": 8},
        hovertext=[format_accuracy_hover(row, row["series"]) for row in rows],
        hoverinfo="text",
        name=escape(name or "accuracy"),
        legendgroup=name,
        showlegend=showlegend,
    )
