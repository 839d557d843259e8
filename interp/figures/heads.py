"""Heatmap of the recovery of single attention heads."""

import pandas as pd
import plotly.graph_objects as go

from interp.figures.layout import check_table, label_language
from interp.figures.recovery import plot_heatmap

_HEAD = r"^head\[(\d+)\]$"


def plot_heads(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw layer × head, one facet per language, in the colours of `plot_heatmap`.

    Args:
        table: that of `interp.recovery.krs.compute_krs` after a sweep over heads (the sites
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
        site=[label_language(code) for code in drawn["language"]],
        _head=numbers.dropna().astype(int),
    )
    drawn = drawn.sort_values("_head", kind="stable").drop(columns="_head")
    return plot_heatmap(drawn, title=title)
