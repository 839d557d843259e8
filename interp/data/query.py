"""Queries, and their files.

A line of a query file (JSON Lines) is
`{"id": "capital-FR", "language": "de", "prompt": "Frage: …\\nAntwort:", "answer": "Paris",
"aliases": ["Paname"], "concept": "capitals"}`; `id`, `language` and `prompt` are required. The
prompt goes to the tokenizer as it is, with the model's usual special tokens. A JSON array, CSV, TSV
and Parquet with these fields as columns are read, too; in CSV and TSV, `aliases` is a JSON list.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from interp.data.row_readers import check_text, read_rows, require_field
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


def list_questions(given: Any, argument: str, *kinds: type) -> list[Any]:
    """Return questions as a list: of an iterator too, and one alone as a list of one.

    Args:
        given: what a person gave.
        argument: what it is called.
        kinds: what questions may be, such as `Query`.

    Raises:
        TypeError: something in it is no question.
        ValueError: there is none.
    """
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if isinstance(given, kinds):
        return [given]
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{argument} must be a list of {wanted}, not {type(given).__name__}")
    items = list(given)
    for number, item in enumerate(items):
        if not isinstance(item, kinds):
            hint = ": Query(id=…, language=…, prompt=text) makes a question of a text"
            raise TypeError(
                f"{argument} must be a list of {wanted}, and item {number} is a "
                f"{type(item).__name__}{hint if isinstance(item, str) else ''}"
            )
    if not items:
        raise ValueError("no queries: give at least one")
    return items


def read_queries(path: str | PathLike[str]) -> list[Query]:
    """Read all queries of a file: JSON Lines, a JSON array, or a table (CSV, TSV, Parquet).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a line is malformed (named by its number).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no query file {str(path)!r}; give the path of a .jsonl or .csv file"
        )
    queries: dict[tuple[str, str], tuple[str, Query]] = {}
    for where, row in read_rows(path):
        query = _parse(row, where)
        first, same = queries.setdefault((query.id, query.language), (where, query))
        if same is not query:
            raise ValueError(
                f"{where}: duplicate id {reprlib.repr(query.id)} in language "
                f"{reprlib.repr(query.language)} (first in {first}); ids must be unique within a "
                "language"
            )
    return [query for _, query in queries.values()]


def write_queries(queries: Iterable[Query], path: str | PathLike[str]) -> None:
    """Write queries as JSON Lines, UTF-8, one object a line, without empty optional fields."""
    lines = [
        json.dumps(
            {key: value for key, value in asdict(query).items() if value not in (None, "", ())},
            ensure_ascii=False,
        )
        for query in queries
    ]
    written = "\n".join(lines) + "\n"
    write_atomically(Path(path), lambda scratch: scratch.write_text(written, encoding="utf-8"))


def _parse_list(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _parse(row: dict[str, Any], where: str) -> Query:
    for key in REQUIRED:
        check_text(require_field(row, key, where), where, key)
    for key in OPTIONAL:
        if row.get(key) not in (None, ""):
            check_text(row[key], where, key)
    aliases = [] if row.get("aliases") is None else row["aliases"]
    if isinstance(aliases, str) and aliases.lstrip().startswith("["):
        # A cell of a table holds a JSON list.
        aliases = _parse_list(aliases)
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{where}: 'aliases' must be a list of texts (in a table, a JSON list)")
    return Query(
        id=row["id"],
        language=row["language"],
        prompt=row["prompt"],
        answer=row.get("answer"),
        aliases=tuple(check_text(alias, where, "aliases") for alias in aliases),
        concept=row.get("concept") or "",
    )
