"""Curves of recovery scores over the layers, and what tells the curves apart.

Every column with more than one value that tells models apart becomes a selector of the page.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interp.figures.html_page import round_value
from interp.figures.layout import check_table, label_language
from interp.figures.recovery import plot_heatmap, plot_lines
from interp.languages import LANGUAGES

_MEASURED = ("layer", "first_layer", "last_layer", "krs", "effect", "ci_low", "ci_high")
_MEASURED += ("num_queries", "noise_floor", "reason")
_NUMBERS = ("layer", "ci_low", "ci_high", "num_queries", "noise_floor")
_MODELS = ("vanilla", "unlearned")


def build_curves(table: pd.DataFrame) -> dict[str, Any]:
    """Build the curves of a table of recovery scores, as JSON values.

    Args:
        table: the columns of `recovery.krs.krs_table` (where `first_layer` and `last_layer` are
            lacking, windows are their centres), and any that tell models apart. A column that
            the others determine, such as a model's path beside its method, tells nothing apart.

    Returns:
        `score` (`KRS` or `effect`), `selectors` (name, values and labels of each, language and
        site first), `curves` (`key`: the number of its value in each selector, `also`: its other
        columns in words, and a list by layer of each measured column), what is the same
        `everywhere`, `sites` (their titles) and the `scale` of colours.

    Raises:
        ValueError: the table is empty, lacks columns, has text where numbers belong, or holds a
            cell twice.
    """
    score = "effect" if "effect" in table else "krs"
    check_table(table, ("language", "site", *_NUMBERS, score, "reason"), "scores")
    for name in (*_NUMBERS, score):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise ValueError(f"the table of scores has a text in its column {name!r}")
    table = table.astype({"reason": object}).fillna({"reason": ""})
    table = table.assign(
        **{name: table["layer"] for name in ("first_layer", "last_layer") if name not in table}
    )
    extra = [str(name) for name in table if name not in (*_MEASURED, "language", "site")]
    apart = _find_selectors(table, extra)
    table = table.assign(**{name: format_values(list(table[name])) for name in extra})
    if table.duplicated([*apart, "layer"]).any():
        first = table.loc[table.duplicated([*apart, "layer"])].iloc[0]
        cell = ", ".join(f"{name} {first[name]}" for name in [*apart, "layer"])
        raise ValueError(f"duplicate cell in the table of scores ({cell})")
    values = {name: list(dict.fromkeys(table[name])) for name in apart}
    constant = {name: table[name].iloc[0] for name in extra if len(set(table[name])) == 1}
    also = [name for name in extra if name not in (*apart, *constant)]
    curves = []
    for _, rows in table.groupby(apart, sort=False):
        rows = rows.sort_values("layer")
        of = rows.iloc[0]
        curves.append(
            {
                "key": [values[name].index(of[name]) for name in apart],
                "also": ", ".join(f"{name} {of[name]}" for name in also if of[name]),
                "score": [round_value(value) for value in rows[score]],
                "reason": list(rows["reason"]),
                **{
                    name: [round_value(value) for value in rows[name]]
                    for name in (*_NUMBERS, "first_layer", "last_layer")
                },
            }
        )
    return {
        "score": "effect" if score == "effect" else "KRS",
        "selectors": [
            {"name": name, "values": each, "labels": label_values(each, name)}
            for name, each in values.items()
        ],
        "curves": curves,
        "everywhere": ", ".join(f"{name} {value}" for name, value in constant.items()),
        **_get_style(table, score),
    }


def format_values(column: Sequence[Any]) -> list[str]:
    """Write values as text: whole numbers without a point, "–" for what is lacking."""
    return [
        "–"
        if value == "" or pd.isna(value)
        else f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
        for value in column
    ]


def label_values(values: Sequence[str], name: str) -> list[str]:
    """Return labels of values: languages by their names, in a column that holds nothing else."""
    if name == "language" or all(value in LANGUAGES for value in values):
        return [label_language(value) for value in values]
    return list(values)


def _find_selectors(table: pd.DataFrame, extra: Sequence[str]) -> list[str]:
    """Return the columns that are needed to tell curves apart, in the table's order."""
    num_values = {name: len(table.drop_duplicates([name])) for name in extra}
    apart = ["language", "site", *(name for name in extra if num_values[name] > 1)]
    # Rather a method than the path of the model that it made.
    for name in sorted(
        apart[2:], key=lambda name: (-num_values[name], name not in _MODELS, -extra.index(name))
    ):
        others = [each for each in apart if each != name]
        determined = len(table.drop_duplicates(others)) == len(table.drop_duplicates(apart))
        # A fraction is a further measurement, unless cells are told apart by it.
        measured = (
            pd.api.types.is_float_dtype(table[name])
            and not table.duplicated([*others, "layer"]).any()
        )
        if determined or measured:
            apart = others
    return apart


def _get_style(table: pd.DataFrame, score: str) -> Mapping[str, Any]:
    """Return colours and titles of sites, as in the library's other figures."""
    defined = table.dropna(subset=[score])
    ends = [defined[score].idxmin(), defined[score].idxmax()] if len(defined) else table.index[:1]
    names = ["site", "language", *_MEASURED]
    few = table.loc[list(dict.fromkeys(ends)), [name for name in names if name in table]]
    # One site each, so that both ends have a cell of their own.
    scale = plot_heatmap(few.assign(site=[str(row) for row in range(len(few))])).layout["coloraxis"]
    sites = table.drop_duplicates("site")[list(few.columns)].assign(language="en")
    drawn = plot_lines(sites).to_plotly_json()["data"]
    return {
        "scale": scale.to_plotly_json(),
        "sites": {
            # What plotly shows is escaped, and the page escapes what it shows itself.
            each["legendgroup"]: html.unescape(each["name"])
            for each in drawn
            if each["showlegend"]
        },
    }
