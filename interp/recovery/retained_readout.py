"""Retained readout: what V still says with the unlearned model's part in a window.

The reverse of recovery. V runs with U's part put in (direction `corrupt`); the share of its answers
that V still gives is the readout that U's part retains, and the fall of the answer's
log-probability what it lost. Beside it the same with the part of N, a model that never knew:

    erased(site, window) = (1 − RR_U) / (1 − RR_N)        of answers
                         = fall_U / fall_N                 of log-probabilities, in nats per token

1: U's part is as empty of the knowledge as that of a model that never knew; 0: V reads all of it
there. UDS (Lee, Kim & Jo 2026) is this for the residual stream, single layers, log-probabilities.
Where N's part costs V (nearly) nothing, nothing is read there, and the share is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.recovery.answer_recovery import compute_answer_recovery
from interp.recovery.excess import pair_models, resample_means
from interp.recovery.question_selection import CELL, rank_sites, select_questions
from interp.statistics import compute_percentile_interval

LEAST_LOST = 0.1
"""Share of answers that N's part must cost V."""

LEAST_FALL = 0.05
"""Nats per token that N's part must cost V's answers: the threshold τ of UDS."""


def compute_retained(
    losses: pd.DataFrame,
    never: str | None = None,
    *,
    by: Sequence[str] = ("language",),
    only: str | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute what V still says with U's parts, and how much of what N's parts cost that is.

    Args:
        losses: of the direction `corrupt`; for log-probabilities of the distance `answer_logprob`.
        never: name, in the column `unlearned`, of a model that never knew, measured as the others.
        by: the columns that make a group.
        only: `known` leaves out questions to which V does not give the right answer.
        num_resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        The table of `compute_answer_recovery`, with `retained` for the share, and the column `fall`
        (mean fall of the answer's log-probability, nats per token; NaN for other distances) with
        `fall_low` and `fall_high`. With `never` a row per unlearned model alone, and besides
        `retained_never` and `fall_never`; `erased` and `erased_fall` with their intervals (`_low`,
        `_high`), in which questions are drawn once for both models.

    Raises:
        ValueError: the losses are not of the direction `corrupt`; or as `compute_answer_recovery`
            and `compute_excess` say.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    if set(losses["direction"]) - {"corrupt"}:
        raise ValueError(
            "retained readout needs the direction corrupt, or both: "
            "sweep with direction='corrupt' or direction='both'"
        )
    options = {"num_resamples": num_resamples, "seed": seed}
    if set(losses["distance"]) - {"answer_logprob"}:
        losses = losses.assign(loss_restored=np.nan)
    table = compute_answer_recovery(
        losses, by=by, only=only, num_resamples=num_resamples, seed=seed
    )
    keys = [*([] if "model" not in table else ["model"]), *by, *CELL]
    falls = pd.concat(_measure_falls(losses, by, only, options), ignore_index=True)
    table = table.merge(falls, on=keys, how="left", sort=False)
    if never is None:
        return table
    erased = pd.concat(
        [_compare(*pair, by, options) for pair in pair_models(losses, never, by=by, only=only)],
        ignore_index=True,
    )
    return table.loc[(table["model"] != never).to_numpy()].merge(erased, on=keys, how="left")


def _measure_falls(
    losses: pd.DataFrame, by: Sequence[str], only: str | None, options: dict[str, int]
) -> list[pd.DataFrame]:
    """Measure the falls of log-probabilities, per model and group."""
    rows = select_questions(losses, only=only)
    several = len(set(rows["unlearned"])) > 1
    parts = []
    for _, group in rank_sites(rows).groupby(["unlearned", *by], sort=False, dropna=False):
        cells, fall, resamples = resample_means(group, "loss_restored", **options)
        low, high = _find_ends(resamples)
        part = cells[CELL].assign(fall=fall, fall_low=low, fall_high=high)
        for column in by:
            part[column] = group[column].iloc[0]
        if several:
            part["model"] = group["unlearned"].iloc[0]
        parts.append(part)
    return parts


def _compare(
    own: pd.DataFrame, never: pd.DataFrame, by: Sequence[str], options: dict[str, int]
) -> pd.DataFrame:
    """Compute what is erased of what N's part costs V, in one group."""
    columns: dict[str, Any] = {}
    cells = pd.DataFrame()
    for name, column, sign, least in (
        ("", "answered_restored", -1, LEAST_LOST),
        ("_fall", "loss_restored", 1, LEAST_FALL),
    ):
        offset = 1 if sign < 0 else 0
        cells, of_own, own_resamples = resample_means(own, column, **options)
        _, of_never, never_resamples = resample_means(never, column, **options)
        above, below = offset + sign * of_own, offset + sign * of_never
        erased = _divide(above, below, below >= least)
        resamples = _divide(
            offset + sign * own_resamples,
            offset + sign * never_resamples,
            (offset + sign * never_resamples > 0) & (below >= least),
        )
        low, high = _find_ends(resamples)
        columns |= {
            "fall_never" if name else "retained_never": of_never,
            f"erased{name}": erased,
            f"erased{name}_low": low,
            f"erased{name}_high": high,
        }
    part = cells[CELL].assign(**columns)
    for column in by:
        part[column] = own[column].iloc[0]
    return part.assign(model=own["unlearned"].iloc[0])


def _divide(above: np.ndarray, below: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Divide where that says something; NaN elsewhere."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=where)


def _find_ends(
    resamples: Float[np.ndarray, "resample cell"],
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    ends = np.array([compute_percentile_interval(column) for column in resamples.T])
    return ends[:, 0], ends[:, 1]
