"""Noise floor of scores: what rounding does to them, and a warning where it hides the effect.

The noise floor is |1 − KRS| of V patched with its own states, in the precision used. That alone
does not see a precision: the patched run and the run it is compared with round alike, and their
difference is 0, while a score is made of squares of differences, into which rounding enters by its
product with the difference. On Gemma-3-270M in bfloat16 V patched with itself gives 0 to 0.0003,
and scores move by up to 0.012. Therefore, below float32, the most that a score differs from the
same score computed in float32 with the same weights, in some windows of the site and on the same
few questions, is added. So it is where weights are packed by LLM.int8, which rounds what they read.
What rounding the weights did when they were loaded or packed is not in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interp.data.trajectories import Trajectory
from interp.models.packed_weights import compute_packed_in_float32, rounds_inputs
from interp.models.precision import compute_model_in_float32, set_matmul_precision
from interp.recovery.distances import Distance
from interp.recovery.engines import layered
from interp.recovery.measured import Measured
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, Restoration

NUM_WINDOWS = 3
"""Windows of a site whose scores are computed again in float32."""


def measure_pair(
    engine: Callable[..., Measured],
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    *,
    advance: Callable[[float], object] = lambda _questions: None,
    **options: Any,
) -> tuple[Measured, Measured]:
    """Measure U itself, and restorations in the pair's direction."""
    if pair.direction == "restore":
        wanted = [NOTHING, *restorations]
        losses, answered = engine(pair, trajectories, wanted, advance=advance, **options)
        if answered is None:
            return Measured(losses[:1]), Measured(losses[1:])
        return Measured(losses[:1], answered[:1]), Measured(losses[1:], answered[1:])
    restored = engine(pair, trajectories, restorations, advance=advance, **options)
    forwards = Pair(vanilla=pair.vanilla, unlearned=pair.unlearned)
    return engine(forwards, trajectories, [NOTHING], **options), restored


def rounds_states(dtype: str, pair: Pair) -> bool:
    """Return whether a pair's states are rounded to less than float32 as they are computed."""
    return dtype != "float32" or any(
        rounds_inputs(model.model) for model in (pair.vanilla, pair.unlearned)
    )


def measure_rounding(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    losses: tuple[Float[Tensor, "1 query"], Float[Tensor, "restoration query"]],
    distance: Distance,
) -> dict[str, float]:
    """Measure how far scores are from float32 with the same weights, the most of each site.

    Args:
        pair: V and U, computing in the precision used.
        trajectories: a few questions.
        restorations: every window of every site, of which some are measured again.
        losses: of U itself and of all these restorations on these questions, in the precision
            used.
        distance: as they were measured.
    """
    by_site: dict[str, list[int]] = {}
    for row, restoration in enumerate(restorations):
        by_site.setdefault(restoration.site, []).append(row)
    # The middle one of every third of the layers.
    middles = [(2 * third + 1) / (2 * NUM_WINDOWS) for third in range(NUM_WINDOWS)]
    rows = sorted(
        {of_site[int(len(of_site) * middle)] for of_site in by_site.values() for middle in middles}
    )
    checked = [restorations[row] for row in rows]
    with (
        set_matmul_precision(),
        compute_packed_in_float32(pair.vanilla.model),
        compute_packed_in_float32(pair.unlearned.model),
        compute_model_in_float32(pair.vanilla),
        compute_model_in_float32(pair.unlearned),
    ):
        unlearned, restored = measure_pair(
            layered.measure, pair, trajectories, checked, distance=distance, answers=False
        )
    exact = restored.losses.sum(1) / unlearned.losses.sum()
    used = losses[1][rows].sum(1) / losses[0].sum()
    moved: dict[str, float] = {}
    for row, difference in zip(rows, (used - exact).abs().tolist(), strict=True):
        site = restorations[row].site
        moved[site] = max(moved.get(site, 0.0), difference)
    return moved


def warn_of_noise(scores: pd.DataFrame) -> None:
    """Warn, once, of the sites where the noise floor exceeds what was measured.

    That is where, in every window, the score is nearer to 0 than the floor, or in every window the
    interval is narrower than the floor: then not the questions but the rounding limits the result.

    Args:
        scores: as `krs.compute_krs` gives them.
    """
    name = "effect" if "effect" in scores else "krs"
    groups = list(scores.columns[: list(scores.columns).index("layer")])
    noisy: dict[str, list[str]] = {}
    for key, rows in scores[scores["noise_floor"] > 0].groupby(groups, sort=False):
        columns = (name, "ci_low", "ci_high", "noise_floor")
        score, low, high, floor = (np.asarray(rows[column], float) for column in columns)
        *group, site = key if isinstance(key, tuple) else (key,)
        where = f"{site} ({', '.join(map(str, group))}: {floor.max():.2g})"
        # A floor as large as loss(V, U) leaves no score at all.
        if ((abs(score) < floor) | (floor >= 1)).all():
            noisy.setdefault("the score of every window", []).append(where)
        elif (high - low < floor).all():
            noisy.setdefault("the interval of every window", []).append(where)
    if noisy:
        cells = "; ".join(f"{what} at {', '.join(where)}" for what, where in noisy.items())
        warnings.warn(
            f"the noise floor exceeds {cells}: measure again with more precision, such as float32",
            stacklevel=4,
        )
