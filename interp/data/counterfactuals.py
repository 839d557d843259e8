"""False facts, made from true ones by giving each the answer of another."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from interp.data.facts import Fact, is_leaky

T = TypeVar("T")


def make_counterfactuals(facts: Sequence[Fact], *, seed: int = 0) -> list[Fact]:
    """Return the same facts with false answers: each gets the answer of another, none its own.

    The answers are the same as before, so that guessing among them is right once in `len(facts)`
    times. A language keeps a false fact if it has the subject and the new answer, and the one
    cannot be copied from the other.

    Args:
        facts: true facts of one relation.
        seed: of the exchange; the same seed gives the same answers on any machine.

    Raises:
        ValueError: the facts are of several relations, or their answers cannot be exchanged.
    """
    if len({fact.relation for fact in facts}) > 1:
        raise ValueError("facts of several relations have no answers to exchange")
    options = [
        sort_by_hash(
            [number for number, other in enumerate(facts) if _may_answer(other, fact)],
            f"{seed}/counterfactual/{fact.id}",
            key=lambda number: facts[number].id,
        )
        for fact in facts
    ]
    taken = _match_options(options)
    if taken is None:
        raise ValueError(
            f"the answers of {len(facts)} facts cannot be exchanged so that each is false; take "
            "more facts, or facts with more answers among them"
        )
    return [_replace_answer(fact, facts[number]) for fact, number in zip(facts, taken, strict=True)]


def hash_text(text: str) -> bytes:
    """Return a digest that orders things at random but alike on any machine."""
    return hashlib.sha256(text.encode()).digest()


def sort_by_hash(items: Iterable[T], purpose: str, *, key: Callable[[T], str]) -> list[T]:
    """Sort items in an order that looks random and depends on the purpose and their keys only."""
    return sorted(items, key=lambda item: hash_text(f"{purpose}/{key(item)}"))


def _may_answer(other: Fact, fact: Fact) -> bool:
    """Return whether another fact's answer is false of this one, in all languages of both."""
    shared = [code for code in fact.object if code in other.object]
    return bool(shared) and all(
        other.object[code] not in {fact.object[code], *fact.aliases.get(code, ())}
        and not is_leaky(fact.subject[code], other.object[code], code)
        for code in shared
    )


def _replace_answer(fact: Fact, other: Fact) -> Fact:
    codes = [code for code in fact.object if code in other.object]
    return replace(
        fact,
        subject=MappingProxyType({code: fact.subject[code] for code in codes}),
        object=MappingProxyType({code: other.object[code] for code in codes}),
        aliases=MappingProxyType(
            {code: other.aliases[code] for code in codes if code in other.aliases}
        ),
    )


def _match_options(options: Sequence[Sequence[int]]) -> list[int] | None:
    """Choose an option of each, none twice (Kuhn's algorithm); None if there is no such choice."""
    owner: dict[int, int] = {}

    def give(item: int, tried: set[int]) -> bool:
        for option in options[item]:
            if option not in tried:
                tried.add(option)
                if option not in owner or give(owner[option], tried):
                    owner[option] = item
                    return True
        return False

    if not all(give(item, set()) for item in range(len(options))):
        return None
    taken = {item: option for option, item in owner.items()}
    return [taken[item] for item in range(len(options))]
