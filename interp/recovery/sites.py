"""What can be put back, and where: frozen data that engines interpret.

A site is a part of the network (DEFINITIONS: `coef`, `attn`, `value` and the controls); several
joined by "+" are restored together. A `Restoration` says which sites, in which layers, at which
positions. `windows` lists the restorations of a layer sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Positions = Literal["all", "prompt", "answer"]

ACTIVATION_SITES: dict[str, str] = {
    "coef": "MLP coefficients: the input of the down projection",
    "attn": "attention state: the output of the attention block's output projection",
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


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """The donor's parts put into the base model's run.

    Attributes:
        sites: names out of `SITES`, in their order there.
        layers: the layers concerned, ascending. The unembedding belongs to no layer: the site
            `unembed` is restored whatever the layers.
        positions: for activation sites, "all" real positions, those of the "prompt" or those of
            the "answer". Parameter sites act at every position.
        centre: the layer that names the window in tables; None for a restoration outside a sweep.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    positions: Positions = "all"
    centre: int | None = None

    def __post_init__(self) -> None:
        check_positions(self.positions)
        for site in self.sites:
            _check_site(site)
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must be ascending and distinct, not {self.layers}")

    @property
    def site(self) -> str:
        """The sites' joint name, such as "coef+attn"."""
        return "+".join(self.sites)

    @property
    def layer_sites(self) -> frozenset[str]:
        """The sites that lie in layers (all but `unembed`)."""
        return frozenset(self.sites) - {"unembed"}


def parse_sites(name: str) -> tuple[str, ...]:
    """ "coef+attn" → ("coef", "attn"), in canonical order.

    Raises:
        ValueError: a part is no site, or stands twice.
    """
    parts = name.split("+")
    for part in parts:
        _check_site(part)
    if len(set(parts)) != len(parts):
        raise ValueError(f"the site {name!r} names a part twice")
    return tuple(site for site in SITES if site in parts)


def check_positions(positions: str) -> None:
    """Raise ValueError unless `positions` is a valid choice."""
    if positions not in get_args(Positions):
        raise ValueError(
            f"unknown positions {positions!r}; valid are {', '.join(get_args(Positions))}"
        )


def check_window(window: int, num_layers: int) -> None:
    """Raise ValueError unless `window` is odd and between 1 and the number of layers."""
    if not 1 <= window <= num_layers or window % 2 == 0:
        raise ValueError(
            f"window must be an odd number of layers between 1 and {num_layers} "
            f"(this model has {num_layers} layers), not {window}"
        )


def windows(
    site: str, *, num_layers: int, window: int = 5, positions: Positions = "all"
) -> list[Restoration]:
    """One restoration per layer l: {l - w//2, …, l + w//2} ∩ [0, L). Edge windows are shorter.

    The unembedding alone has one restoration, centred on L, the place above the last layer.

    Args:
        site: a site or several joined by "+".
        num_layers: L.
        window: w, odd, at most L.
        positions: where activation sites are restored.

    Raises:
        ValueError: unknown site or positions; a window that is even, 0 or larger than L.
    """
    sites = parse_sites(site)
    check_window(window, num_layers)
    if sites == ("unembed",):
        return [Restoration(sites=sites, layers=(), positions=positions, centre=num_layers)]
    reach = window // 2
    return [
        Restoration(
            sites=sites,
            layers=tuple(range(max(0, centre - reach), min(num_layers, centre + reach + 1))),
            positions=positions,
            centre=centre,
        )
        for centre in range(num_layers)
    ]


def _check_site(name: str) -> None:
    if name not in SITES:
        raise ValueError(
            f"unknown site {name!r}; valid sites are {', '.join(SITES)}, "
            "and several joined by '+', such as coef+attn"
        )


NOTHING = Restoration(sites=(), layers=())
"""The empty restoration: the base model as it is."""
