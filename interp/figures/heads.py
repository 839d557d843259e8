"""The recovery of single heads as a figure."""

import pandas as pd
import plotly.graph_objects as go

from interp.figures.facets import check_table, language_label
from interp.figures.recovery import heatmap

_HEAD = r"^head\[(\d+)\]$"


def heads(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw layer × head, one facet per language, in the colours of `heatmap`.

    Args:
        table: that of `interp.recovery.krs.krs_table` after a sweep over heads (the sites
            "head[0]", "head[1]", …; rows of other sites are not drawn).
        title: above the figure.

    Raises:
        ValueError: the table lacks columns, holds no single head, or holds a cell twice.
    """
    check_table(table, ("language", "site"), "scores")
    numbers = table["site"].astype(str).str.extract(_HEAD)[0]
    drawn = table[numbers.notna()]
    if drawn.empty:
        raise ValueError(
            "The table holds no single heads: sweep over sites=interp.heads(model) with window=1."
        )
    # Heads take the languages' place, languages that of the sites.
    drawn = drawn.assign(
        language=[f"head {number}" for number in numbers.dropna()],
        site=[language_label(code) for code in drawn["language"]],
        _head=numbers.dropna().astype(int),
    )
    drawn = drawn.sort_values("_head", kind="stable").drop(columns="_head")
    return heatmap(drawn, title=title)
