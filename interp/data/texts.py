"""Texts to train on, from JSON Lines or from queries with answers.

A line is `{"id": "capital-FR", "language": "de", "prompt": "…", "answer": "Paris"}`, as in files of
queries; `answer` alone is required. The other fields of `interp.data.corpus.Text`
may stand there too: `wording` and the same `id` make texts one sequence in several languages,
`subject`, `mention` and `object` say what MEMIT edits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path

from interp.data.corpus import Text
from interp.data.queries import BUILT_IN, READERS, queries
from interp.data.templates import template_languages, templates

_FIELDS = {field.name: field.type for field in fields(Text)}


def texts(
    source: str | PathLike[str],
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[Text]:
    """Texts of a file, of a built-in set of queries or of a data set.

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
        asked = queries(source, languages=languages, limit=limit)
        for query in asked:
            if not query.answer:
                raise ValueError(f"{query.id} in {query.language!r} has no answer to train on")
        return [
            Text(
                id=query.id,
                language=query.language,
                kind=query.concept,
                prompt=query.prompt,
                answer=_joined(query.prompt, query.answer or "", query.language),
            )
            for query in asked
        ]
    found = read_texts(name)
    if languages is not None:
        there = dict.fromkeys(text.language for text in found)
        for code in languages:
            if code not in there:
                raise ValueError(
                    f"{name} has no texts in the language {code!r}; it has {', '.join(there)}"
                )
        found = [text for code in languages for text in found if text.language == code]
    if limit is None:
        return found
    if limit < 1:
        raise ValueError(f"limit must be at least 1 text per language, not {limit}")
    counts: dict[str, int] = {}
    kept = []
    for text in found:
        counts[text.language] = counts.get(text.language, 0) + 1
        if counts[text.language] <= limit:
            kept.append(text)
    return kept


def read_texts(path: str | PathLike[str]) -> list[Text]:
    """All texts of a JSON Lines file; fields that a text does not have are passed over.

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
    found = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                found.append(_parsed(line, f"{path}, line {number}", number))
    if not found:
        raise ValueError(f"{path} holds no texts; give at least one JSON line")
    return found


def _parsed(line: str, where: str, number: int) -> Text:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON object is needed, not {type(row).__name__}")
    given = {key: value for key, value in row.items() if key in _FIELDS and value is not None}
    for key, value in given.items():
        wanted = int if key == "wording" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = "a whole number" if wanted is int else "text"
            raise ValueError(f"{where}: {key!r} must be {kind}, not {type(value).__name__}")
    if not given.get("answer", "").strip():
        raise ValueError(f"{where}: the field 'answer' is missing or empty")
    defaults = {"id": f"line-{number}", "language": "", "kind": "", "prompt": ""}
    text = Text(**{**defaults, **given})
    return replace(text, answer=_joined(text.prompt, text.answer, text.language))


def _joined(prompt: str, answer: str, language: str) -> str:
    """The answer as it follows the prompt: after the language's separator, unless it has one."""
    if not prompt or prompt[-1].isspace() or answer[0].isspace():
        return answer
    space = templates(language).separator if language in template_languages() else " "
    return space + answer
