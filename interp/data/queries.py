"""What models are asked: queries, from JSON Lines or built in.

A line of a query file is
`{"id": "capital-FR", "language": "de", "prompt": "Frage: …\\nAntwort:", "answer": "Paris",
"concept": "capitals"}`; `id`, `language` and `prompt` are required. The prompt goes to the
tokenizer as it is, with the model's usual special tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from interp.data import facts

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
        concept: the group that the question belongs to ("" if none).
    """

    id: str
    language: str
    prompt: str
    answer: str | None = None
    concept: str = ""


def queries(
    source: str | PathLike[str],
    *,
    languages: Sequence[str] | None = None,
    ids: Iterable[str] | None = None,
    limit: int | None = None,
) -> list[Query]:
    """Queries from a built-in set or a JSON Lines file.

    Args:
        source: a built-in name (`capitals`) or the path of a `.jsonl` file.
        languages: BCP-47 codes to keep, in this order; all that the source has if None.
        ids: keep only these query ids; all if None.
        limit: at most this many queries per language, the first ones.

    Raises:
        ValueError: no such set or file, a malformed line (named by file and line), a language or
            id that the source does not have, two queries with the same id and language, or
            nothing left.
    """
    if str(source) in facts.BUILT_IN_QUERIES:
        rows = facts.queries_for(str(source), languages)
        found = [Query(**row) for row in rows]
    else:
        found = read_queries(source)
    found = _in_languages(found, languages, source)
    if ids is not None:
        wanted = set(ids)
        missing = wanted - {query.id for query in found}
        if missing:
            raise ValueError(f"{source} has no query with the id {sorted(missing)[0]!r}")
        found = [query for query in found if query.id in wanted]
    if limit is not None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1 query per language, not {limit}")
        rank: Counter[str] = Counter()
        kept = []
        for query in found:
            if rank[query.language] < limit:
                kept.append(query)
            rank[query.language] += 1
        found = kept
    return found


def read_queries(path: str | PathLike[str]) -> list[Query]:
    """All queries of a JSON Lines file.

    Raises:
        ValueError: the file is missing or empty, or a line is malformed (named by its number).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no query file {str(path)!r}; give the path of a .jsonl file or a built-in name "
            f"({', '.join(facts.BUILT_IN_QUERIES)})"
        )
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
            {key: value for key, value in asdict(query).items() if value not in (None, "")},
            ensure_ascii=False,
        )
        for query in found
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


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
    return Query(
        id=row["id"],
        language=row["language"],
        prompt=row["prompt"],
        answer=row.get("answer"),
        concept=row.get("concept") or "",
    )


def _in_languages(
    found: list[Query], languages: Sequence[str] | None, source: object
) -> list[Query]:
    if languages is None:
        return found
    available = list(dict.fromkeys(query.language for query in found))
    for code in languages:
        if code not in available:
            raise ValueError(
                f"{source} has no queries in the language {code!r}; it has {', '.join(available)}"
            )
    return [query for code in dict.fromkeys(languages) for query in found if query.language == code]
