"""Requests of MEMIT: facts to edit, subjects in their prompts, rows of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.models.language_model import LanguageModel
from interp.unlearning.config import MemitConfig
from interp.unlearning.examples import count_shared_tokens, pad_rows
from interp.unlearning.memit.layer_stats import check_dense, count_coefficients

DEFAULTS = MemitConfig()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Fact to remove, in one language. Its prompts share one δ; each is a key of its own.

    Attributes:
        id: key of the fact, for the table.
        subject: what the fact is about.
        prompts: texts that contain the subject and ask for the fact.
        spans: where in each prompt the subject is, as (first character, last + 1), for prompts
            that inflect or repeat it; found if empty.
        answer: what is to be forgotten, with the space before it; only measured, may be empty.
        language: BCP-47 code, for the table.
    """

    id: str
    subject: str
    prompts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] = ()
    answer: str = ""
    language: str = ""

    def __post_init__(self) -> None:
        if not self.subject.strip() or not self.prompts:
            raise ValueError(f"{self.id} needs a subject and at least one prompt")
        if self.spans and len(self.spans) != len(self.prompts):
            raise ValueError(
                f"{self.id} has {len(self.prompts)} prompts and {len(self.spans)} spans"
            )
        for prompt in () if self.spans else self.prompts:
            if (count := prompt.count(self.subject)) != 1:
                raise ValueError(
                    f"{self.id}: {prompt!r} contains {self.subject!r} {count} times, not once; "
                    "give the subject's spans"
                )
        for prompt, (start, end) in zip(self.prompts, self.spans, strict=False):
            if not 0 <= start < end <= len(prompt):
                raise ValueError(f"{self.id}: {prompt!r} has no characters {start} to {end}")

    @property
    def subject_spans(self) -> tuple[tuple[int, int], ...]:
        """`spans`, found where they were not given."""
        starts = (prompt.find(self.subject) for prompt in self.prompts)
        return self.spans or tuple((start, start + len(self.subject)) for start in starts)


def default_edit_layers(num_layers: int) -> tuple[int, ...]:
    """Return the five layers that end at a quarter of the depth, 4 to 8 of 32 in Llama-2-7B."""
    top = num_layers // 4
    return tuple(range(max(0, top - 4), top + 1))


def find_last_subject_token(model: LanguageModel, text: str, span: tuple[int, int]) -> int:
    """Find the place, among a text's token ids, of the last token with part of the subject.

    Of a character that is written in several tokens (bytes), the last.

    Raises:
        ValueError: the tokenizer gives no character offsets, or no token covers the subject.
    """
    return _find_token(encode_with_offsets(model, text)[1], text, span)


def encode_with_offsets(model: LanguageModel, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Encode a text as token ids, with the span of characters of each.

    Raises:
        ValueError: the tokenizer gives no character offsets.
    """
    if not model.tokenizer.is_fast:
        raise ValueError(
            f"{type(model.tokenizer).__name__} gives no character offsets, by which the subject is "
            "found: load the fast tokenizer"
        )
    token_ids, more = model.encode_with(text, return_offsets_mapping=True)
    return list(token_ids), more["offset_mapping"]


def _find_token(offsets: Sequence[tuple[int, int]], text: str, span: tuple[int, int]) -> int:
    places = [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
    if not places:
        raise ValueError(f"no token covers {text[slice(*span)]!r} in {text!r}")
    return places[-1]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Texts, padded on the right: under causal attention no real token sees the padding.

    `subject` is the place of the subject's last token, `last` that of the prompt's last, `edit` the
    number of the edit that the row is of; labels (the tokens after the prompt) are listed flat.
    """

    input_ids: Int[Tensor, "row pos"]
    subject: Int[Tensor, " row"]
    last: Int[Tensor, " row"]
    edit: Int[Tensor, " row"]
    label_row: Int[Tensor, " label"]
    label_place: Int[Tensor, " label"]


def make_rows(model: LanguageModel, texts: Iterable[tuple[int, str, tuple[int, int], str]]) -> Rows:
    """Make rows of (number of the edit, prompt, the subject's span, what follows the prompt)."""
    ids, subject, last, edit, labels = [], [], [], [], []
    for row, (number, prompt, span, following) in enumerate(texts):
        whole, offsets = encode_with_offsets(model, prompt + following)
        alone = encode_with_offsets(model, prompt)[0]
        # A tokenizer may join the prompt's end with what follows: label what differs.
        first = (
            max(1, min(count_shared_tokens(alone, whole), len(whole) - 1))
            if following
            else len(whole)
        )
        ids.append(whole)
        subject.append(_find_token(offsets, prompt, span))
        last.append(first - 1)
        edit.append(number)
        labels += [(row, place) for place in range(first, len(whole))]

    def put(values: Sequence) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=model.device)

    label_row, label_place = put(labels).reshape(-1, 2).unbind(1)
    return Rows(
        input_ids=pad_rows(ids, model.device)[0],
        subject=put(subject),
        last=put(last),
        edit=put(edit),
        label_row=label_row,
        label_place=label_place,
    )


def list_prompt_rows(edits: Sequence[Edit], following: Sequence[str]):
    """List each edit's prompts, with the text that follows them."""
    for number, (edit, text) in enumerate(zip(edits, following, strict=True)):
        for prompt, span in zip(edit.prompts, edit.subject_spans, strict=True):
            yield number, prompt, span, text


def list_essence_rows(edits: Sequence[Edit], essence: str):
    """List the essence prompt of each edit's subject."""
    start = essence.index("{subject}")
    for number, edit in enumerate(edits):
        span = (start, start + len(edit.subject))
        yield number, essence.replace("{subject}", edit.subject), span, ""


def check_edits(
    vanilla: LanguageModel, edits: Sequence[Edit], config: MemitConfig
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the edit layers and the layers that are read out, if both fit the model.

    Raises:
        ValueError: nothing to edit, packed weights, a mixture of experts, or layers that the model
            lacks.
    """
    if not edits:
        raise ValueError("there is nothing to edit: give at least one fact")
    if vanilla.has_packed_weights:
        raise ValueError(f"{vanilla.name!r} has packed weights, which cannot be edited")
    layers = config.layers or default_edit_layers(vanilla.num_layers)
    read_out: tuple[int, ...] = ()
    if config.objective == "entropy":
        read_out = config.entropy_layers or tuple(range(layers[-1], vanilla.num_layers))
    for layer in (*layers, *read_out):
        if not 0 <= layer < vanilla.num_layers:
            raise ValueError(f"layer {layer} is out of range 0 to {vanilla.num_layers - 1}")
    check_dense(vanilla, layers)
    if read_out and read_out[0] < layers[-1]:
        raise ValueError(
            f"entropy is read out at layer {read_out[0]}, below the top edit layer {layers[-1]}, "
            "where no edit is felt in full"
        )
    return layers, read_out


def check_moments(
    vanilla: LanguageModel, moments: Mapping[int, Tensor], layers: Sequence[int]
) -> None:
    """Raise ValueError unless C is there of every edit layer.

    Raises:
        ValueError: a layer is missing, or C has another size.
    """
    for layer in layers:
        size = count_coefficients(vanilla.anatomy.layers[layer].values)
        if layer not in moments or moments[layer].shape != (size, size):
            raise ValueError(
                f"the moments must hold C of the edit layer {layer}, {size} × {size}; they hold "
                f"{ {key: tuple(moment.shape) for key, moment in moments.items()} }"
            )
