"""Answer recovery: the share of questions to which a restored model gives V's answer again.

Of one teacher-forced pass it is told what the model would say: where the likeliest token is V's at
every position that predicts the answer, its text so far is V's at each of them (`Measured`).

The interval is Wilson's over questions. Where a group holds a fact several times, such as in
several languages, its translations are one fact: then facts are drawn by bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interp.recovery.krs import MODELS, check_table
from interp.recovery.question_selection import (
    CELL,
    average_num_tokens,
    count_known,
    select_questions,
)
from interp.statistics import compute_percentile_interval, compute_wilson_interval, draw_counts

_FACT = ["concept", "query_id"]
_REQUIRED = ("language", *_FACT, *CELL, "answered_unlearned", "answered_restored", "direction")


def compute_answer_recovery(
    losses: pd.DataFrame,
    *,
    by: Sequence[str] = ("language",),
    controls: bool = False,
    only: str | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the share of questions to which R gives V's answer, per group, site and window.

    Models are never pooled, as in `krs.compute_krs`.

    Args:
        losses: one row per (vanilla, unlearned, language, query_id, site, layer), as a sweep
            writes them.
        by: the columns that make a group.
        controls: of the questions on what was to be kept.
        only: `known` leaves out questions to which V does not give the right answer.
        num_resamples: bootstrap resamples, where facts are drawn.
        seed: of the resamples.

    Returns:
        A table with the columns of `by` (and, where there are several, the models: the unlearned
        one's name is in the column `model`), `site`, `layer` (the window's centre),
        `first_layer`, `last_layer`; `recovered` (the share; in the direction `corrupt`, where U's
        parts are put into V, `retained`) with its 95 % interval `ci_low` and `ci_high`;
        `num_queries`, `num_known`, `num_asked` and `num_tokens` as in `compute_krs`; `unlearned`
        (the share that U itself answers as V does); and `reason`, why a share is NaN or what was
        left out.

    Raises:
        ValueError: the table is empty, lacks columns, was measured without answers (by an earlier
            version, or in the variant hong2024), or mixes directions.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    if missing := [name for name in _REQUIRED[-3:-1] if name not in losses]:
        raise ValueError(
            f"the table of losses lacks the column {missing[0]!r}: it was measured by an earlier "
            "version, which did not look at answers; sweep again into another directory"
        )
    check_table(losses, required=_REQUIRED, by=by, constant=("direction",))
    losses = select_questions(losses, controls=controls, only=only)
    if only is None and np.isnan(losses["answered_restored"].to_numpy(float)).all():
        raise ValueError(
            "no answers were measured: the variant hong2024 scores positions that predict no "
            "token of the answer; use the variant paper"
        )
    name = "retained" if losses["direction"].iloc[0] == "corrupt" else "recovered"
    models = [m for m in MODELS if m not in by and len(set(losses[m])) > 1]
    sites = list(dict.fromkeys(losses["site"]))
    parts = []
    for _, group in losses.groupby([*models, *by], sort=False, dropna=False):
        num_known, num_asked = count_known(group)
        num_tokens = average_num_tokens(group)
        cells = group.assign(_site=[sites.index(site) for site in group["site"]])
        for _, cell in cells.groupby(["_site", "layer", "first_layer", "last_layer"]):
            share = _estimate(cell, num_resamples=num_resamples, seed=seed)
            parts.append(
                {_rename(key): cell[key].iloc[0] for key in [*models, *by, *CELL]}
                | {name if key == "value" else key: value for key, value in share.items()}
                | {"num_known": num_known, "num_asked": num_asked, "num_tokens": num_tokens}
            )
    order = [*map(_rename, [*models, *by, *CELL]), name, "ci_low", "ci_high"]
    order += ["num_queries", "num_known", "num_asked", "num_tokens", "unlearned", "reason"]
    return pd.DataFrame(parts, columns=order)


def _rename(column: str) -> str:
    """Return what a column is called here, where `unlearned` is what U itself answers."""
    return "model" if column == "unlearned" else column


def _estimate(cell: pd.DataFrame, *, num_resamples: int, seed: int) -> dict[str, float | int | str]:
    """Estimate the share of one cell's questions, and U's own."""
    answered = cell[["answered_restored", "answered_unlearned"]].to_numpy(float)
    is_measured = ~np.isnan(answered).any(axis=1)
    used = cell.loc[is_measured]
    is_repeated = cell.duplicated(["language", *_FACT]).to_numpy()
    if is_repeated.any():
        repeated = cell.loc[is_repeated].iloc[0]
        raise ValueError(
            f"duplicate question {repeated['query_id']!r} ({repeated['language']}) at site "
            f"{repeated['site']!r}, layer {repeated['layer']}: score each measurement by itself"
        )
    reason = ""
    if len(used) < len(cell):
        causes = dict.fromkeys(why or "not measured" for why in cell.loc[~is_measured, "reason"])
        left_out = len(cell) - len(used)
        reason = f"{left_out} of {len(cell)} questions left out: {', '.join(causes)}"
    value = low = high = unlearned = np.nan
    if len(used):
        flags, own = answered[is_measured].T
        value, unlearned = float(flags.mean()), float(own.mean())
        fact = used.groupby(_FACT, dropna=False).ngroup().to_numpy()
        num_facts = int(fact.max()) + 1
        if num_facts == len(used):
            low, high = compute_wilson_interval(int(flags.sum()), len(flags))
        elif num_facts > 1:
            counts = draw_counts(np.zeros(num_facts), num_resamples=num_resamples, seed=seed)
            weights = counts[:, fact]
            low, high = compute_percentile_interval((weights @ flags) / weights.sum(axis=1))
        else:
            reason = "; ".join(filter(None, [reason, "one fact: no interval"]))
    return {
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "num_queries": len(used),
        "unlearned": unlearned,
        "reason": reason,
    }
