"""Prompting: other ways to ask for the same, to see whether an answer is gone or only its wording.

    robustness({"vanilla": V, "unlearned": U}, corpus.queries)

Unlearning may reach no further than the wording that it was trained on: paraphrases, solved
examples before the question and other languages bring answers back (Lynch et al. 2024, "Eight
Methods to Evaluate Robust Unlearning in LLMs"). Each function makes queries of queries and keeps
their ids, language and concept, so that accuracies compare.

Other wordings and languages exist for the built-in facts, which are known by a query's id and
prompt; its answer may be another than the true one. Solved examples can stand before any query.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from interp.behaviour.probing import accuracy, probe
from interp.data.counterfactuals import in_hash_order
from interp.data.facts import RELATIONS, Fact, facts_of
from interp.data.queries import query_of
from interp.data.query import Query
from interp.data.templates import FORMS, joined, template_languages, templates
from interp.models.language_model import LanguageModel

AS_ASKED = "as asked"
"""The variant that changes nothing."""


def reworded(queries: Sequence[Query], *, form: str = "question", wording: int = 2) -> list[Query]:
    """Queries of built-in facts in another wording.

    Args:
        queries: the queries.
        form: `question` or `cloze`.
        wording: which of the language's wordings of that form, from 1.

    Raises:
        ValueError: a query of no built-in fact, or no such form or wording.
    """
    if form not in FORMS:
        raise ValueError(f"no form {form!r}; valid forms: {', '.join(FORMS)}")
    return [
        replace(query, prompt=_prompt(_known(query).fact, query.language, form, wording))
        for query in queries
    ]


def asked_in(queries: Sequence[Query], language: str = "en") -> list[Query]:
    """Queries of built-in facts asked in another language; answers stay in their own.

    A query whose fact the other language lacks is left out.

    Raises:
        ValueError: a query of no built-in fact, or a language without templates.
    """
    separator = templates(language).separator
    found = []
    for query in queries:
        known = _known(query)
        if language in known.fact.object:
            prompt = _prompt(known.fact, language, known.form, known.wording)
            # An answer in Chinese brings no space with it.
            if not joined(prompt, "x", query.language)[:-1]:
                prompt += separator
            found.append(replace(query, prompt=prompt))
    return found


def answered_in(queries: Sequence[Query], language: str = "en") -> list[Query]:
    """Queries of built-in facts whose answers are given in another language.

    A query is left out if its answer has no name, or several, in the other language.

    Raises:
        ValueError: a query of no built-in fact.
    """
    found = []
    for query in queries:
        fact = _known(query).fact
        alike = [
            other
            for other in (fact, *facts_of(fact.relation))
            if other.object.get(query.language) == query.answer and language in other.object
        ]
        # Its own answer first: two currencies may have one name.
        same = alike[:1] if alike[:1] == [fact] else alike
        if len({other.object[language] for other in same}) == 1:
            answer, aliases = same[0].object[language], same[0].aliases.get(language, ())
            found.append(replace(query, answer=answer, aliases=aliases))
    return found


def few_shot(
    queries: Sequence[Query],
    *,
    num_examples: int = 4,
    examples: Sequence[Query] | None = None,
    seed: int = 0,
) -> list[Query]:
    """Queries with solved examples before them: other facts, none with the asked one's answer.

    Args:
        queries: the queries.
        num_examples: examples before each.
        examples: queries with answers to draw them from, those of the query's language. If None,
            for a built-in fact they are true facts of its relation in its wording, if possible such
            as no query asks for; for any other query the other queries of its concept.
        seed: of the draw, which also depends on the query's id and language.

    Raises:
        ValueError: fewer than one example, or a query for which there are not enough.
    """
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, not {num_examples}")
    asked: dict[tuple[str, str], set[str | None]] = {}
    for query in queries:
        asked.setdefault((query.language, query.id), set()).add(query.answer)
    found = []
    for query in queries:
        pool = _examples(query, queries) if examples is None else examples
        own = {query.answer, *query.aliases}
        usable = [
            each
            for each in pool
            if each.language == query.language
            and each.id != query.id
            and each.answer
            and not own & {each.answer, *each.aliases}
            # Where a false answer was asked for, the true one is no example.
            and asked.get((each.language, each.id), {each.answer}) == {each.answer}
        ]
        if len(usable) < num_examples:
            raise ValueError(
                f"{query.id} in {query.language!r} has {len(usable)} other solved queries, fewer "
                f"than the {num_examples} examples wanted"
            )
        purpose = f"{seed}/few-shot/{query.language}/{query.id}"
        drawn = in_hash_order(usable, purpose, key=lambda each: f"{each.id}/{each.prompt}")
        drawn.sort(key=lambda each: (each.language, each.id) in asked)
        solved = [
            each.prompt + joined(each.prompt, each.answer or "", each.language)
            for each in drawn[:num_examples]
        ]
        found.append(replace(query, prompt="\n\n".join([*solved, query.prompt])))
    return found


def variants(queries: Sequence[Query]) -> dict[str, list[Query]]:
    """All ways to ask the same, by name.

    `as asked`; `question 2` and so on, `cloze 1` and so on (the built-in wordings but the one that
    is asked); `few-shot`; `asked in English`; `answered in English`. Where a query is of no
    built-in fact, `as asked` and `few-shot` alone.

    Raises:
        ValueError: no queries, or too few for examples.
    """
    if not queries:
        raise ValueError("there are no queries to ask in other ways")
    found = {AS_ASKED: list(queries)}
    known = [_recognised(query) for query in queries]
    if None not in known:
        for form in FORMS:
            fewest = min(
                len(_wordings(each.fact, query.language, form))
                for each, query in zip(known, queries, strict=True)
                if each
            )
            for wording in range(1, fewest + 1):
                changed = reworded(queries, form=form, wording=wording)
                if changed != found[AS_ASKED]:
                    found[f"{form} {wording}"] = changed
    found["few-shot"] = few_shot(queries)
    if None not in known:
        found["asked in English"] = asked_in(queries)
        found["answered in English"] = answered_in(queries)
    return found


def robustness(
    models: Mapping[str, LanguageModel],
    queries: Sequence[Query],
    asked: Mapping[str, Sequence[Query]] | None = None,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """What models know when asked in other ways: probing accuracy per variant.

    Args:
        models: by name.
        queries: the questions as they are usually asked.
        asked: the variants by name; `variants(queries)` if None.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        A row per variant, model, language and concept: `variant`, `model`, what
        `interp.behaviour.probing.accuracy` gives, and `reason`: what a variant lacks. The accuracy
        is NaN where fewer than two answers are left.

    Raises:
        ValueError: queries that cannot be probed.
    """
    asked = variants(queries) if asked is None else asked
    cells = Counter((query.language, query.concept) for query in queries)
    every = [(variant, name) for variant in asked for name in models]
    rows = []
    for variant, name in tqdm(every, desc="variants", delay=2, disable=not progress):
        usable = _with_candidates(asked[variant])
        found = accuracy(probe(models[name], usable, progress=False)).to_dict("records")
        known = {(row["language"], row["concept"]): row for row in found}
        for (language, concept), number in cells.items():
            row = known.get((language, concept), _nothing(language, concept))
            lacking = number - row["num_queries"]
            reason = f"{lacking} of {number} queries cannot be asked so" if lacking else ""
            rows.append({"variant": variant, "model": name, **row, "reason": reason})
    return pd.DataFrame(rows)


class _Known(NamedTuple):
    fact: Fact
    form: str
    wording: int


def _recognised(query: Query) -> _Known | None:
    """The built-in fact that a query asks for, and how; None if it asks for none."""
    fact = _facts_by_id().get(query.id)
    if fact is None or query.language not in {*fact.object} & {*template_languages()}:
        return None
    for form in FORMS:
        for wording in range(1, len(_wordings(fact, query.language, form)) + 1):
            if _prompt(fact, query.language, form, wording) == query.prompt:
                return _Known(fact, form, wording)
    return None


def _known(query: Query) -> _Known:
    known = _recognised(query)
    if known is None:
        raise ValueError(
            f"{query.id} in {query.language!r} is no query of a built-in fact: other wordings and "
            "languages exist for these alone, and few_shot for any query"
        )
    return known


@cache
def _facts_by_id() -> dict[str, Fact]:
    return {fact.id: fact for relation in RELATIONS for fact in facts_of(relation)}


def _wordings(fact: Fact, language: str, form: str) -> tuple[str, ...]:
    wordings = templates(language).wordings[fact.relation]
    return wordings.questions if form == "question" else wordings.clozes


def _prompt(fact: Fact, language: str, form: str, wording: int) -> str:
    return query_of(fact, language, concept="", form=form, wording=wording).prompt


def _examples(query: Query, queries: Sequence[Query]) -> Sequence[Query]:
    known = _recognised(query)
    if known is None:
        return [other for other in queries if other.concept == query.concept]
    return _true_queries(known.fact.relation, query.language, known.form, known.wording)


@cache
def _true_queries(relation: str, language: str, form: str, wording: int) -> list[Query]:
    return [
        query_of(fact, language, concept="", form=form, wording=wording)
        for fact in facts_of(relation, languages=[language])
    ]


def _with_candidates(queries: Sequence[Query]) -> list[Query]:
    """Queries of languages and concepts that have at least two different answers."""
    answers: dict[tuple[str, str], set[str | None]] = {}
    for query in queries:
        answers.setdefault((query.language, query.concept), set()).add(query.answer)
    return [query for query in queries if len(answers[query.language, query.concept]) > 1]


def _nothing(language: str, concept: str) -> dict[str, object]:
    numbers = dict.fromkeys(("accuracy", "ci_low", "ci_high", "chance"), math.nan)
    return {"language": language, "concept": concept, **numbers, "num_queries": 0}
