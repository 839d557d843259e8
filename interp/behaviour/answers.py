"""Generation of greedy or sampled answers to many questions.

    answers = generate(model, interp.queries("capitals", languages=["en", "de"]), num_tokens=30)
    answers[0].text

With a `cache`, answers are kept as they come: a run that was killed asks only for the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from interp.data.answer_cache import AnswerCache, make_key
from interp.data.chat import list_chat_fields
from interp.data.query import Query
from interp.data.trajectories import encode_prompt, find_ends
from interp.models.generation import (
    compute_text_hash,
    generate_continuations,
    pick_greedy,
)
from interp.models.integrity import check_known_by_weights
from interp.models.language_model import LanguageModel
from interp.models.sampling import make_sampler


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer of a model to a query.

    Attributes:
        query: what was asked.
        text: all that was said, without special tokens.
        sample: which of several sampled answers, from 0.
    """

    query: Query
    text: str
    sample: int = 0

    @property
    def first_line(self) -> str:
        """Text until the first line break: a base model goes on to other questions."""
        return self.text.strip().partition("\n")[0].rstrip()


def generate(
    model: LanguageModel,
    queries: Sequence[Query],
    *,
    num_tokens: int = 30,
    temperature: float = 0.0,
    top_p: float = 1.0,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[Answer]:
    """Generate a model's answers. They do not depend on the batch size, but for rounding.

    Args:
        model: the model.
        queries: the questions.
        num_tokens: the longest answer, in tokens.
        temperature: 0 for the likeliest token, or what logits are divided by before sampling.
        top_p: tokens are sampled from the fewest likeliest that have this share of probability
            (nucleus sampling, Holtzman et al. 2020).
        num_samples: answers to each query; more than one needs a temperature.
        seed: of the samples, which depend on it, the prompt and the sample's number alone.
        batch_size: prompts run at once.
        cache: a file that keeps the answers (JSON Lines), under the content hash of the model and
            that of its tokenizer and end tokens, of chats also of its chat template.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        Query by query, all samples of one together.

    Raises:
        ValueError: a setting out of its range, or a prompt that does not fit the model's context
            with its answer.
    """
    _check(num_tokens, temperature, top_p, num_samples)
    samples = [(query, sample) for query in queries for sample in range(num_samples)]
    prompts = [encode_prompt(model, query, num_tokens) for query, _ in samples]
    stored = None if cache is None else AnswerCache(cache)
    if stored is not None:
        check_known_by_weights(model)
    content = "" if stored is None else model.content_hash()
    in_chat = any(query.chat for query in queries)
    texts_of = {
        chat: "" if stored is None else compute_text_hash(model, chat=chat)
        for chat in ((False, True) if in_chat else (False,))
    }
    keys = [
        make_key(
            kind="generation",
            model=content,
            text=texts_of[query.chat],
            prompt=query.prompt,
            num_tokens=num_tokens,
            temperature=float(temperature),
            top_p=float(top_p),
            seed=seed if temperature else 0,
            sample=sample,
            **_describe_form(query),
        )
        for query, sample in samples
    ]
    texts = {number: None if stored is None else stored.get(key) for number, key in enumerate(keys)}
    missing = [number for number, text in texts.items() if text is None]
    pick = pick_greedy
    if temperature:
        names = [f"{seed}/{samples[number][0].prompt}/{samples[number][1]}" for number in missing]
        pick = make_sampler(names, temperature=temperature, top_p=top_p)
    continuations = generate_continuations(
        model,
        [prompts[number] for number in missing],
        num_tokens=num_tokens,
        batch_size=batch_size,
        pick=pick,
        ends=find_ends(model, [samples[number][0] for number in missing]),
    )
    bar = tqdm(total=len(missing), desc="answers", unit="answer", delay=2, disable=not progress)
    with bar:
        for place, token_ids in continuations:
            number = missing[place]
            texts[number] = model.decode(token_ids, skip_special_tokens=True)
            if stored is not None:
                stored.put(keys[number], texts[number] or "")
            bar.update()
    return [
        Answer(query=query, sample=sample, text=texts[number] or "")
        for number, (query, sample) in enumerate(samples)
    ]


def _describe_form(query: Query) -> dict[str, str]:
    """Return what a query says of how it is asked, beside its prompt."""
    asked = list_chat_fields(query)
    return {"asked": json.dumps(asked, sort_keys=True)} if asked else {}


def _check(num_tokens: int, temperature: float, top_p: float, num_samples: int) -> None:
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, not {num_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a number from 0, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie above 0 and at most at 1, not {top_p}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    if num_samples > 1 and not temperature:
        raise ValueError("several samples need a temperature above 0: greedy ones are all alike")
