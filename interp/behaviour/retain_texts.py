"""Texts to retain, in many languages: what V says about other facts, and what it writes by itself.

    retain = make_retain_texts(vanilla, forget)

A retain set of one relation, one form and one language protects just that. This one has sentences
and questions about facts of all relations, and the beginnings of texts (`interp.data.samples`).
What is retained is how V goes on, drawn at temperature 1, right or wrong: then the cross-entropy
of a text is, but for a constant, KL(V ‖ U) in the mean, and its gradient at V is zero. True answers
teach, and V's greedy ones make it surer of its mistakes ("the capital of Peru is Peru").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from interp.behaviour.answers import generate
from interp.behaviour.guards import LANGUAGES
from interp.data.corpus import Text
from interp.data.corpus_builder import write_unlearning_texts
from interp.data.counterfactuals import hash_text, sort_by_hash
from interp.data.facts import RELATIONS, select_facts
from interp.data.kept_queries import group_by_language, is_stated
from interp.data.samples import sample_texts
from interp.data.templates import list_template_languages
from interp.data.texts import change_text_form, make_query_of_text
from interp.models.language_model import LanguageModel
from interp.models.pairs import lower_precision

_OTHERS = ("ja", "it", "pt", "nl")
"""Languages that no guard looks at, of which a few texts are retained, too."""

_FEWER = 4
"""Of the texts of another language, one in this many is there."""

_SHARE = 3
"""One fact in this many may be retained; the others are there to ask about."""

_SAMPLE_LENGTH = 16
"""Tokens of V's own texts."""

_SEED = 1
"""Of V's texts: others than those that it is measured on."""


def make_retain_texts(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    *,
    languages: Sequence[str] | None = None,
    num_facts: int = 240,
    num_samples: int = 6,
    num_tokens: int = 3,
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = True,
) -> list[Text]:
    """Make texts to retain beside what is forgotten.

    Args:
        vanilla: V. It is asked in bfloat16 where that is faster.
        forget: what is to be forgotten: facts that it states are left out.
        languages: BCP-47 codes, those without templates are left out; if None, those that are
            unlearned in and that guards look at (`LANGUAGES`), and four others with a quarter as
            many texts.
        num_facts: texts on facts per language, in all relations and forms.
        num_samples: beginnings of texts per language.
        num_tokens: by which V goes on after a fact's prompt, at most, up to a line break: the first
            ones decide the answer, and more would count more than they.
        seed: of the choice and of the draws.
        cache: a file that keeps what V says.
        progress: show progress bars on standard error.

    Returns:
        Texts on facts (kind `real`), then V's own (kind `sample`). Where V says nothing there is
        no text.

    Raises:
        ValueError: no language with templates.
    """
    counts: dict[str, int] = {}
    if languages is None:
        counts = dict.fromkeys(_OTHERS, num_facts // _FEWER)
        languages = (*LANGUAGES, *(text.language for text in forget))
    counts |= dict.fromkeys(languages, num_facts)
    there = list_template_languages()
    counts = {code: count for code, count in counts.items() if code in there}
    if not counts:
        raise ValueError(f"no language with templates; valid: {', '.join(there)}")
    texts = [
        text for code, count in counts.items() for text in _choose_texts(code, forget, count, seed)
    ]
    # In a chat, the facts are asked as the texts to forget are.
    if forget and forget[0].messages:
        system = [turn.content for turn in forget[0].messages if turn.role == "system"]
        texts = change_text_form(texts, chat=True, system=system[0] if system else None)
    answers = generate(
        lower_precision(vanilla),
        [make_query_of_text(text) for text in texts],
        num_tokens=num_tokens,
        temperature=1.0,
        seed=seed,
        cache=cache,
        progress=progress,
    )
    said = [
        replace(text, answer=answer.text, object="")
        for text, answer in zip(texts, answers, strict=True)
        if answer.text.strip()
    ]
    if not num_samples:
        return said
    samples = sample_texts(
        vanilla,
        list(counts),
        num_texts=num_samples,
        num_tokens=_SAMPLE_LENGTH,
        seed=_SEED,
        progress=progress,
    )
    own = [
        Text(
            id=f"sample-{number}",
            language=sample.language,
            kind="sample",
            prompt=vanilla.decode(sample.prompt_ids, skip_special_tokens=True),
            answer=vanilla.decode(sample.token_ids, skip_special_tokens=True),
        )
        for number, sample in enumerate(samples)
    ]
    return said + [text for text in own if text.prompt.strip() and text.answer.strip()]


def _choose_texts(code: str, forget: Sequence[Text], count: int, seed: int) -> list[Text]:
    """Choose prompts about facts that nothing states which is forgotten, in a language."""
    forgotten, by_language = {text.id for text in forget}, group_by_language(forget)
    texts = [
        text
        for relation in RELATIONS
        for fact in select_facts(relation)
        if hash_text(f"retained/{fact.id}")[0] % _SHARE == 0
        and fact.id not in forgotten
        and not is_stated(fact, by_language)
        for text in write_unlearning_texts(fact, "real", [code], "mixed")
        if text.prompt
    ]
    return sort_by_hash(texts, f"{seed}/retain/{code}", key=lambda text: text.text)[:count]
