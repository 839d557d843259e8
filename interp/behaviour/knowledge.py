"""Knowledge of a model as a table: taken before and after something is done to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from interp.behaviour.probing import compute_accuracy, probe
from interp.data.query import Query
from interp.models.language_model import LanguageModel
from interp.statistics import Estimate

Measured = Sequence[Query] | Callable[[LanguageModel], Mapping[str, float | Estimate]]
"""Queries, whose probing accuracy is the knowledge, or any function that gives values by name."""


def measure_knowledge(model: LanguageModel, measured: Measured) -> pd.DataFrame:
    """Measure what a model knows now.

    Args:
        model: the model.
        measured: queries with answers, or a function of the model.

    Returns:
        Of queries what `probing.compute_accuracy` gives, per language and concept. Of a function
        a row per name: `name`, `value`, `ci_low`, `ci_high`, `n`, `reason`.

    Raises:
        ValueError: queries that cannot be probed.
    """
    if not callable(measured):
        return compute_accuracy(probe(model, measured, progress=False))
    rows = []
    for name, value in measured(model).items():
        if not isinstance(value, Estimate):
            nan = float("nan")
            value = Estimate(value=float(value), ci_low=nan, ci_high=nan, n=1)
        rows.append({"name": name, **vars(value)})
    return pd.DataFrame(rows)
