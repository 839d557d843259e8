"""Comparison of a vanilla and an unlearned model, and memory that they share.

Everything here compares bits, so NaN equals itself and 0.0 differs from -0.0.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from interp.models.anatomy import get_setting
from interp.models.integrity import check_copyable, check_runnable
from interp.models.language_model import (
    LanguageModel,
    check_language_model,
    select_functional_settings,
)
from interp.models.low_rank import LowRankSum
from interp.models.packed_weights import describe_packing, share_packed_weights
from interp.models.precision import computes_bfloat16
from interp.models.vocabulary import find_ordinary_tokens

SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")

# The padding token is not compared: fine-tuning often sets one, and padding is never scored.
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "unk_token_id")

TOKENIZER = "the tokenizer's"

NOT_COMPUTED = re.compile(r"dropout|pdrop|initializer|^tie_|^quantization_config$|^use_bfloat16$")
"""Settings that count in training alone, or that the weights themselves say."""

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_pair(vanilla: LanguageModel, unlearned: LanguageModel) -> None:
    """Raise ValueError if two models cannot form a pair, naming the first difference.

    Compared are the architecture, the number of layers and their sizes, every parameter's name,
    shape and precision (unless weights are packed, which changes all), and the tokenizers'
    vocabularies, but for special tokens that one has besides (`vocabulary`), and the ids of those
    that begin and end texts. Other settings by which they compute are warned of: the numbers are
    defined, each model by its own, but no weight that is put back brings those back.

    Raises:
        TypeError: one is no LanguageModel.
        ValueError: they differ, or one is not what `integrity.check_runnable` asks for.
    """
    for argument, model in (("the vanilla model", vanilla), ("the unlearned model", unlearned)):
        check_language_model(model, argument)
        check_runnable(model, adapters=False)
    for name, left, right in _compare_models(vanilla, unlearned):
        if left != right:
            raise ValueError(
                f"{unlearned.name!r} does not match {vanilla.name!r}: {name} is {right} in the "
                f"unlearned and {left} in the vanilla model{_suggest_tokenizer(name)}"
            )
    packings = [describe_packing(model.model.config) for model in (vanilla, unlearned)]
    if packings[0] != packings[1]:
        left, right = (packing or "not packed" for packing in packings)
        warnings.warn(
            f"the weights of {vanilla.name!r} are {left} and those of {unlearned.name!r} {right}: "
            "how they were rounded is part of the difference that is measured",
            stacklevel=3,
        )
    differences = [
        f"{name} ({left} in the vanilla and {right} in the unlearned model)"
        for name, left, right in _compare_settings(vanilla.model.config, unlearned.model.config)
    ]
    if differences:
        warnings.warn(
            f"{unlearned.name!r} computes with other settings than {vanilla.name!r}: "
            f"{', '.join(differences)}",
            stacklevel=3,
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
    """Return whether two models compute the same (V = U): every weight's bits, and the settings.

    They must be such that this says it all, see `integrity.check_known_by_weights`.
    """
    left, right = vanilla.model, unlearned.model
    theirs, ours = (model.state_dict(keep_vars=True) for model in (left, right))
    return (
        theirs.keys() == ours.keys()
        and not any(_compare_settings(left.config, right.config))
        and all(
            have_same_bits(ours[name].to(tensor.device), tensor) for name, tensor in theirs.items()
        )
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
        yield size, get_setting(left.config, size), get_setting(right.config, size)
    if not (vanilla.has_packed_weights or unlearned.has_packed_weights):
        yield "the dtype", vanilla.dtype, unlearned.dtype
        # Under every name: tied embeddings are one parameter with two.
        tensors, others = (
            dict(model.named_parameters(remove_duplicate=False)) for model in (left, right)
        )
        for name in tensors | others:
            one, other = tensors.get(name), others.get(name)
            yield f"{name}'s shape", _get_shape(one), _get_shape(other)
            if one is not None and other is not None:
                yield f"{name}'s dtype", one.dtype, other.dtype
    yield from _compare_tokenizers(vanilla.tokenizer, unlearned.tokenizer)


def _suggest_tokenizer(name: str) -> str:
    if not name.startswith(TOKENIZER):
        return ""
    return (
        "; if its texts are to be cut and ended as the vanilla model's are, write that tokenizer "
        "into its directory: vanilla.tokenizer.save_pretrained(directory)"
    )


def _get_shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "absent" if tensor is None else tuple(tensor.shape)


def _compare_settings(left: PreTrainedConfig, right: PreTrainedConfig):
    """Yield the settings of two configurations of one class by which models compute otherwise."""
    settings, others = select_functional_settings(left), select_functional_settings(right)
    # What tools write beside them is in no model's code.
    known = type(left)().to_dict()
    for name in sorted(settings.keys() | others.keys()):
        value, other = settings.get(name), others.get(name)
        if name in known and value != other and not NOT_COMPUTED.search(name):
            yield name, value, other


def _compare_tokenizers(left: PreTrainedTokenizerBase, right: PreTrainedTokenizerBase):
    if left is right:
        return
    differences = find_ordinary_tokens(left, right)
    sizes = [len(tokenizer.get_vocab()) for tokenizer in (left, right)]
    if differences and sizes[0] != sizes[1]:
        sides = zip(*differences.values(), strict=True)
        first = [next(filter(None, tokens), None) for tokens in sides]
        shown = [f"{n} (with {t!r})" if t else n for n, t in zip(sizes, first, strict=True)]
        yield f"{TOKENIZER} vocabulary size", *shown
    for token_id, (token, other) in differences.items():
        yield f"{TOKENIZER} token {token_id}", repr(token), repr(other)
    for name in SPECIAL_TOKENS:
        yield f"{TOKENIZER} {name}", getattr(left, name), getattr(right, name)


def copy_with_shared_tensors(model: PreTrainedModel, own: Collection[str]) -> PreTrainedModel:
    """Copy a model so that only the named parameters have memory of their own; none has a gradient.

    Args:
        model: left untouched; all other parameters and all buffers of the copy are its memory.
        own: names of parameters.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    share_packed_weights(model, memo)
    for name, parameter in model.named_parameters():
        if name in own or id(parameter) in memo:
            continue
        memo[id(parameter)] = (
            parameter.alias()
            if isinstance(parameter, LowRankSum)
            else nn.Parameter(parameter.data, requires_grad=False)
        )
    return copy_model(model, memo).requires_grad_(False)


def copy_model(model: PreTrainedModel, memo: dict[int, Any] | None = None) -> PreTrainedModel:
    """Copy a model, but for what `memo` gives by the id of an original.

    Raises:
        ValueError: the copy would carry along what is bound to the model, such as hooks.
    """
    check_copyable(model)
    return copy.deepcopy(model, memo)


def lower_precision(model: LanguageModel) -> LanguageModel:
    """Return a copy in bfloat16 where that is faster, else the model itself.

    For measurements on the way, in which its answers and rankings hardly differ.
    """
    if model.dtype != torch.float32 or not computes_bfloat16(model.device):
        return model
    lowered: Any = copy_model(model.model).to(torch.bfloat16)  # pyright: ignore
    return LanguageModel(lowered, model.tokenizer, name=model.name)
