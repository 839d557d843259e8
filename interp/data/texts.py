"""Texts to train on, from JSON Lines or from queries with answers.

A line is `{"id": "capital-FR", "language": "de", "prompt": "…", "answer": "Paris"}`, as in files of
queries; `answer` alone is required. The other fields of `interp.data.corpus.Text`
may stand there too: `wording` and the same `id` make texts one sequence in several languages,
`subject`, `mention` and `object` say what MEMIT edits. With `"chat": true`, `system` or `messages`
(`interp.data.chat`) the prompt is a chat, and the answer an answer in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from interp.data.chat import Message, check_system, make_messages, make_turns, read_chat_fields
from interp.data.corpus import Text
from interp.data.facts import Fact, select_facts
from interp.data.filters import filter_languages, limit_per_language
from interp.data.queries import BUILT_IN, LINE_BREAK, READERS, queries
from interp.data.query import Query
from interp.data.row_readers import check_text as checked_text
from interp.data.row_readers import read_rows
from interp.data.templates import add_separator
from interp.data.trajectories import join_answer

_FIELDS = {field.name: field.type for field in fields(Text) if field.name != "messages"}


def load_texts(
    source: str | PathLike[str],
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    chat: bool = False,
    system: str | None = None,
) -> list[Text]:
    """Load texts of a file, of a built-in set of queries or of a data set.

    Args:
        source: the path of a `.jsonl` file, or a source of `interp.queries` whose queries have
            answers, such as `capitals` or `tofu:FILE`.
        languages: BCP-47 codes to keep; all if None.
        limit: at most this many per language, the first ones.
        chat: make a chat of every text with a prompt; see `change_text_form`.
        system: a system message before each chat.

    Raises:
        ValueError: no such source, a malformed line (named by file and line), a language that the
            source lacks, or a query without an answer.
    """
    name = str(source)
    if name in BUILT_IN or name.partition(":")[0] in READERS:
        texts = make_texts(queries(source, languages=languages, limit=limit))
        if name in BUILT_IN:
            facts = {fact.id: fact for fact in select_facts(BUILT_IN[name])}
            texts = [_name_subject(text, facts[text.id]) for text in texts]
    else:
        texts = limit_per_language(filter_languages(read_texts(name), languages, name), limit)
    return change_text_form(texts, chat=chat, system=system)


def _name_subject(text: Text, fact: Fact) -> Text:
    """Return the text of a fact with its subject, as it stands in the prompt, and its object."""
    code = text.language
    names = [fact.subject[code], *fact.forms.get(code, {}).values()]
    return replace(
        text,
        subject=fact.subject[code],
        mention=next((name for name in names if text.prompt.count(name) == 1), ""),
        object=fact.object[code],
    )


def change_text_form(
    texts: Iterable[Text], *, chat: bool = False, system: str | None = None
) -> list[Text]:
    """Return texts as chats: the prompt is a user's message, and the answer follows it.

    A text without a prompt answers nothing and stays as it is, with a warning; so does what is a
    chat already.

    Args:
        texts: the texts.
        chat: whether to do so.
        system: a system message before each chat that has none.

    Raises:
        ValueError: a system message where nothing is a chat.
    """
    texts = list(texts)
    if system is not None:
        check_system(system)
        if not chat and not any(text.messages for text in texts):
            raise ValueError("system is for chats, and nothing here is one: ask with chat, too")
    if chat and (bare := sum(not text.prompt.strip() for text in texts)):
        warnings.warn(
            f"{bare} of {len(texts)} texts have no prompt to answer: they are read as they are, "
            "and not as chats",
            stacklevel=3,
        )
    changed = []
    for text in texts:
        turns = text.messages
        if chat and not turns and text.prompt.strip():
            turns = make_turns(text.prompt)
        if turns and system is not None and turns[0].role != "system":
            turns = make_turns("", turns, system)
        answer = text.answer.strip() if turns else text.answer
        changed.append(replace(text, messages=turns, answer=answer))
    return changed


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
            answer=join_answer(query, query.answer or ""),
            messages=query.turns,
        )
        for query in queries
    ]


def make_query_of_text(text: Text, *, answer: str | None = None) -> Query:
    """Make a question of a text's prompt, or of its chat; a line break ends the answer to a prompt.

    Args:
        text: the text.
        answer: what is right; None if that does not matter.
    """
    return Query(
        id=text.id,
        language=text.language,
        prompt="" if text.messages else text.prompt,
        messages=text.messages,
        answer=answer,
        chat=bool(text.messages),
        stop=() if text.messages else LINE_BREAK,
    )


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
    try:
        turns = _read_turns(row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    given = {key: value for key, value in row.items() if key in _FIELDS and value not in (None, "")}
    if turns:
        given["prompt"] = turns[-1].content
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
    text = Text(**{**defaults, **given}, messages=turns)
    if turns:
        return replace(text, answer=text.answer.strip())
    return replace(text, answer=add_separator(text.prompt, text.answer, text.language))


def _read_turns(row: dict[str, Any]) -> tuple[Message, ...]:
    """Read the chat that a row's answer is an answer in; empty if it is none."""
    asked = read_chat_fields(row)
    messages = make_messages(asked["messages"]) if "messages" in asked else ()
    system, prompt = asked.get("system"), row.get("prompt") or ""
    if not messages and not asked.get("chat"):
        if system is not None:
            raise ValueError("system is for chats, and this is none: 'chat' must be true, too")
        return ()
    if messages and prompt not in ("", messages[-1].content):
        raise ValueError("'messages' stand in place of 'prompt': give one of the two")
    if system is not None:
        check_system(system)
        if messages and messages[0].role == "system":
            raise ValueError("system is given twice: beside the messages and in them")
    if not messages and not str(prompt).strip():
        raise ValueError("the prompt is empty: a chat needs a message to answer")
    return make_turns(prompt, messages, system)
