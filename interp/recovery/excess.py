"""Excess over a model that never knew: what recovery says about the unlearned model alone.

An activation restoration imports what V computed, so that a model that never held the knowledge
scores high, too. With N such a model in U's place,

    excess = KRS_U − KRS_N        (of answers: AR_U − AR_N)

per site and window, over the questions that both were asked; the interval draws questions once for
both. At 0, the score of U is what V's parts bring to any model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.recovery.krs import score_group
from interp.recovery.question_selection import (
    CELL,
    QUESTION,
    SITE_RANK,
    rank_sites,
    select_questions,
)
from interp.statistics import draw_counts

Value = Literal["krs", "answers"]

MEASURED = ("loss_unlearned", "loss_restored", "answered_unlearned", "answered_restored")
"""Columns of measurements."""


def compute_excess(
    losses: pd.DataFrame,
    never: str,
    *,
    value: Value = "krs",
    by: Sequence[str] = ("language",),
    controls: bool = False,
    only: str | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the excess of unlearned models over one that never knew.

    Args:
        losses: of the unlearned models and of the model that never knew, on the same questions.
        never: that model's name in the column `unlearned`.
        value: `krs`, or `answers` for the share of answers that are V's again.
        by: the columns that make a group.
        controls: of the questions on what was to be kept.
        only: `known` leaves out questions to which V does not give the right answer.
        num_resamples: bootstrap resamples.
        confidence: the interval's coverage.
        seed: of the resamples.

    Returns:
        A row per unlearned model, group, site and window: `unlearned`, `by`, `site`, `layer`,
        `first_layer`, `last_layer`, `score`, `never` (of the model that never knew), `excess` with
        its interval `ci_low` and `ci_high`, `num_queries` that both have, and `reason`.

    Raises:
        ValueError: there is no such model, or no other, or nothing that both were asked.
    """
    parts = []
    for rows, of_never in pair_models(losses, never, by=by, controls=controls, only=only):
        part = _compare(
            rows,
            of_never,
            value,
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
        for place, column in enumerate(["unlearned", *by]):
            part.insert(place, column, rows[column].iloc[0])
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def pair_models(
    losses: pd.DataFrame,
    never: str,
    *,
    by: Sequence[str],
    controls: bool = False,
    only: str | None = None,
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Yield the rows of each unlearned model and group, and those of the model that never knew.

    Both have the same questions, sites and windows, in the same order, the site's rank
    (`question_selection.SITE_RANK`), and no measurement where the other has none.

    Raises:
        ValueError: there is no such model, or no other, or nothing that both were asked.
    """
    names = list(dict.fromkeys(losses["unlearned"]))
    if never not in names or len(names) == 1:
        raise ValueError(
            f"never={never!r} must be one of several models that were measured on the same "
            f"questions: {', '.join(map(repr, names))}"
        )
    losses = rank_sites(select_questions(losses, controls=controls, only=only))
    keys = [*QUESTION, *CELL]
    if losses.duplicated(["unlearned", *keys]).any():
        raise ValueError("the table of losses holds a question twice in a cell of one model")
    of_never = losses.loc[(losses["unlearned"] == never).to_numpy()].set_index(keys)
    for name in names:
        own = losses.loc[(losses["unlearned"] == name).to_numpy()]
        for _, group in own.groupby(list(by), sort=False, dropna=False) if name != never else ():
            group = group.set_index(keys)
            shared = group.index.intersection(of_never.index, sort=False)
            if not len(shared):
                raise ValueError(
                    f"{name!r} and {never!r} were measured on different questions, sites or windows"
                )
            pair = [table.loc[shared].reset_index() for table in (group, of_never)]
            for column in MEASURED:
                missing = pair[0][column].isna() | pair[1][column].isna()
                for table in pair:
                    table.loc[missing, column] = np.nan
            yield pair[0], pair[1]


def _compare(
    own: pd.DataFrame,
    never: pd.DataFrame,
    value: Value,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Compare two models in one group."""
    scored = []
    for rows in (own, never):
        options = {"num_resamples": num_resamples, "seed": seed}
        if value == "krs":
            variant = str(rows["variant"].iloc[0])
            scores, resamples = score_group(rows, variant=variant, **options)
            column = "effect" if "effect" in scores else "krs"
            scored.append((scores, scores[column].to_numpy(float), resamples))
        else:
            scored.append(resample_means(rows, "answered_restored", **options))
    (cells, score, resamples), (_, of_never, never_resamples) = scored
    low, high = np.full((2, len(score)), np.nan)
    differences = resamples - never_resamples
    defined = ~np.isnan(differences).all(axis=0)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    if defined.any():
        low[defined], high[defined] = np.nanquantile(differences[:, defined], tails, axis=0)
    reasons = [
        "; ".join(dict.fromkeys(filter(None, pair)))
        for pair in zip(scored[0][0]["reason"], scored[1][0]["reason"], strict=True)
    ]
    return cells[CELL].assign(
        score=score,
        never=of_never,
        excess=score - of_never,
        ci_low=low,
        ci_high=high,
        num_queries=cells["num_queries"].to_numpy(),
        reason=reasons,
    )


def resample_means(
    rows: pd.DataFrame, column: str, *, num_resamples: int, seed: int
) -> tuple[pd.DataFrame, Float[np.ndarray, " cell"], Float[np.ndarray, "resample cell"]]:
    """Compute the mean of a column in every cell, and in resamples of the facts.

    Returns:
        The cells (`site` to `last_layer`, `num_queries`, `reason`), the means, and theirs in every
        resample: the same facts for all columns and tables of the same facts.
    """
    keys = [SITE_RANK, "layer", "first_layer", "last_layer"]
    cells = rows.drop_duplicates(keys).sort_values(keys).reset_index(drop=True)
    fact = rows.groupby(["concept", "query_id"], dropna=False).ngroup().to_numpy()
    cell = rows.groupby(keys).ngroup().to_numpy()
    values = rows[column].to_numpy(float)
    is_used = ~np.isnan(values)
    # A fact may be there in several languages.
    total, asked = np.zeros((2, fact.max() + 1, len(cells)))
    np.add.at(total, (fact[is_used], cell[is_used]), values[is_used])
    np.add.at(asked, (fact[is_used], cell[is_used]), 1.0)
    counts = draw_counts(np.zeros(len(total)), num_resamples=num_resamples, seed=seed)

    def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)

    num_used = asked.sum(axis=0)
    resamples = divide(counts @ total, counts @ asked)
    resamples[:, (asked > 0).sum(axis=0) < 2] = np.nan
    num_rows = np.bincount(cell, minlength=len(cells))
    reasons = [
        "" if used == number else f"{number - int(used)} of {number} questions left out"
        for used, number in zip(num_used, num_rows, strict=True)
    ]
    cells = cells.assign(num_queries=num_used.astype(int), reason=reasons)
    return cells, divide(total.sum(axis=0), num_used), resamples
