"""Questions on facts that unlearning was neither told to forget nor to retain.

Whether a model still answers them says what its unlearning cost: `interp.behaviour.Guards`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from interp.data.corpus import Text
from interp.data.facts import Fact, order_by_answer, select_facts
from interp.data.queries import BUILT_IN, make_query
from interp.data.query import Query


def find_kept_queries(
    texts: Iterable[Text],
    languages: Sequence[str],
    *,
    like: Query | None = None,
    asked: Iterable[Query] = (),
) -> dict[str, list[Query]]:
    """Find questions on built-in facts that no text states.

    A fact is left out if a text or a question has its id, or if a text names both its subject and
    its object.

    Args:
        texts: what a model is trained on: to forget and to retain.
        languages: BCP-47 codes of languages with templates.
        like: a question whose form they get: as a chat, with its system message and stops.
        asked: questions on what is forgotten, which are no facts to keep.

    Returns:
        By language, the best-known countries first, one relation after the other in turn. Languages
        without any are left out.
    """
    texts = list(texts)
    stated = {text.id for text in texts} | {query.id for query in asked}
    by_language = group_by_language(texts)
    found = {}
    for code in dict.fromkeys(languages):
        lists = []
        for name, relation in BUILT_IN.items():
            facts = [
                fact
                for fact in _list_facts(relation, code)
                if fact.id not in stated and not is_stated(fact, by_language)
            ]
            lists.append([_ask(fact, code, name, like) for fact in facts])
        turns = chain.from_iterable(zip_longest(*lists))
        if queries := [query for query in turns if query is not None]:
            found[code] = queries
    return found


def _list_facts(relation: str, code: str) -> list[Fact]:
    """List the facts of a relation that a language has; none where it has no such relation."""
    facts = [fact for fact in select_facts(relation) if code in fact.object]
    return order_by_answer(facts, code)


def group_by_language(texts: Iterable[Text]) -> dict[str, list[str]]:
    """Group what texts say by their language."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text.language, []).append(text.text)
    return groups


def is_stated(fact: Fact, by_language: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a text, listed by language, names both a fact's subject and its object."""
    return any(
        fact.subject[code] in text and fact.object[code] in text
        for code, texts in by_language.items()
        if code in fact.object
        for text in texts
    )


def _ask(fact: Fact, code: str, name: str, like: Query | None) -> Query:
    query = replace(make_query(fact, code, concept=name), control=True)
    if like is None:
        return query
    return replace(query, chat=like.chat, system=like.system, stop=like.stop)
