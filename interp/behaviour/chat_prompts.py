"""Prompts to chat models that quote what other models wrote.

A quoted text may hold what opens or closes a turn of the chat (`<|im_end|>`), or the tag that ends
the quotation (`</reply>`). Such marks are broken up by a space behind their first character, so
that no tokenizer reads a special token in them; a text without marks stays as it is.

Marks are the special tokens of a model that is loaded here, what its chat template writes between
the turns, and those that are in wide use, as nobody can tell what the tokenizer behind an endpoint
takes for special.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from interp.models.chat import list_special_tokens
from interp.models.chat import render_chat as render
from interp.models.language_model import LanguageModel

TAGS = ("question", "answer", "reference", "reply")
"""Tags between which a prompt quotes."""

_TAG = re.compile(rf"</?(?:{'|'.join(TAGS)})\s*/?>", re.IGNORECASE)

_IN_WIDE_USE = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>"  # <|im_end|>, <|eot_id|>, DeepSeek's
    r"|<(?:start|end)_of_(?:turn|text)>"
    r"|</?(?:s|bos|eos|pad|turn)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]"
    r"|<</?SYS>>"
)

_MOST_PASSES = 8


def break_marks(text: str, marks: Sequence[str] = ()) -> str:
    """Break up what could end a quotation or a turn in a text.

    Args:
        text: a text that a prompt quotes.
        marks: see `list_marks`; the tags and the marks in wide use are broken up in any case.
    """
    for _ in range(_MOST_PASSES):
        broken = _IN_WIDE_USE.sub(_break, _TAG.sub(_break, text))
        for mark in marks:
            broken = broken.replace(mark, _break_mark(mark))
        # One mark may overlap another.
        if broken == text:
            break
        text = broken
    return text


def list_marks(model: LanguageModel) -> list[str]:
    """List a chat model's special tokens and what its template writes between turns, longest first.

    Raises:
        ValueError: the model has no chat template, or one that cannot be used.
    """
    special = list_special_tokens(model)
    contents = ("turn-one", "turn-two", "turn-three")
    roles = ("user", "assistant", "user")
    chats = [contents[:1], contents]
    written = ""
    for chat in chats:
        turns = [{"role": role, "content": text} for role, text in zip(roles, chat, strict=False)]
        try:
            # What stands before the first turn may be instructions in plain words.
            written += render_chat(model, turns).partition(contents[0])[2]
        except ValueError:
            # Some templates are for one turn.
            if chat is chats[0]:
                raise
    for text in (*special, *contents):
        written = written.replace(text, " ")
    between = {word for word in written.split() if len(word) > 1 and not word.isalnum()}
    return sorted({*special, *between}, key=lambda mark: (-len(mark), mark))


def holds_special_tokens(model: LanguageModel, text: str) -> bool:
    """Return whether a model's tokenizer reads a special token in a text."""
    tokenizer: Any = model.tokenizer
    special = list_special_tokens(model)
    # Ordinary letters may be unknown.
    special -= {tokenizer.unk_token} - {tokenizer.bos_token, tokenizer.eos_token}
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return not special.isdisjoint(tokenizer.convert_ids_to_tokens(token_ids))


def write_prompt(model: LanguageModel, message: str) -> str:
    """Write a user's message in a model's chat template, up to where the reply begins.

    Without the token that begins every text, if the tokenizer adds that by itself.

    Raises:
        ValueError: the model has no chat template, or one that cannot be used.
    """
    written = render_chat(model, [{"role": "user", "content": message}])
    begins = model.encode("")[:1] == (model.tokenizer.bos_token_id,)
    return written.removeprefix(str(model.tokenizer.bos_token)) if begins else written


def render_chat(model: LanguageModel, chat: Sequence[dict[str, str]]) -> str:
    """Write turns in a model's chat template, up to where the next reply begins.

    Raises:
        ValueError: the model has no chat template, or one that cannot be used.
    """
    if not model.tokenizer.chat_template:
        raise ValueError(
            f"{model.name} has no chat template: a judge must be a chat model, or an endpoint"
        )
    return render(model, chat, advice="mend the template, or take another judge")


def _break(match: re.Match[str]) -> str:
    return _break_mark(match[0])


def _break_mark(mark: str) -> str:
    return f"{mark[0]} {mark[1:]}" if len(mark) > 1 else " "
