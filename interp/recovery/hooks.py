"""Hooks on a model, only ever inside a `with`: record states, replace them, swap weights.

Every change is undone on any exit, so that a model is bit-identical afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.models.anatomy import Anatomy, LayerParts
from interp.recovery.batches import Batch, send


@dataclass(kw_only=True)
class LayerStates:
    """States of one layer in one run; None where they were not recorded.

    `resid_in` and `resid` are the residual stream before and after the layer.
    """

    resid_in: Float[Tensor, "batch pos d_model"] | None = None
    attn: Float[Tensor, "batch pos d_model"] | None = None
    coef: Float[Tensor, "batch pos d_mlp"] | None = None
    head: Float[Tensor, "batch pos head_d_head"] | None = None
    mlp_out: Float[Tensor, "batch pos d_model"] | None = None
    resid: Float[Tensor, "batch pos d_model"] | None = None


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
        names: out of the fields of `LayerStates`.
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
    """Make contexts in which a forward of a layer leaves its named states in `states`."""

    def keep(name: str, value: Tensor) -> None:
        setattr(states, name, value.view(*shape, value.shape[-1]))

    def keep_input(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        keep("resid_in", split_call(args, kwargs)[0])

    if "resid_in" in names:
        yield remove_on_exit(parts.layer.register_forward_pre_hook(keep_input, with_kwargs=True))
    if "attn" in names:
        yield remove_on_exit(
            parts.attn_out.register_forward_hook(lambda *run: keep("attn", run[-1]))
        )
    if "coef" in names:
        yield remove_on_exit(
            parts.values.register_forward_pre_hook(lambda _m, args: keep("coef", args[0]))
        )
    if "head" in names:
        yield remove_on_exit(
            parts.attn_out.register_forward_pre_hook(lambda _m, args: keep("head", args[0]))
        )
    if "mlp_out" in names:
        yield remove_on_exit(
            parts.values.register_forward_hook(lambda *run: keep("mlp_out", run[-1]))
        )
    if "resid" in names:
        yield remove_on_exit(
            parts.layer.register_forward_hook(lambda *run: keep("resid", get_residual(run[-1])))
        )


def split_call(args: tuple, kwargs: dict) -> tuple[Tensor, tuple[tuple, dict]]:
    """Split a layer's arguments into the residual stream and what goes with it."""
    if args:
        return args[0], (args[1:], kwargs)
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    return kwargs["hidden_states"], ((), rest)


def get_residual(output: Tensor | tuple) -> Tensor:
    """Return the residual stream out of what a layer returns."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def remove_on_exit(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Keep a hook only inside the block."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replace_input(
    module: nn.Module,
    value: Tensor,
    where: Bool[Tensor, "batch pos"],
    channels: Sequence[int] | None = None,
) -> Iterator[None]:
    """Replace a module's first argument by `value` at the positions `where`, in some channels."""

    def hook(_module: nn.Module, args: tuple) -> tuple:
        return (blend(args[0], value, where, channels), *args[1:])

    with remove_on_exit(module.register_forward_pre_hook(hook)):
        yield


@contextmanager
def replace_output(
    module: nn.Module, value: Tensor, where: Bool[Tensor, "batch pos"]
) -> Iterator[None]:
    """Replace a module's output (the first, if a tuple) by `value` at the positions `where`."""

    def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return (blend(output[0], value, where), *output[1:])
        return blend(output, value, where)

    with remove_on_exit(module.register_forward_hook(hook)):
        yield


def blend(
    old: Tensor,
    new: Tensor,
    where: Bool[Tensor, "batch pos"],
    channels: Sequence[int] | None = None,
) -> Tensor:
    """Blend two states: `new` where `where` is True (in all channels or some), else `old`.

    `old` may have its first two axes merged or repeated. The result is where `old` is.
    """
    repeats = old.numel() // old.shape[-1] // where.numel()
    mask = where.to(old.device).repeat(repeats, 1)[..., None]
    if channels is not None:
        chosen = torch.zeros(old.shape[-1], dtype=torch.bool)
        chosen[list(channels)] = True
        mask = mask & send(chosen, old.device)
    new = new.to(old.device).repeat(repeats, 1, 1)
    return torch.where(mask, new, old.view(new.shape)).view(old.shape)


@contextmanager
def replace_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Call `forward` in place of the module's own inside the block; its hooks still run."""
    previous = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if previous is None:
            del module.forward
        else:
            module.forward = previous


@contextmanager
def swap_parameters(module: nn.Module, donor: nn.Module) -> Iterator[None]:
    """Let a module compute with another's own parameters inside the block.

    Nothing is copied, but to the module's device where the other is on another.
    """
    own = dict(module._parameters)
    theirs: dict[str, Any] = {
        name: value if value is None or (mine := own.get(name)) is None else value.to(mine.device)
        for name, value in donor._parameters.items()
    }
    try:
        module._parameters.update(theirs)
        yield
    finally:
        module._parameters.update(own)


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
        if "value" in sites:
            put(swap_parameters(parts.values, donor_parts.values))
        if "key" in sites:
            for module, other in zip(parts.keys, donor_parts.keys, strict=True):
                put(swap_parameters(module, other))
        if "attn_weights" in sites:
            for module, other in zip(parts.attn_weights, donor_parts.attn_weights, strict=True):
                put(swap_parameters(module, other))
        if "norms" in sites:
            for module, other in zip(parts.norms, donor_parts.norms, strict=True):
                put(swap_parameters(module, other))
        if "coef" in sites:
            put(replace_input(parts.values, require_state(donor_states.coef), where, channels))
        if "head" in sites:
            put(replace_input(parts.attn_out, require_state(donor_states.head), where, channels))
        if "mlp_out" in sites:
            put(replace_output(parts.values, require_state(donor_states.mlp_out), where))
        if "attn" in sites:
            put(replace_output(parts.attn_out, require_state(donor_states.attn), where))
        if "resid" in sites:
            put(replace_output(parts.layer, require_state(donor_states.resid), where))
        yield


def require_state(state: Tensor | None) -> Tensor:
    """Return a state, which must have been recorded."""
    assert state is not None, "the run did not record this site"
    return state
