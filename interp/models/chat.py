"""Chat templates: a chat as the token ids that a model was trained on, and what ends its turns.

1. The tokenizer's own template writes the turns, up to where the next answer begins. Where the
   template takes a setting for thinking (`enable_thinking` and the like), thinking is off.
2. The text becomes token ids without further special tokens: the template has written them.
3. What the template writes behind an answer ends the answers of a chat, beside the end tokens of
   the generation configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from types import MappingProxyType
from typing import Any, cast

from jinja2 import Environment, TemplateSyntaxError, meta

from interp.models.gguf import summarize_error
from interp.models.language_model import LanguageModel

Turn = Mapping[str, str]
"""`role` (system, user or assistant) and `content`."""

DATE = date(2024, 7, 26)
"""Today, for templates that write it: prompts do not change overnight. Llama 3.1's own default."""

_THINKING_OFF: Mapping[str, object] = MappingProxyType(
    {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
)
"""Variables of templates that turn thinking off, and the values that do."""

_EFFORT = "reasoning_effort"

_THOUGHTS = re.compile(r"<(?:seed:)?think(?:ing)?>|\[THINK\]|<\|channel\|>analysis")
"""What begins thoughts."""

_GENERATION_TAG = re.compile(r"{%[-+]?\s*(?:end)?generation\s*[-+]?%}")
"""A tag of transformers' own, which says where answers stand."""

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
"""A call for today's date in some form, in a template."""

_QUESTION, _ANSWER = "question-one", "answer-one"

_ADVICE = "mend the template, or ask without a chat"


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """What a template writes around an answer.

    Attributes:
        before_answer: text between the prompt's end and the answer, such as Llama-2's space.
        end_of_turn: text that closes the answer, up to its special token; "" if it has none.
        end_token_ids: the id of that special token, if there is one.
    """

    before_answer: str
    end_of_turn: str
    end_token_ids: frozenset[int]


def render_chat(model: LanguageModel, turns: Sequence[Turn], *, advice: str = _ADVICE) -> str:
    """Write turns in a model's chat template, up to where the next answer begins.

    Args:
        model: the model.
        turns: the last of them is a user's.
        advice: what to do where the template fails, for the error.

    Raises:
        ValueError: the model has no chat template, or one that cannot write these turns or leaves
            some out.
    """
    text = _render(model, turns, advice=advice, add_generation_prompt=True)
    for turn in (turns[0], turns[-1]):
        if turn["role"] != "assistant" and turn["content"].strip() not in text:
            raise ValueError(
                f"the chat template of {model.name} leaves out a {turn['role']}'s message: {advice}"
            )
    template = get_template(model)
    if _TODAY.search(template):
        model.warn_once(
            f"the chat template of {model.name} writes today's date: {DATE:%d %b %Y} stands there "
            "every day, so that prompts stay as they are"
        )
    if _thinks(template, text):
        model.warn_once(
            f"the chat template of {model.name} has no setting that turns thinking off: answers "
            "may begin with thoughts"
        )
    return text


def encode_chat(
    model: LanguageModel, turns: Sequence[Turn], answer: str | None = None, *, ends: bool = False
) -> tuple[int, ...]:
    """Encode a chat as token ids, special tokens as the template has them and no others.

    Without an answer they equal `tokenizer.apply_chat_template(turns, add_generation_prompt=True)`
    (with thinking off, where the template can).

    Args:
        model: the model.
        turns: the last of them is a user's.
        answer: a text to follow, as the template writes an answer.
        ends: whether the end of turn follows the answer.

    Raises:
        ValueError: what `render_chat` raises, or a token beyond the model's vocabulary.
    """
    text = render_chat(model, turns)
    if answer is not None:
        chat_format = find_chat_format(model)
        text += chat_format.before_answer + answer + (chat_format.end_of_turn if ends else "")
    encoded: Any = model.tokenizer(text, add_special_tokens=False)
    token_ids = tuple(encoded["input_ids"])
    model.check_token_ids(token_ids)
    return token_ids


def find_chat_format(model: LanguageModel) -> ChatFormat:
    """Find what a model's template writes around an answer.

    Raises:
        ValueError: the model has no chat template, or one that cannot write a user's message.
    """
    key = get_template(model), repr(model.tokenizer.special_tokens_map)
    if key not in model.chat_formats:
        model.chat_formats[key] = _find_chat_format(model)
    return cast(ChatFormat, model.chat_formats[key])


def _find_chat_format(model: LanguageModel) -> ChatFormat:
    turns = [{"role": "user", "content": _QUESTION}]
    prompt = _render(model, turns, add_generation_prompt=True)
    answered = [*turns, {"role": "assistant", "content": _ANSWER}]
    try:
        whole = _render(model, answered, add_generation_prompt=False)
    except ValueError:
        # Some templates are for one turn.
        whole = ""
    head, _, tail = whole.rpartition(_ANSWER)
    closing = [
        token for token in list_special_tokens(model) if token and tail.lstrip().startswith(token)
    ]
    end = max(closing, key=len, default="")
    tokenizer: Any = model.tokenizer
    return ChatFormat(
        before_answer=head.removeprefix(prompt) if head.startswith(prompt) else "",
        end_of_turn=tail[: tail.index(end) + len(end)] if end else "",
        end_token_ids=frozenset({tokenizer.convert_tokens_to_ids(end)} if end else ()),
    )


def compute_template_hash(model: LanguageModel) -> str:
    """Hash all that a chat's prompt and its end depend on beside the tokenizer (SHA-256).

    Raises:
        ValueError: the model has no chat template.
    """
    template = get_template(model)
    dated = _TODAY.sub(_write_date, template)
    ends = sorted(find_chat_format(model).end_token_ids)
    written = json.dumps([dated, _list_settings(template), ends], sort_keys=True)
    return hashlib.sha256(written.encode("utf-8", "surrogatepass")).hexdigest()


def get_template(model: LanguageModel) -> str:
    """Return the text of a model's chat template.

    Raises:
        ValueError: it has none.
    """
    template = getattr(model.tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    if not template:
        raise ValueError(
            f"{model.name} has no chat template: ask a model that was trained on chats, or without "
            "a chat"
        )
    return str(template)


def list_special_tokens(model: LanguageModel) -> set[str]:
    """List the special tokens of a model's tokenizer that are not blank."""
    tokenizer = model.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    return {token for token in tokens if token.strip()}


def _render(
    model: LanguageModel,
    turns: Sequence[Turn],
    *,
    advice: str = _ADVICE,
    add_generation_prompt: bool,
) -> str:
    template = get_template(model)
    messages = [dict(turn) for turn in turns]
    try:
        settings: Any = _list_settings(template)
        return str(
            model.tokenizer.apply_chat_template(
                messages,
                chat_template=_TODAY.sub(_write_date, template),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **settings,
            )
        )
    except Exception as error:
        # A template is a program, which may fail in any way.
        roles = [turn["role"] for turn in turns]
        role = roles[-1]
        if roles[0] == "system" and len(roles) > 1 and _can_render(model, messages[1:]):
            role, advice = "system", "leave the system message out, or put it into the prompt"
        raise ValueError(
            f"the chat template of {model.name} cannot write a {role}'s message "
            f"({summarize_error(error)}): {advice}"
        ) from error


def _can_render(model: LanguageModel, messages: list[dict[str, str]]) -> bool:
    try:
        _render(model, messages, add_generation_prompt=True)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=32)
def _list_variables(template: str) -> frozenset[str]:
    """List the variables that a template reads."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return frozenset(
            meta.find_undeclared_variables(environment.parse(_GENERATION_TAG.sub("", template)))
        )
    except (TemplateSyntaxError, RecursionError):
        # Rendering says what is wrong with it.
        return frozenset()


def _list_settings(template: str) -> dict[str, object]:
    """List the variables that a template is given: those that turn thinking off."""
    variables = _list_variables(template)
    settings = {name: value for name, value in _THINKING_OFF.items() if name in variables}
    if _EFFORT in variables:
        can_be_off = re.search(r"""(["'])none\1""", template)
        settings[_EFFORT] = "none" if can_be_off else "low"
    return settings


def _write_date(call: re.Match[str]) -> str:
    """Return a text in the place of a call for today's date."""
    return json.dumps(DATE.strftime(call[2]))


def _thinks(template: str, prompt: str) -> bool:
    """Return whether a model may think before it answers a prompt that its template wrote."""
    starts = list(_THOUGHTS.finditer(template))
    settings = _list_settings(template)
    off = {*_THINKING_OFF} & {*settings} or settings.get(_EFFORT) == "none"
    opened = prompt.rstrip().endswith(tuple(start[0] for start in starts)) if starts else False
    return opened or (not off and (bool(starts) or _EFFORT in settings))
