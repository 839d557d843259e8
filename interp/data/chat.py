"""Chats: messages, their checks, and the fields of queries and texts that say how one is asked.

| field | means |
|---|---|
| `chat` | the prompt is a user's message, in the chat template of the tokenizer |
| `system` | a system message before it |
| `messages` | a whole chat, `[{"role": "user", "content": …}, …]`, in place of a prompt |
| `stop` | a text, or several, before which an answer ends |
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

ROLES = ("system", "user", "assistant")

FIELDS: Mapping[str, object] = MappingProxyType(
    {"chat": False, "messages": (), "system": None, "stop": ()}
)
"""Fields that say how something is asked, and what they are where nothing is said."""

_YES_OR_NO = {"true": True, "false": False, "1": True, "0": False, "": False}


@dataclass(frozen=True, kw_only=True)
class Message:
    """Message of a chat.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: its text.
    """

    role: str
    content: str


def make_messages(given: Any) -> tuple[Message, ...]:
    """Make messages of what a person gave: objects with a role and a content each.

    Raises:
        ValueError: it is something else; an unknown role, an empty message, roles that do not
            alternate; or the last message is not a user's.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence) or not given:
        raise ValueError(
            'messages must be a list such as [{"role": "user", "content": "…"}], not '
            f"{reprlib.repr(given)}"
        )
    messages = tuple(_make_message(item, number) for number, item in enumerate(given, start=1))
    first = 1 if messages[0].role == "system" else 0
    for number, message in enumerate(messages[first:], start=first):
        due = ("user", "assistant")[(number - first) % 2]
        if message.role != due:
            raise ValueError(
                f"message {number + 1} has the role {message.role!r} where {due!r} is due: the "
                "roles user and assistant alternate, a system message may come first"
            )
    if messages[-1].role != "user":
        raise ValueError(
            f"the last message has the role {messages[-1].role!r}: it must be a user's, which is "
            "answered"
        )
    return messages


def make_turns(
    prompt: str, messages: Sequence[Message] = (), system: str | None = None
) -> tuple[Message, ...]:
    """Make the chat that a prompt, or messages, and a system message are."""
    turns = tuple(messages) or (Message(role="user", content=prompt),)
    return turns if system is None else (Message(role="system", content=system), *turns)


def make_stops(given: Any) -> tuple[str, ...]:
    """Make a tuple of stops: one text, or several; none of the empty text.

    Raises:
        ValueError: one of several is empty, or one is no text or cannot be encoded.
    """
    stops = (given,) if isinstance(given, str) else tuple(given)
    if stops == ("",):
        return ()
    for stop in stops:
        if not isinstance(stop, str) or not stop or not _is_encodable(stop):
            raise ValueError(f"a stop must be a text that is not empty, not {reprlib.repr(stop)}")
    return stops


def check_system(system: Any) -> None:
    """Raise ValueError unless a system message is a text that is not empty."""
    if not isinstance(system, str) or not system.strip() or not _is_encodable(system):
        raise ValueError(f"system must be a text that is not empty, not {reprlib.repr(system)}")


def list_fields(item: Any) -> dict[str, Any]:
    """List the fields of a query or a text, without those of `FIELDS` that say nothing.

    So what is no chat, has no stops and is no control is known by what it was always known by.
    """
    fields = asdict(item)
    unsaid: Mapping[str, object] = {**FIELDS, "control": False}
    return {
        key: value
        for key, value in fields.items()
        if key not in unsaid or value not in (unsaid[key], [])
    }


def list_chat_fields(item: Any, *, control: bool = False) -> dict[str, Any]:
    """List those of `FIELDS` that say something of a query or a text; also `control` if wanted."""
    wanted = (*FIELDS, "control") if control else FIELDS
    return {key: value for key, value in list_fields(item).items() if key in wanted}


def read_chat_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Read `FIELDS` of a row of a file; in a table, lists are JSON, and `chat` is true or false.

    Raises:
        ValueError: one is not what it must be.
    """
    given = {key: row[key] for key in FIELDS if row.get(key) not in (None, "")}
    if "chat" in given:
        given["chat"] = read_flag(row, "chat")
    for key in ("messages", "stop"):
        if isinstance(given.get(key), str) and given[key].lstrip().startswith("["):
            given[key] = _parse_json(given[key])
    if given.get("messages") == []:
        del given["messages"]
    if not isinstance(given.get("stop", ""), str | list):
        raise ValueError(
            f"'stop' must be a text or a list of texts, not {reprlib.repr(given['stop'])}"
        )
    return given


def read_flag(row: Mapping[str, Any], key: str) -> bool:
    """Read a field of a row of a file that is true or false; false where it is not there.

    Raises:
        ValueError: it is neither.
    """
    given = row.get(key)
    if isinstance(given, str):
        given = _YES_OR_NO.get(given.strip().lower(), given)
    if not isinstance(given, bool | None):
        raise ValueError(f"{key!r} must be true or false, not {reprlib.repr(given)}")
    return bool(given)


def _make_message(given: Any, number: int) -> Message:
    fields = asdict(given) if isinstance(given, Message) else given
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"message {number} must have a role and a content, not be {reprlib.repr(given)}"
        )
    # Tables have a cell for every field of any message.
    fields = {key: value for key, value in fields.items() if value is not None}
    for key in fields:
        if key not in ("role", "content"):
            raise ValueError(
                f"message {number} has the field {reprlib.repr(key)}: role and content are read, "
                "and no others"
            )
    role, content = fields.get("role"), fields.get("content")
    if role not in ROLES:
        raise ValueError(
            f"message {number} has the role {reprlib.repr(role)}; valid: {', '.join(ROLES)}"
        )
    if content is not None and not isinstance(content, str):
        raise ValueError(
            f"the content of message {number} must be a text, not {type(content).__name__}"
        )
    if not (content or "").strip():
        raise ValueError(f"message {number} is empty: give it a content")
    if not _is_encodable(content or ""):
        raise ValueError(f"message {number} holds half of a surrogate pair")
    return Message(role=str(role), content=str(content))


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
