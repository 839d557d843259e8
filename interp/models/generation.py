"""Batched text generation with the key-value cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.models.caching import (
    find_cache_support,
    make_cache,
    make_position_inputs,
    select_rows,
)
from interp.models.chat import compute_template_hash
from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.models.low_rank import hold_sums

Pick = Callable[[Float[Tensor, "row vocab"], Sequence[int], int], Int[Tensor, " row"]]
"""Token picker: (logits, number of each row's prompt, tokens generated so far) → next tokens."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What ends an answer, beside the model's end-of-sequence tokens.

    Attributes:
        token_ids: tokens, such as a chat's end of turn.
        texts: texts. The token in which one begins belongs to it, and not to the answer: what else
            that token holds is left out, too.
    """

    token_ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()


NO_ENDS = Ends()


def pick_greedy(logits: Float[Tensor, "row vocab"], _numbers: Sequence[int], _step: int) -> Tensor:
    """Pick the likeliest token."""
    return logits.argmax(-1)


def generate_continuations(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_tokens: int,
    batch_size: int = 32,
    pick: Pick = pick_greedy,
    ends: Sequence[Ends] | None = None,
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield each prompt's number and the tokens that follow it, in batches, short prompts first.

    Where padding would change what a model computes, prompts of one length go together; where no
    cache holds all that it keeps of its tokens, every token reads the whole text anew.

    An end-of-sequence token ends an answer and does not belong to it; what has ended is not run
    further.

    Args:
        model: the model.
        prompts: token ids; none of them empty.
        num_tokens: the longest answer, in tokens.
        batch_size: prompts run at once (padded on the left).
        pick: how the next token is chosen.
        ends: of each prompt, what else ends its answer; nothing if None.

    Raises:
        ValueError: the model is not what `integrity.check_runnable` asks for.
    """
    check_runnable(model)
    for prompt in prompts:
        model.check_token_ids(prompt)
    chosen = [NO_ENDS] * len(prompts) if ends is None else ends
    lengths = [len(prompt) for prompt in prompts]
    padded = find_cache_support(model.model).padded
    for numbers in _cut_batches(lengths, batch_size, padded=padded):
        batch = [prompts[number] for number in numbers]
        # An adapter's weights are merged once for all tokens.
        with hold_sums(model.model):
            rows = _generate_batch(
                model, batch, numbers, num_tokens, pick, [chosen[number] for number in numbers]
            )
        yield from zip(numbers, rows, strict=True)


def _cut_batches(lengths: Sequence[int], batch_size: int, *, padded: bool) -> Iterator[list[int]]:
    """Yield the numbers of prompts that are run together, short ones first."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    groups = [order]
    if not padded:
        groups = [[n for n in order if lengths[n] == length] for length in sorted(set(lengths))]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def get_stop_token_ids(model: LanguageModel) -> set[int]:
    """Return the ids that end an answer: the generation configuration's and the tokenizer's."""
    configured = getattr(model.model.generation_config, "eos_token_id", None)
    token_ids = configured if isinstance(configured, list | tuple) else [configured]
    return {token for token in (*token_ids, model.tokenizer.eos_token_id) if isinstance(token, int)}


def compute_text_hash(model: LanguageModel, *, chat: bool = False) -> str:
    """Hash all that answers depend on beside the weights (SHA-256).

    That is how a text becomes token ids, special tokens included, how token ids become a text,
    and which tokens end an answer. Where the tokenizer was read from does not count, nor how it
    pads or truncates.

    Args:
        model: the model.
        chat: whether something is asked as a chat: then the chat template counts, too.

    Raises:
        ValueError: a chat, and a model without a chat template.
    """
    tokenizer = model.tokenizer
    parts = [
        # Some tokenizers add special tokens outside their backend.
        list(tokenizer("a")["input_ids"]),  # pyright: ignore[reportArgumentType]
        sorted(set(tokenizer.all_special_ids)),
        bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
        bool(getattr(tokenizer, "split_special_tokens", False)),
        sorted(get_stop_token_ids(model)),
        *([compute_template_hash(model)] if chat else []),
    ]
    digest = _hash_rules(tokenizer).copy()
    digest.update(f", {_write_json(parts)[1:]}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _write_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


_HASHED: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, Any]] = WeakKeyDictionary()
"""Of tokenizers what their rules looked like, and the hash: writing a vocabulary takes seconds."""


def _hash_rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Hash the beginning of a JSON list whose first value is what a tokenizer cuts texts by."""
    seen = _describe_rules(tokenizer)
    if seen is None or _HASHED.get(tokenizer, ("", None))[0] != seen:
        text = f"[{_write_json(_list_rules(tokenizer))}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
        if seen is None:
            return digest
        _HASHED[tokenizer] = seen, digest
    return _HASHED[tokenizer][1]


def _describe_rules(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Describe what may change of a tokenizer's rules; None for one in Python, whose may all."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    settings = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
    return repr(
        [
            id(backend),
            backend.get_vocab_size(),
            [(token_id, repr(t)) for token_id, t in backend.get_added_tokens_decoder().items()],
            [getattr(backend, name) for name in parts],
            [getattr(backend.model, name, None) for name in settings],
        ]
    )


def _list_rules(tokenizer: PreTrainedTokenizerBase) -> object:
    """List what a tokenizer cuts texts by, as JSON values."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # A call pads and truncates as it is told, whatever was set before.
        return {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    # A tokenizer in Python keeps its rules, such as merges, in files of its own.
    with TemporaryDirectory() as scratch:
        files = tokenizer.save_vocabulary(scratch)
        digests = sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files)
    added = {key: repr(token) for key, token in tokenizer.added_tokens_decoder.items()}
    settings = {
        key: value
        for key, value in tokenizer.init_kwargs.items()
        if isinstance(value, bool) or key == "extra_ids"
    }
    return [type(tokenizer).__name__, digests, added, settings]


@torch.inference_mode()
def _generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    num_tokens: int,
    pick: Pick,
    ends: Sequence[Ends],
) -> list[tuple[int, ...]]:
    device = model.device
    width = max(map(len, prompts))
    input_ids = torch.tensor(
        [[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(width, device=device) >= width - lengths[:, None]
    stops = torch.tensor(sorted(get_stop_token_ids(model)), device=device, dtype=torch.long)
    cached = find_cache_support(model.model).cached
    cache = make_cache(model.model) if cached else None
    answers: list[list[int]] = [[] for _ in prompts]
    # The rows of `answers` that are still running.
    running = list(range(len(prompts)))
    for step in range(num_tokens):
        state = model.anatomy.body(
            input_ids=input_ids,
            attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=cached,
            **make_position_inputs(model.anatomy.body, mask, input_ids.shape[1]),
        ).last_hidden_state[:, -1]
        logits = model.anatomy.logits(state)
        tokens = pick(logits, [numbers[row] for row in running], step).to(device)
        kept = []
        for place, (token, is_stop) in enumerate(
            zip(tokens.tolist(), torch.isin(tokens, stops).tolist(), strict=True)
        ):
            row = running[place]
            if is_stop or token in ends[row].token_ids:
                continue
            answers[row].append(token)
            cut = _cut_at_text(model, answers[row], ends[row].texts)
            if cut is None:
                kept.append(place)
            else:
                answers[row] = cut
        if len(kept) < len(running):
            running = [running[place] for place in kept]
            going = torch.tensor(kept, dtype=torch.long)
            tokens, mask = tokens[going.to(device)], mask[going.to(device)]
            input_ids = input_ids[going.to(device)]
            if cache is not None:
                # Indices on the CPU choose from layers on any device.
                select_rows(cache, going)
        if not running:
            break
        input_ids = torch.cat([*([] if cached else [input_ids]), tokens[:, None]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
    return [tuple(row) for row in answers]


def _cut_at_text(
    model: LanguageModel, token_ids: Sequence[int], texts: Sequence[str]
) -> list[int] | None:
    """Return the tokens before the one in which the first of some texts begins; None without it."""
    if not texts:
        return None
    whole = model.decode(token_ids)
    starts = [start for text in texts if (start := whole.find(text)) >= 0]
    if not starts:
        return None
    num_kept = len(token_ids) - 1
    while num_kept and len(model.decode(token_ids[:num_kept])) > min(starts):
        num_kept -= 1
    return list(token_ids[:num_kept])
