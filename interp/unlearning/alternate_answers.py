"""Alternate answers: what a model would say in place of what it is to forget.

AltPO (Mekala et al. 2024) prefers plausible other answers of the model's own. There a chat model is
told the answer and asked for another one; models that were not trained on chats, and languages
other than English, have no such prompt. Here:

1. The model reads the prompt, and the answer up to the object.
2. It goes on at temperature 1, the token that begins the object left out, to the end of the line.
   At that place this is its own distribution, given that the answer is another one.
3. A draw that holds the object all the same, or no word, is made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.corpus import Text
from interp.models.chat import encode_chat, find_chat_format
from interp.models.generation import Ends, Pick, generate_continuations
from interp.models.language_model import LanguageModel
from interp.models.sampling import make_sampler
from interp.unlearning.examples import count_shared_tokens

NUM_DRAWS = 8
"""Draws at most of an alternate to a text."""

_MIN_TOKENS = 8
"""Length that an alternate may have at least; else it is twice that of the longest answer."""


def sample_alternate_answers(
    model: LanguageModel, texts: Sequence[Text], *, seed: int = 0
) -> list[str | None]:
    """Sample another answer to each text, None where every draw held the text's own.

    Every draw depends on the seed, the text and its number alone.

    Args:
        model: V.
        texts: what is to be forgotten.
        seed: of the draws.

    Raises:
        ValueError: a text without a prompt.
    """
    starts = [max(0, text.answer.find(_find_object(text))) for text in texts]
    for text in texts:
        if not (text.prompt or text.messages):
            raise ValueError(
                f"{text.id} in {text.language!r} has no prompt that an alternate could answer: "
                "choose refusal, counterfactual or other"
            )
    prompts = [
        _encode(model, text, text.answer[:start]) for text, start in zip(texts, starts, strict=True)
    ]
    wholes = [_encode(model, text, text.answer) for text in texts]
    lengths = [len(whole) - len(ids) for whole, ids in zip(wholes, prompts, strict=True)]
    num_tokens = max(2 * max(lengths, default=0), _MIN_TOKENS)
    alternates: list[str | None] = [None] * len(texts)
    for attempt in range(NUM_DRAWS):
        pending = [number for number, found in enumerate(alternates) if found is None]
        if not pending:
            break
        pick = _DrawAnother(
            make_sampler([f"{seed}/alternate/{attempt}/{n}/{texts[n].id}" for n in pending]),
            [_find_first_token(prompts[n], wholes[n]) for n in pending],
        )
        for place, token_ids in generate_continuations(
            model,
            [prompts[number] for number in pending],
            num_tokens=num_tokens,
            pick=pick,
            ends=[_find_ends(model, texts[number]) for number in pending],
        ):
            number = pending[place]
            drawn = model.decode(token_ids, skip_special_tokens=True).strip()
            same = _find_object(texts[number]).casefold() in drawn.casefold()
            if not same and any(map(str.isalnum, drawn)):
                alternates[number] = texts[number].answer[: starts[number]] + drawn
    return alternates


class _DrawAnother:
    """Draw of the next token that leaves one out at the beginning."""

    def __init__(self, draw: Pick, left_out: Sequence[int | None]) -> None:
        self._draw, self._left_out = draw, left_out

    def __call__(
        self, logits: Float[Tensor, "row vocab"], numbers: Sequence[int], step: int
    ) -> Int[Tensor, " row"]:
        if step == 0:
            logits = logits.clone()
            for row, number in enumerate(numbers):
                if (token := self._left_out[number]) is not None:
                    logits[row, token] = -torch.inf
        return self._draw(logits, numbers, step)


def _find_object(text: Text) -> str:
    """Find what an alternate must not hold: the object, or else the whole answer."""
    return text.object if text.object and text.object in text.answer else text.answer.strip()


def _encode(model: LanguageModel, text: Text, answer: str) -> tuple[int, ...]:
    """Encode a text up to some place in its answer, without the space that stands there."""
    if text.messages:
        turns = [asdict(message) for message in text.messages]
        return encode_chat(model, turns, answer.rstrip(" ") or None)
    return model.encode((text.prompt + answer).rstrip(" "))


def _find_first_token(prompt: Sequence[int], whole: Sequence[int]) -> int | None:
    """Find the token that begins the object; None where it is joined with what is before it."""
    shared = count_shared_tokens(prompt, whole)
    return whole[shared] if shared == len(prompt) < len(whole) else None


def _find_ends(model: LanguageModel, text: Text) -> Ends:
    in_chats = find_chat_format(model).end_token_ids if text.messages else frozenset()
    return Ends(token_ids=in_chats, texts=() if "\n" in text.answer else ("\n",))
