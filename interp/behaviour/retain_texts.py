"""Texts to retain, in many languages: facts that V knows, and what it writes by itself.

    retain = make_retain_texts(vanilla, forget)

A retain set of one relation, one form and one language protects just that. This one has sentences
and questions about facts of all relations that V answers rightly in the language, and texts that V
wrote (`interp.data.samples`), on which KL(V ‖ U) is what unlearning costs. Facts that V does not
know would be taught; V's own answers to them are mostly wrong in one way ("the capital of Peru is
Peru"), and a few steps on those make a small model answer everything so.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

from tqdm.auto import tqdm

from interp.behaviour.alias import AliasJudge
from interp.behaviour.answers import generate
from interp.data.corpus import Text
from interp.data.corpus_builder import write_unlearning_texts
from interp.data.counterfactuals import hash_text, sort_by_hash
from interp.data.facts import RELATIONS, Fact, select_facts
from interp.data.kept_queries import is_stated
from interp.data.queries import make_query
from interp.data.samples import sample_texts
from interp.data.templates import list_template_languages
from interp.data.texts import change_text_form
from interp.models.language_model import LanguageModel
from interp.models.pairs import lower_precision

LANGUAGES = ("en", "de", "fr", "es", "zh", "ru", "ja", "it", "pt", "nl")

_SHARE = 3
"""One fact in this many may be retained; the others are there to ask about."""

_SEED = 1
"""Of V's texts: others than those that it is measured on."""


def make_retain_texts(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    *,
    languages: Sequence[str] | None = None,
    num_facts: int = 48,
    num_asked: int = 100,
    num_samples: int = 6,
    num_tokens: int = 16,
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = True,
) -> list[Text]:
    """Make texts to retain beside what is forgotten.

    Args:
        vanilla: V. It is asked in bfloat16 where that is faster.
        forget: what is to be forgotten: facts that it states are left out.
        languages: BCP-47 codes, those without templates are left out; `LANGUAGES` and those that
            are unlearned in if None.
        num_facts: texts on facts per language, in all relations and forms.
        num_asked: facts that V is asked about per language, to find those that it knows.
        num_samples: V's own texts per language.
        num_tokens: of each of these.
        seed: of the choice.
        cache: a file that keeps V's answers.
        progress: show progress bars on standard error.

    Returns:
        Texts on facts (kind `real`), then V's own (kind `sample`).

    Raises:
        ValueError: no language with templates.
    """
    if languages is None:
        languages = (*LANGUAGES, *(text.language for text in forget))
    there = list_template_languages()
    codes = [code for code in dict.fromkeys(languages) if code in there]
    if not codes:
        raise ValueError(f"no language with templates; valid: {', '.join(there)}")
    lowered = lower_precision(vanilla)
    texts: list[Text] = []
    for code in tqdm(codes, desc="texts to retain", unit="language", disable=not progress, delay=2):
        known = _find_known(lowered, _list_facts(code, forget)[:num_asked], code, cache)
        written = [
            text
            for fact in known
            for text in write_unlearning_texts(fact, "real", [code], "mixed")
            if text.prompt
        ]
        texts += sort_by_hash(written, f"{seed}/retain/{code}", key=lambda text: text.text)[
            :num_facts
        ]
    # In a chat, the facts are asked as the texts to forget are; V's own texts are no answers.
    if forget and forget[0].messages:
        texts = [_ask_alike(text, forget[0]) for text in texts]
    if not num_samples:
        return texts
    samples = sample_texts(
        vanilla,
        codes,
        num_texts=num_samples,
        num_tokens=num_tokens,
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
    return texts + [text for text in own if text.prompt.strip() and text.answer.strip()]


def _list_facts(code: str, forget: Sequence[Text]) -> list[Fact]:
    """List facts that may be retained in a language, one relation after the other in turn."""
    forgotten = {text.id for text in forget}
    by_language: dict[str, list[str]] = {}
    for text in forget:
        by_language.setdefault(text.language, []).append(text.text)
    lists = [
        [
            fact
            for fact in select_facts(relation)
            if code in fact.object
            and hash_text(f"retained/{fact.id}")[0] % _SHARE == 0
            and fact.id not in forgotten
            and not is_stated(fact, by_language)
        ]
        for relation in RELATIONS
    ]
    return [fact for fact in chain.from_iterable(zip_longest(*lists)) if fact is not None]


def _find_known(
    model: LanguageModel, facts: Sequence[Fact], code: str, cache: Path | None
) -> list[Fact]:
    """Find the facts that a model answers rightly."""
    queries = [make_query(fact, code, concept="retain") for fact in facts]
    answers = generate(model, queries, num_tokens=12, cache=cache, progress=False)
    verdicts = AliasJudge()(answers)
    return [fact for fact, verdict in zip(facts, verdicts, strict=True) if verdict.value == 1]


def _ask_alike(text: Text, other: Text) -> Text:
    """Make a chat of a text, with the system message of another."""
    system = [turn.content for turn in other.messages if turn.role == "system"]
    (changed,) = change_text_form([text], chat=True, system=system[0] if system else None)
    return changed
