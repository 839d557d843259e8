"""Registry of metrics: each is registered in the file that defines it.

    @metric("length", needs=("answer",))
    def tabulate_lengths(evaluated: EvaluatedModel) -> pd.DataFrame:
        ...

`load_metrics` imports all files of this package, so that a new metric touches its own file alone.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.languages import get_language

METRIC_COLUMNS = (
    "language",
    "concept",
    "metric",
    "layer",
    "value",
    "ci_low",
    "ci_high",
    "n",
    "reason",
)
"""Columns of a metric's table; those that it has no use for may be left out."""

BY = ("language", "concept")
"""Columns that tell the groups of queries apart."""

Measurement = Callable[[EvaluatedModel], pd.DataFrame]

Check = Callable[[EvaluatedModel], object]

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "answer": "queries with answers",
        "vanilla": "the vanilla model",
        "baseline": "a baseline model",
        "taught": "the language that was taught",
        "forget": "texts to forget",
        "holdout": "held-out texts",
        "records": "questions with perturbed answers, or with entities",
        "judge": "a chat model that judges",
    }
)
"""What a metric may need besides the model and the queries, in words."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Metric by name.

    Attributes:
        measure: function from an evaluated model to a table with some of `METRIC_COLUMNS`.
        about: what it is, in one sentence.
        needs: names out of `NEEDS`.
        uses: names out of `NEEDS` that it does without.
        is_kept: whether its table is kept in a file. Judges are asked anew: their verdicts are
            listed, and what failed before may be had now.
        check: raises ValueError of what cannot be measured. It takes no time: of all metrics it is
            called before any is measured.
    """

    measure: Measurement
    about: str
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    is_kept: bool = True
    check: Check | None = None


_METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    needs: tuple[str, ...] = (),
    uses: tuple[str, ...] = (),
    is_kept: bool = True,
    check: Check | None = None,
) -> Callable[[Measurement], Measurement]:
    """Register a function from an `EvaluatedModel` to a table as a metric.

    Args:
        name: what `interp.evaluate` calls it.
        needs: names out of `NEEDS`.
        uses: names out of `NEEDS` that it does without.
        is_kept: whether its table is kept in a file.
        check: raises ValueError of what cannot be measured, before anything is.

    Raises:
        ValueError: a duplicate name, or an unknown need.
    """
    for need in (*needs, *uses):
        if need not in NEEDS:
            raise ValueError(f"unknown need {need!r} of {name!r}; valid: {', '.join(NEEDS)}")

    def register(measure: Measurement) -> Measurement:
        if name in _METRICS:
            raise ValueError(f"duplicate metric {name!r}")
        summary = (inspect.getdoc(measure) or "").partition("\n\n")[0].replace("\n", " ")
        about = summary.partition(". ")[0].removesuffix(".")
        _METRICS[name] = Metric(
            measure=measure, about=about, needs=needs, uses=uses, is_kept=is_kept, check=check
        )
        return measure

    return register


def check_languages(evaluated: EvaluatedModel) -> None:
    """Refuse queries in languages that are not registered; a check of metrics that ask for them."""
    for code in dict.fromkeys(query.language for query in evaluated.queries):
        get_language(code)


def load_metrics() -> Mapping[str, Metric]:
    """Return all metrics by name, in alphabetical order; imports every file of this package."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return MappingProxyType(dict(sorted(_METRICS.items())))
