"""Knowledge recovery score (KRS) of Hong et al. 2024, Eq. 3, from a table of losses.

KRS = 1 - E[loss(V, R)] / E[loss(V, U)], with V the vanilla model, U the unlearned one and R the
unlearned one with some part put back. 1 means that the part brings everything back, 0 that it
changes nothing, below 0 that it makes things worse. It is never clipped.

A ratio says something only where what it is divided by is clearly positive. A score is NaN, with
the reason, where E[loss(V, U)] is 0, or smaller than float32 can tell from 0; where it is not above
the noise floor; and, for a distance that can be negative (`answer_logprob`, or rounding in `kl`),
where it is 0 or below in any bootstrap resample.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from interp.recovery.question_selection import (
    CELL,
    QUESTION,
    SITE_RANK,
    average_num_tokens,
    count_known,
    rank_sites,
    select_questions,
)

VARIANTS = ("paper", "hong2024")

SMALLEST = float(np.finfo(np.float32).tiny)
"""Least mean of losses that is told from 0: below it, float32 has no full precision."""

MODELS = ("vanilla", "unlearned")
"""Columns of models, which are never pooled."""

_SETTINGS = ("variant", "direction", "distance", "positions")
_LOSSES = ("loss_unlearned", "loss_restored", "loss_self")
_REQUIRED = (*MODELS, *QUESTION, *CELL, *_LOSSES, *_SETTINGS, "reason")


def compute_krs(
    losses: pd.DataFrame,
    *,
    variant: str | None = None,
    by: Sequence[str] = ("language",),
    controls: bool = False,
    only: str | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Turn losses per question into one score per group, site and layer window.

    `paper` is the ratio of means (Hong, Eq. 3): mean loss_restored over mean loss_unlearned, each
    over the group's questions. `hong2024` is the mean of ratios, as the released notebooks
    compute it. Losses of the direction `corrupt` (V's run with U's parts put in) give the column
    `effect` instead of `krs`: loss(V, V←U) / loss(V, U), the share of the unlearning effect that
    the part carries alone.

    Models are never pooled: where the table holds several `vanilla` or `unlearned` models, that
    column is put in front of `by`. (Hong's mean over unlearning methods is the mean of this
    table's `krs` over `unlearned`.)

    The interval is the percentile bootstrap over the group's questions, with the same resamples
    for all sites and layers of a group, and the same whatever other groups the table holds.

    Args:
        losses: one row per (vanilla, unlearned, language, query_id, site, layer), as a sweep
            writes them. A question with a NaN loss is left out of its cell's means.
        variant: `paper` or `hong2024`; by default the one the losses were measured with.
        by: the columns that make a group.
        controls: score the questions on what was to be kept, and not those on what was unlearned.
        only: `known` leaves out questions to which V does not give the right answer.
        num_resamples: the number of bootstrap resamples.
        confidence: the interval's coverage, between 0 and 1.
        seed: of the resamples.

    Returns:
        A table with the columns of `by` (and the models, see above), `site`, `layer` (the
        window's centre), `first_layer`, `last_layer`, `krs` or `effect`, `ci_low`, `ci_high`,
        `num_queries` (questions in the means), `num_known` and `num_asked` (of all questions that
        were asked, to how many V gives the right answer; NaN where that is not known),
        `num_tokens` (of an answer that are scored, on average), `noise_floor` and `reason`.
        `noise_floor` is
        |1 - KRS| of V patched with its own states, per group and site, NaN where it was not
        measured; below float32 it includes how far rounding moves a score (`recovery.noise_floor`).
        `reason` says why a score or an interval is NaN and which questions were left out, and is
        empty otherwise. Groups and sites are in the order in which they first appear, layers
        ascend.

    Raises:
        ValueError: the table is empty, lacks columns, mixes variants, directions, distances or
            positions, or holds a duplicate question in a cell; it has no controls, or no right
            answers to tell what V knows; or an argument is out of its range.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    check_table(losses, required=_REQUIRED, by=by, constant=_SETTINGS)
    _check_arguments(variant=variant, num_resamples=num_resamples, confidence=confidence)
    losses = select_questions(losses, controls=controls, only=only)
    measured = losses["variant"].iloc[0]
    variant = variant or measured
    if variant != measured:
        warnings.warn(
            f"The losses were measured as {measured!r}: only the averaging is that of "
            f"{variant!r}, the scored positions are those of {measured!r}.",
            stacklevel=2,
        )
    models = (name for name in MODELS if name not in by and len(_list_values(losses, name)) > 1)
    keys = [*models, *by]
    losses = rank_sites(losses)

    parts = []
    for _, rows in losses.groupby(keys, sort=False, dropna=False):
        scores, _ = score_group(
            rows,
            variant=variant,
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
        for position, column in enumerate(keys):
            scores.insert(position, column, rows[column].iloc[0])
        parts.append(scores)
    return pd.concat(parts, ignore_index=True)


def check_table(
    losses: pd.DataFrame, *, required: Sequence[str], by: Sequence[str], constant: Sequence[str]
) -> None:
    """Check a table of losses.

    Args:
        losses: the table.
        required: columns that it must have.
        by: those that make a group, which it must have, too.
        constant: those that must have one value.

    Raises:
        ValueError: one of these does not hold, or the table is empty.
    """
    if not by:
        raise ValueError("`by` is empty: name at least one column, such as 'language'.")
    if missing := [name for name in dict.fromkeys((*required, *by)) if name not in losses]:
        raise ValueError(f"The table of losses lacks the columns {', '.join(missing)}.")
    if clash := [name for name in by if name in CELL]:
        raise ValueError(f"`by` names {clash[0]!r}, which every score has a row for already.")
    if losses.empty:
        raise ValueError("The table of losses is empty: there is nothing to score.")
    for name in constant:
        if len(values := _list_values(losses, name)) > 1:
            given = ", ".join(map(str, values))
            raise ValueError(f"The table of losses mixes several values of {name!r} ({given}).")


def _check_arguments(*, variant: str | None, num_resamples: int, confidence: float) -> None:
    if variant not in (None, *VARIANTS):
        raise ValueError(f"Unknown variant {variant!r}; valid: {', '.join(VARIANTS)}.")
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; it must be at least 1.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1.")


def _list_values(table: pd.DataFrame, name: str) -> list[object]:
    return list(pd.Series(table[name]).unique())


def score_group(
    rows: pd.DataFrame,
    *,
    variant: str,
    num_resamples: int,
    confidence: float = 0.95,
    seed: int,
) -> tuple[pd.DataFrame, Float[np.ndarray, "resample cell"]]:
    """Score every (site, window) of one group's rows, which have the site's rank (`SITE_RANK`).

    Returns:
        The columns of `compute_krs` from `site` on, and the scores in every resample, which are of
        the same questions wherever as many are used.
    """
    name = "effect" if rows["direction"].iloc[0] == "corrupt" else "krs"
    num_known, num_asked = count_known(rows)
    cell_keys = [SITE_RANK, *CELL[1:]]
    cells = rows.drop_duplicates(cell_keys).sort_values(cell_keys)
    # Questions are numbered by their names, not by their rows' order, which must not matter.
    question = rows.groupby(QUESTION, dropna=False).ngroup().to_numpy()
    cell = rows.groupby(cell_keys).ngroup().to_numpy()
    shape = (question.max() + 1, len(cells))
    _check_unique(rows, question * shape[1] + cell)

    unlearned, restored = np.full(shape, np.nan), np.full(shape, np.nan)
    unlearned[question, cell] = rows["loss_unlearned"]
    restored[question, cell] = rows["loss_restored"]
    why = np.full(shape, "not measured", dtype=object)
    why[question, cell] = rows["reason"].astype(object).fillna("").replace("", "no loss")

    used = ~np.isnan(unlearned) & ~np.isnan(restored)
    infinite = used & (np.isinf(unlearned) | np.isinf(restored))
    if variant == "hong2024":
        rounded = (unlearned > 0) & (unlearned < SMALLEST)
        for wrong, cause in (
            (unlearned == 0, "is 0"),
            (unlearned < 0, "is negative"),
            (rounded, "is 0 but for rounding"),
        ):
            why[used & wrong] = f"loss(V, U) {cause}"
            used &= ~wrong
    finite = used & ~infinite
    if variant == "hong2024":
        above = np.divide(restored, unlearned, out=np.zeros(shape), where=finite)
        below = used.astype(float)
    else:
        above, below = scale_losses(
            np.where(finite, restored, 0.0), np.where(finite, unlearned, 0.0)
        )

    floors = compute_noise_floors(rows)
    floor = np.array([floors[site] for site in cells["site"]])
    num_used = used.sum(axis=0)
    drawn = used.any(axis=1)
    counts = _draw_counts(int(drawn.sum()), num_resamples=num_resamples, seed=seed)
    undefined = explain_undefined(
        np.where(finite, unlearned, 0.0), counts @ below[drawn], infinite, num_used, floor
    )
    defined = np.array([not reason for reason in undefined])
    share = _divide(above.sum(axis=0), below.sum(axis=0))
    share[~defined] = np.nan
    shares = _divide(counts @ above[drawn], counts @ below[drawn])
    shares[:, ~defined | (num_used < 2)] = np.nan
    sign, offset = (1, 0) if name == "effect" else (-1, 1)
    resamples = offset + sign * shares
    low, high = _compute_interval(resamples, confidence)

    scores = pd.DataFrame(
        {
            **{column: cells[column].to_numpy() for column in CELL},
            name: offset + sign * share,
            "ci_low": low,
            "ci_high": high,
            "num_queries": num_used,
            "num_known": num_known,
            "num_asked": num_asked,
            "num_tokens": average_num_tokens(rows),
            "noise_floor": floor,
            "reason": _explain(used, why, undefined),
        }
    )
    return scores, resamples


def _check_unique(rows: pd.DataFrame, place: Int[np.ndarray, " row"]) -> None:
    repeated = np.flatnonzero(pd.Series(place).duplicated())
    if len(repeated):
        row = rows.iloc[repeated[0]]
        raise ValueError(
            f"Duplicate question {row['query_id']!r} ({row['language']}) at site "
            f"{row['site']!r}, layer {row['layer']}: score each measurement by itself."
        )


def _divide(
    above: Float[np.ndarray, "..."], below: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Divide, with NaN instead of x/0."""
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)


def _draw_counts(
    num_questions: int, *, num_resamples: int, seed: int
) -> Int[np.ndarray, "resample question"]:
    """Draw how often each question is in a bootstrap resample."""
    if num_questions == 0:
        return np.zeros((num_resamples, 0), dtype=int)
    uniform = np.full(num_questions, 1 / num_questions)
    return np.random.default_rng(seed).multinomial(num_questions, uniform, size=num_resamples)


def scale_losses(
    above: Float[np.ndarray, "question cell"], below: Float[np.ndarray, "question cell"]
) -> tuple[Float[np.ndarray, "question cell"], Float[np.ndarray, "question cell"]]:
    """Bring losses to a size at which no sum overflows; by a power of 2, which rounds nothing.

    Args:
        above: finite losses of which the mean is divided.
        below: finite losses by whose mean it is divided.

    Returns:
        both, each cell divided by the same number.
    """
    largest = np.maximum(np.abs(below).max(axis=0), SMALLEST)
    scale = np.exp2(np.floor(np.log2(largest)))
    return above / scale, below / scale


def explain_undefined(
    unlearned: Float[np.ndarray, "question cell"],
    totals: Float[np.ndarray, "resample cell"],
    infinite: Bool[np.ndarray, "question cell"],
    num_used: Int[np.ndarray, " cell"],
    floor: Float[np.ndarray, " cell"],
) -> list[str]:
    """Say for each cell why a ratio to loss(V, U) means nothing; "" where it does.

    Args:
        unlearned: loss(V, U), 0 where it is not used.
        totals: its sums in the bootstrap resamples, of any scale.
        infinite: where a loss is.
        num_used: questions that have both losses.
        floor: the noise floor.
    """
    reasons = []
    for cell in range(unlearned.shape[1]):
        losses, num_infinite = unlearned[:, cell], infinite[:, cell].sum()
        # Divided first: a sum may overflow.
        mean = (losses / max(1, num_used[cell])).sum()
        not_positive = (totals[:, cell] <= 0).sum()
        reason = ""
        if num_infinite:
            reason = f"the loss of {num_infinite} of {len(losses)} questions is infinite"
        elif num_used[cell] and not losses.any():
            reason = "loss(V, U) is 0"
        elif (losses < 0).any() and not_positive:
            reason = (
                f"loss(V, U) is not clearly above 0: {mean:.2g}, and 0 or below in {not_positive} "
                f"of {len(totals)} resamples"
            )
        elif num_used[cell] and abs(mean) < SMALLEST:
            reason = f"loss(V, U) is 0 but for rounding ({mean:.2g})"
        elif floor[cell] >= 1:
            reason = f"loss(V, U) is not above the noise floor ({floor[cell]:.2g} of it)"
        reasons.append(reason)
    return reasons


def _compute_interval(
    values: Float[np.ndarray, "resample cell"], confidence: float
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Take the percentile interval over the defined resamples of each cell."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.full((2, values.shape[1]), np.nan)
    defined = ~np.isnan(values).all(axis=0)
    if defined.any():
        low[defined], high[defined] = np.nanquantile(values[:, defined], tails, axis=0)
    return low, high


def compute_noise_floors(rows: pd.DataFrame) -> dict[str, float]:
    """Divide mean loss_self by mean loss_unlearned per site, over the rows where both are known."""
    floors = {}
    for site, of_site in rows.groupby("site", sort=False):
        own = of_site["loss_self"].to_numpy(float)
        unlearned = of_site["loss_unlearned"].to_numpy(float)
        known = np.isfinite(own) & np.isfinite(unlearned)
        own, unlearned = own[known] / max(1, known.sum()), unlearned[known] / max(1, known.sum())
        floors[site] = abs(own.sum() / unlearned.sum()) if unlearned.sum() else np.nan
    return floors


def _explain(
    used: Bool[np.ndarray, "question cell"], why: np.ndarray, undefined: Sequence[str]
) -> list[str]:
    """Say for each cell what was left out, and why its score or interval is undefined."""
    num_questions = len(used)
    num_used = used.sum(axis=0)
    reasons = []
    for cell in range(used.shape[1]):
        parts = []
        if num_used[cell] < num_questions:
            causes = ", ".join(dict.fromkeys(why[~used[:, cell], cell]))
            left_out = num_questions - num_used[cell]
            parts.append(f"{left_out} of {num_questions} questions left out: {causes}")
        if undefined[cell]:
            parts.append(undefined[cell])
        elif num_used[cell] == 1:
            parts.append("one question: no interval")
        reasons.append("; ".join(parts))
    return reasons
