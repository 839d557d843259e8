"""Hooks on a model's layers, only ever inside a `with`: record states, put a donor's sites in.

Every change is undone on any exit, so that a model is bit-identical afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.models.anatomy import Anatomy, LayerParts
from interp.models.mixture import MixtureStates
from interp.models.module_calls import get_residual, remove_on_exit, split_call
from interp.recovery.batches import Batch
from interp.recovery.mixture_hooks import record_mixture, replace_coefficients, replace_router
from interp.recovery.module_hooks import replace_input, replace_output, swap_parameters


@dataclass(kw_only=True)
class LayerStates:
    """States of one layer in one run; None where they were not recorded.

    `resid_in` and `resid` are the residual stream before and after the layer. `attn` of two token
    mixers side by side are both their states, one after the other in the last axis. In a mixture of
    experts `mixture` holds the coefficients and what the router chose, and `coef` is None.
    """

    resid_in: Float[Tensor, "batch pos d_model"] | None = None
    attn: Float[Tensor, "batch pos mixer_d_model"] | None = None
    coef: Float[Tensor, "batch pos d_mlp"] | None = None
    head: Float[Tensor, "batch pos head_d_head"] | None = None
    mlp_out: Float[Tensor, "batch pos d_model"] | None = None
    resid: Float[Tensor, "batch pos d_model"] | None = None
    mixture: MixtureStates | None = None


@dataclass(kw_only=True)
class RecordedStates:
    """Recorded states of one forward pass; `final` is what the unembedding reads."""

    layers: list[LayerStates]
    final: Float[Tensor, "batch pos d"]


def record(anatomy: Anatomy, batch: Batch, names: Collection[str]) -> RecordedStates:
    """Run a model's body on a batch and keep the named states of every layer.

    Args:
        anatomy: of the model to run.
        batch: the questions.
        names: out of the fields of `LayerStates`, and `router`.
    """
    layers = [LayerStates() for _ in anatomy.layers]
    shape = batch.input_ids.shape
    with ExitStack() as stack:
        for parts, states in zip(anatomy.layers, layers, strict=True):
            for hook in make_recording_hooks(parts, states, names, shape):
                stack.enter_context(hook)
        final = anatomy.body(**batch.inputs(anatomy.body)).last_hidden_state
    return RecordedStates(layers=layers, final=final)


def make_recording_hooks(
    parts: LayerParts, states: LayerStates, names: Collection[str], shape: torch.Size
) -> Iterator[AbstractContextManager[None]]:
    """Make contexts in which a forward of a layer leaves copies of its named states in `states`."""

    def keep(name: str, value: Tensor) -> None:
        # A copy: some layers add to what a block gave in place (Falcon).
        setattr(states, name, value.view(*shape, value.shape[-1]).clone())

    def keep_mixture(seen: MixtureStates) -> None:
        axes = {
            name: value.unflatten(0, shape)
            for name, value in vars(seen).items()
            if isinstance(value, Tensor)
        }
        states.mixture = replace(seen, **axes)

    def keep_input(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        keep("resid_in", split_call(args, kwargs)[0])

    if "resid_in" in names:
        yield remove_on_exit(parts.layer.register_forward_pre_hook(keep_input, with_kwargs=True))

    def keep_mixer(first: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            before = [] if first else [require_state(states.attn).flatten(0, -2)]
            keep("attn", torch.cat([*before, output.flatten(0, -2)], dim=-1))

        return hook

    def keep_mlp(first: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            value = get_residual(output)
            own = value if first else require_state(states.mlp_out).view_as(value) + value
            keep("mlp_out", own)

        return hook

    if "attn" in names and len(parts.mixers) == 1:
        yield remove_on_exit(
            parts.attn_out.register_forward_hook(lambda *run: keep("attn", run[-1]))
        )
    elif "attn" in names:
        for place, mixer in enumerate(parts.mixers):
            yield remove_on_exit(mixer.out.register_forward_hook(keep_mixer(place == 0)))
    if parts.mixture is not None and {"coef", "router"} & set(names):
        yield record_mixture(parts, keep_mixture, activations="coef" in names)
    if parts.mixture is None and "coef" in names:
        yield remove_on_exit(
            parts.values.register_forward_pre_hook(lambda _m, args: keep("coef", args[0]))
        )
    if "head" in names:
        yield remove_on_exit(
            parts.attn_out.register_forward_pre_hook(lambda _m, args: keep("head", args[0]))
        )
    if "mlp_out" in names:
        for place, module in enumerate(_list_mlp_blocks(parts)):
            yield remove_on_exit(module.register_forward_hook(keep_mlp(place == 0)))
    if "resid" in names:
        yield remove_on_exit(
            parts.layer.register_forward_hook(lambda *run: keep("resid", get_residual(run[-1])))
        )


@contextmanager
def restore_sites(
    parts: LayerParts,
    donor_parts: LayerParts,
    donor_states: LayerStates,
    sites: Collection[str],
    where: Bool[Tensor, "batch pos"],
    channels: Sequence[int] | None = None,
) -> Iterator[None]:
    """Put a donor's sites into one layer: its states at the positions `where`, its weights.

    `channels` are those of `coef` or `head` that are meant, None for all.
    """
    with ExitStack() as stack:
        put = stack.enter_context
        for site in ("value", "key", "attn_weights", "norms", "router_weights"):
            if site not in sites:
                continue
            pairs = zip(parts.list_weights(site), donor_parts.list_weights(site), strict=True)
            for (module, names), (other, _) in pairs:
                put(swap_parameters(module, other, names))
        if parts.mixture is not None and {"coef", "router"} & set(sites):
            mixture = donor_states.mixture
            assert mixture is not None, "the run did not record this site"
            if "coef" in sites:
                put(replace_coefficients(parts, mixture, where, channels))
            else:
                put(replace_router(parts, mixture, where))
        elif "coef" in sites:
            put(replace_input(parts.values, require_state(donor_states.coef), where, channels))
        if "head" in sites:
            put(replace_input(parts.attn_out, require_state(donor_states.head), where, channels))
        if "mlp_out" in sites:
            state = require_state(donor_states.mlp_out)
            for place, module in enumerate(_list_mlp_blocks(parts)):
                # The first of two gives the sum, the other nothing.
                put(replace_output(module, state if place == 0 else 0 * state, where))
        if "attn" in sites:
            mixed = require_state(donor_states.attn).chunk(len(parts.mixers), dim=-1)
            for mixer, state in zip(parts.mixers, mixed, strict=True):
                put(replace_output(mixer.out, state, where))
        if "resid" in sites:
            put(replace_output(parts.layer, require_state(donor_states.resid), where))
        yield


def _list_mlp_blocks(parts: LayerParts) -> list[nn.Module]:
    """List the modules whose outputs, added up, are the site `mlp_out`, in order."""
    first = parts.layer.get_submodule(parts.paths.mlp_out)
    return [first] if parts.shared_block is None else [first, parts.shared_block]


def require_state(state: Tensor | None) -> Tensor:
    """Return a state, which must have been recorded."""
    assert state is not None, "the run did not record this site"
    return state
