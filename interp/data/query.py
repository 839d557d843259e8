"""A query, and files of queries in JSON Lines.

A line of a query file is
`{"id": "capital-FR", "language": "de", "prompt": "Frage: …\\nAntwort:", "answer": "Paris",
"aliases": ["Paname"], "concept": "capitals"}`; `id`, `language` and `prompt` are required. The
prompt goes to the tokenizer as it is, with the model's usual special tokens.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from interp.data.sources import required, rows_of, text
from interp.files import write_atomically

REQUIRED = ("id", "language", "prompt")
OPTIONAL = ("answer", "concept")


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question in one language.

    Attributes:
        id: what the question is about, the same in every language ("capital-FR").
        language: BCP-47 code of the prompt's language.
        prompt: the text that the model continues.
        answer: the right answer in that language, if known.
        aliases: other spellings of the right answer that count as right.
        concept: the group that the question belongs to ("" if none).
    """

    id: str
    language: str
    prompt: str
    answer: str | None = None
    aliases: tuple[str, ...] = ()
    concept: str = ""


def read_queries(path: str | PathLike[str]) -> list[Query]:
    """All queries of a JSON Lines file (or JSON array).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a line is malformed (named by its number).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no query file {str(path)!r}; give the path of a .jsonl file")
    found: dict[tuple[str, str], tuple[str, Query]] = {}
    for where, row in rows_of(path):
        query = _parsed(row, where)
        first, same = found.setdefault((query.id, query.language), (where, query))
        if same is not query:
            raise ValueError(
                f"{where}: the id {reprlib.repr(query.id)} in language "
                f"{reprlib.repr(query.language)} stands already in {first}; ids must be unique "
                "within a language"
            )
    return [query for _, query in found.values()]


def write_queries(found: Iterable[Query], path: str | PathLike[str]) -> None:
    """Write queries as JSON Lines, UTF-8, one object a line, without empty optional fields."""
    lines = [
        json.dumps(
            {key: value for key, value in asdict(query).items() if value not in (None, "", ())},
            ensure_ascii=False,
        )
        for query in found
    ]
    written = "\n".join(lines) + "\n"
    write_atomically(Path(path), lambda scratch: scratch.write_text(written, encoding="utf-8"))


def _parsed(row: dict[str, Any], where: str) -> Query:
    for key in REQUIRED:
        text(required(row, key, where), where, key)
    for key in OPTIONAL:
        if row.get(key) not in (None, ""):
            text(row[key], where, key)
    aliases = [] if row.get("aliases") is None else row["aliases"]
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{where}: 'aliases' must be a list of texts")
    return Query(
        id=row["id"],
        language=row["language"],
        prompt=row["prompt"],
        answer=row.get("answer"),
        aliases=tuple(text(alias, where, "aliases") for alias in aliases),
        concept=row.get("concept") or "",
    )
