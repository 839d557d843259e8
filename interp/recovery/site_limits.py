"""Limits of sites: what a model has not, and what an engine cannot restore in it."""

from __future__ import annotations

from collections.abc import Sequence

from interp.models.language_model import LanguageModel
from interp.recovery.sites import MIXTURE_SITES, SiteName

_IN_MIXTURES = ("coef", "value", "key", *MIXTURE_SITES)
# Sites inside a mixture's module of experts.


def check_mixtures(model: LanguageModel, names: Sequence[SiteName], engine: str) -> None:
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
    if routed and inside and engine not in ("layered", "full"):
        raise ValueError(
            f"the engine {engine} cannot restore the site {inside[0]!r} of a mixture of experts, "
            f"which {model.name!r} is: use the engine layered or full"
        )


def check_mixers(model: LanguageModel, names: Sequence[SiteName], engine: str) -> None:
    """Raise ValueError where a site is of attention alone, or not one that the engine knows."""
    anatomy = model.anatomy
    attention = anatomy.attention_layers
    others = [layer for layer in range(anatomy.num_layers) if layer not in attention]
    if not others:
        return
    kind = anatomy.layers[others[0]].kind
    for name in names:
        if "head" in name.sites and name.layer not in attention:
            layer = others[0] if name.layer is None else name.layer
            if layer < anatomy.num_layers:
                raise ValueError(
                    f"the site {str(name)!r} is one of attention alone, and layer {layer} of "
                    f"{model.name!r} mixes tokens by {anatomy.layers[layer].kind}: name one layer "
                    f"(head@3); those with attention are {', '.join(map(str, attention)) or 'none'}"
                )
        if engine not in ("layered", "full"):
            _check_engine(model, name, engine, kind)


def _check_engine(model: LanguageModel, name: SiteName, engine: str, kind: str) -> None:
    """Raise ValueError where an engine of another library cannot restore a hybrid's site."""
    several = any(len(parts.mixers) > 1 for parts in model.anatomy.layers)
    # Some modules of these blocks are not called: their parameters are read.
    unknown = {"attn_weights", "norms", *(["attn"] if several else [])}
    for site in name.sites:
        if site in unknown:
            raise ValueError(
                f"the engine {engine} cannot restore the site {site!r} of {model.name!r}, which "
                f"mixes tokens by {kind}: use the engine layered or full"
            )
    if any(parts.shared_block is not None for parts in model.anatomy.layers):
        for site in name.sites:
            if site == "mlp_out":
                raise ValueError(
                    f"the engine {engine} cannot restore the site 'mlp_out' of {model.name!r}, "
                    "whose MLP is two blocks: use the engine layered or full"
                )
