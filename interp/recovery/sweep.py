"""Layer sweep of activation patching: models × questions × restorations → a table of losses."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch

from interp.data.trajectories import Trajectory, score_as_hong2024
from interp.models.anatomy import Anatomy
from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.models.precision import Dtype, check_dtype, check_possible, set_precision
from interp.recovery.distances import Distance, check_distance
from interp.recovery.engines import ENGINES
from interp.recovery.noise_floor import measure_losses, measure_rounding
from interp.recovery.pair import Direction, Pair
from interp.recovery.sites import (
    MIXTURE_SITES,
    STATE_SITES,
    UNIT_SITES,
    Positions,
    Restoration,
    SiteName,
    check_positions,
    make_windows,
)

Variant = Literal["paper", "hong2024"]
Remote = Literal[False, True, "local"]

DEFAULT_SITES = ("coef", "attn", "coef+attn", "value")

NUM_SELF_PATCHED = 2
"""Questions per call on which the noise floor is measured."""

NO_ROUTER = "the window's layers are dense: there is no router to restore"
"""Reason of windows without a mixture of experts, where a router is to be restored."""

_IN_MIXTURES = ("coef", "value", "key", *MIXTURE_SITES)
# Sites inside a mixture's module of experts.

COLUMNS = (
    "vanilla",
    "unlearned",
    "language",
    "query_id",
    "concept",
    "site",
    "layer",
    "first_layer",
    "last_layer",
    "num_tokens",
    "loss_unlearned",
    "loss_restored",
    "loss_self",
    "engine",
    "dtype",
    "variant",
    "direction",
    "distance",
    "positions",
    "reason",
)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Configuration of a sweep.

    Attributes:
        sites: what to restore, joined by + where together: coef, attn, value, and the controls
            key, attn_weights, norms, unembed, mlp_out, resid; one layer's (coef@3), single heads
            (head[0,2]) or coefficients (coef@3[17]); or TransformerLens' hook names and module
            paths, see `recovery.site_names`.
        window: number of consecutive layers restored together, odd.
        engine: layered (fast), full (the plain reference), transformer_lens or nnsight.
        variant: paper, or hong2024 for the released notebooks' positions and averaging.
        positions: where activation sites are restored: all, prompt or answer.
        direction: restore (V's parts into U), or corrupt (U's parts into V).
        distance: logit_mse, kl or answer_logprob.
        remote: with the engine nnsight, True runs the forwards on NDIF, where V is hosted, and
            needs a key of it and a U that is a LoRA adapter on V; "local" simulates that here.
        dtype: float32, bfloat16 or float16; tf32 or bf32 for float32 with rounded matrix products
            (on a GPU, on a CPU with bfloat16 units); mixed for bfloat16 scored in float32; the
            models' own by default. A warning says where its noise floor exceeds the effect.
    """

    sites: tuple[str, ...] = DEFAULT_SITES
    window: int = 5
    engine: str = "layered"
    variant: Variant = "paper"
    positions: Positions = "all"
    direction: Direction = "restore"
    distance: Distance = "logit_mse"
    remote: Remote = False
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        sites = _list_sites(self.sites)
        if not sites:
            raise ValueError("no sites: give at least one, such as coef")
        names = [str(SiteName.parse(site)) for site in sites]
        if len(set(names)) != len(names):
            raise ValueError(f"duplicate site in {', '.join(sites)}")
        object.__setattr__(self, "sites", tuple(names))
        object.__setattr__(self, "window", _read_window(self.window))
        if not isinstance(self.engine, str) or self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}; valid: {', '.join(ENGINES)}")
        if self.variant not in get_args(Variant):
            raise ValueError(
                f"unknown variant {self.variant!r}; valid: {', '.join(get_args(Variant))}"
            )
        check_positions(self.positions)
        if self.direction not in get_args(Direction):
            raise ValueError(
                f"unknown direction {self.direction!r}; valid: {', '.join(get_args(Direction))}"
            )
        check_distance(self.distance)
        if self.remote not in get_args(Remote):
            raise ValueError(f"unknown remote {self.remote!r}; valid: False, True, 'local'")
        if self.remote and self.engine != "nnsight":
            raise ValueError(f"remote= needs engine='nnsight', not {self.engine!r}")
        if self.remote and self.dtype is not None:
            raise ValueError("with remote= the models' own precision is used: leave out dtype=")
        check_dtype(self.dtype)
        if self.dtype == "mixed" and self.engine not in ("layered", "full"):
            raise ValueError(f"dtype 'mixed' needs the engine layered or full, not {self.engine!r}")
        if self.variant == "hong2024" and self.positions != "all":
            raise ValueError("the variant hong2024 restores all positions; use positions='all'")
        if self.variant == "hong2024" and self.distance == "answer_logprob":
            raise ValueError(
                "the variant hong2024 scores a position that predicts no answer token; "
                "use the distance logit_mse or kl, or the variant paper"
            )

    def dtype_of(self, model: LanguageModel) -> str:
        """Return the precision computed in, by name: that of the model if none is set."""
        return self.dtype or str(model.dtype).removeprefix("torch.")

    def restorations(self, num_layers: int) -> list[Restoration]:
        """Make every window of every site.

        Raises:
            ValueError: the window or a site's layer does not suit the number of layers, or two
                sites are the same part of a layer.
        """
        restorations = {}
        for site in self.sites:
            for restoration in make_windows(
                site, num_layers=num_layers, window=self.window, positions=self.positions
            ):
                cell = (restoration.site, restoration.centre)
                if cell in restorations:
                    raise ValueError(
                        f"duplicate site {site!r}: layer {restoration.centre} of "
                        f"{restoration.site} is measured already"
                    )
                restorations[cell] = restoration
        return list(restorations.values())

    def check_models(self, *models: LanguageModel) -> None:
        """Raise ValueError where a site does not suit the models.

        It names a unit out of range, is a parameter site of packed (quantised) weights, a router's
        in a dense layer, or a mixture's that the engine cannot restore. Or the models cannot be
        computed with so, see `models.precision.check_possible`, or are not what their architecture
        says, see `models.integrity.check_runnable`.
        """
        if not self.remote:
            for model in models:
                check_runnable(model, adapters=False)
            check_possible(self.dtype, *models)
        names = [SiteName.parse(site) for site in self.sites]
        self._check_mixtures(models[0], names)
        for name in names:
            for unit in name.units or ():
                if name.layer is not None and name.layer >= models[0].anatomy.num_layers:
                    continue
                if unit >= (count := models[0].anatomy.num_units(name.sites[0], name.layer)):
                    raise ValueError(
                        f"{UNIT_SITES[name.sites[0]]} {unit} of the site {str(name)!r} is out of "
                        f"range 0 to {count - 1} (in each layer)"
                    )
        parameters = [site for name in names for site in name.sites if site not in STATE_SITES]
        packed = [model.name for model in models if model.has_packed_weights]
        if parameters and packed:
            raise ValueError(
                f"{packed[0]!r} has packed quantised weights, which cannot be restored one by one: "
                f"leave out the site {parameters[0]!r}, or load the model dequantised"
            )

    def _check_mixtures(self, model: LanguageModel, names: Sequence[SiteName]) -> None:
        """Raise ValueError where a site is of mixtures of experts alone, or not by this engine."""
        anatomy = model.anatomy
        routed = [layer for layer, parts in enumerate(anatomy.layers) if parts.mixture is not None]
        for name in names:
            own = [site for site in name.sites if site in MIXTURE_SITES]
            if own and not routed:
                raise ValueError(
                    f"the site {own[0]!r} is one of mixtures of experts, and {model.name!r} is a "
                    "dense model, which has no router: leave it out"
                )
            if own and name.layer not in (None, *routed):
                raise ValueError(
                    f"layer {name.layer} of the site {str(name)!r} has no router; layers that have "
                    f"one are {', '.join(map(str, routed))}"
                )
        inside = [site for name in names for site in name.sites if site in _IN_MIXTURES]
        if routed and inside and self.engine not in ("layered", "full"):
            raise ValueError(
                f"the engine {self.engine} cannot restore the site {inside[0]!r} of a mixture of "
                f"experts, which {model.name!r} is: use the engine layered or full"
            )


def measure(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    config: SweepConfig,
    *,
    advance: Callable[[float], object] = lambda _questions: None,
) -> pd.DataFrame:
    """Measure the losses of every window of every site on every question.

    Args:
        pair: V and U; its direction must be the configuration's.
        trajectories: the questions with V's answers.
        config: what to measure.
        advance: called with how many questions' worth of work is done.

    Returns:
        One row per question, site and layer, with `COLUMNS`. Losses are NaN, with the reason,
        where a question scores nothing and where states overflow.

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
        unlearned_losses, restored_losses, self_losses = _measure_cell(
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
            before = _get_loss(unlearned_losses, 0, column)
            after = _get_loss(restored_losses, row, column)
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
                    "site": restoration.site,
                    "layer": restoration.centre,
                    "first_layer": layers[0],
                    "last_layer": layers[-1],
                    "num_tokens": len(item.scored),
                    "loss_unlearned": before,
                    "loss_restored": after,
                    "loss_self": _get_loss(self_losses[restoration.site], 0, column),
                    "reason": reason,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _list_sites(given: Any) -> tuple[str, ...]:
    """Return sites as names, of one name too.

    Raises:
        TypeError: they are none.
    """
    if isinstance(given, str):
        return (given,)
    is_several = isinstance(given, Iterable) and not isinstance(given, bytes)
    sites: tuple[Any, ...] = tuple(given) if is_several else (given,)
    if others := [site for site in sites if not isinstance(site, str)]:
        raise TypeError(
            f"sites must be names, such as ['coef', 'attn'], not {type(others[0]).__name__}"
        )
    return sites


def _read_window(given: Any) -> int:
    """Return a number of layers as Python's own int, also one of numpy's.

    Raises:
        TypeError: it is no whole number.
    """
    try:
        if not isinstance(given, bool):
            return operator.index(given)
    except TypeError:
        pass
    raise TypeError(f"window must be a whole number, such as 5, not {given!r}")


def _measure_cell(
    pair: Pair,
    scored: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    config: SweepConfig,
    advance: Callable[[float], object],
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Measure loss(V, U), loss(V, R) and, per site, loss(V, V patched with its own states).

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
        return empty, empty, {item.site: empty for item in restorations}
    unlearned, restored = measure_losses(
        engine, pair, scored, restorations, advance=advance, **options
    )
    # Each site's middle window, V into V.
    by_site: dict[str, list[Restoration]] = {}
    for restoration in restorations:
        by_site.setdefault(restoration.site, []).append(restoration)
    middle = [windows[len(windows) // 2] for windows in by_site.values()]
    # What overflows has no floor.
    finite = unlearned.isfinite().all(0) & restored.isfinite().all(0)
    chosen = finite.nonzero()[:, 0].tolist()[:NUM_SELF_PATCHED]
    alone = {item.site: torch.full_like(unlearned, math.nan) for item in middle}
    if not chosen:
        return unlearned, restored, alone
    few = [scored[index] for index in chosen]
    for item, losses in zip(
        middle, engine(pair.with_itself(), few, middle, **options), strict=True
    ):
        alone[item.site][0, chosen] = losses
    if config.dtype_of(pair.vanilla) != "float32" and not config.remote:
        before, after = unlearned[:, chosen], restored[:, chosen]
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
