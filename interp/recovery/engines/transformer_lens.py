"""Engine `transformer_lens`: restorations at TransformerLens' own hook points.

Both models run as TransformerBridges. States are cached and replaced at the bridge's own hook
points, weights swapped in the modules that the bridge runs. The hook points are those where
TransformerLens sees the very tensor of the site; `hook_attn_out` is not among them, since it comes
after a norm where one follows the attention.

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

from jaxtyping import Bool
from torch import Tensor, nn

from interp.data.trajectories import Trajectory
from interp.models.anatomy import LayerParts, find_anatomy
from interp.models.conversion import build_bridge, copy_modules
from interp.models.language_model import LanguageModel
from interp.recovery.batches import Batch
from interp.recovery.engines.forwards import Score, measure_by_forwards
from interp.recovery.hooks import LayerStates, restore_sites
from interp.recovery.measured import Measured
from interp.recovery.module_hooks import blend, swap_parameters
from interp.recovery.pair import Pair
from interp.recovery.site_names import HOOK_POINTS
from interp.recovery.sites import ACTIVATION_SITES, PARAMETER_SITES, Restoration

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True)
class _Bridged:
    """Bridge of a model, and the modules in it that hold the parameters of each site."""

    bridge: TransformerBridge
    layers: tuple[LayerParts, ...]
    final_norms: tuple[nn.Module, ...]
    unembed: nn.Module


_BRIDGED: WeakKeyDictionary[Pair, tuple[_Bridged, _Bridged]] = WeakKeyDictionary()
"""Base and donor of the pairs in use: a pair's models do not change while it lives."""


def measure(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    **options: Any,
) -> Measured:
    """Measure every restoration on every question, by one forward each.

    Args and result are those of `forwards.measure_by_forwards`.

    Raises:
        ValueError: TransformerLens does not run this architecture.
        ImportError: TransformerLens is missing or older than 4.
    """
    if pair not in _BRIDGED:
        base = _build_bridged(pair.base)
        _BRIDGED[pair] = base, base if pair.donor is pair.base else _build_bridged(pair.donor)
    base, donor = _BRIDGED[pair]
    vanilla = donor if pair.direction == "restore" else base

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        inputs: dict[str, Any] = batch.inputs(pair.base.anatomy.body)
        tokens = inputs.pop("input_ids")
        wanted = {hook for item in restorations for hook in _name_hook_points(item).values()}
        _, states = donor.bridge.run_with_cache(
            tokens, names_filter=wanted.__contains__, return_cache_object=False, **inputs
        )
        target = vanilla.bridge(tokens, **inputs)[batch.scored]
        for restoration in restorations:
            where = batch.select_positions(restoration.positions)
            with _restore_parameters(base, donor, restoration, where):
                logits = base.bridge.run_with_hooks(
                    tokens, fwd_hooks=_make_hooks(pair, restoration, states, where), **inputs
                )
            yield score(target, logits[batch.scored])

    return measure_by_forwards(runs, pair, trajectories, restorations, **options)


def _build_bridged(model: LanguageModel) -> _Bridged:
    own = copy_modules(model.model)
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


def _name_hook_points(restoration: Restoration) -> dict[tuple[str, int], str]:
    """Return the hook point of every activation site and layer restored."""
    return {
        (site, layer): f"blocks.{layer}.{HOOK_POINTS[site][0]}"
        for site in restoration.sites
        if site in ACTIVATION_SITES
        for layer in restoration.layers
    }


def _make_hooks(
    pair: Pair,
    restoration: Restoration,
    states: dict[str, Tensor],
    where: Bool[Tensor, "batch pos"],
) -> list[tuple[str | Callable, Callable]]:
    """Make the hooks that put the donor's states in."""
    hooks: list[tuple[str | Callable, Callable]] = []
    for (site, layer), hook in _name_hook_points(restoration).items():
        units = restoration.units_of(layer)
        channels = None if units is None else pair.base.anatomy.channels(site, units, layer)
        hooks.append((hook, partial(_replace, new=states[hook], where=where, channels=channels)))
    return hooks


def _replace(
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
def _restore_parameters(
    base: _Bridged, donor: _Bridged, restoration: Restoration, where: Bool[Tensor, "batch pos"]
) -> Iterator[None]:
    sites = set(restoration.sites) & set(PARAMETER_SITES)
    with ExitStack() as stack:
        put = stack.enter_context
        for layer in restoration.layers:
            put(restore_sites(base.layers[layer], donor.layers[layer], LayerStates(), sites, where))
        if "norms" in sites and len(base.layers) - 1 in restoration.layers:
            for module, other in zip(base.final_norms, donor.final_norms, strict=True):
                put(swap_parameters(module, other))
        if "unembed" in sites:
            put(swap_parameters(base.unembed, donor.unembed))
        yield
