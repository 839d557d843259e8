"""A query, and files of queries in JSON Lines.

A line of a query file is
`{"id": "capital-FR", "language": "de", "prompt": "Frage: …\\nAntwort:", "answer": "Paris",
"aliases": ["Paname"], "concept": "capitals"}`; `id`, `language` and `prompt` are required. The
prompt goes to the tokenizer as it is, with the model's usual special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

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
    """All queries of a JSON Lines file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a line is malformed (named by its number).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no query file {str(path)!r}; give the path of a .jsonl file")
    found: list[Query] = []
    seen: dict[tuple[str, str], int] = {}
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            query = _parse_line(raw, f"{path}, line {number}")
            first = seen.setdefault((query.id, query.language), number)
            if first != number:
                raise ValueError(
                    f"{path}, line {number}: the id {query.id!r} in language {query.language!r} "
                    f"stands already on line {first}; ids must be unique within a language"
                )
            found.append(query)
    if not found:
        raise ValueError(f"{path} holds no queries; give at least one JSON line")
    return found


def write_queries(found: Iterable[Query], path: str | PathLike[str]) -> None:
    """Write queries as JSON Lines, UTF-8, one object a line, without empty optional fields."""
    lines = [
        json.dumps(
            {key: value for key, value in asdict(query).items() if value not in (None, "", ())},
            ensure_ascii=False,
        )
        for query in found
    ]
    text = "\n".join(lines) + "\n"
    write_atomically(Path(path), lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _parse_line(raw: bytes, where: str) -> Query:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON object is needed, not {type(row).__name__}")
    for key in REQUIRED:
        if key not in row:
            raise ValueError(f"{where}: the field {key!r} is missing")
    for key in (*REQUIRED, *OPTIONAL):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: {key!r} must be text, not {type(value).__name__}")
    for key in REQUIRED:
        if not (row[key] or "").strip():
            raise ValueError(f"{where}: {key!r} is empty")
    aliases = row.get("aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{where}: 'aliases' must be a list of texts")
    return Query(
        id=row["id"],
        language=row["language"],
        prompt=row["prompt"],
        answer=row.get("answer"),
        aliases=tuple(aliases),
        concept=row.get("concept") or "",
    )
