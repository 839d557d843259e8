"""Activation cache: the states of a run by site and layer, as TransformerLens has it.

The names are those of the sites, and the model that runs is the Hugging Face model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.data.query import Query
from interp.data.trajectories import Trajectory, check_trajectories, encode_prompt
from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.recovery.batches import make_batch
from interp.recovery.hook_points import (
    HookPoint,
    find_hook_points,
    hook_site,
    make_unit_index,
    split_axes,
)
from interp.recovery.sites import SiteName

Prompts = str | Query | Trajectory | Sequence[str | Query | Trajectory]
"""Runnable inputs: texts, queries, or trajectories (prompt and answer)."""

_AXES = {"coef": ("query", "pos", "d_mlp"), "head": ("query", "pos", "head", "d_head")}


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationCache:
    """States of one run, by site and layer: `cache["coef", 3]` or `cache["coef@3"]`.

    States are copies, safe to keep and to change. What is at padding means nothing.

    Attributes:
        tokens: the token ids that ran, [query, pos]; padding repeats a real token.
        real: True at real tokens, [query, pos]. Padding is on the right.
    """

    tokens: Int[Tensor, "query pos"]
    real: Bool[Tensor, "query pos"]
    _states: dict[tuple[str, int], Tensor]
    _named: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, int] | str) -> Float[Tensor, "query pos *axes"]:
        if isinstance(key, str):
            name = key
            key = self._named.get(name, (name, -1))
            if key not in self._states and "@" in name:
                parsed = SiteName.parse(name)
                key = (str(SiteName(sites=parsed.sites, units=parsed.units)), parsed.layer or 0)
        if key not in self._states:
            raise LookupError(f"{key!r} is not in the cache; valid: {self._list_contents()}")
        return self._states[key]

    def __contains__(self, key: object) -> bool:
        return key in self._states or key in self._named

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def keys(self) -> list[tuple[str, int]]:
        """Return (site, layer) of every state, layers ascending within a site."""
        return list(self._states)

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes of each site's states."""
        sites = dict.fromkeys(site for site, _ in self._states)
        return {
            site: _AXES.get(site.partition("[")[0], ("query", "pos", "d_model")) for site in sites
        }

    def stack(self, site: str) -> Float[Tensor, "layer query pos *axes"]:
        """Stack a site's states of all layers that the cache holds, in their order.

        Raises:
            LookupError: it holds none of this site.
        """
        states = [state for (name, _), state in self._states.items() if name == site]
        if not states:
            raise LookupError(f"{site!r} is not in the cache; valid: {self._list_contents()}")
        return torch.stack(states)

    def _list_contents(self) -> str:
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
    model: LanguageModel, prompts: Prompts, sites: Sequence[str] = ("coef", "attn", "resid")
) -> tuple[Float[Tensor, "query vocab"], ActivationCache]:
    """Run the model once and keep its states.

    logits, cache = interp.run_with_cache(model, ["Paris is", "Rome is"], sites=["coef", "head@3"])
    cache["coef", 5]                 # [query, pos, d_mlp]
    cache["head", 3]                 # [query, pos, head, d_head]
    cache.stack("coef")              # [layer, query, pos, d_mlp]
    cache.tokens[cache.real]         # padding is on the right

    No gradients are kept. Inside `hooks` and `restore` the run is theirs.

    Args:
        model: the model that runs.
        prompts: a text or several, queries, or trajectories (their whole text).
        sites: activation sites, of every layer ("coef") or one ("coef@3"), or single heads and
            coefficients ("head[2]", "coef@3[17]").

    Returns:
        The logits at each prompt's last token, [query, vocab], and the states. (The logits of
        all tokens are `model.anatomy.logits` of the final states; with a vocabulary of 262,144
        they are large.)

    Raises:
        ValueError: no prompts, a prompt without tokens or longer than the context, or a name
            that is no activation site.
    """
    check_runnable(model, adapters=False)
    points: dict[tuple[str, int], HookPoint] = {}
    named: dict[str, tuple[str, int]] = {}
    for name in [sites] if isinstance(sites, str) else sites:
        of_name = find_hook_points(name, model)
        points |= {point.key: point for point in of_name}
        if len(of_name) == 1:
            named[name] = of_name[0].key
    batch = make_batch(_make_trajectories(model, prompts), device=model.device)
    shape = batch.input_ids.shape
    states: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack:
        for key, point in points.items():

            def keep(value: Tensor, key: tuple[str, int] = key, point: HookPoint = point) -> None:
                states[key] = split_axes(value, point, model, shape)[make_unit_index(point)].clone()

            stack.enter_context(hook_site(model.anatomy.layers[point.layer], point.site, keep))
        final = model.anatomy.body(**batch.inputs(model.anatomy.body)).last_hidden_state
    cache = ActivationCache(
        tokens=batch.input_ids,
        real=batch.real,
        _states={key: states[key] for key in points},
        _named=named,
    )
    return model.anatomy.logits(batch.at_scored(final)), cache


def _make_trajectories(model: LanguageModel, prompts: Prompts) -> list[Trajectory]:
    """Make trajectories of texts that score their last token."""
    if isinstance(prompts, str | Query | Trajectory):
        prompts = [prompts]
    if not prompts:
        raise ValueError("no prompts: give at least one")
    check_trajectories(model, prompts)
    trajectories = []
    for number, item in enumerate(prompts):
        if isinstance(item, Trajectory):
            query, token_ids = item.query, item.token_ids
        else:
            if isinstance(item, str):
                item = Query(id=f"prompt {number}", language="und", prompt=item)
            query, token_ids = item, encode_prompt(model, item, 0)
        trajectories.append(
            Trajectory(
                query=query,
                prompt_ids=token_ids,
                answer_ids=(),
                answer="",
                scored=range(len(token_ids) - 1, len(token_ids)),
            )
        )
    return trajectories
