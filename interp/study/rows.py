"""Rows of a study's tables, chosen by what stands in their columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd


def where(table: pd.DataFrame, **values: str | Iterable[object]) -> pd.DataFrame:
    """The rows that have these values, by column: one, or any of several."""
    found: Any = table
    for column, value in values.items():
        found = found[found[column].isin([value] if isinstance(value, str) else [*value])]
    return found
