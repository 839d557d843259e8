"""Proof of what a model's cache and its padding do, where not all its layers are attention.

A recurrent layer keeps a state of the tokens before, a convolution its last inputs. Some models
keep them in transformers' `DynamicCache`, some in a cache of their own (MiniMax), some in their
modules (RecurrentGemma); and some take no mask, so that padding on the left becomes a part of the
text.
"""

from __future__ import annotations

import inspect
from collections.abc import MutableMapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from interp.models.anatomy import find_anatomy
from interp.models.anatomy_trace import evaluating, get_first, is_same, make_tokens


@dataclass(frozen=True, kw_only=True)
class CacheSupport:
    """What a model can do.

    Attributes:
        cached: a `DynamicCache` holds all that the model keeps of its tokens, and rows can be
            chosen from it.
        padded: padding on the left, with a mask, changes nothing.
    """

    cached: bool = True
    padded: bool = True


_PROVEN: MutableMapping[PreTrainedModel, CacheSupport] = WeakKeyDictionary()


def find_cache_support(model: PreTrainedModel) -> CacheSupport:
    """Find out what a model can do, by forwards of four tokens; once for a model.

    Where all layers are attention it can do both.
    """
    if model not in _PROVEN:
        anatomy = find_anatomy(model)
        if len(anatomy.attention_layers) == anatomy.num_layers:
            return CacheSupport()
        with torch.inference_mode(), evaluating(model):
            padded = _is_padding_left_out(model)
            cached = _holds_all(model, padded=padded)
        _PROVEN[model] = CacheSupport(cached=cached, padded=padded)
    return _PROVEN[model]


def make_cache(model: PreTrainedModel) -> DynamicCache:
    """Make a cache for a model.

    Raises:
        ValueError: it does not hold all that the model keeps of its tokens.
    """
    if not find_cache_support(model).cached:
        raise ValueError(
            f"a DynamicCache does not hold all that {type(model).__name__} keeps of its tokens: "
            "what needs one cannot be done with it; forwards want use_cache=False"
        )
    return DynamicCache(config=model.config)


def _is_padding_left_out(model: PreTrainedModel) -> bool:
    tokens = make_tokens(model)
    mask = torch.ones_like(tokens)
    mask[:, 0] = 0
    padded = _run(model, tokens, mask)
    return is_same(_run(model, tokens[:, 1:], mask[:, 1:]), padded[:, 1:])


def _holds_all(model: PreTrainedModel, *, padded: bool) -> bool:
    """Return whether tokens after a cache from which a row was dropped are as in the whole text."""
    tokens = make_tokens(model)
    rows = torch.cat([tokens.flip(1), tokens])
    mask = torch.ones_like(rows)
    mask[1, 0] = 0 if padded else 1
    expected = _run(model, tokens, mask[1:])
    cache = DynamicCache(config=model.config)
    try:
        _run(model, rows[:, :2], mask[:, :2], cache)
        select_rows(cache, torch.tensor([1]))
        states = [
            _run(model, tokens[:, place : place + 1], mask[1:, : place + 1], cache)
            for place in (2, 3)
        ]
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return is_same(expected[:, 2:], torch.cat(states, dim=1))


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep some rows of a cache, in this order, each as often as it is named.

    Recurrent states are chosen as keys and values are, which `batch_select_indices` does not do.
    """
    cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]


def make_position_inputs(
    body: nn.Module, mask: Int[Tensor, "row pos"], num_tokens: int
) -> dict[str, Tensor]:
    """Make the argument that numbers the last tokens of a masked text, for a body that takes it.

    Some bodies would number the tokens after a cache from 0 (Bamba).
    """
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return {}
    return {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)[:, -num_tokens:]}


def _run(
    model: PreTrainedModel, tokens: Tensor, mask: Tensor, cache: DynamicCache | None = None
) -> Tensor:
    body = model.base_model
    output = get_first(
        body(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **make_position_inputs(body, mask, tokens.shape[1]),
        )
    )
    assert output is not None
    return output
