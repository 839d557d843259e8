"""Selection of the questions in a table of losses: targets or controls, and what V knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

Only = Literal["known"]

NOT_KNOWN = "V does not give the right answer"
"""Reason of questions that are left out because V does not know the answer."""

NOT_JUDGED = "it is not known whether V's answer is right"
"""Reason of questions that are left out because they have no right answer to compare with."""

QUESTION = ["language", "concept", "query_id"]
"""Columns that name a question."""

CELL = ["site", "layer", "first_layer", "last_layer"]
"""Columns that name what is restored."""

SITE_RANK = "_site_rank"
"""Column of each site's place among the sites of the whole table."""

_MEASURED = ["loss_unlearned", "loss_restored", "loss_self"]
_MEASURED += ["answered_unlearned", "answered_restored"]


def select_questions(
    losses: pd.DataFrame, *, controls: bool = False, only: str | None = None
) -> pd.DataFrame:
    """Select the rows of the questions on what was unlearned, or of the controls.

    Args:
        losses: one row per question, site and layer, as a sweep writes them.
        controls: take the questions on facts that were to be kept instead.
        only: `known` empties the measurements of questions to which V does not give the right
            answer, with the reason; the rows stay, so that it is seen how many they are.

    Raises:
        ValueError: there are no controls, `only` is none of the valid words, or no question has a
            right answer to tell by.
    """
    if only is not None and only not in get_args(Only):
        raise ValueError(f"unknown only={only!r}; valid: {', '.join(get_args(Only))}")
    is_control = find_controls(losses)
    if controls and not is_control.any():
        raise ValueError(
            "no control questions were measured: sweep with controls=interp.controls(queries)"
        )
    selected = losses.loc[is_control == controls]
    if only is None:
        return selected
    known = get_known(selected)
    if np.isnan(known).all():
        raise ValueError(
            "no question has a right answer, so that it is not known what V knows: give queries "
            "an answer, or leave out only='known'"
        )
    selected = selected.copy()
    unknown = known != 1
    emptied = [name for name in _MEASURED if name in selected]
    selected.loc[unknown, emptied] = np.nan
    selected.loc[unknown, "reason"] = np.where(np.isnan(known[unknown]), NOT_JUDGED, NOT_KNOWN)
    return selected


def find_controls(losses: pd.DataFrame) -> Bool[np.ndarray, " row"]:
    """Return for every row whether it is of a question on what was to be kept."""
    # Tables of earlier versions have no such column, and their questions are no controls.
    if "control" not in losses:
        return np.zeros(len(losses), dtype=bool)
    return np.array([value is True or value == 1 for value in losses["control"]], dtype=bool)


def rank_sites(losses: pd.DataFrame) -> pd.DataFrame:
    """Add to every row the place of its site, in the order in which sites first appear."""
    sites = list(dict.fromkeys(losses["site"]))
    return losses.assign(**{SITE_RANK: [sites.index(site) for site in losses["site"]]})


def get_known(losses: pd.DataFrame) -> Float[np.ndarray, " row"]:
    """Return for every row whether V answers its question rightly: 1, 0, or NaN where unknown."""
    if "known" not in losses:
        return np.full(len(losses), np.nan)
    return losses["known"].to_numpy(float)


def count_known(rows: pd.DataFrame) -> tuple[float, int]:
    """Count the questions that V answers rightly, NaN where that is not known, and all of them."""
    known = get_known(rows.drop_duplicates(QUESTION))
    return math.nan if np.isnan(known).all() else float((known == 1).sum()), len(known)


def average_num_tokens(rows: pd.DataFrame) -> float:
    """Average how many tokens of an answer are scored; NaN where that is not known."""
    if "num_tokens" not in rows:
        return math.nan
    return float(rows.drop_duplicates(QUESTION)["num_tokens"].to_numpy(float).mean())


def tabulate_known(losses: pd.DataFrame, *, by: Sequence[str] = ("language",)) -> pd.DataFrame:
    """Count what V answers rightly, and average loss(V, U), per group and unlearned model.

    Returns:
        The columns of `by` (and `unlearned`, where there are several models), `num_known`,
        `num_asked`, `num_controls_known`, `num_controls`, and of the targets `num_tokens`, how many
        of an answer are scored on average, and `loss_unlearned`, the mean loss(V, U).
    """
    keys = [*(["unlearned"] if len(set(losses["unlearned"])) > 1 else []), *by]
    records = []
    for _, rows in losses.groupby(keys, sort=False, dropna=False):
        is_control = find_controls(rows)
        targets, controls = rows.loc[~is_control], rows.loc[is_control]
        num_known, num_asked = count_known(targets)
        controls_known, num_controls = count_known(controls)
        own = targets.drop_duplicates(QUESTION)
        records.append(
            {key: rows[key].iloc[0] for key in keys}
            | {"num_known": num_known, "num_asked": num_asked}
            | {"num_controls_known": controls_known, "num_controls": num_controls}
            | {name: own[name].mean() for name in ("num_tokens", "loss_unlearned")}
        )
    return pd.DataFrame(records)
