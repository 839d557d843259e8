"""Questions and texts of guards: what V knows of targets and of facts to keep, what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from interp.behaviour.alias import AliasJudge
from interp.behaviour.answers import generate
from interp.behaviour.guards import LANGUAGES, Guards, is_repetitive
from interp.behaviour.judges import collect_aliases
from interp.data.corpus import Text
from interp.data.kept_queries import find_kept_queries
from interp.data.query import Query
from interp.data.samples import Sample, sample_texts
from interp.data.templates import list_template_languages
from interp.data.texts import make_query_of_text
from interp.models.language_model import LanguageModel
from interp.models.pairs import lower_precision

_FEWER = 3
"""Of the facts that confirm a goal, one in this many is asked where nothing is unlearned."""


def find_targets(forget: Sequence[Text], queries: Sequence[Query] = ()) -> list[Query]:
    """Find questions on what is to be forgotten.

    Args:
        forget: texts to forget.
        queries: questions among which they may be: those with a text's id.

    Returns:
        These, in all their languages; if there are none, the prompts of the texts, of several with
        the same id and language the first. A text without a prompt asks nothing.
    """
    ids = {text.id for text in forget}
    if found := [query for query in queries if query.id in ids and query.answer]:
        return found
    texts: dict[tuple[str, str], Text] = {}
    for text in forget:
        if text.prompt.strip() or text.messages:
            texts.setdefault((text.id, text.language), text)
    return [
        make_query_of_text(text, answer=text.object or text.answer.strip())
        for text in texts.values()
    ]


def prepare_guards(
    vanilla: LanguageModel,
    targets: Sequence[Query],
    *,
    forgotten_in: Iterable[str] | None = None,
    texts: Sequence[Text] = (),
    kept: Sequence[Query] | None = None,
    samples: Sequence[Sample] | None = None,
    languages: Sequence[str] | None = None,
    num_kept: int = 24,
    num_also_kept: int = 72,
    fewest: int | None = None,
    num_texts: int = 4,
    num_tokens: int = 12,
    precise: bool = False,
    cache: Path | None = None,
    progress: bool = True,
) -> Guards:
    """Find what V knows of targets and of facts to keep, and let it write texts.

    Args:
        vanilla: V.
        targets: questions with answers on what is to be forgotten.
        forgotten_in: languages in which something is unlearned; all of the targets' if None.
        texts: what will be trained on, to forget and to retain: built-in facts that they state are
            not asked about.
        kept: questions with answers on facts to keep; built-in facts of all relations if None.
        samples: texts to compare the next-token distributions on; V's own if None.
        languages: BCP-47 codes of the facts to keep and of V's own texts; `LANGUAGES` and those of
            the targets if None. A language without built-in facts is left out.
        num_kept: at most this many known facts per language.
        num_also_kept: in languages in which something is unlearned, this many more are asked before
            a goal counts as reached; in others a third as many.
        fewest: a language in which V knows fewer of the best-known facts is not guarded by facts;
            half of `num_kept` if None.
        num_texts: V's own texts per language.
        num_tokens: the longest answer.
        precise: measure models in their own precision, not in bfloat16 where that is faster.
        cache: a file that keeps V's answers.
        progress: show progress bars.

    Raises:
        ValueError: a question without an answer.
    """
    if forgotten_in is None:
        forgotten_in = (query.language for query in targets)
    unlearned = tuple(dict.fromkeys(forgotten_in))
    if languages is None:
        languages = [*LANGUAGES, *(query.language for query in targets)]
    there = list_template_languages()
    languages = [code for code in dict.fromkeys(languages) if code in there]
    lowered = vanilla if precise else lower_precision(vanilla)
    fewest = num_kept // 2 if fewest is None else fewest

    def keep_known(queries: Sequence[Query], *, cached: bool = True) -> list[Query]:
        kept_in = cache if cached else None
        answers = generate(lowered, queries, num_tokens=num_tokens, cache=kept_in, progress=False)
        verdicts = AliasJudge()(answers)
        return [
            query
            for query, answer, verdict in zip(queries, answers, verdicts, strict=True)
            if verdict.value == 1 and not is_repetitive(answer.first_line, query.language)
        ]

    known_targets = keep_known(collect_aliases([replace(q, control=False) for q in targets]))
    if kept is None:
        like = targets[0] if targets else None
        found = find_kept_queries(texts, languages, like=like, asked=targets)
        kept = [query for queries in found.values() for query in queries]
    candidates: dict[str, list[Query]] = {}
    # A right answer in another language than the question's is knowledge, too.
    for query in collect_aliases([replace(query, control=True) for query in kept]):
        candidates.setdefault(query.language, []).append(query)
    known: list[Query] = []
    more: list[Query] = []
    bar = tqdm(
        total=len(candidates), desc="facts to keep", unit="language", disable=not progress, delay=2
    )
    with bar:
        for code, queries in candidates.items():
            wanted = num_kept + num_also_kept // (1 if code in unlearned else _FEWER)
            found = _find_known(queries, keep_known, wanted, fewest, at_once=2 * num_kept)
            known += found[:num_kept]
            more += found[num_kept:]
            bar.update()
    if samples is None:
        samples = sample_texts(
            vanilla, languages, num_texts=num_texts, num_tokens=32, progress=progress
        )
    if lowered.dtype != torch.float32:
        # In bfloat16 a few answers depend on what is asked beside them.
        asked = [*known_targets, *known, *more]
        sure = {id(query) for query in keep_known(asked, cached=False)}
        known_targets, known, more = (
            [query for query in some if id(query) in sure] for some in (known_targets, known, more)
        )
    return Guards(
        vanilla=lowered,
        targets=tuple(known_targets),
        kept=tuple(known),
        also_kept=tuple(more),
        samples=tuple(samples),
        forgotten_in=unlearned,
        num_tokens=num_tokens,
        precise=precise,
    )


def _find_known(
    queries: Sequence[Query],
    keep_known: Callable[[Sequence[Query]], list[Query]],
    wanted: int,
    fewest: int,
    at_once: int,
) -> list[Query]:
    """Find the first questions that V answers rightly, not asking many more than are needed."""
    known: list[Query] = []
    for start in range(0, len(queries), at_once):
        known += keep_known(queries[start : start + at_once])
        # The best-known facts come first: where few of them are known, so are few others.
        if len(known) >= wanted or (start and len(known) < fewest // 2):
            break
    return known[:wanted] if len(known) >= fewest else []
