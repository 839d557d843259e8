"""Shortcuts in a layer: blocks whose output is known do not run, others only where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.anatomy import LayerParts
from interp.models.anatomy_blocks import MixerPaths
from interp.models.module_calls import replace_forward


def iterate_position_wise(parts: LayerParts) -> Iterator[nn.Module]:
    """Yield the modules of a layer that treat every position alone, past the mixing."""
    for mixer in parts.mixers:
        yield mixer.out
    if parts.mixture is None:
        yield from parts.keys
        yield parts.values


@contextmanager
def compute_only_at(module: nn.Module, positions: Tensor, num_tokens: int) -> Iterator[None]:
    """Compute a position-wise module at some positions of every row; elsewhere it gives zeros."""
    forward = module.forward

    def at_positions(values: Tensor) -> Tensor:
        flat = values.reshape(-1, num_tokens, values.shape[-1])
        places = positions.to(values.device)
        computed = forward(flat[:, places])
        output = computed.new_zeros(*flat.shape[:2], computed.shape[-1])
        output[:, places] = computed
        return output.view(*values.shape[:-1], -1)

    with replace_forward(module, at_positions):
        yield


@contextmanager
def replace_mixers(parts: LayerParts, attn: Tensor) -> Iterator[None]:
    """Replace the token mixer by a known state, or several by one each, without running them."""
    with ExitStack() as stack:
        for mixer, state in zip(parts.mixers, attn.chunk(len(parts.mixers), -1), strict=True):
            stack.enter_context(replace_forward(mixer.block, _make_mixer(mixer.paths, state)))
        yield


def _make_mixer(paths: MixerPaths, state: Tensor) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        hidden = args[0] if args else kwargs["hidden_states"]
        output = state.to(hidden.device).repeat(hidden.shape[0] // state.shape[0], 1, 1)
        output = output + args[1] if paths.adds_residual else output
        others = paths.num_outputs - 1
        return output if others < 0 else (output, *[None] * others)

    return forward


@contextmanager
def replace_mlp(parts: LayerParts, mlp_out: Tensor) -> Iterator[None]:
    """Replace the MLP by a known output, without running it."""
    adds_residual = parts.paths.mlp_adds_residual

    def give(hidden: Tensor, *residual: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        repeats = hidden.numel() // hidden.shape[-1] // (mlp_out.shape[0] * mlp_out.shape[1])
        output = mlp_out.to(hidden.device).repeat(repeats, 1, 1).view(*hidden.shape[:-1], -1)
        output = output + residual[0] if adds_residual else output
        others = parts.paths.mlp_num_outputs - 1
        return output if others < 0 else (output, *[None] * others)

    with ExitStack() as stack:
        if parts.mlp is not None:
            stack.enter_context(replace_forward(parts.mlp, give))
            if parts.shared_block is not None:
                # It is part of what the mixture's block gives here.
                stack.enter_context(replace_forward(parts.shared_block, torch.zeros_like))
        else:
            for key in parts.keys:
                stack.enter_context(replace_forward(key, lambda hidden: hidden))
            stack.enter_context(replace_forward(parts.values, give))
        yield
