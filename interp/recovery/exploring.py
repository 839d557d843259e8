"""States by name, to look at and to change: the cache of a run, and hooks.

`run_with_cache`, `hooks` and (in `beside`) `restore` are what the methods of `LanguageModel` of the
same names do. Their users know the first two from TransformerLens; here the names are those of the
sites, and the model that runs is the Hugging Face model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.data.query import Query
from interp.data.trajectories import Trajectory, prompt_ids
from interp.models.language_model import LanguageModel
from interp.recovery.batches import make_batch
from interp.recovery.places import Place, by_axes, decoder, passing, places, seen, units_index
from interp.recovery.sites import SiteName
from interp.recovery.states import removing

Prompts = str | Query | Trajectory | Sequence[str | Query | Trajectory]
"""What can be run: texts, queries, or trajectories (prompt and answer)."""

_AXES = {"coef": ("query", "pos", "d_mlp"), "head": ("query", "pos", "head", "d_head")}


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationCache:
    """The states of one run, by site and layer: `cache["coef", 3]` or `cache["coef@3"]`.

    States are copies, safe to keep and to change. What stands at padding means nothing.

    Attributes:
        tokens: the token ids that ran, [query, pos]; padding repeats a real token.
        real: True at real tokens, [query, pos]. Padding is on the right.
    """

    tokens: Int[Tensor, "query pos"]
    real: Bool[Tensor, "query pos"]
    _states: dict[tuple[str, int], Tensor]
    _asked: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, int] | str) -> Float[Tensor, "query pos *axes"]:
        if isinstance(key, str):
            name = key
            key = self._asked.get(name, (name, -1))
            if key not in self._states and "@" in name:
                parsed = SiteName.parse(name)
                key = (str(SiteName(sites=parsed.sites, units=parsed.units)), parsed.layer or 0)
        if key not in self._states:
            raise LookupError(f"the cache holds no {key!r}; it holds {self._contents()}")
        return self._states[key]

    def __contains__(self, key: object) -> bool:
        return key in self._states or key in self._asked

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def keys(self) -> list[tuple[str, int]]:
        """(site, layer) of every state, layers ascending within a site."""
        return list(self._states)

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The names of the axes of each site's states."""
        sites = dict.fromkeys(site for site, _ in self._states)
        return {
            site: _AXES.get(site.partition("[")[0], ("query", "pos", "d_model")) for site in sites
        }

    def stack(self, site: str) -> Float[Tensor, "layer query pos *axes"]:
        """A site's states of all layers that the cache holds, in their order.

        Raises:
            LookupError: it holds none of this site.
        """
        found = [state for (name, _), state in self._states.items() if name == site]
        if not found:
            raise LookupError(f"the cache holds no {site!r}; it holds {self._contents()}")
        return torch.stack(found)

    def _contents(self) -> str:
        layers: dict[str, list[str]] = {}
        for site, layer in self._states:
            layers.setdefault(site, []).append(str(layer))
        return "; ".join(f"{site} of layers {', '.join(of)}" for site, of in layers.items())

    def __repr__(self) -> str:
        queries, positions = self.tokens.shape
        megabytes = sum(state.nbytes for state in self._states.values()) / 1e6
        lines = [
            f"ActivationCache: {queries} × {positions} tokens (query × pos), "
            f"{int(self.real.sum())} of them real, {megabytes:.1f} MB"
        ]
        for site, axes in self.axes.items():
            held = [layer for name, layer in self._states if name == site]
            shape = " × ".join(map(str, self._states[site, held[0]].shape))
            lines.append(
                f"  {site}: {shape} ({' × '.join(axes)}), "
                + (f"layer {held[0]}" if len(held) == 1 else f"{len(held)} layers")
            )
        return "\n".join(lines)


@torch.no_grad()
def run_with_cache(
    model: LanguageModel, prompts: Prompts, sites: Sequence[str]
) -> tuple[Float[Tensor, "query vocab"], ActivationCache]:
    """See `LanguageModel.run_with_cache`."""
    wanted: dict[tuple[str, int], Place] = {}
    asked: dict[str, tuple[str, int]] = {}
    for name in [sites] if isinstance(sites, str) else sites:
        found = places(name, model)
        wanted |= {place.key: place for place in found}
        if len(found) == 1:
            asked[name] = found[0].key
    batch = make_batch(_texts(model, prompts), device=model.device)
    shape = batch.input_ids.shape
    states: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack:
        for key, place in wanted.items():

            def keep(value: Tensor, key: tuple[str, int] = key, place: Place = place) -> None:
                states[key] = by_axes(value, place, model, shape)[units_index(place)].clone()

            stack.enter_context(passing(model.anatomy.layers[place.layer], place.site, keep))
        final = model.anatomy.body(**batch.inputs(model.anatomy.body)).last_hidden_state
    cache = ActivationCache(
        tokens=batch.input_ids,
        real=batch.real,
        _states={key: states[key] for key in wanted},
        _asked=asked,
    )
    return model.anatomy.logits(batch.at_scored(final)), cache


def _texts(model: LanguageModel, prompts: Prompts) -> list[Trajectory]:
    """Texts as trajectories that score their last token."""
    if isinstance(prompts, str | Query | Trajectory):
        prompts = [prompts]
    if not prompts:
        raise ValueError("no prompts: give at least one")
    found = []
    for number, item in enumerate(prompts):
        if isinstance(item, Trajectory):
            query, token_ids = item.query, item.token_ids
        else:
            if isinstance(item, str):
                item = Query(id=f"prompt {number}", language="und", prompt=item)
            query, token_ids = item, prompt_ids(model, item, 0)
        found.append(
            Trajectory(
                query=query,
                prompt_ids=token_ids,
                answer_ids=(),
                answer="",
                scored=range(len(token_ids) - 1, len(token_ids)),
            )
        )
    return found


@dataclass(frozen=True)
class Hook:
    """What a hook function is told beside the state.

    Attributes:
        name: the place, as it was named: "coef@3", or a module's path.
    """

    name: str
    _layer: int | None

    def layer(self) -> int:
        """The layer.

        Raises:
            ValueError: the module lies in no layer.
        """
        if self._layer is None:
            raise ValueError(f"{self.name!r} lies in no layer")
        return self._layer


HookFunction = Callable[[Tensor, Hook], Tensor | None]


@contextmanager
def hooks(model: LanguageModel, functions: Sequence[tuple[str, HookFunction]]) -> Iterator[None]:
    """See `LanguageModel.hooks`."""
    shape: list[int] = []

    def remember(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        shape[:] = next(tensor for tensor in given if tensor is not None).shape[:2]

    with ExitStack() as stack:
        stack.enter_context(
            removing(decoder(model).register_forward_pre_hook(remember, with_kwargs=True))
        )
        modules = dict(model.model.named_modules())
        for name, function in functions:
            if name in modules:
                see = _at_module(name, function)
                stack.enter_context(seen(modules[name], see))
                continue
            found = places(name, model)
            for place in found:
                hook = Hook(name if len(found) == 1 else "@".join(map(str, place.key)), place.layer)
                see = _at_place(place, function, hook, model, shape)
                stack.enter_context(passing(model.anatomy.layers[place.layer], place.site, see))
        yield


def _at_module(path: str, function: HookFunction) -> Callable[[Tensor], Tensor | None]:
    layer = next((int(part) for part in path.split(".") if part.isdigit()), None)
    hook = Hook(path, layer)

    def see(value: Tensor) -> Tensor | None:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the output of {path!r} is a {type(value).__name__}, not a tensor; "
                "hook a module inside it"
            )
        new = function(value, hook)
        return None if new is None else _checked(new, value, hook)

    return see


def _at_place(
    place: Place, function: HookFunction, hook: Hook, model: LanguageModel, shape: list[int]
) -> Callable[[Tensor], Tensor | None]:
    def see(value: Tensor) -> Tensor | None:
        whole = by_axes(value, place, model, shape)
        part = whole[units_index(place)]
        new = function(part, hook)
        if new is not None:
            _checked(new, part, hook)
        if place.units is None:
            return None if new is None else new.reshape(value.shape)
        # A copy was shown: what was changed in place is written back too.
        whole = whole.clone()
        whole[units_index(place)] = part if new is None else new
        return whole.view(value.shape)

    return see


def _checked(new: Tensor, old: Tensor, hook: Hook) -> Tensor:
    if not isinstance(new, Tensor):
        raise ValueError(
            f"the hook at {hook.name!r} must return a tensor or None, not {type(new).__name__}"
        )
    if new.shape != old.shape or new.dtype != old.dtype:
        raise ValueError(
            f"the hook at {hook.name!r} must return a tensor like the one it was given, "
            f"{tuple(old.shape)} of {old.dtype}, not {tuple(new.shape)} of {new.dtype}"
        )
    return new
