"""Contrasts of recovery scores, with intervals: between sites, layers, languages or models.

    contrast(losses, lambda krs: krs["coef+attn"].max() - krs["value"].max())

Intervals of two scores say little about their difference, because both come from the same
questions: here the questions are drawn once for everything that is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.statistics import Estimate, compute_percentile_interval, draw_counts, make_undefined

Curves = Mapping[Any, Float[np.ndarray, " layer"]]
"""KRS over the layers, by site; with `by`, by (value of each of its columns …, site)."""


def contrast(
    losses: pd.DataFrame,
    statistic: Callable[[Curves], float],
    *,
    by: Sequence[str] = (),
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Compute a statistic of KRS curves, with its percentile bootstrap interval over questions.

    A score is the ratio of means over all questions that its curve has, of all languages unless
    `language` is in `by`. Questions are drawn anew within each language, once for all curves.

    Args:
        losses: as a sweep writes them, of the variant `paper` and the direction `restore`. A
            question with a NaN loss is left out of its cell.
        statistic: what is compared, as one number.
        by: further columns that tell curves apart, such as `language` or `unlearned`.
        num_resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        `n` is the number of questions.

    Raises:
        ValueError: a question is repeated in a cell.
    """
    keys = [*by, "site", "layer"]
    names = ["language", "concept", "query_id"]
    rows = losses.dropna(subset=["loss_unlearned", "loss_restored"])
    if rows.empty:
        return make_undefined("no losses")
    if rows.duplicated([*names, *keys]).any():
        duplicate = rows[rows.duplicated([*names, *keys])].iloc[0]["query_id"]
        raise ValueError(
            f"duplicate question {duplicate!r} in a cell: name what tells the rows apart in `by`"
        )
    question = rows.groupby(names, dropna=False).ngroup().to_numpy()
    cell = rows.groupby(keys).ngroup().to_numpy()
    shape = (question.max() + 1, cell.max() + 1)
    restored, unlearned = np.zeros(shape), np.zeros(shape)
    restored[question, cell] = rows["loss_restored"]
    unlearned[question, cell] = rows["loss_unlearned"]
    cells: dict[Any, list[int]] = {}
    grouped: dict[Any, Any] = rows.groupby(keys).indices
    for key, of_cell in grouped.items():
        cells.setdefault(key[:-1] if by else key[0], []).append(cell[of_cell[0]])

    def evaluate(weights: Float[np.ndarray, " question"]) -> float:
        below = weights @ unlearned
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = 1 - weights @ restored / below
        return float(statistic({name: scores[index] for name, index in cells.items()}))

    language = np.empty(shape[0], dtype=object)
    language[question] = rows["language"]
    draws = draw_counts(language.astype(str), num_resamples=num_resamples, seed=seed)
    low, high = compute_percentile_interval([evaluate(weights) for weights in draws])
    whole = evaluate(np.ones(shape[0]))
    # Drawn again, the only question of a language is always itself.
    if pd.Series(language).value_counts().max() == 1:
        reason = "one question per language: no interval"
        return Estimate(
            value=whole, ci_low=math.nan, ci_high=math.nan, n=int(shape[0]), reason=reason
        )
    return Estimate(value=whole, ci_low=low, ci_high=high, n=int(shape[0]))
