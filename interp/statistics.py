"""Estimates with 95 % intervals: bootstrap, Wilson's interval, and tables of groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Value with its 95 % interval.

    Attributes:
        value: NaN where it is not defined.
        ci_low: the interval's lower end; NaN where there is none.
        ci_high: its upper end.
        n: items that it is computed from.
        reason: why the value is NaN, or which items were left out.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
    reason: str = ""


def estimate_share(flags: Sequence[bool], *, reason: str = "") -> Estimate:
    """Estimate the share of items that are true, with Wilson's score interval; NaN of none."""
    flags = [bool(flag) for flag in flags]
    if not flags:
        return make_undefined(reason or "no items")
    low, high = compute_wilson_interval(sum(flags), len(flags))
    value = sum(flags) / len(flags)
    return Estimate(value=value, ci_low=low, ci_high=high, n=len(flags), reason=reason)


def estimate_mean(values: Sequence[float], *, reason: str = "") -> Estimate:
    """Estimate the mean of items by bootstrap; items that are NaN are left out.

    NaN with the reason where an item is infinite.
    """
    kept = np.array([value for value in values if not math.isnan(value)], dtype=float)
    if len(kept) < len(values):
        left_out = f"{len(values) - len(kept)} of {len(values)} items have no value"
        reason = f"{reason}; {left_out}" if reason else left_out
    if num_infinite := int(np.isinf(kept).sum()):
        infinite = f"{num_infinite} of {len(values)} items are infinite"
        reason = f"{reason}; {infinite}" if reason else infinite
        return Estimate(
            value=math.nan, ci_low=math.nan, ci_high=math.nan, n=len(kept), reason=reason
        )
    return bootstrap(len(kept), lambda items: float(kept[items].mean()), reason=reason)


def bootstrap(
    num_items: int,
    statistic: Callable[[np.ndarray], float],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    reason: str = "",
) -> Estimate:
    """Bootstrap any statistic of items: its value with the percentile interval.

    Args:
        num_items: how many there are.
        statistic: of the items with these numbers (repeated ones count as often), from 0.
        num_resamples: bootstrap resamples.
        seed: of the resamples.
        reason: kept in the result.

    Returns:
        NaN of no items; without an interval of a single one.
    """
    if num_items == 0:
        return make_undefined(reason or "no items")
    value = float(statistic(np.arange(num_items)))
    if num_items == 1:
        reason = "; ".join(filter(None, [reason, "one item: no interval"]))
        return Estimate(value=value, ci_low=math.nan, ci_high=math.nan, n=1, reason=reason)
    draws = np.random.default_rng(seed).integers(num_items, size=(num_resamples, num_items))
    low, high = compute_percentile_interval([statistic(draw) for draw in draws])
    return Estimate(value=value, ci_low=low, ci_high=high, n=num_items, reason=reason)


def draw_counts(
    strata: Sequence[Any] | np.ndarray, *, num_resamples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "resample item"]:
    """Draw how often each item is in a bootstrap resample; items are drawn within their stratum.

    What is weighted by a row of it is computed from items that were drawn once for all that is
    compared.

    Args:
        strata: of each item, the stratum that it is in.
        num_resamples: rows.
        seed: of the draws.
    """
    names, stratum = np.unique(np.asarray(strata), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = np.empty((num_resamples, len(stratum)))
    for number in range(len(names)):
        (items,) = np.nonzero(stratum == number)
        uniform = np.full(len(items), 1 / len(items))
        counts[:, items] = rng.multinomial(len(items), uniform, size=num_resamples)
    return counts


def compute_percentile_interval(resamples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Compute the 95 % percentile interval of a statistic's resamples.

    Those that are NaN do not count; NaN of none.
    """
    values = np.asarray(resamples, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def estimate_groups(
    table: pd.DataFrame,
    by: Sequence[str],
    metrics: Mapping[str, Callable[[pd.DataFrame], Estimate]],
) -> pd.DataFrame:
    """Estimate metrics of each group of a table's rows.

    Args:
        table: rows of items.
        by: columns that make a group.
        metrics: by name, what is computed from a group's rows.

    Returns:
        One row per group and metric: `by`, `metric`, `value`, `ci_low`, `ci_high`, `n`, `reason`.
        Groups come in order of first appearance.
    """
    rows = [
        {**{key: group[key].iloc[0] for key in by}, "metric": name, **asdict(metric(group))}
        for _, group in table.groupby(list(by), sort=False)
        for name, metric in metrics.items()
    ]
    columns = [*by, "metric", "value", "ci_low", "ci_high", "n", "reason"]
    return pd.DataFrame(rows, columns=columns)


def make_undefined(reason: str) -> Estimate:
    """Make an estimate without a value, with the reason."""
    return Estimate(value=math.nan, ci_low=math.nan, ci_high=math.nan, n=0, reason=reason)


def compute_wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Compute Wilson's 95 % score interval of a proportion (Wilson 1927).

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no proportion")
    rate, z = successes / trials, _NORMAL_95
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2))
    half *= z / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
