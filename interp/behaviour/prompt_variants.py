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

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.probing import compute_accuracy, name_conditions, probe
from interp.behaviour.registry import metric
from interp.data.chat import Message
from interp.data.counterfactuals import sort_by_hash
from interp.data.facts import RELATIONS, Fact, select_facts
from interp.data.queries import make_query
from interp.data.query import Query
from interp.data.templates import FORMS, add_separator, list_template_languages, read_templates
from interp.models.language_model import LanguageModel

AS_ASKED = "as asked"
"""Variant that changes nothing."""


def reword_queries(
    queries: Sequence[Query], *, form: str = "question", wording: int = 2
) -> list[Query]:
    """Reword queries of built-in facts.

    Args:
        queries: the queries.
        form: `question` or `cloze`.
        wording: which of the language's wordings of that form, from 1.

    Raises:
        ValueError: a query of no built-in fact, or no such form or wording.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; valid: {', '.join(FORMS)}")
    return [
        replace(
            query, prompt=_make_prompt(_require_fact(query).fact, query.language, form, wording)
        )
        for query in queries
    ]


def ask_in_language(queries: Sequence[Query], language: str = "en") -> list[Query]:
    """Ask queries of built-in facts in another language; answers stay in their own.

    A query whose fact the other language lacks is left out.

    Raises:
        ValueError: a query of no built-in fact, or a language without templates.
    """
    separator = read_templates(language).separator
    changed = []
    for query in queries:
        known = _require_fact(query)
        if language in known.fact.object:
            prompt = _make_prompt(known.fact, language, known.form, known.wording)
            # An answer in Chinese brings no space with it.
            if not query.chat and not add_separator(prompt, "x", query.language)[:-1]:
                prompt += separator
            changed.append(replace(query, prompt=prompt))
    return changed


def answer_in_language(queries: Sequence[Query], language: str = "en") -> list[Query]:
    """Replace the answers to queries of built-in facts by those in another language.

    A query is left out if its answer has no name, or several, in the other language.

    Raises:
        ValueError: a query of no built-in fact.
    """
    changed = []
    for query in queries:
        fact = _require_fact(query).fact
        alike = [
            other
            for other in (fact, *select_facts(fact.relation))
            if other.object.get(query.language) == query.answer and language in other.object
        ]
        # Its own answer first: two currencies may have one name.
        same = alike[:1] if alike[:1] == [fact] else alike
        if len({other.object[language] for other in same}) == 1:
            answer, aliases = same[0].object[language], same[0].aliases.get(language, ())
            changed.append(replace(query, answer=answer, aliases=aliases))
    return changed


def add_examples(
    queries: Sequence[Query],
    *,
    num_examples: int = 4,
    examples: Sequence[Query] | None = None,
    seed: int = 0,
) -> list[Query]:
    """Put solved examples before queries: other facts, none with the query's answer.

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
    answers: dict[tuple[str, str], set[str | None]] = {}
    for query in queries:
        answers.setdefault((query.language, query.id), set()).add(query.answer)
    changed = []
    for query in queries:
        pool = _choose_examples(query, queries) if examples is None else examples
        own = {query.answer, *query.aliases}
        usable = [
            each
            for each in pool
            if each.language == query.language
            and each.id != query.id
            and each.answer
            and not own & {each.answer, *each.aliases}
            # Where a false answer was asked for, the true one is no example.
            and answers.get((each.language, each.id), {each.answer}) == {each.answer}
        ]
        if len(usable) < num_examples:
            raise ValueError(
                f"{query.id} in {query.language!r} has {len(usable)} other solved queries, fewer "
                f"than the {num_examples} examples wanted"
            )
        purpose = f"{seed}/few-shot/{query.language}/{query.id}"
        drawn = sort_by_hash(usable, purpose, key=lambda each: f"{each.id}/{each.prompt}")
        drawn.sort(key=lambda each: (each.language, each.id) in answers)
        changed.append(_put_examples(query, drawn[:num_examples]))
    return changed


def make_variants(queries: Sequence[Query]) -> dict[str, list[Query]]:
    """Make all ways to ask the same, by name.

    `as asked`; `question 2` and so on, `cloze 1` and so on (the built-in wordings but the one that
    is asked); `few-shot`; `asked in English`; `answered in English`. Where a query is of no
    built-in fact, `as asked` and `few-shot` alone.

    Raises:
        ValueError: no queries, or too few for examples.
    """
    if not queries:
        raise ValueError("no queries: give at least one")
    named = {AS_ASKED: list(queries)}
    known = [_find_fact(query) for query in queries]
    if None not in known:
        for form in FORMS:
            fewest = min(
                len(_get_wordings(each.fact, query.language, form))
                for each, query in zip(known, queries, strict=True)
                if each
            )
            for wording in range(1, fewest + 1):
                changed = reword_queries(queries, form=form, wording=wording)
                if changed != named[AS_ASKED]:
                    named[f"{form} {wording}"] = changed
    named["few-shot"] = add_examples(queries)
    if None not in known:
        named["asked in English"] = ask_in_language(queries)
        named["answered in English"] = answer_in_language(queries)
    return named


def measure_robustness(
    models: Mapping[str, LanguageModel],
    queries: Sequence[Query],
    asked: Mapping[str, Sequence[Query]] | None = None,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what models know when asked in other ways: probing accuracy per variant.

    Args:
        models: by name.
        queries: the questions as they are usually asked.
        asked: the variants by name; `make_variants(queries)` if None.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        A row per variant, model, language and concept: `variant`, `model`, what
        `probing.compute_accuracy` gives, and `reason`: what a variant lacks. The accuracy is NaN
        where fewer than two answers are left.

    Raises:
        ValueError: queries that cannot be probed.
    """
    asked = make_variants(queries) if asked is None else asked
    cells = Counter((query.language, query.concept) for query in queries)
    every = [(variant, name) for variant in asked for name in models]
    rows = []
    for variant, name in tqdm(every, desc="variants", delay=2, disable=not progress):
        usable = _keep_with_candidates(asked[variant])
        accuracies = compute_accuracy(probe(models[name], usable, progress=False)).to_dict(
            "records"
        )
        known = {(row["language"], row["concept"]): row for row in accuracies}
        for (language, concept), number in cells.items():
            row = known.get((language, concept), _make_empty_row(language, concept))
            lacking = number - row["num_queries"]
            reason = f"{lacking} of {number} queries cannot be asked so" if lacking else ""
            rows.append({"variant": variant, "model": name, **row, "reason": reason})
    return pd.DataFrame(rows)


@metric("prompts", needs=("answer",))
def tabulate_variants(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure accuracy when asked in other words, languages, and with examples."""
    models = {evaluated.model.name: evaluated.model}
    table = measure_robustness(models, evaluated.queries, progress=evaluated.progress)
    return name_conditions(table, table["variant"].tolist())


class _Known(NamedTuple):
    fact: Fact
    form: str
    wording: int


def _find_fact(query: Query) -> _Known | None:
    """Find the built-in fact that a query asks for, and how; None if it asks for none."""
    fact = _index_facts().get(query.id)
    if (
        query.messages
        or fact is None
        or query.language not in {*fact.object} & {*list_template_languages()}
    ):
        return None
    for form in FORMS:
        for wording in range(1, len(_get_wordings(fact, query.language, form)) + 1):
            if _make_prompt(fact, query.language, form, wording) == query.prompt:
                return _Known(fact, form, wording)
    return None


def _require_fact(query: Query) -> _Known:
    known = _find_fact(query)
    if known is None:
        raise ValueError(
            f"{query.id} in {query.language!r} is no query of a built-in fact: other wordings and "
            "languages exist for these alone, and few_shot for any query"
        )
    return known


@cache
def _index_facts() -> dict[str, Fact]:
    return {fact.id: fact for relation in RELATIONS for fact in select_facts(relation)}


def _get_wordings(fact: Fact, language: str, form: str) -> tuple[str, ...]:
    wordings = read_templates(language).wordings[fact.relation]
    return wordings.questions if form == "question" else wordings.clozes


def _make_prompt(fact: Fact, language: str, form: str, wording: int) -> str:
    return make_query(fact, language, concept="", form=form, wording=wording).prompt


def _put_examples(query: Query, solved: Sequence[Query]) -> Query:
    """Put solved examples before a query: as texts, in a chat as turns."""
    if not query.chat:
        texts = [
            each.prompt + add_separator(each.prompt, each.answer or "", each.language)
            for each in solved
        ]
        return replace(query, prompt="\n\n".join([*texts, query.prompt]))
    turns = [
        Message(role=role, content=text)
        for each in solved
        for role, text in (("user", each.prompt), ("assistant", each.answer or ""))
    ]
    own = query.messages or query.turns[-1:]
    first = 1 if own[0].role == "system" else 0
    return replace(query, messages=(*own[:first], *turns, *own[first:]))


def _choose_examples(query: Query, queries: Sequence[Query]) -> Sequence[Query]:
    known = _find_fact(query)
    if known is None:
        return [other for other in queries if other.concept == query.concept]
    return _make_true_queries(known.fact.relation, query.language, known.form, known.wording)


@cache
def _make_true_queries(relation: str, language: str, form: str, wording: int) -> list[Query]:
    return [
        make_query(fact, language, concept="", form=form, wording=wording)
        for fact in select_facts(relation, languages=[language])
    ]


def _keep_with_candidates(queries: Sequence[Query]) -> list[Query]:
    """Keep queries of languages and concepts that have at least two different answers."""
    answers: dict[tuple[str, str], set[str | None]] = {}
    for query in queries:
        answers.setdefault((query.language, query.concept), set()).add(query.answer)
    return [query for query in queries if len(answers[query.language, query.concept]) > 1]


def _make_empty_row(language: str, concept: str) -> dict[str, object]:
    numbers = dict.fromkeys(("accuracy", "ci_low", "ci_high", "chance"), math.nan)
    return {"language": language, "concept": concept, **numbers, "num_queries": 0}
