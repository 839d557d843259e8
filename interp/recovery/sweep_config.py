"""Configuration of a layer sweep of activation patching."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.models.precision import Dtype, check_dtype, check_possible
from interp.recovery.distances import Distance, check_distance
from interp.recovery.engines import ENGINES
from interp.recovery.pair import Direction
from interp.recovery.site_limits import check_mixers, check_mixtures
from interp.recovery.sites import (
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
        direction: restore (V's parts into U); corrupt (U's parts into V: what V still reads in
            them); or both, of which the second is measured by answer_logprob.
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
    direction: Direction | Literal["both"] = "restore"
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
        if self.direction not in (valid := (*get_args(Direction), "both")):
            raise ValueError(f"unknown direction {self.direction!r}; valid: {', '.join(valid)}")
        if self.variant == "hong2024" and self.direction == "both":
            raise ValueError(
                "direction 'both' scores answers, and the variant hong2024 positions that predict "
                "none: use the variant paper, or the direction restore or corrupt"
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

    def split_directions(self) -> dict[Direction, SweepConfig]:
        """Return a configuration for each direction that is measured."""
        if self.direction != "both":
            return {self.direction: self}
        reverse = replace(self, direction="corrupt", distance="answer_logprob")
        return {"restore": replace(self, direction="restore"), "corrupt": reverse}

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
        in a dense layer, heads' in a layer without attention, or one that the engine cannot restore
        in a mixture or a token mixer. Or the models cannot be computed with so, see
        `models.precision.check_possible`, or are not what their architecture says, see
        `models.integrity.check_runnable`.
        """
        if not self.remote:
            for model in models:
                check_runnable(model, adapters=False)
            check_possible(self.dtype, *models)
        names = [SiteName.parse(site) for site in self.sites]
        check_mixtures(models[0], names, self.engine)
        check_mixers(models[0], names, self.engine)
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
                f"leave out the site {parameters[0]!r}, or load the model with dequantise=True"
            )


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
