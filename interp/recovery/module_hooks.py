"""Hooks on modules, only ever inside a `with`: replace what they read or return, swap weights.

Every change is undone on any exit, so that a model is bit-identical afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from interp.models.module_calls import remove_on_exit
from interp.recovery.batches import send


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
def swap_parameters(
    module: nn.Module, donor: nn.Module, names: Collection[str] | None = None
) -> Iterator[None]:
    """Let a module compute with another's own parameters inside the block.

    Nothing is copied, but to the module's device where the other is on another.

    Args:
        module: the module.
        donor: one of the same kind.
        names: which parameters, and buffers; all parameters if None.
    """
    names = donor._parameters if names is None else names
    with ExitStack() as stack:
        stores: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (module._parameters, donor._parameters),
            (module._buffers, donor._buffers),
        ]
        for own, theirs in stores:
            chosen = {name: theirs[name] for name in names if name in theirs}
            for name, value in chosen.items():
                if value is not None and (mine := own.get(name)) is not None:
                    chosen[name] = value.to(mine.device)
            stack.callback(own.update, dict(own))
            own.update(chosen)
        yield
