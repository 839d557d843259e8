"""The restorations through TransformerLens: both models run as TransformerBridges.

States are cached and replaced at the bridge's own hook points, weights swapped in the modules that
the bridge runs. The hook points are those where TransformerLens sees the very tensor of the site;
`hook_attn_out` is not among them, since it comes after a norm where one follows the attention.

The bridges share the parameters of the models that a person holds, which are never written to. (Of
a fused q, k and v projection TransformerLens may make its own three: a quarter of a layer.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.data.trajectories import Trajectory
from interp.models.anatomy import LayerParts, find_anatomy
from interp.models.bridges import build_bridge, view
from interp.models.language_model import LanguageModel
from interp.recovery.batches import Batch
from interp.recovery.engines.forwards import Score, losses_by_forwards
from interp.recovery.names import HOOK_POINTS
from interp.recovery.pair import Pair
from interp.recovery.sites import ACTIVATION_SITES, PARAMETER_SITES, Restoration
from interp.recovery.states import LayerStates, blend, parameters_swapped, restored

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True)
class _Bridged:
    """A model as a bridge, and the modules in it that hold the parameters of each site."""

    bridge: TransformerBridge
    layers: tuple[LayerParts, ...]
    final_norms: tuple[nn.Module, ...]
    unembed: nn.Module


_BRIDGED: WeakKeyDictionary[Pair, tuple[_Bridged, _Bridged]] = WeakKeyDictionary()
"""Base and donor of the pairs in use: a pair's models do not change while it lives."""


def losses(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    **options: Any,
) -> Float[Tensor, "restoration query"]:
    """Losses of every restoration on every question, by one forward each.

    Args and result are those of `forwards.losses_by_forwards`.

    Raises:
        ValueError: TransformerLens does not run this architecture.
        ImportError: TransformerLens is missing or older than 4.
    """
    if pair not in _BRIDGED:
        base = _bridged(pair.base)
        _BRIDGED[pair] = base, base if pair.donor is pair.base else _bridged(pair.donor)
    base, donor = _BRIDGED[pair]
    vanilla = donor if pair.direction == "restore" else base

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        inputs: dict[str, Any] = batch.inputs(pair.base.anatomy.body)
        tokens = inputs.pop("input_ids")
        wanted = {hook for item in restorations for hook in _hooks(item).values()}
        _, states = donor.bridge.run_with_cache(
            tokens, names_filter=wanted.__contains__, return_cache_object=False, **inputs
        )
        target = vanilla.bridge(tokens, **inputs)[batch.scored]
        for restoration in restorations:
            where = batch.restored(restoration.positions)
            with _parameters_restored(base, donor, restoration, where):
                logits = base.bridge.run_with_hooks(
                    tokens, fwd_hooks=_replacing(pair, restoration, states, where), **inputs
                )
            yield score(target, logits[batch.scored])

    return losses_by_forwards(runs, pair, trajectories, restorations, **options)


def _bridged(model: LanguageModel) -> _Bridged:
    own = view(model.model)
    # Found before the bridge's modules take the place of these, which they go on to call.
    anatomy = find_anatomy(own)
    bridge = build_bridge(own, name=model.name)
    layers = []
    for block, parts in zip(bridge.blocks, anatomy.layers, strict=True):
        # Where q, k and v are one projection, the bridge computes with its own three.
        weights = tuple(
            module
            for module in block.attn.modules()
            if module._parameters and module not in parts.norms
        )
        layers.append(replace(parts, attn_weights=weights))
    return _Bridged(
        bridge=bridge,
        layers=tuple(layers),
        final_norms=anatomy.final_norms,
        unembed=anatomy.unembed,
    )


def _hooks(restoration: Restoration) -> dict[tuple[str, int], str]:
    """The hook point of every activation site and layer restored."""
    return {
        (site, layer): f"blocks.{layer}.{HOOK_POINTS[site][0]}"
        for site in restoration.sites
        if site in ACTIVATION_SITES
        for layer in restoration.layers
    }


def _replacing(
    pair: Pair,
    restoration: Restoration,
    states: dict[str, Tensor],
    where: Bool[Tensor, "batch pos"],
) -> list[tuple[str | Callable, Callable]]:
    """Hooks that put the donor's states in."""
    found: list[tuple[str | Callable, Callable]] = []
    for (site, layer), hook in _hooks(restoration).items():
        units = restoration.units_of(layer)
        channels = None if units is None else pair.base.anatomy.channels(site, units)
        found.append((hook, partial(_replaced, new=states[hook], where=where, channels=channels)))
    return found


def _replaced(
    old: Tensor,
    hook: object,  # noqa: ARG001
    *,
    new: Tensor,
    where: Bool[Tensor, "batch pos"],
    channels: Sequence[int] | None,
) -> Tensor:
    # Heads have an axis of their own at some hook points.
    return blend(old.flatten(2), new.flatten(2), where, channels).view_as(old)


@contextmanager
def _parameters_restored(
    base: _Bridged, donor: _Bridged, restoration: Restoration, where: Bool[Tensor, "batch pos"]
) -> Iterator[None]:
    sites = set(restoration.sites) & set(PARAMETER_SITES)
    with ExitStack() as stack:
        put = stack.enter_context
        for layer in restoration.layers:
            put(restored(base.layers[layer], donor.layers[layer], LayerStates(), sites, where))
        if "norms" in sites and len(base.layers) - 1 in restoration.layers:
            for module, other in zip(base.final_norms, donor.final_norms, strict=True):
                put(parameters_swapped(module, other))
        if "unembed" in sites:
            put(parameters_swapped(base.unembed, donor.unembed))
        yield
