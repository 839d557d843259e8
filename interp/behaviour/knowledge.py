"""What a model knows, as a table: taken before and after something is done to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from interp.behaviour.measure import Measure
from interp.behaviour.probing import accuracy, probe
from interp.data.query import Query
from interp.models.language_model import LanguageModel

Measured = Sequence[Query] | Callable[[LanguageModel], Mapping[str, float | Measure]]
"""Queries, whose probing accuracy is the knowledge, or any function that gives values by name."""


def knowledge(model: LanguageModel, measured: Measured) -> pd.DataFrame:
    """What a model knows now.

    Args:
        model: the model.
        measured: queries with answers, or a function of the model.

    Returns:
        Of queries what `interp.behaviour.probing.accuracy` gives, per language and concept. Of a
        function a row per name: `name`, `value`, `ci_low`, `ci_high`, `n`, `reason`.

    Raises:
        ValueError: queries that cannot be probed.
    """
    if not callable(measured):
        return accuracy(probe(model, measured, progress=False))
    rows = []
    for name, value in measured(model).items():
        if not isinstance(value, Measure):
            nan = float("nan")
            value = Measure(value=float(value), ci_low=nan, ci_high=nan, n=1)
        rows.append({"name": name, **vars(value)})
    return pd.DataFrame(rows)
