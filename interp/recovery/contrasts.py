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
from jaxtyping import Float, Int

from interp.recovery.krs import compute_noise_floors, explain_undefined, scale_losses
from interp.recovery.question_selection import select_questions
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
        `n` is the number of questions. A score whose denominator is not clearly positive is NaN, as
        in `compute_krs`; where that makes the statistic NaN, `reason` says why.

    Raises:
        ValueError: a question is repeated in a cell.
    """
    keys = [*by, "site", "layer"]
    names = ["language", "concept", "query_id"]
    rows = select_questions(losses).dropna(subset=["loss_unlearned", "loss_restored"])
    if rows.empty:
        return make_undefined("no losses")
    if rows.duplicated([*names, *keys]).any():
        duplicate = rows[rows.duplicated([*names, *keys])].iloc[0]["query_id"]
        raise ValueError(
            f"duplicate question {duplicate!r} in a cell: name what tells the rows apart in `by`, "
            "such as unlearned, and give losses of one direction"
        )
    question = rows.groupby(names, dropna=False).ngroup().to_numpy()
    cell = rows.groupby(keys, dropna=False).ngroup().to_numpy()
    shape = (question.max() + 1, cell.max() + 1)
    losses_of = np.full((2, *shape), np.nan)
    losses_of[0, question, cell] = rows["loss_restored"]
    losses_of[1, question, cell] = rows["loss_unlearned"]
    used, infinite = ~np.isnan(losses_of[1]), np.isinf(losses_of[0]) | np.isinf(losses_of[1])
    restored, unlearned = np.where(np.isfinite(losses_of).all(axis=0), losses_of, 0.0)
    above, below = scale_losses(restored, unlearned)
    groups = dict[Any, list[int]]()
    grouped: dict[Any, Any] = rows.groupby(keys, dropna=False).indices
    for key, of_cell in grouped.items():
        groups.setdefault(key[:-1] if by else key[0], []).append(cell[of_cell[0]])

    language = np.empty(shape[0], dtype=object)
    language[question] = rows["language"]
    draws = draw_counts(language.astype(str), num_resamples=num_resamples, seed=seed)
    undefined = explain_undefined(
        unlearned,
        draws @ below,
        infinite,
        used.sum(axis=0),
        _find_floors(rows, [*by, "site"], cell),
    )
    defined = np.array([not reason for reason in undefined])

    def evaluate(weights: Float[np.ndarray, " question"]) -> float:
        total = weights @ below
        shares = np.divide(
            weights @ above, total, out=np.full(len(total), np.nan), where=defined & (total != 0)
        )
        return float(statistic({name: 1 - shares[index] for name, index in groups.items()}))

    whole, num_questions = evaluate(np.ones(shape[0])), int(shape[0])
    if math.isnan(whole):
        reasons = ", ".join(dict.fromkeys(reason for reason in undefined if reason))
        reason = reasons or "the statistic is not a number"
        return Estimate(
            value=math.nan, ci_low=math.nan, ci_high=math.nan, n=num_questions, reason=reason
        )
    # Drawn again, the only question of a language is always itself.
    if pd.Series(language).value_counts().max() == 1:
        reason = "one question per language: no interval"
        return Estimate(
            value=whole, ci_low=math.nan, ci_high=math.nan, n=num_questions, reason=reason
        )
    low, high = compute_percentile_interval([evaluate(weights) for weights in draws])
    return Estimate(value=whole, ci_low=low, ci_high=high, n=num_questions)


def _find_floors(
    rows: pd.DataFrame, keys: list[str], cell: Int[np.ndarray, " row"]
) -> Float[np.ndarray, " cell"]:
    """Return the noise floor of each cell's site; NaN where it was not measured."""
    floors = np.full(cell.max() + 1, np.nan)
    if "loss_self" in rows:
        for _, index in rows.groupby(keys, dropna=False).indices.items():
            of_site = rows.iloc[index]
            floors[cell[index]] = compute_noise_floors(of_site)[of_site["site"].iloc[0]]
    return floors
