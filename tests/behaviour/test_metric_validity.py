"""Measures of metrics, worked out by hand and by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from interp.behaviour import estimate_auc, estimate_rank_agreement


def test_auc_by_hand():
    """Of six pairs four are in order and one is level: (4 + 0.5) / 6."""
    found = estimate_auc([0.9, 0.8, 0.2], [0.1, 0.8])
    # 0.9 beats both, 0.8 beats 0.1 and is level with 0.8, 0.2 beats 0.1 and loses to 0.8.
    assert found.value == pytest.approx((2 + 1.5 + 1) / 6)
    assert (found.n, found.reason) == (5, "")
    assert found.ci_low < found.value < found.ci_high
    turned = estimate_auc([0.1, 0.8], [0.9, 0.8, 0.2])
    assert turned.value == pytest.approx(1 - found.value)


def test_auc_is_mann_and_whitneys():
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, 20).tolist(), rng.integers(0, 7, 14).tolist()
    statistic = mannwhitneyu(first, second).statistic
    assert estimate_auc(first, second).value == pytest.approx(statistic / (20 * 14))


def test_interval_of_auc_covers_the_truth():
    """Two normal distributions one deviation apart: the AUC is Φ(1/√2) = 0.7602."""
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        groups = rng.normal(1, 1, 30).tolist(), rng.normal(0, 1, 30).tolist()
        found = estimate_auc(*groups, seed=seed)
        covered += found.ci_low <= 0.7602 <= found.ci_high
    assert covered >= 52


def test_groups_that_are_told_apart_or_empty():
    apart = estimate_auc([2, 3, 4], [0, 1])
    assert (apart.value, apart.ci_low, apart.ci_high) == (1, 1, 1)
    nothing = estimate_auc([1.0, math.nan], [math.nan])
    assert math.isnan(nothing.value)
    assert nothing.reason == "2 of 3 models have no value; one of the groups is empty"
    alone = estimate_auc([1.0], [0.0, 2.0])
    assert alone.value == 0.5
    assert math.isnan(alone.ci_low)
    assert alone.reason == "a group of one model: no interval"


def test_rank_agreement_by_hand():
    """Ranks 1 2 3 4 against 2 1 3 4: 1 − 6·2 / (4·15) = 0.8."""
    found = estimate_rank_agreement([0.1, 0.2, 0.3, 0.4], [20, 10, 30, 40])
    assert found.value == pytest.approx(0.8)
    assert found.n == 4


def test_rank_agreement_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(2)
    before = rng.integers(0, 6, 25).astype(float)
    after = before + rng.integers(0, 5, 25)
    found = estimate_rank_agreement(before.tolist(), after.tolist())
    assert found.value == pytest.approx(spearmanr(before, after).statistic)
    assert found.ci_low < found.value < found.ci_high


def test_rank_agreement_that_is_not_defined():
    assert estimate_rank_agreement([1, 2], [1, 2]).reason == "fewer than three models"
    assert estimate_rank_agreement([1, 1, 1], [1, 2, 3]).reason == "all models are equal"
    found = estimate_rank_agreement([1, 2, 3, math.nan], [1, 2, 3, 4])
    assert (found.value, found.n) == (pytest.approx(1), 3)
    assert found.reason == "1 of 4 models have no value"
    with pytest.raises(ValueError, match="3 values before and 2 after"):
        estimate_rank_agreement([1, 2, 3], [1, 2])
