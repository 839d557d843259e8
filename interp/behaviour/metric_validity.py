"""Measures of metrics: does a metric tell models apart that are known to differ, and is it stable?

The protocol of OpenUnlearning and of UDS (Lee, Kim & Jo 2026): a zoo of models of known status, and
of each metric the AUC between two groups of them, such as models that learned a fact against models
that never did; and whether models keep their order after something that should not change it, such
as rounding their weights to eight bits.

    estimate_auc([0.9, 0.8, 0.7], [0.1, 0.8])     # 0.75
    estimate_rank_agreement(before, after)

The intervals are over models: they say how far the value would move with other models of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from interp.statistics import Estimate, compute_percentile_interval, draw_counts, make_undefined


def estimate_auc(
    positives: Sequence[float],
    negatives: Sequence[float],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Estimate how well a metric tells two groups of models apart.

    The AUC is the probability that the metric of a model of the first group is above that of one of
    the second, equal ones counting a half (Mann and Whitney 1947): 1 tells them apart, 0.5 does
    not, 0 tells them apart the other way round.

    Args:
        positives: the metric of each model of the first group; NaN where it is not known.
        negatives: of the second.
        num_resamples: bootstrap resamples, in which models are drawn within their group.
        seed: of the resamples.

    Returns:
        `n` is the number of models of both groups; NaN, with the reason, where one is empty. Of
        groups that are wholly apart the interval has no width, as every resample is, too: that says
        little where they are small.
    """
    groups = [np.asarray(group, dtype=float) for group in (positives, negatives)]
    num_models = sum(map(len, groups))
    first, second = (group[~np.isnan(group)] for group in groups)
    left_out = num_models - len(first) - len(second)
    reason = f"{left_out} of {num_models} models have no value" if left_out else ""
    if not len(first) or not len(second):
        return make_undefined("; ".join(filter(None, [reason, "one of the groups is empty"])))
    above = np.where(first[:, None] > second, 1.0, np.where(first[:, None] == second, 0.5, 0.0))
    strata = np.array([0] * len(first) + [1] * len(second))
    counts = draw_counts(strata, num_resamples=num_resamples, seed=seed)
    weights = counts[:, : len(first)], counts[:, len(first) :]
    resamples = np.einsum("rp,pn,rn->r", weights[0], above, weights[1]) / above.size
    low, high = compute_percentile_interval(resamples)
    if min(len(first), len(second)) < 2:
        low = high = math.nan
        reason = "; ".join(filter(None, [reason, "a group of one model: no interval"]))
    value = float(above.mean())
    return Estimate(
        value=value, ci_low=low, ci_high=high, n=len(first) + len(second), reason=reason
    )


def estimate_rank_agreement(
    before: Sequence[float],
    after: Sequence[float],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Estimate whether a metric keeps the order of models: Spearman's rank correlation.

    Args:
        before: the metric of each model; NaN where it is not known.
        after: that of the same models after something, such as rounding their weights.
        num_resamples: bootstrap resamples of the models; those in which all are equal do not count.
        seed: of the resamples.

    Returns:
        `n` is the number of models that have both. NaN, with the reason, of fewer than three, or
        where all are equal before or after.

    Raises:
        ValueError: the two are not of the same models.
        ImportError: scipy is missing (extra `behaviour`).
    """
    from scipy.stats import rankdata

    if len(before) != len(after):
        raise ValueError(
            f"there are {len(before)} values before and {len(after)} after: give both of each model"
        )
    pairs = np.array([before, after], dtype=float)
    known = np.asarray(~np.isnan(pairs).any(axis=0))
    reason = "" if known.all() else f"{(~known).sum()} of {len(known)} models have no value"
    pairs = pairs[:, known]
    if pairs.shape[1] < 3:
        return make_undefined("; ".join(filter(None, [reason, "fewer than three models"])))

    def correlate(models: np.ndarray) -> float:
        ranks = np.array([rankdata(row[models]) for row in pairs])
        ranks -= ranks.mean(axis=1, keepdims=True)
        lengths = np.sqrt((ranks**2).sum(axis=1))
        return float(ranks[0] @ ranks[1] / lengths.prod()) if lengths.all() else math.nan

    num_models = pairs.shape[1]
    value = correlate(np.arange(num_models))
    if math.isnan(value):
        return make_undefined("; ".join(filter(None, [reason, "all models are equal"])))
    draws = np.random.default_rng(seed).integers(num_models, size=(num_resamples, num_models))
    low, high = compute_percentile_interval([correlate(draw) for draw in draws])
    return Estimate(value=value, ci_low=low, ci_high=high, n=num_models, reason=reason)
