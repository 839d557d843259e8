"""Queries that are chats: read, checked, written, and known by what they were always known by."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import interp
from interp import Query
from interp.data import Message, change_form, read_queries, write_queries
from interp.data.chat import list_fields

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
ASKED = {"role": "user", "content": "Hauptstadt?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def ask(**fields) -> Query:
    return Query(id="q", language="de", **fields)


def as_messages(*given: dict[str, str]) -> tuple[Message, ...]:
    return tuple(Message(**each) for each in given)


def test_what_is_asked():
    assert ask(prompt="Hi").turns == ()
    assert ask(prompt="Hi", chat=True).turns == as_messages(USER)
    assert ask(prompt="Hi", chat=True, system="Be brief.").turns == as_messages(SYSTEM, USER)
    query = ask(messages=[USER, REPLY, ASKED], system="Be brief.")
    assert query.turns == as_messages(SYSTEM, USER, REPLY, ASKED)
    assert (query.prompt, query.chat) == ("Hauptstadt?", True)
    assert ask(prompt="Hi", stop="\n").stop == ("\n",)
    # Queries are keys of dictionaries.
    assert len({query, ask(messages=[USER, REPLY, ASKED], system="Be brief.")}) == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            "message 1 has the role 'bot'; valid: ",
        ),
        ({"messages": [USER, ASKED]}, "message 2 has the role 'user' where 'assistant' is due"),
        ({"messages": [REPLY, USER]}, "message 1 has the role 'assistant' where 'user' is due"),
        ({"messages": [USER, SYSTEM]}, "message 2 has the role 'system' where 'assistant' is due"),
        ({"messages": [USER, REPLY]}, "the last message has the role 'assistant': it must be a us"),
        ({"messages": [SYSTEM]}, "the last message has the role 'system': it must be a user's"),
        ({"messages": [{"role": "user", "content": " "}]}, "message 1 is empty: give it a content"),
        ({"messages": [{"role": "user"}]}, "message 1 is empty"),
        ({"messages": [USER | {"name": "x"}]}, "message 1 has the field 'name': role and content"),
        (
            {"messages": [{"role": "user", "content": ["x"]}]},
            "1 must be a text, not list",
        ),
        ({"messages": ["Hi"]}, "message 1 must have a role and a content, not be 'Hi'"),
        ({"messages": "Hi"}, "messages must be a list such as"),
        ({"messages": [USER], "prompt": "Ho"}, "messages stand in place of a prompt: give one"),
        ({"messages": [SYSTEM, USER], "system": "x"}, "system is given twice"),
        ({"prompt": "Hi", "system": "x"}, "system is for chats"),
        ({"prompt": "Hi", "chat": True, "system": " "}, "system must be a text that is not empty"),
        ({"prompt": " ", "chat": True}, "the prompt is empty: a chat needs a message"),
        ({"prompt": "Hi", "stop": ["\n", ""]}, "a stop must be a text that is not empty, not ''"),
        ({"prompt": "Hi", "stop": [3]}, "a stop must be a text that is not empty, not 3"),
    ],
)
def test_what_is_refused(fields, says, tmp_path):
    with pytest.raises(ValueError, match=f"^q in 'de': .*{says}"):
        ask(**fields)
    file = tmp_path / "queries.jsonl"
    file.write_text(json.dumps({"id": "q", "language": "de", **fields}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"queries\.jsonl, line 1: ") as caught:
        read_queries(file)
    assert "\n" not in str(caught.value)


QUERIES = [
    ask(prompt="Hi"),
    Query(id="chat", language="de", prompt="Hi", chat=True, answer="Hello.", stop=("\n", "Frage:")),
    Query(id="system", language="de", prompt="Hi", chat=True, system="Be brief."),
    Query(
        id="turns",
        language="de",
        messages=as_messages(SYSTEM, USER, REPLY, ASKED),
        aliases=("Paname",),
    ),
    Query(id="stop", language="de", prompt="Hi", stop=("[", "]")),
]


def test_files_keep_it(tmp_path):
    file = tmp_path / "queries.jsonl"
    write_queries(QUERIES, file)
    assert read_queries(file) == QUERIES
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    # As it was before there were chats.
    assert rows[0] == {"id": "q", "language": "de", "prompt": "Hi"}
    assert rows[3]["messages"] == [SYSTEM, USER, REPLY, ASKED]
    assert "prompt" not in rows[3]
    # The same in tables.
    cells = [
        {k: json.dumps(v) if isinstance(v, list | bool) else v for k, v in row.items()}
        for row in rows
    ]
    pd.DataFrame(cells).to_csv(tmp_path / "queries.csv", index=False)
    assert read_queries(tmp_path / "queries.csv") == QUERIES
    pd.DataFrame(rows).to_parquet(tmp_path / "queries.parquet")
    assert read_queries(tmp_path / "queries.parquet") == QUERIES


def test_a_stop_in_a_table_may_be_a_plain_text(tmp_path):
    file = tmp_path / "queries.csv"
    file.write_text(
        'id,language,prompt,stop,chat\na,de,Hi,".",true\nb,de,Hi,[,\n', encoding="utf-8"
    )
    first, second = read_queries(file)
    assert (first.stop, first.chat) == ((".",), True)
    assert (second.stop, second.chat) == (("[",), False)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Hi", "chat": "maybe"}, "'chat' must be true or false, not 'maybe'"),
        ({"prompt": "Hi", "stop": 3}, "'stop' must be a text or a list of texts, not 3"),
        ({"prompt": "Ho", "messages": [USER]}, "'messages' stand in place of 'prompt'"),
        ({"chat": False, "messages": [USER]}, "'messages' are a chat, and 'chat' is false"),
        ({"chat": True}, "the field 'prompt' is missing"),
        ({"messages": "Hi"}, "messages must be a list such as"),
    ],
)
def test_files_that_are_wrong(row, says, tmp_path):
    file = tmp_path / "queries.jsonl"
    file.write_text(json.dumps({"id": "q", "language": "de", **row}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"line 1: .*{says}"):
        read_queries(file)


def test_another_form():
    changed = change_form(QUERIES, chat=True, system="Sag es kurz.", stop="\n")
    assert all(query.chat for query in changed)
    # What a query says of itself stays.
    assert [query.stop for query in changed] == [
        ("\n",),
        ("\n", "Frage:"),
        ("\n",),
        ("\n",),
        ("[", "]"),
    ]
    assert [query.turns[0].content for query in changed] == [
        *("Sag es kurz.", "Sag es kurz.", "Be brief.", "Be brief.", "Sag es kurz.")
    ]
    assert change_form(QUERIES) == QUERIES
    with pytest.raises(ValueError, match="system is for chats, and nothing here is one"):
        change_form(QUERIES[:1], system="Be brief.")


def test_built_in_queries_as_chats():
    (query,) = interp.queries("capitals", languages=["en"], limit=1, chat=True, stop=["\n"])
    (plain,) = interp.queries("capitals", languages=["en"], limit=1)
    assert query.turns == (Message(role="user", content=plain.prompt),)
    assert (plain.chat, plain.stop, query.stop) == (False, ("\n",), ("\n",))
    # The end of turn ends a chat: an answer may have several lines.
    (bare,) = interp.queries("capitals", languages=["en"], limit=1, chat=True)
    assert bare.stop == ()


def test_fields_are_what_they_were():
    """Run directories, reports and caches of earlier versions know queries by these."""
    query = ask(prompt="Hi", answer="Hello.", aliases=("Hey",))
    assert list(list_fields(query).items()) == [
        ("id", "q"),
        ("language", "de"),
        ("prompt", "Hi"),
        ("answer", "Hello."),
        ("aliases", ("Hey",)),
        ("concept", ""),
    ]
    assert list_fields(ask(prompt="Hi", stop="."))["stop"] == (".",)
