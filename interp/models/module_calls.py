"""Calls of modules: what a layer is given and returns, and forwards that stand in for its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
