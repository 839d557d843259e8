"""Shortcuts in a layer: blocks whose output is known do not run, others only where it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from interp.models.anatomy import LayerParts
from interp.recovery.module_hooks import replace_forward


def iterate_position_wise(parts: LayerParts) -> Iterator[nn.Module]:
    """Yield the modules of a layer that treat every position alone, past attention's mixing."""
    yield parts.attn_out
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
def replace_attention(parts: LayerParts, attn: Tensor) -> Iterator[None]:
    """Replace the attention block by a known state, without running it."""
    adds_residual = parts.paths.attn_adds_residual

    def forward(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        hidden = args[0] if args else kwargs["hidden_states"]
        output = attn.to(hidden.device).repeat(hidden.shape[0] // attn.shape[0], 1, 1)
        output = output + args[1] if adds_residual else output
        others = parts.paths.attn_num_outputs - 1
        return output if others < 0 else (output, *[None] * others)

    with replace_forward(parts.attn, forward):
        yield


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
        else:
            for key in parts.keys:
                stack.enter_context(replace_forward(key, lambda hidden: hidden))
            stack.enter_context(replace_forward(parts.values, give))
        yield
