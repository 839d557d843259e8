"""Causality: in a decoder no token changes what an earlier one gets; in an encoder it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.anatomy_trace import is_same, make_tokens


def make_changed_tokens(model: PreTrainedModel) -> Int[Tensor, "2 pos"]:
    """Make the four tokens, and these again with another one at the end."""
    tokens = make_tokens(model)
    changed = tokens.clone()
    changed[0, -1] = tokens[0, 0]
    return torch.cat([tokens, changed])


def check_causal(logits: Float[Tensor, "2 pos vocab"]) -> None:
    """Raise ValueError if the logits before the last token change with it."""
    before, after = logits[:, :-1]
    if before.isfinite().all() and not is_same(before, after):
        raise ValueError(
            "a token's state changes with later tokens, as in an encoder, and a decoder is wanted"
        )


@contextmanager
def refusing_encoders(model: PreTrainedModel) -> Iterator[None]:
    """Say that a model is an encoder, where that is why a part of it is not told in the block."""
    try:
        yield
    except ValueError:
        try:
            logits = model(input_ids=make_changed_tokens(model), use_cache=False).logits
        except (ValueError, TypeError, AttributeError, RuntimeError, LookupError):
            logits = None
        if logits is not None:
            check_causal(logits)
        raise
