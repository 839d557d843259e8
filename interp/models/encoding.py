"""Special tokens that a tokenizer puts around a text, and which of them belong to a prompt.

A prompt is continued, so no token that ends texts stands behind it; and what begins texts stands
there once, also where the text has it written out (a rendered chat template).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def select_text_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, token_ids: Sequence[int]
) -> tuple[slice, list[str]]:
    """Select the tokens of a text that is to be continued.

    Args:
        tokenizer: the tokenizer.
        text: a text.
        token_ids: what the tokenizer makes of it, special tokens included.

    Returns:
        The part of the tokens that is meant: without special tokens that the tokenizer adds at the
        end, and without those that it adds at the beginning where the text has them already; and a
        sentence for each of the two that was left out.
    """
    special = set(tokenizer.all_special_ids)
    ends = bool(token_ids) and token_ids[-1] in special
    begins = bool(token_ids) and token_ids[0] in special and token_ids[0] in token_ids[1:]
    whole = slice(0, len(token_ids))
    if not (ends or begins):
        return whole, []
    plain = _encode(tokenizer, text, special_tokens=False)
    num_before, num_behind = _count_added_tokens(tokenizer)
    if list(token_ids[num_before : len(token_ids) - num_behind]) != plain:
        return whole, []
    name = tokenizer.name_or_path or type(tokenizer).__name__
    start, stop, notes = 0, len(token_ids), []
    behind = token_ids[len(token_ids) - num_behind :]
    if num_behind and special.issuperset(behind):
        stop -= num_behind
        notes.append(
            f"the tokenizer {name!r} ends every text with {tokenizer.decode(list(behind))!r}, "
            "which is left out: a model is to go on after its prompt"
        )
    before = token_ids[:num_before]
    if num_before and plain[:num_before] == list(before):
        start = num_before
        notes.append(
            f"a text begins with {tokenizer.decode(list(before))!r}, which the tokenizer {name!r} "
            "puts before every text: it is not put there twice"
        )
    return slice(start, stop), notes


def _count_added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Count the special tokens that a tokenizer puts before and behind every text."""
    whole, plain = (_encode(tokenizer, "a", special_tokens=kind) for kind in (True, False))
    for start in range(len(whole) - len(plain), -1, -1):
        if plain and whole[start : start + len(plain)] == plain:
            return start, len(whole) - start - len(plain)
    return 0, 0


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens: bool) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=special_tokens)
    return list(encoded["input_ids"])  # pyright: ignore[reportArgumentType]
