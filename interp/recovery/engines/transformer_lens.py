"""Engine `transformer_lens`: restorations at TransformerLens' own hook points.

Both models run as TransformerBridges. States are cached and replaced at the bridge's own hook
points, weights swapped in the modules that the bridge runs. The hook points are those where
TransformerLens sees the very tensor of the site; `hook_attn_out` is not among them, since it comes
after a norm where one follows the attention.

That this is so is proven on the questions themselves (`site_proof`).

The bridges share the parameters of the models that a person holds, which are never written to. (Of
a fused q, k and v projection TransformerLens may make its own three: a quarter of a layer.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
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
from interp.recovery.engines.site_proof import (
    ADVICE,
    check_logits,
    check_restorations,
    check_states,
)
from interp.recovery.hooks import LayerStates, restore_sites
from interp.recovery.measured import Measured
from interp.recovery.module_hooks import blend, swap_parameters
from interp.recovery.pair import Pair
from interp.recovery.site_names import HOOK_POINTS
from interp.recovery.sites import ACTIVATION_SITES, PARAMETER_SITES, Restoration

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


_LIBRARY = "TransformerLens"


@dataclass(frozen=True, kw_only=True)
class _Bridged:
    """Bridge of a model, and the modules in it that hold the parameters of each site."""

    bridge: TransformerBridge
    layers: tuple[LayerParts, ...]
    final_norms: tuple[nn.Module, ...]
    unembed: nn.Module


@dataclass(frozen=True, kw_only=True)
class _BridgedPair:
    """Bridges of a pair's base and donor, and the sites that are proven to be in them."""

    base: _Bridged
    donor: _Bridged
    proven: set[str] = field(default_factory=set)


_BRIDGED: WeakKeyDictionary[Pair, _BridgedPair] = WeakKeyDictionary()
"""Bridges of the pairs in use: a pair's models do not change while it lives."""


def measure(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    **options: Any,
) -> Measured:
    """Measure every restoration on every question, by one forward each.

    Args and result are those of `forwards.measure_by_forwards`.

    Raises:
        ValueError: TransformerLens does not run this architecture, gives other logits, or a site
            is not there in it.
        ImportError: TransformerLens is missing or older than 4.
    """
    if pair not in _BRIDGED:
        base = _build_bridged(pair.base)
        donor = base if pair.donor is pair.base else _build_bridged(pair.donor)
        _BRIDGED[pair] = _BridgedPair(base=base, donor=donor)
    bridged = _BRIDGED[pair]
    base, donor = bridged.base, bridged.donor
    vanilla = donor if pair.direction == "restore" else base

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        inputs: dict[str, Any] = batch.inputs(pair.base.anatomy.body)
        tokens = inputs.pop("input_ids")
        sites = {site for item in restorations for site in item.sites}
        states = _record(pair, donor, restorations, tokens, inputs)
        target = batch.at_scored(vanilla.bridge(tokens, **inputs))
        alone = target if base is vanilla else batch.at_scored(base.bridge(tokens, **inputs))
        check_logits(_LIBRARY, pair, batch, alone, target)

        def run(restoration: Restoration) -> Tensor:
            where = batch.select_positions(restoration.positions)
            hooks = _make_hooks(pair, restoration, states, where)
            with _restore_parameters(base, donor, restoration, where):
                logits = base.bridge.run_with_hooks(tokens, fwd_hooks=hooks, **inputs)
            return batch.at_scored(logits)

        if new := sorted(sites - bridged.proven):
            everywhere = [Restoration(sites=(site,), layers=_list_layers(pair)) for site in new]
            states |= _record(pair, donor, everywhere, tokens, inputs)
            shown = {key: state for key, state in states.items() if key[0] in new}
            check_states(_LIBRARY, pair, batch, shown)
            check_restorations(_LIBRARY, pair, batch, new, run)
            bridged.proven.update(new)
        for restoration in restorations:
            yield score(target, run(restoration))

    return measure_by_forwards(runs, pair, trajectories, restorations, **options)


def _list_layers(pair: Pair) -> tuple[int, ...]:
    return tuple(range(pair.base.anatomy.num_layers))


def _record(
    pair: Pair,
    donor: _Bridged,
    restorations: Sequence[Restoration],
    tokens: Tensor,
    inputs: dict[str, Any],
) -> dict[tuple[str, int], Tensor]:
    """Record the donor's states that are put in, by site and layer."""
    states: dict[tuple[str, int], Tensor] = {}

    def keep(state: Tensor, hook: object, key: tuple[str, int]) -> None:  # noqa: ARG001
        # A copy: some layers add to what a block gave in place.
        states[key] = state.clone()

    points = {
        key: hook for item in restorations for key, hook in _name_hook_points(pair, item).items()
    }
    hooks: list[tuple[str | Callable, Callable]] = [
        (hook, partial(keep, key=key)) for key, hook in points.items()
    ]
    donor.bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None, **inputs)
    return states


def _build_bridged(model: LanguageModel) -> _Bridged:
    own = copy_modules(model.model)
    # Found before the bridge's modules take the place of these, which they go on to call.
    anatomy = find_anatomy(own)
    bridge = build_bridge(own, name=model.name)
    layers = []
    for layer, (block, parts) in enumerate(zip(bridge.blocks, anatomy.layers, strict=True)):
        if not hasattr(block, "attn"):
            raise ValueError(
                f"TransformerLens does not run this {type(model.model).__name__}: it has no hook "
                f"points in the {parts.kind} of layer {layer} ({ADVICE})"
            )
        # Where q, k and v are one projection, the bridge computes with its own three; where the
        # gate and the up projection are one, with its own two.
        keys = parts.keys
        if parts.mixture is None:
            # A bridge's MLP may be the whole layer (OPT).
            other = {*parts.values.modules(), *block.attn.modules()}
            other |= {module for mixer in parts.mixers for module in mixer.block.modules()}
            keys = (
                *keys,
                *(
                    new
                    for new in _list_weights(block.mlp, parts)
                    # Some activations have parameters, which are no matrices (Apertus).
                    if new not in other and _holds_matrix(new)
                ),
            )
        layers.append(
            replace(
                parts,
                attn_weights=_list_weights(block.attn, parts),
                keys=tuple(dict.fromkeys(keys)),
            )
        )
    return _Bridged(
        bridge=bridge,
        layers=tuple(layers),
        final_norms=anatomy.final_norms,
        unembed=anatomy.unembed,
    )


def _list_weights(block: nn.Module, parts: LayerParts) -> tuple[nn.Module, ...]:
    """List the modules of a bridge's block that hold parameters, but its norms."""
    return tuple(
        module for module in block.modules() if module._parameters and module not in parts.norms
    )


def _holds_matrix(module: nn.Module) -> bool:
    return any(value is not None and value.ndim > 1 for value in module._parameters.values())


def _name_hook_points(pair: Pair, restoration: Restoration) -> dict[tuple[str, int], str]:
    """Return the hook point of every activation site and layer restored."""
    return {
        # What a mixture of experts gives is no one matrix's output.
        (site, layer): f"blocks.{layer}."
        + HOOK_POINTS[site][site == "mlp_out" and pair.base.anatomy.has_mixtures]
        for site in restoration.sites
        if site in ACTIVATION_SITES
        for layer in restoration.layers
    }


def _make_hooks(
    pair: Pair,
    restoration: Restoration,
    states: dict[tuple[str, int], Tensor],
    where: Bool[Tensor, "batch pos"],
) -> list[tuple[str | Callable, Callable]]:
    """Make the hooks that put the donor's states in."""
    hooks: list[tuple[str | Callable, Callable]] = []
    for key, hook in _name_hook_points(pair, restoration).items():
        site, layer = key
        units = restoration.units_of(layer)
        channels = None if units is None else pair.base.anatomy.channels(site, units, layer)
        hooks.append((hook, partial(_replace, new=states[key], where=where, channels=channels)))
    return hooks


def _replace(
    old: Tensor,
    hook: object,  # noqa: ARG001
    *,
    new: Tensor,
    where: Bool[Tensor, "batch pos"],
    channels: Sequence[int] | None,
) -> Tensor:
    # Heads have an axis of their own at some hook points, and some blocks merge the first two.
    new = new.reshape(*where.shape, -1)
    return blend(old.reshape(new.shape), new, where, channels).view_as(old)


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
