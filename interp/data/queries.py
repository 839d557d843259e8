"""Sources of queries: the built-in facts, the field's data sets, or JSON Lines.

| source | queries |
|---|---|
| `capitals`, `currencies`, `official-languages`, `continents` | the built-in facts |
| `bmlama:`, `flores:`, `tofu:`, `uds:`, `rwku:` or `concepts:PATH` | a data set's reader |
| `PATH` | a file of queries (`interp.data.query`) |

A data set's PATH may be a Hub name, `hub:OWNER/NAME[@REVISION][:CONFIG][:SPLIT]`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any

from interp.data import datasets
from interp.data.datasets import ClozeFact, Dataset
from interp.data.facts import Fact, select_facts
from interp.data.filters import filter_languages, limit_per_language
from interp.data.query import Query, change_form, read_queries
from interp.data.templates import FORMS, format_cloze, format_question, list_template_languages

BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "capitals": "capital",
        "currencies": "currency",
        "official-languages": "official language",
        "continents": "continent",
    }
)
"""Relations by the name of a built-in set of queries."""

READERS: Mapping[str, Callable[..., Dataset[Any]]] = MappingProxyType(
    {
        "bmlama": datasets.read_bmlama,
        "flores": datasets.read_flores,
        "tofu": datasets.read_tofu,
        "uds": datasets.read_uds,
        "rwku": datasets.read_rwku,
        "concepts": datasets.read_concepts,
    }
)
"""Readers of data sets by the prefix of their sources."""

LINE_BREAK = ("\n",)
"""Stop of built-in questions: a base model that has answered goes on with questions of its own."""


def queries(
    source: str | PathLike[str],
    *,
    languages: Sequence[str] | None = None,
    ids: Iterable[str] | None = None,
    limit: int | None = None,
    form: str = "question",
    wording: int = 1,
    chat: bool = False,
    system: str | None = None,
    stop: str | Sequence[str] | None = None,
) -> list[Query]:
    """Return queries from the built-in facts, a data set or a JSON Lines file.

    Args:
        source: a built-in name such as `capitals`, a data set such as `bmlama:FILE`, or the path
            of a `.jsonl` file; see the module's table.
        languages: BCP-47 codes to keep, in this order; all that the source has if None.
        ids: keep only these query ids; all if None.
        limit: at most this many queries per language, the first ones.
        form: `question`, or `cloze`: a sentence to be completed. Cloze facts of a data set have
            their blank shown in question form, and in cloze form are asked only where the blank
            comes last.
        wording: which of the built-in wordings of that form, from 1.
        chat: ask as a chat: the prompt becomes a user's message in the chat template of the
            tokenizer. What a file says of a query stays.
        system: a system message before each chat.
        stop: a text, or several, before which an answer ends, and "" for none. If None, a line
            break ends answers to built-in questions that are no chats. What a file says of a query
            stays, unless it is "". The end of turn ends answers in chats in any case.

    Returns:
        Language by language, in the source's order (built-in: best-known countries first).

    Raises:
        ValueError: no such set, file, form or wording, a malformed line (named by file and line),
            a language or id that the source does not have, two queries with the same id and
            language, nothing left, or a system message without a chat.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; valid: {', '.join(FORMS)}")
    name = str(source)
    reader, colon, path = name.partition(":")
    if name in BUILT_IN:
        own_stop = LINE_BREAK if stop is None and not chat else ()
        entries = _make_built_in(name, languages, form, wording, own_stop)
    elif wording != 1:
        raise ValueError(f"wording {wording} is for built-in queries: {', '.join(BUILT_IN)}")
    elif colon and reader in READERS:
        entries = _read_dataset(READERS[reader](path, languages=languages), form)
    else:
        entries = filter_languages(_read_file(source), languages, source)
    kept = limit_per_language(_select_ids(entries, ids, source), limit)
    return change_form(kept, chat=chat, system=system, stop=stop)


def make_query(
    fact: Fact,
    language: str,
    *,
    concept: str,
    form: str = "question",
    wording: int = 1,
    stop: Sequence[str] = LINE_BREAK,
) -> Query:
    """Make a query of a fact, which its answer in that language completes.

    Args:
        fact: the fact.
        language: BCP-47 code of a language that has it.
        concept: the group that the query belongs to.
        form: `question` or `cloze`.
        wording: which of the wordings of that form, from 1.
        stop: texts before which an answer ends.

    Raises:
        ValueError: the language lacks templates, the fact or that wording.
    """
    ask = format_question if form == "question" else format_cloze
    return Query(
        id=fact.id,
        language=language,
        prompt=ask(fact, language, wording=wording),
        answer=fact.object[language],
        aliases=fact.aliases.get(language, ()),
        concept=concept,
        stop=tuple(stop),
    )


def _make_built_in(
    name: str, languages: Sequence[str] | None, form: str, wording: int, stop: Sequence[str]
) -> list[Query]:
    wanted = list_template_languages() if languages is None else tuple(dict.fromkeys(languages))
    for code in wanted:
        if code not in list_template_languages():
            raise ValueError(
                f"no questions in {code!r}; valid languages: {', '.join(list_template_languages())}"
            )
    return [
        make_query(fact, code, concept=name, form=form, wording=wording, stop=stop)
        for code in wanted
        for fact in select_facts(BUILT_IN[name], languages=[code])
    ]


def _read_dataset(dataset: Dataset[Any], form: str) -> list[Query]:
    missing = Counter(gap.language for gap in dataset.gaps)
    if missing:
        counts = ", ".join(f"{code} {count}" for code, count in missing.items())
        warnings.warn(f"{dataset.source} lacks entries: {counts}", stacklevel=3)
    if form == "question":
        return datasets.make_queries(dataset)
    records = [
        record
        for record in dataset
        if not isinstance(record, ClozeFact) or (record.blank_is_last and record.prefix.strip())
    ]
    if len(records) < len(dataset):
        warnings.warn(
            f"{dataset.source}: {len(dataset) - len(records)} of {len(dataset)} facts are left "
            "out, as words follow their blank; form='question' shows the blank",
            stacklevel=3,
        )
    return datasets.make_queries(records, cloze="prefix")


def _read_file(source: str | PathLike[str]) -> list[Query]:
    try:
        return read_queries(source)
    except FileNotFoundError:
        readers = ", ".join(f"{name}:PATH" for name in READERS)
        raise ValueError(
            f"no query file {str(source)!r}; give the path of a .jsonl file, a built-in name "
            f"({', '.join(BUILT_IN)}) or a data set ({readers})"
        ) from None


def _select_ids(entries: list[Query], ids: Iterable[str] | None, source: object) -> list[Query]:
    if ids is None:
        return entries
    wanted = set(ids)
    missing = wanted - {query.id for query in entries}
    if missing:
        raise ValueError(f"{source} has no query with the id {sorted(missing)[0]!r}")
    return [query for query in entries if query.id in wanted]
