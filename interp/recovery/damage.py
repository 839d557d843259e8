"""Damage: how much unlearning changed what was to be kept, beside what was to go.

    D = E[loss(V, U)] on control questions / E[loss(V, U)] on the targets

The score speaks of the forgotten knowledge only as far as D is small. Near 1 it measures the repair
of a broken model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from interp.recovery.krs import MODELS
from interp.recovery.question_selection import QUESTION, select_questions
from interp.statistics import compute_percentile_interval, draw_counts


def compute_damage(
    losses: pd.DataFrame,
    *,
    by: Sequence[str] = ("language",),
    num_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the damage per model and group, with a bootstrap interval over both sets of facts.

    Args:
        losses: of targets and controls, as a sweep with controls writes them.
        by: the columns that make a group.
        num_resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        A table with the columns of `by` (and the models, where there are several), `damage`,
        `ci_low`, `ci_high`, `loss_targets`, `loss_controls` (mean loss(V, U)), `num_targets`,
        `num_controls` and `reason`.

    Raises:
        ValueError: there are no controls.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    models = [name for name in MODELS if name not in by and len(set(losses[name])) > 1]
    keys = [*models, *by]
    per_question = []
    for controls in (False, True):
        rows = select_questions(losses, controls=controls).drop_duplicates([*keys, *QUESTION])
        per_question.append(
            {
                key if isinstance(key, tuple) else (key,): group
                for key, group in rows.groupby(keys, sort=False, dropna=False)
            }
        )
    targets, kept = per_question
    records = []
    for key, group in targets.items():
        record = dict(zip(keys, key, strict=True))
        records.append(record | _divide(group, kept.get(key), num_resamples, seed))
    return pd.DataFrame(records)


def _divide(
    targets: pd.DataFrame, controls: pd.DataFrame | None, num_resamples: int, seed: int
) -> dict[str, float | int | str]:
    sets = []
    for number, rows in enumerate((targets, controls)):
        losses = np.empty(0) if rows is None else rows["loss_unlearned"].to_numpy(float)
        is_used = np.isfinite(losses)
        losses = losses[is_used]
        if rows is None or not len(losses):
            sets.append((math.nan, np.full(num_resamples, np.nan), 0, 0))
            continue
        facts = rows.loc[is_used].groupby(["concept", "query_id"], dropna=False).ngroup()
        fact = facts.to_numpy()
        counts = draw_counts(
            np.zeros(fact.max() + 1), num_resamples=num_resamples, seed=seed + number
        )[:, fact]
        total = counts.sum(axis=1)
        means = np.divide(counts @ losses, total, out=np.full(len(total), np.nan), where=total > 0)
        sets.append((float(losses.mean()), means, len(losses), int(fact.max()) + 1))
    (of_targets, target_means, num_targets, _), (of_controls, control_means, num_controls, _) = sets
    damage = low = high = math.nan
    reason = "" if num_controls else "no control question has a loss"
    if not num_targets or not of_targets > 0:
        reason = "loss(V, U) on the targets is not above 0"
    elif num_controls:
        damage = of_controls / of_targets
        if min(sets[0][3], sets[1][3]) > 1:
            low, high = compute_percentile_interval(control_means / target_means)
        else:
            reason = "one fact: no interval"
    return {
        "damage": damage,
        "ci_low": low,
        "ci_high": high,
        "loss_targets": of_targets,
        "loss_controls": of_controls,
        "num_targets": num_targets,
        "num_controls": num_controls,
        "reason": reason,
    }
