"""Texts to retain, in many languages: what V says about other facts, and what it writes by itself.

    retain = make_retain_texts(vanilla, forget)

A retain set of one relation, one form and one language protects just that. This one has questions
and sentences about facts of all relations, each continued by V itself, so that nothing new is
taught, and texts that V wrote (`interp.data.samples`), on which KL(V ‖ U) is what unlearning costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from interp.data.answer_cache import AnswerCache, make_key
from interp.data.corpus import Text
from interp.data.corpus_builder import UNLEARNING_FORMS, write_unlearning_texts
from interp.data.counterfactuals import hash_text, sort_by_hash
from interp.data.facts import RELATIONS, select_facts
from interp.data.kept_queries import is_stated
from interp.data.samples import sample_texts
from interp.data.templates import list_template_languages
from interp.models.generation import Ends, compute_text_hash, generate_continuations
from interp.models.gguf import get_cache_directory
from interp.models.language_model import LanguageModel
from interp.models.pairs import lower_precision

LANGUAGES = ("en", "de", "fr", "es", "zh", "ru", "ja", "it", "pt", "ar", "hi", "nl")

_SHARE = 3
"""One fact in this many is retained; the others are there to ask about."""

_SEED = 1
"""Of V's texts: others than those that it is measured on."""


def make_retain_texts(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    *,
    languages: Sequence[str] | None = None,
    num_facts: int = 40,
    num_samples: int = 16,
    num_tokens: int = 10,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> list[Text]:
    """Make texts to retain beside what is forgotten.

    Args:
        vanilla: V, which answers and writes.
        forget: what is to be forgotten: facts that it states are left out.
        languages: BCP-47 codes, those without templates are left out; `LANGUAGES` and those that
            are unlearned in if None.
        num_facts: texts on facts per language, in all relations and forms.
        num_samples: V's own texts per language.
        num_tokens: of V's answers, at most; they are made in bfloat16 where that is faster.
        seed: of the choice.
        folder: where V's answers and texts are kept; the user's cache if None.
        progress: show progress bars on standard error.

    Returns:
        Texts on facts (kind `real`, the answer is V's), then V's own (kind `sample`).

    Raises:
        ValueError: no language with templates.
    """
    if languages is None:
        languages = (*LANGUAGES, *(text.language for text in forget))
    there = list_template_languages()
    codes = [code for code in dict.fromkeys(languages) if code in there]
    if not codes:
        raise ValueError(f"no language with templates; valid: {', '.join(there)}")
    texts = [text for code in codes for text in _choose_texts(code, forget, num_facts, seed)]
    cache = (get_cache_directory() / "answers" if folder is None else folder) / "retain.jsonl"
    answered = _answer(vanilla, texts, num_tokens, cache, progress)
    if not num_samples:
        return answered
    samples = sample_texts(
        vanilla, codes, num_texts=num_samples, seed=_SEED, folder=folder, progress=progress
    )
    written = [
        Text(
            id=f"sample-{number}",
            language=sample.language,
            kind="sample",
            prompt=vanilla.decode(sample.prompt_ids, skip_special_tokens=True),
            answer=vanilla.decode(sample.token_ids, skip_special_tokens=True),
        )
        for number, sample in enumerate(samples)
    ]
    return answered + [text for text in written if text.prompt.strip() and text.answer.strip()]


def _choose_texts(code: str, forget: Sequence[Text], count: int, seed: int) -> list[Text]:
    """Choose texts about facts that nothing states which is forgotten, in a language."""
    forgotten = {text.id for text in forget}
    by_language: dict[str, list[str]] = {}
    for text in forget:
        by_language.setdefault(text.language, []).append(text.text)
    texts = []
    for relation in RELATIONS:
        for fact in select_facts(relation):
            is_retained = hash_text(f"retained/{fact.id}")[0] % _SHARE == 0
            if not is_retained or fact.id in forgotten or is_stated(fact, by_language):
                continue
            for form in UNLEARNING_FORMS:
                texts += write_unlearning_texts(fact, "real", [code], form)
    asked = [text for text in texts if text.prompt]
    return sort_by_hash(asked, f"{seed}/retain/{code}", key=lambda text: text.text)[:count]


def _answer(
    model: LanguageModel, texts: Sequence[Text], num_tokens: int, cache: Path, progress: bool
) -> list[Text]:
    """Let a model complete the prompts, up to a line break; prompts with no answer are left out."""
    stored = AnswerCache(cache)
    about = {"model": model.content_hash(), "text": compute_text_hash(model)}
    model = lower_precision(model)
    about["precision"] = str(model.dtype)
    keys = [
        make_key(kind="retain", prompt=text.prompt, num_tokens=num_tokens, **about)
        for text in texts
    ]
    said = {number: stored.get(key) for number, key in enumerate(keys)}
    missing = [number for number, answer in said.items() if answer is None]
    encoded = [model.encode(texts[number].prompt) for number in missing]
    continuations = generate_continuations(
        model,
        encoded,
        num_tokens=num_tokens,
        batch_size=64,
        ends=[Ends(texts=("\n",))] * len(encoded),
    )
    bar = tqdm(
        total=len(missing), desc="texts to retain", unit="text", disable=not progress, delay=2
    )
    with bar:
        for place, token_ids in continuations:
            number = missing[place]
            said[number] = model.decode(token_ids, skip_special_tokens=True)
            stored.put(keys[number], said[number] or "")
            bar.update()
    return [
        replace(text, answer=answer, object="")
        for text, answer in zip(texts, said.values(), strict=True)
        if answer is not None and answer.strip()
    ]
