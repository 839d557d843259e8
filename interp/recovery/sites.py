"""Sites of activation patching and restorations of them, as frozen data that engines interpret.

A site is a part of the network (`coef`, `attn`, `value` and controls; docs/definitions.md, section
1); several joined by "+" are restored together. A `Restoration` says which sites, in which layers,
at which positions. `make_windows` makes those of a layer sweep.

A site's name may say more: `coef@3` is layer 3 alone, `head[0,2]` two heads, `coef@3[17]` one
coefficient of one layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Positions = Literal["all", "prompt", "answer"]

ACTIVATION_SITES: dict[str, str] = {
    "coef": "MLP coefficients: the input of the down projection",
    "attn": "attention state: the output of the attention block's output projection",
    "head": "attention state by head: the input of the output projection",
    "mlp_out": "control: the output of the down projection",
    "resid": "control: the residual stream after the layer",
}
PARAMETER_SITES: dict[str, str] = {
    "value": "value vectors: the down projection's weight",
    "key": "control: the MLP's first matrices",
    "attn_weights": "control: the attention block's projections (q, k, v, o)",
    "norms": "control: the layer's normalisation weights (the last layer's include the final norm)",
    "unembed": "control: the unembedding",
}
SITES: dict[str, str] = ACTIVATION_SITES | PARAMETER_SITES
MIXTURE_SITES: dict[str, str] = {
    "router": "the router's decision alone: the experts it chooses and their weights g",
    "router_weights": "control: the router's weights",
}
"""Sites that mixtures of experts have besides: an activation and a parameter."""
STATE_SITES: frozenset[str] = frozenset({*ACTIVATION_SITES, "router"})
"""Sites that are states of a run, not weights."""
UNIT_SITES = {"coef": "coefficient", "head": "head"}
"""Sites of which single units can be restored, and what a unit is called."""

_NAME = re.compile(r"(?P<site>\w+)(@(?P<layer>\d+))?(\[(?P<units>\d+(,\d+)*)\])?")


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """Restoration of the donor's parts in the base model's run.

    Attributes:
        sites: names out of `SITES` and `MIXTURE_SITES`, in their order there.
        layers: the layers concerned, ascending. The unembedding belongs to no layer: the site
            `unembed` is restored whatever the layers.
        positions: for activation sites, "all" real positions, those of the "prompt" or those of
            the "answer". Parameter sites act at every position.
        centre: the layer that names the window in tables; None for a restoration outside a sweep.
        units: which units of the site are restored, a tuple for each layer: heads of `head`,
            coefficients of `coef`. None for all.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    positions: Positions = "all"
    centre: int | None = None
    units: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        check_positions(self.positions)
        for site in self.sites:
            _check_site(site)
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must be ascending and distinct, not {self.layers}")
        if self.units is not None:
            _check_units(self.sites)
            if len(self.units) != len(self.layers):
                raise ValueError(
                    f"units must be given for each of the {len(self.layers)} layers, "
                    f"not for {len(self.units)}"
                )

    @property
    def site(self) -> str:
        """Joint name of the sites, such as "coef+attn" or "head[0,2]"."""
        name = "+".join(self.sites)
        if self.units is None:
            return name
        if len(set(self.units)) == 1:
            return f"{name}[{_join_units(self.units[0])}]"
        by_layer = zip(self.layers, self.units, strict=True)
        return f"{name}[{';'.join(f'{layer}:{_join_units(units)}' for layer, units in by_layer)}]"

    def units_of(self, layer: int) -> tuple[int, ...] | None:
        """Return the units restored in a layer, None for all."""
        return None if self.units is None else self.units[self.layers.index(layer)]

    @property
    def layer_sites(self) -> frozenset[str]:
        """Sites that lie in layers (all but `unembed`)."""
        return frozenset(self.sites) - {"unembed"}


@dataclass(frozen=True, kw_only=True)
class SiteName:
    """Parsed name of a site.

    Attributes:
        sites: names out of `SITES` and `MIXTURE_SITES`, in their order there.
        layer: the only layer meant, None for every window of a sweep.
        units: the only units meant, ascending, None for all.
    """

    sites: tuple[str, ...]
    layer: int | None = None
    units: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, name: str) -> SiteName:
        """Parse "attn+coef" to coef and attn, "coef@3[17]" to coefficient 17 of layer 3.

        Raises:
            ValueError: a part is no site or is repeated, parts are of different layers, or
                units are named where a site has none or where several are joined.
        """
        parts = [_NAME.fullmatch(part) for part in name.split("+")]
        for part, text in zip(parts, name.split("+"), strict=True):
            _check_site(text if part is None else part["site"])
        matches = [part for part in parts if part is not None]
        sites = [part["site"] for part in matches]
        if len(set(sites)) != len(sites):
            raise ValueError(f"duplicate part in the site {name!r}")
        layers = {part["layer"] for part in matches}
        if len(layers) > 1:
            raise ValueError(f"the parts of the site {name!r} must be of the same layer")
        units = next((part["units"] for part in matches if part["units"]), None)
        if units is not None:
            _check_units(sites)
        layer = layers.pop()
        return cls(
            sites=tuple(site for site in (*SITES, *MIXTURE_SITES) if site in sites),
            layer=None if layer is None else int(layer),
            units=None if units is None else tuple(sorted({int(u) for u in units.split(",")})),
        )

    def __str__(self) -> str:
        place = "" if self.layer is None else f"@{self.layer}"
        units = "" if self.units is None else f"[{_join_units(self.units)}]"
        return "+".join(f"{site}{place}{units}" for site in self.sites)


def check_positions(positions: str) -> None:
    """Raise ValueError unless `positions` is a valid choice."""
    if positions not in get_args(Positions):
        raise ValueError(
            f"unknown positions {positions!r}; valid: {', '.join(get_args(Positions))}"
        )


def check_window(window: int, num_layers: int) -> None:
    """Raise ValueError unless `window` is odd and between 1 and the number of layers."""
    if not 1 <= window <= num_layers or window % 2 == 0:
        raise ValueError(
            f"window must be an odd number of layers between 1 and {num_layers} "
            f"(this model has {num_layers} layers), not {window}"
        )


def make_windows(
    site: str, *, num_layers: int, window: int = 5, positions: Positions = "all"
) -> list[Restoration]:
    """Make one restoration per layer l: {l - w//2, …, l + w//2} ∩ [0, L). Edge windows are shorter.

    The unembedding alone has one restoration, centred on L, the place above the last layer; a site
    of one layer has that layer, whatever the window.

    Args:
        site: a site or several joined by "+", see `SiteName.parse`.
        num_layers: L.
        window: w, odd, at most L.
        positions: where activation sites are restored.

    Raises:
        ValueError: unknown site or positions; a window that is even, 0 or larger than L; a layer
            out of range.
    """
    name = SiteName.parse(site)
    check_window(window, num_layers)
    if name.sites == ("unembed",):
        return [Restoration(sites=name.sites, layers=(), positions=positions, centre=num_layers)]
    if name.layer is not None and name.layer >= num_layers:
        raise ValueError(
            f"layer {name.layer} of the site {site!r} is out of range 0 to {num_layers - 1}"
        )
    reach = window // 2 if name.layer is None else 0
    restorations = []
    for centre in range(num_layers) if name.layer is None else [name.layer]:
        layers = tuple(range(max(0, centre - reach), min(num_layers, centre + reach + 1)))
        restorations.append(
            Restoration(
                sites=name.sites,
                layers=layers,
                positions=positions,
                centre=centre,
                units=None if name.units is None else (name.units,) * len(layers),
            )
        )
    return restorations


def _check_site(name: str) -> None:
    if name not in SITES and name not in MIXTURE_SITES:
        raise ValueError(
            f"unknown site {name!r}; valid: {', '.join((*SITES, *MIXTURE_SITES))}, "
            "several joined by '+' (coef+attn), one layer's (coef@3) and single heads or "
            "coefficients (head[0,2], coef@3[17])"
        )


def _check_units(sites: Sequence[str]) -> None:
    if len(sites) != 1 or sites[0] not in UNIT_SITES:
        raise ValueError(
            f"single units can be restored of the sites {' and '.join(UNIT_SITES)}, each alone, "
            f"not of {'+'.join(sites)}"
        )


def _join_units(units: Sequence[int]) -> str:
    return ",".join(map(str, units))


NOTHING = Restoration(sites=(), layers=())
"""Empty restoration: the base model as it is."""
