"""Where states pass in a model, by name: what the cache, hooks and a restored model share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from interp.models.anatomy import PASSES, LayerParts
from interp.models.language_model import LanguageModel
from interp.recovery.names import site_name
from interp.recovery.sites import ACTIVATION_SITES, SiteName
from interp.recovery.states import removing, residual_of
from interp.recovery.sweep import SweepConfig


def heads(model: LanguageModel) -> list[str]:
    """The names of the single heads, "head[0]" and on: the sites of a sweep over heads.

    recovery = interp.sweep(vanilla, unlearned, answers, sites=interp.heads(vanilla), window=1)
    interp.figures.heads(recovery.krs())
    """
    return [f"head[{head}]" for head in range(model.anatomy.num_heads)]


def decoder(model: LanguageModel) -> nn.Module:
    """The module that holds the layers: every forward goes through it, OPT's past its body."""
    return model.model.get_submodule(model.anatomy.family.layers.rpartition(".")[0])


@dataclass(frozen=True, kw_only=True)
class Place:
    """A site in one layer, or some units of it.

    Attributes:
        site: an activation site.
        layer: the layer.
        units: the heads or coefficients meant, None for all.
    """

    site: str
    layer: int
    units: tuple[int, ...] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The site's name (with its units) and the layer."""
        return str(SiteName(sites=(self.site,), units=self.units)), self.layer


def places(name: str, model: LanguageModel) -> list[Place]:
    """Where a name points: "coef@3" to one place, "coef" to one in every layer.

    Raises:
        ValueError: it names no activation site, or a layer or unit that there is not.
    """
    translated = site_name(name, model)
    for site in SiteName.parse(translated).sites:
        if site not in ACTIVATION_SITES:
            raise ValueError(
                f"{name!r} names weights, which are no states of a run; "
                f"sites with states are {', '.join(ACTIVATION_SITES)}"
            )
    config = SweepConfig(sites=(translated,), window=1)
    config.check_models(model)
    return [
        Place(
            site=site,
            layer=restoration.layers[0],
            units=None if restoration.units is None else restoration.units[0],
        )
        for restoration in config.restorations(model.num_layers)
        for site in restoration.sites
    ]


def passing(
    parts: LayerParts, site: str, see: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """Show `see` a layer's state as it passes, inside the block; what it returns replaces it."""
    module, side = PASSES[site]
    return seen(getattr(parts, module), see, side=side)


def seen(
    module: nn.Module,
    see: Callable[[Tensor], Tensor | None],
    *,
    side: Literal["input", "output"] = "output",
) -> AbstractContextManager[None]:
    """Show `see` a module's first input or output, as `passing` does a layer's state."""

    def before(_module: nn.Module, args: tuple) -> tuple | None:
        new = see(args[0])
        return None if new is None else (new, *args[1:])

    def after(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
        new = see(residual_of(output))
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    if side == "input":
        return removing(module.register_forward_pre_hook(before))
    return removing(module.register_forward_hook(after))


def by_axes(value: Tensor, place: Place, model: LanguageModel, shape: Sequence[int]) -> Tensor:
    """A state as [query, pos, …]: some layers merge these two axes, and heads are one."""
    value = value.view(*shape, value.shape[-1])
    return value.unflatten(-1, (model.anatomy.num_heads, -1)) if place.site == "head" else value


def units_index(place: Place) -> tuple:
    """The index of a place's units in a state by axes."""
    if place.units is None:
        return (...,)
    return (..., list(place.units), *[slice(None)] * (place.site == "head"))
