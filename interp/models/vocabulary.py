"""Vocabularies of a vanilla and an unlearned model that differ in what no text uses.

Fine-tuning often adds a padding token, with or without a row of the embedding for it, and often
pads the embedding to a round number of rows, or cuts such rows off. Neither changes how a text is
tokenized, so such models form a pair.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from transformers import PreTrainedTokenizerBase

from interp.models.generation import get_stop_token_ids
from interp.models.language_model import LanguageModel


def match_vocabulary(vanilla: LanguageModel, unlearned: LanguageModel) -> LanguageModel:
    """Give a loaded model as many rows of the embedding and unembedding as the vanilla one has.

    Rows that it has beyond the vanilla model's, for tokens that were added or for none, are cut
    off, with a warning. Rows that it lacks and that belong to no token are the vanilla model's.

    Args:
        vanilla: V; left untouched.
        unlearned: a model of which nobody else has hold; it is changed.

    Returns:
        The unlearned model; as it was where the numbers of rows agree, or where they differ in
        what texts use, which `pairs.check_pair` refuses.

    Raises:
        ValueError: a token that ends the unlearned model's answers would be cut off.
    """
    if vanilla.has_packed_weights or unlearned.has_packed_weights:
        return unlearned
    rows, others = (count_rows(model) for model in (vanilla, unlearned))
    if rows == others or find_ordinary_tokens(vanilla.tokenizer, unlearned.tokenizer):
        return unlearned
    vocabulary, other = (model.tokenizer.get_vocab() for model in (vanilla, unlearned))
    lacking = sorted(token_id for token_id in vocabulary.values() if others <= token_id < rows)
    if lacking:
        return unlearned
    model, name, tokenizer = unlearned.model, unlearned.name, unlearned.tokenizer
    for token_id in sorted(get_stop_token_ids(unlearned)):
        if rows <= token_id < others:
            raise ValueError(
                f"{name!r} ends its answers with {tokenizer.convert_ids_to_tokens(token_id)!r}, "
                f"token {token_id}, and {vanilla.name!r} has {rows} tokens: give as the vanilla "
                "model the one that it was made of, with that token"
            )
    # Rows that are made anew are drawn, before they are overwritten.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        model.resize_token_embeddings(rows, mean_resizing=False)
    model.requires_grad_(False).eval()
    if others > rows:
        added = [repr(token) for token, token_id in other.items() if token_id >= rows]
        of = f", of the added tokens {', '.join(added)}" if added else ", of no token"
        warnings.warn(
            f"{name!r} has {others} rows of the embedding and {vanilla.name!r} {rows}: the last "
            f"{others - rows}{of}, are left out"
            + (", and the vanilla model's tokenizer is used" if added else ""),
            stacklevel=3,
        )
        if added:
            tokenizer = vanilla.tokenizer
    else:
        for ours, theirs in zip(_list_matrices(model), _list_matrices(vanilla.model), strict=True):
            ours.data[others:] = theirs.data[others:].to(ours)
        warnings.warn(
            f"{name!r} has {others} rows of the embedding and {vanilla.name!r} {rows}: the last "
            f"{rows - others}, of no token, are the vanilla model's",
            stacklevel=3,
        )
    return LanguageModel(model, tokenizer, name=name)


def count_rows(model: LanguageModel) -> int:
    """Count the rows of a model's embedding."""
    return int(model.model.get_input_embeddings().weight.shape[0])  # pyright: ignore


def find_ordinary_tokens(
    left: PreTrainedTokenizerBase, right: PreTrainedTokenizerBase
) -> dict[int, tuple[str | None, str | None]]:
    """Find the tokens by which two tokenizers can cut ordinary texts differently.

    Those are all that differ but special tokens that one of them has besides the other's.

    Returns:
        By token id the two tokens, None where a tokenizer has none of that id.
    """
    vocabulary, other = left.get_vocab(), right.get_vocab()
    if vocabulary == other:
        return {}
    tokens, others = ({i: token for token, i in known.items()} for known in (vocabulary, other))
    return {
        token_id: (tokens.get(token_id), others.get(token_id))
        for token_id in sorted(tokens | others)
        if tokens.get(token_id) != others.get(token_id)
        and not _is_addition(token_id, tokens, other, left)
        and not _is_addition(token_id, others, vocabulary, right)
    }


def _is_addition(
    token_id: int,
    tokens: Mapping[int, str],
    other: Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase,
) -> bool:
    """Return whether a token is special and in one vocabulary alone, beyond all of the other's."""
    added = tokenizer.added_tokens_decoder.get(token_id)
    return (
        added is not None
        and added.special
        and tokens.get(token_id) not in other
        and token_id > max(other.values(), default=-1)
    )


def _list_matrices(model: torch.nn.Module) -> list[torch.Tensor]:
    """List the embedding, the unembedding and its bias, those that there are."""
    unembed = model.get_output_embeddings()  # pyright: ignore
    weights = [model.get_input_embeddings().weight, unembed.weight]  # pyright: ignore
    return [*weights, *([unembed.bias] if unembed.bias is not None else [])]
