"""Filters of queries and texts by language, and limits per language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from interp.data.corpus import Text
from interp.data.query import Query

Entry = TypeVar("Entry", Query, Text)


def filter_languages(
    entries: Sequence[Entry], languages: Sequence[str] | None, source: object
) -> list[Entry]:
    """Keep entries of the languages, in the order of these; all if None.

    Raises:
        ValueError: the source has nothing in one of the languages.
    """
    if languages is None:
        return list(entries)
    available = dict.fromkeys(entry.language for entry in entries)
    for code in languages:
        if code not in available:
            raise ValueError(
                f"{source} has nothing in the language {code!r}; it has {', '.join(available)}"
            )
    return [
        entry for code in dict.fromkeys(languages) for entry in entries if entry.language == code
    ]


def limit_per_language(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """Keep the first entries of each language, at most `limit`; all if None.

    Raises:
        ValueError: a limit below 1.
    """
    if limit is None:
        return list(entries)
    if limit < 1:
        raise ValueError(f"limit must be at least 1 per language, not {limit}")
    rank: Counter[str] = Counter()
    kept = []
    for entry in entries:
        if rank[entry.language] < limit:
            kept.append(entry)
        rank[entry.language] += 1
    return kept
