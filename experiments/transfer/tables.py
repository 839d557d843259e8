"""Tables of a behaviour trained away: rates and abilities by language, reductions, KRS.

| measure | of an item |
|---|---|
| `behaviour` | whether the unwanted answer is the likelier one |
| `margin` | how much likelier, in nats |
| `consistency` | whether a text is continued in its language; no weight where that is not told |
| `distinct-2` | different pairs of tokens in a continuation, as a share of its pairs |
| `nll` | negative log-likelihood of a held-out text; weighted by its tokens |

A rate is the sum of values over the sum of weights, perplexity exp of that of `nll`. The same
items are asked of all models and in all languages, so that comparisons draw items once for all
(`compare_rates`): n are items, whatever the number of languages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.study import select_rows
from experiments.transfer.config import VANILLA, Config
from experiments.transfer.correlates import compute_reductions, correlate_reductions
from experiments.transfer.data import METHODS, SOURCE
from interp.recovery import compute_krs
from interp.report import Table
from interp.statistics import (
    Estimate,
    bootstrap,
    compute_percentile_interval,
    draw_counts,
    estimate_share,
    make_undefined,
)

BEHAVIOUR, MARGIN, CONSISTENCY, DIVERSITY, NLL = (
    "behaviour",
    "margin",
    "consistency",
    "distinct-2",
    "nll",
)

PERPLEXITY = "perplexity"
"""What `average_items` makes of `nll`."""

Rates = Mapping[tuple[str, str], float]
"""Of one measure: the sum of values over that of weights, by model and language."""


def make_tables(measurements: Mapping[str, pd.DataFrame], config: Config) -> dict[str, Table]:
    """Make every table of the study.

    Args:
        measurements: what `run.measure` returns.
        config: the settings.
    """
    items, losses = measurements["items"], measurements["losses"]
    neutral = config.neutral if config.files is not None else 0.0
    reduced = {method: tabulate_reduction(items, method, neutral=neutral) for method in METHODS}
    krs = compute_krs(losses.assign(unlearned=losses["method"]))
    return {
        "rates": Table(rows=average_items(items), caption="Every measure by model and language."),
        "reductions": Table(
            rows=pd.concat(
                [table.assign(method=method) for method, table in reduced.items()],
                ignore_index=True,
            ),
            caption="Reduction of the behaviour by language, and what may predict it.",
        ),
        "predictors": Table(
            rows=pd.concat(
                [
                    correlate_reductions(table).assign(method=method)
                    for method, table in reduced.items()
                ],
                ignore_index=True,
            ),
            caption="What goes with the reduction over languages, with permutation p-values.",
        ),
        "measures": Table(
            rows=measurements["measures"],
            caption="Answers to questions and continuations of texts: right answers, language, "
            "diversity.",
        ),
        "krs": Table(
            rows=krs.rename(columns={"unlearned": "method"}),
            caption="KRS by method, query language, site and layer.",
        ),
        "answers": Table(rows=measurements["answers"], caption="What the models said."),
    }


def select_reductions(tables: Mapping[str, Table]) -> dict[str, pd.DataFrame]:
    """Return the reductions of each method."""
    rows = tables["reductions"].rows
    return {
        method: select_rows(rows, method=method).drop(columns="method").reset_index(drop=True)
        for method in METHODS
    }


def average_items(table: pd.DataFrame) -> pd.DataFrame:
    """Average each measure of each model in each language, with its 95 % interval over items.

    Args:
        table: what `measure_items` gives.

    Returns:
        A row per model, language and measure, with `value`, `ci_low`, `ci_high`, `n` (items with a
        weight) and `reason`; Wilson's intervals of shares, else bootstrap ones. `nll` becomes
        `PERPLEXITY`.
    """
    rows = []
    for _, group in table.groupby(["model", "language", "measure"], sort=False):
        model, code, name = (group[key].iloc[0] for key in ("model", "language", "measure"))
        kept = group.query("weight > 0")
        value, weight = (np.array(kept[key], dtype=float) for key in ("value", "weight"))
        left_out = len(group) - len(kept)
        reason = f"{left_out} of {len(group)} items have no value" if left_out else ""
        if name in (BEHAVIOUR, CONSISTENCY):
            estimate = estimate_share((value == 1).tolist(), reason=reason)
        else:
            estimate = bootstrap(
                len(kept),
                lambda at, value=value, weight=weight: value[at].sum() / weight[at].sum(),
                reason=reason,
            )
        if name == NLL:
            ends = {key: math.exp(getattr(estimate, key)) for key in ("value", "ci_low", "ci_high")}
            name, estimate = PERPLEXITY, replace(estimate, **ends)
        rows.append({"model": model, "language": code, "measure": name, **asdict(estimate)})
    return pd.DataFrame(rows)


def compute_rates(table: pd.DataFrame, measure: str) -> Rates:
    """Compute one measure of all models in all languages where it has a weight."""
    kept = table.query(f"measure == {measure!r} and weight > 0")
    sums: Any = kept.groupby(["model", "language"])[["value", "weight"]].sum()
    return (sums["value"] / sums["weight"]).to_dict()


def compare_rates(
    table: pd.DataFrame,
    measure: str,
    statistic: Callable[[Rates], float],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Compare models and languages in one measure, with the bootstrap interval over items.

    Args:
        table: what `measure_items` gives.
        measure: of `measure_items`.
        statistic: what is compared, as one number; a rate of no weight is NaN.
        num_resamples: bootstrap resamples; those in which the statistic is NaN do not count.
        seed: of the resamples.

    Returns:
        `n` is the number of items.

    Raises:
        ValueError: duplicate item in a cell.
    """
    rows = table.query("measure == @measure and weight > 0")
    if rows.empty:
        return make_undefined(f"nothing was measured of {measure}")
    keys = ["model", "language"]
    if rows.duplicated(subset=[*keys, "item"]).any():
        raise ValueError(f"duplicate item in a cell of {measure}")
    item, names = pd.factorize(rows["item"])
    grouped = rows.groupby(keys)
    cell = grouped.ngroup().to_numpy()
    order: list[Any] = list(grouped.indices)
    values, weights = np.zeros((len(names), len(order))), np.zeros((len(names), len(order)))
    values[item, cell], weights[item, cell] = rows["value"], rows["weight"]

    def compared(draw: np.ndarray) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = (draw @ values) / (draw @ weights)
            return float(statistic(dict(zip(order, rates, strict=True))))

    draws = draw_counts(np.zeros(len(names)), num_resamples=num_resamples, seed=seed)
    low, high = compute_percentile_interval([compared(draw) for draw in draws])
    whole = compared(np.ones(len(names)))
    reason = "" if not math.isnan(whole) else f"a rate of {measure} is not defined"
    return Estimate(value=whole, ci_low=low, ci_high=high, n=len(names), reason=reason)


def tabulate_reduction(items: pd.DataFrame, method: str, *, neutral: float = 0.0) -> pd.DataFrame:
    """Tabulate a method's reduction of the behaviour by language, and what may predict it.

    Args:
        items: what `measure_items` gives, of `VANILLA` and the method.
        method: the model's name in the table.
        neutral: the rate of a model without the behaviour; rates are counted from it.

    Returns:
        As `experiments.transfer.correlates.compute_reductions`, with `reduction_low` and
        `reduction_high`, the 95 % interval over items.
    """
    rows = []
    whole = compute_rates(items, BEHAVIOUR)
    for code in list_languages(items):
        before, after = whole[VANILLA, code], whole[method, code]
        estimate = compare_rates(items, BEHAVIOUR, _measure_reduction(method, code, neutral))
        row = {"language": code, "before": before - neutral, "after": after - neutral}
        rows.append(row | {"reduction_low": estimate.ci_low, "reduction_high": estimate.ci_high})
    return compute_reductions(pd.DataFrame(rows), unlearned_in=[SOURCE])


def list_languages(items: pd.DataFrame) -> list[str]:
    """List the languages in the order of the table."""
    return list(dict.fromkeys(items.loc[items["measure"] == BEHAVIOUR, "language"]))


def _measure_reduction(method: str, code: str, neutral: float) -> Callable[[Rates], float]:
    def of(rates: Rates) -> float:
        before = rates[VANILLA, code] - neutral
        return (rates[VANILLA, code] - rates[method, code]) / before if before else np.nan

    return of
