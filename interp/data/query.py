"""Queries, and their files.

A line of a query file (JSON Lines) is
`{"id": "capital-FR", "language": "de", "prompt": "Frage: …\\nAntwort:", "answer": "Paris",
"aliases": ["Paname"], "concept": "capitals"}`; `id`, `language` and `prompt` are required. The
prompt goes to the tokenizer as it is, with the model's usual special tokens; with `"chat": true` it
is a user's message in the tokenizer's chat template (`system`, `messages` and `stop`: see
`interp.data.chat`). `"control": true` marks questions on what was to be kept. A JSON array, CSV,
TSV and Parquet with these fields as columns are read, too; in CSV and TSV, `aliases` is a JSON
list.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from interp.data.chat import (
    Message,
    check_system,
    list_fields,
    make_messages,
    make_stops,
    make_turns,
    read_chat_fields,
    read_flag,
)
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
        prompt: the text that the model continues; of a chat, the user's message that it answers.
        answer: the right answer in that language, if known.
        aliases: other spellings of the right answer that count as right.
        concept: the group that the question belongs to ("" if none).
        chat: whether it is asked in the chat template of the tokenizer.
        messages: a whole chat, in place of a prompt, which becomes its last message.
        system: a system message before the chat; None for none.
        stop: texts before which an answer ends; the end of turn ends those of a chat in any case.
        control: whether it asks for what was to be kept; see `interp.controls`.

    Raises:
        ValueError: messages that are no chat (`interp.data.chat.make_messages`), another prompt
            beside them, a system message without a chat or twice, or a stop that is empty.
    """

    id: str
    language: str
    prompt: str = ""
    answer: str | None = None
    aliases: tuple[str, ...] = ()
    concept: str = ""
    chat: bool = False
    messages: tuple[Message, ...] = ()
    system: str | None = None
    stop: tuple[str, ...] = ()
    control: bool = False

    def __post_init__(self) -> None:
        """Check how it is asked, and bring it into one form."""
        if not (self.chat or self.messages or self.stop or self.system is not None):
            return
        try:
            changes = self._check_chat()
        except ValueError as error:
            raise ValueError(f"{self.id} in {self.language!r}: {error}") from None
        for key, value in changes.items():
            object.__setattr__(self, key, value)

    @property
    def turns(self) -> tuple[Message, ...]:
        """The chat that is asked; nothing where the prompt is continued as it is."""
        return make_turns(self.prompt, self.messages, self.system) if self.chat else ()

    def _check_chat(self) -> dict[str, object]:
        """Return the fields as they must be."""
        changes: dict[str, object] = {"stop": make_stops(self.stop)}
        if self.messages:
            messages = make_messages(self.messages)
            if self.prompt not in ("", messages[-1].content):
                raise ValueError("messages stand in place of a prompt: give one of the two")
            changes |= {"messages": messages, "prompt": messages[-1].content, "chat": True}
            if self.system is not None and messages[0].role == "system":
                raise ValueError("system is given twice: beside the messages and in them")
        if self.system is not None:
            check_system(self.system)
            if not (self.chat or self.messages):
                raise ValueError("system is for chats, and this is none: ask with chat, too")
        if self.chat and not self.messages and not self.prompt.strip():
            raise ValueError("the prompt is empty: a chat needs a message to answer")
        return changes


def change_form(
    queries: Iterable[Query],
    *,
    chat: bool = False,
    system: str | None = None,
    stop: str | Sequence[str] | None = None,
) -> list[Query]:
    """Return queries that are asked in another form; what one says of itself stays.

    Args:
        queries: the queries.
        chat: ask all as chats.
        system: the system message of chats that have none.
        stop: a text, or several, before which answers end, of queries that have none. An empty
            text, or none at all, takes theirs from those that have some.

    Raises:
        ValueError: a system message where nothing is a chat, or one of several stops is empty.
    """
    queries = list(queries)
    if not chat and system is None and stop is None:
        return queries
    stops = () if stop is None else make_stops(stop)
    if system is not None:
        check_system(system)
        if not chat and not any(query.chat for query in queries):
            raise ValueError("system is for chats, and nothing here is one: ask with chat, too")
    changed = []
    for query in queries:
        own = query.stop if stop is None or stops else ()
        its = {"chat": query.chat or chat, "stop": own or stops, "system": query.system}
        if system is not None and its["chat"] and not any(m.role == "system" for m in query.turns):
            its["system"] = system
        changed.append(replace(query, **its))
    return changed


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
    lines = [json.dumps(_list_row(query), ensure_ascii=False) for query in queries]
    written = "\n".join(lines) + "\n"
    write_atomically(Path(path), lambda scratch: scratch.write_text(written, encoding="utf-8"))


def _list_row(query: Query) -> dict[str, Any]:
    row = {key: value for key, value in list_fields(query).items() if value not in (None, "", ())}
    # Messages say both.
    return {k: v for k, v in row.items() if not (query.messages and k in ("prompt", "chat"))}


def _parse_list(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _parse(row: dict[str, Any], where: str) -> Query:
    try:
        asked = read_chat_fields(row)
        control = read_flag(row, "control")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if "messages" in asked:
        if row.get("prompt") not in (None, ""):
            raise ValueError(f"{where}: 'messages' stand in place of 'prompt': give one of the two")
        if asked.get("chat") is False:
            raise ValueError(f"{where}: 'messages' are a chat, and 'chat' is false")
    for key in REQUIRED:
        if key == "prompt" and "messages" in asked:
            continue
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
    fields = {
        "id": row["id"],
        "language": row["language"],
        "prompt": row.get("prompt") or "",
        "answer": row.get("answer"),
        "aliases": tuple(check_text(alias, where, "aliases") for alias in aliases),
        "concept": row.get("concept") or "",
        "control": control,
    }
    try:
        return Query(**fields, **asked)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
