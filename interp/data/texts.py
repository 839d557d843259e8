"""Texts to train on, from JSON Lines or from queries with answers.

A line is `{"id": "capital-FR", "language": "de", "prompt": "…", "answer": "Paris"}`, as in files of
queries; `answer` alone is required. The other fields of `interp.data.corpus.Text`
may stand there too: `wording` and the same `id` make texts one sequence in several languages,
`subject`, `mention` and `object` say what MEMIT edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from interp.data.corpus import Text
from interp.data.filters import filter_languages, limit_per_language
from interp.data.queries import BUILT_IN, READERS, queries
from interp.data.query import Query
from interp.data.row_readers import check_text as checked_text
from interp.data.row_readers import read_rows
from interp.data.templates import add_separator

_FIELDS = {field.name: field.type for field in fields(Text)}


def load_texts(
    source: str | PathLike[str],
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[Text]:
    """Load texts of a file, of a built-in set of queries or of a data set.

    Args:
        source: the path of a `.jsonl` file, or a source of `interp.queries` whose queries have
            answers, such as `capitals` or `tofu:FILE`.
        languages: BCP-47 codes to keep; all if None.
        limit: at most this many per language, the first ones.

    Raises:
        ValueError: no such source, a malformed line (named by file and line), a language that the
            source lacks, or a query without an answer.
    """
    name = str(source)
    if name in BUILT_IN or name.partition(":")[0] in READERS:
        return make_texts(queries(source, languages=languages, limit=limit))
    return limit_per_language(filter_languages(read_texts(name), languages, name), limit)


def make_texts(queries: Sequence[Query]) -> list[Text]:
    """Make texts of queries with their answers.

    Raises:
        ValueError: a query without an answer.
    """
    for query in queries:
        if not query.answer:
            raise ValueError(f"{query.id} in {query.language!r} has no answer")
    return [
        Text(
            id=query.id,
            language=query.language,
            kind=query.concept,
            prompt=query.prompt,
            answer=add_separator(query.prompt, query.answer or "", query.language),
        )
        for query in queries
    ]


def read_texts(path: str | PathLike[str]) -> list[Text]:
    """Read all texts of a JSON Lines file (or JSON array); other fields are passed over.

    Raises:
        ValueError: there is no such file, it is empty, or a line is malformed.
    """
    path = Path(path)
    if not path.is_file():
        readers = ", ".join(f"{name}:PATH" for name in READERS)
        raise ValueError(
            f"no file of texts {str(path)!r}; give the path of a .jsonl file, a built-in name "
            f"({', '.join(BUILT_IN)}) or a data set ({readers})"
        )
    return [_parse(row, where, at) for at, (where, row) in enumerate(read_rows(path), start=1)]


def _parse(row: dict[str, Any], where: str, number: int) -> Text:
    given = {key: value for key, value in row.items() if key in _FIELDS and value not in (None, "")}
    for key, value in given.items():
        wanted = int if key == "wording" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = "a whole number" if wanted is int else "text"
            raise ValueError(f"{where}: {key!r} must be {kind}, not {type(value).__name__}")
        # What is between texts may be blank, a name may not.
        if wanted is str and (key not in ("prompt", "answer") or str(value).strip()):
            checked_text(value, where, key)
    if not given.get("answer", "").strip():
        raise ValueError(f"{where}: the field 'answer' is missing or empty")
    defaults = {"id": f"line-{number}", "language": "", "kind": "", "prompt": ""}
    text = Text(**{**defaults, **given})
    return replace(text, answer=add_separator(text.prompt, text.answer, text.language))
