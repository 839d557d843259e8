"""Layer sweep of activation patching: models × questions × restorations → a table of losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

import pandas as pd
import torch

from interp.data.trajectories import Trajectory, score_as_hong2024
from interp.models.anatomy import Anatomy
from interp.models.precision import set_precision
from interp.recovery.engines import ENGINES
from interp.recovery.measured import Measured
from interp.recovery.noise_floor import measure_pair, measure_rounding, rounds_states
from interp.recovery.pair import Pair
from interp.recovery.sites import MIXTURE_SITES, Restoration
from interp.recovery.sweep_config import SweepConfig

NUM_SELF_PATCHED = 2
"""Questions per call on which the noise floor is measured."""

NO_ROUTER = "the window's layers are dense: there is no router to restore"
"""Reason of windows without a mixture of experts, where a router is to be restored."""

COLUMNS = (
    "vanilla",
    "unlearned",
    "language",
    "query_id",
    "concept",
    "control",
    "known",
    "site",
    "layer",
    "first_layer",
    "last_layer",
    "num_tokens",
    "loss_unlearned",
    "loss_restored",
    "loss_self",
    "answered_unlearned",
    "answered_restored",
    "engine",
    "dtype",
    "variant",
    "direction",
    "distance",
    "positions",
    "reason",
)


def measure(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    config: SweepConfig,
    *,
    advance: Callable[[float], object] = lambda _questions: None,
) -> pd.DataFrame:
    """Measure every window of every site on every question: losses, and whether R answers as V.

    Args:
        pair: V and U; its direction must be the configuration's.
        trajectories: the questions with V's answers.
        config: what to measure.
        advance: called with how many questions' worth of work is done.

    Returns:
        One row per question, site and layer, with `COLUMNS`. Losses are NaN, with the reason,
        where a question scores nothing and where states overflow. `answered_unlearned` and
        `answered_restored` are 1 where U and R give V's answer (`Measured.answered`), else 0; NaN
        where the losses are, and in the variant hong2024, which scores other positions. `known` is
        NaN here: `Worker.measure` judges V's answers.

    Raises:
        TypeError: what is given is no pair, or no question with an answer.
    """
    if not isinstance(pair, Pair):
        raise TypeError(
            "pair must be a Pair of two loaded models, Pair(vanilla=…, unlearned=…), not "
            f"{type(pair).__name__}"
        )
    if others := [item for item in trajectories if not isinstance(item, Trajectory)]:
        raise TypeError(
            "trajectories must be questions with answers, as interp.trajectories makes them, not "
            f"{type(others[0]).__name__}"
        )
    if config.variant == "hong2024":
        trajectories = score_as_hong2024(trajectories, pair.vanilla)
    restorations = config.restorations(pair.vanilla.num_layers)
    scored = [item for item in trajectories if item.scored]
    advance(len(trajectories) - len(scored))
    with set_precision(config.dtype, (pair.vanilla, pair.unlearned)):
        unlearned, restored, self_losses = _measure_cell(
            pair, scored, restorations, config, advance
        )
    place = {id(item): index for index, item in enumerate(scored)}
    constants = {
        "vanilla": pair.vanilla.name,
        "unlearned": pair.unlearned.name,
        "engine": config.engine,
        "dtype": config.dtype_of(pair.base),
        **{key: asdict(config)[key] for key in ("variant", "direction", "distance", "positions")},
    }
    overflow = f"the loss is not finite: states overflow in {constants['dtype']}"
    anatomy = pair.base.anatomy
    rows = []
    for item in trajectories:
        column = place.get(id(item))
        for row, restoration in enumerate(restorations):
            layers = restoration.layers or (restoration.centre,)
            before = _get_loss(unlearned.losses, 0, column)
            after = _get_loss(restored.losses, row, column)
            is_measured = column is not None
            reason = overflow if is_measured and math.isnan(before + after) else item.reason
            if not _is_anywhere(restoration, anatomy):
                after, reason = math.nan, item.reason or NO_ROUTER
            rows.append(
                {
                    **constants,
                    "language": item.query.language,
                    "query_id": item.query.id,
                    "concept": item.query.concept,
                    "control": item.query.control,
                    "known": math.nan,
                    "site": restoration.site,
                    "layer": restoration.centre,
                    "first_layer": layers[0],
                    "last_layer": layers[-1],
                    "num_tokens": len(item.scored),
                    "loss_unlearned": before,
                    "loss_restored": after,
                    "loss_self": _get_loss(self_losses[restoration.site], 0, column),
                    "answered_unlearned": _get_answered(unlearned, 0, column),
                    "answered_restored": _get_answered(restored, row, column),
                    "reason": reason,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measure_cell(
    pair: Pair,
    scored: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    config: SweepConfig,
    advance: Callable[[float], object],
) -> tuple[Measured, Measured, dict[str, torch.Tensor]]:
    """Measure U, R and, per site, loss(V, V patched with its own states).

    The last is what the engine finds between runs in the precision used. Below float32, that share
    of loss(V, U) is added by which rounding moves a score (see `noise_floor`), unless V is hosted.
    """
    engine = ENGINES[config.engine]
    options = {
        "distance": config.distance,
        "own_precision": config.variant == "hong2024",
        **({"remote": config.remote} if config.remote else {}),
    }
    if not scored:
        empty = torch.empty(len(restorations), 0)
        nothing = Measured(losses=empty)
        return nothing, nothing, {item.site: empty for item in restorations}
    unlearned, restored = measure_pair(
        engine,
        pair,
        scored,
        restorations,
        advance=advance,
        answers=config.variant == "paper",
        **options,
    )
    # Each site's middle window, V into V.
    by_site: dict[str, list[Restoration]] = {}
    for restoration in restorations:
        by_site.setdefault(restoration.site, []).append(restoration)
    middle = [windows[len(windows) // 2] for windows in by_site.values()]
    # What overflows has no floor.
    finite = unlearned.losses.isfinite().all(0) & restored.losses.isfinite().all(0)
    chosen = finite.nonzero()[:, 0].tolist()[:NUM_SELF_PATCHED]
    alone = {item.site: torch.full_like(unlearned.losses, math.nan) for item in middle}
    if not chosen:
        return unlearned, restored, alone
    few = [scored[index] for index in chosen]
    own = engine(pair.with_itself(), few, middle, answers=False, **options)
    for item, losses in zip(middle, own.losses, strict=True):
        alone[item.site][0, chosen] = losses
    if rounds_states(config.dtype_of(pair.vanilla), pair) and not config.remote:
        before, after = unlearned.losses[:, chosen], restored.losses[:, chosen]
        moved = measure_rounding(pair, few, restorations, (before, after), config.distance)
        for site, losses in alone.items():
            losses[:, chosen] += moved[site] * before
    return unlearned, restored, alone


def _is_anywhere(restoration: Restoration, anatomy: Anatomy) -> bool:
    """Return whether something is restored: a router is in mixtures of experts alone."""
    if not restoration.sites or set(restoration.sites) - set(MIXTURE_SITES):
        return True
    return any(anatomy.layers[layer].mixture is not None for layer in restoration.layers)


def _get_loss(losses: torch.Tensor, row: int, column: int | None) -> float:
    if column is None or column >= losses.shape[1]:
        return math.nan
    loss = losses[row, column].item()
    return loss if math.isfinite(loss) else math.nan


def _get_answered(measured: Measured, row: int, column: int | None) -> float:
    if column is None or measured.answered is None or column >= measured.answered.shape[1]:
        return math.nan
    if math.isnan(_get_loss(measured.losses, row, column)):
        return math.nan
    return float(measured.answered[row, column])
