"""Comparison of a vanilla and an unlearned model, and memory that they share.

Everything here compares bits, so NaN equals itself and 0.0 differs from -0.0.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.models.low_rank import LowRankSum

if TYPE_CHECKING:
    from interp.models.language_model import LanguageModel

SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")

# The padding token is not compared: fine-tuning often sets one, and padding is never scored.
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "unk_token_id")

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_pair(vanilla: LanguageModel, unlearned: LanguageModel) -> None:
    """Raise ValueError if two models cannot form a pair, naming the first difference.

    Compared are the architecture, the number of layers and their sizes, the precision, every
    parameter's name and shape (unless weights are packed, which changes both), and the tokenizers'
    vocabularies and special tokens.

    Raises:
        ValueError: they differ.
    """
    for name, left, right in _compare_models(vanilla, unlearned):
        if left != right:
            raise ValueError(
                f"{unlearned.name!r} does not match {vanilla.name!r}: {name} is {right} in the "
                f"unlearned and {left} in the vanilla model"
            )


def share_identical_tensors(vanilla: LanguageModel, unlearned: LanguageModel) -> int:
    """Let the unlearned model's tensors that equal the vanilla model's use their memory.

    Both models compute what they did before. Afterwards a write into the memory of one is a write
    into the other's, so train neither.

    Returns:
        The bytes that the unlearned model no longer holds for itself. A tensor on another device
        than its counterpart is left alone.
    """
    theirs = _collect_tensors(vanilla)
    saved = 0
    seen: set[int] = set()
    for name, tensor in _collect_tensors(unlearned).items():
        other = theirs.get(name)
        # Parameters that are tied are one object with two names.
        if other is None or id(tensor) in seen or isinstance(tensor, LowRankSum):
            continue
        seen.add(id(tensor))
        if tensor.data_ptr() != other.data_ptr() and have_same_bits(tensor, other):
            tensor.data = other.data
            saved += tensor.nbytes
    return saved


def are_identical(vanilla: LanguageModel, unlearned: LanguageModel) -> bool:
    """Return whether every weight of the two models has the same bits (V = U)."""
    theirs, ours = (wrapped.model.state_dict(keep_vars=True) for wrapped in (vanilla, unlearned))
    return theirs.keys() == ours.keys() and all(
        have_same_bits(ours[name].to(tensor.device), tensor) for name, tensor in theirs.items()
    )


def _collect_tensors(wrapped: LanguageModel) -> dict[str, Tensor]:
    model = wrapped.model
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())


def have_same_bits(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors agree in shape, precision, device and every bit."""
    left, right = left.detach(), right.detach()
    if (left.shape, left.dtype, left.device) != (right.shape, right.dtype, right.device):
        return False
    if left.data_ptr() == right.data_ptr() and left.stride() == right.stride():
        return True
    if left.dtype.is_complex or left.dtype == torch.bool:
        return torch.equal(left, right)
    integer = INTEGERS[left.element_size()]
    return torch.equal(left.contiguous().view(integer), right.contiguous().view(integer))


def _compare_models(vanilla: LanguageModel, unlearned: LanguageModel):
    left, right = vanilla.model, unlearned.model
    yield "the architecture", type(left).__name__, type(right).__name__
    for size in SIZES:
        yield size, getattr(left.config, size, None), getattr(right.config, size, None)
    if not (vanilla.has_packed_weights or unlearned.has_packed_weights):
        yield "the dtype", vanilla.dtype, unlearned.dtype
        shapes = {name: tuple(tensor.shape) for name, tensor in left.named_parameters()}
        others = {name: tuple(tensor.shape) for name, tensor in right.named_parameters()}
        for name in shapes | others:
            yield f"{name}'s shape", shapes.get(name, "absent"), others.get(name, "absent")
    yield from _compare_tokenizers(vanilla.tokenizer, unlearned.tokenizer)


def _compare_tokenizers(left: PreTrainedTokenizerBase, right: PreTrainedTokenizerBase):
    if left is right:
        return
    vocabulary, other = left.get_vocab(), right.get_vocab()
    if vocabulary != other:
        yield "the tokenizer's vocabulary size", len(vocabulary), len(other)
        tokens = {token_id: token for token, token_id in vocabulary.items()}
        others = {token_id: token for token, token_id in other.items()}
        for token_id in sorted(tokens | others):
            yield (
                f"the tokenizer's token {token_id}",
                repr(tokens.get(token_id)),
                repr(others.get(token_id)),
            )
    for name in SPECIAL_TOKENS:
        yield f"the tokenizer's {name}", getattr(left, name), getattr(right, name)


def copy_with_shared_tensors(model: PreTrainedModel, own: Collection[str]) -> PreTrainedModel:
    """Copy a model so that only the named parameters have memory of their own; none has a gradient.

    Args:
        model: left untouched; all other parameters and all buffers of the copy are its memory.
        own: names of parameters.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for name, parameter in model.named_parameters():
        if name in own:
            continue
        memo[id(parameter)] = (
            parameter.alias()
            if isinstance(parameter, LowRankSum)
            else nn.Parameter(parameter.data, requires_grad=False)
        )
    return copy.deepcopy(model, memo).requires_grad_(False)
