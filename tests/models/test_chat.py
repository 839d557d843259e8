"""Chats: the tokenizer's own token ids, what ends a turn, thinking off, and what is refused."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

import interp
from interp import Query
from interp.models import encode_chat, find_chat_format
from interp.models.chat import compute_template_hash
from tests.helpers.chat_models import (
    GEMMA2,
    GEMMA3,
    LLAMA2,
    LLAMA3,
    PHI3,
    QWEN3,
    QWEN25,
    ZEPHYR,
    make_chat_model,
)

TEMPLATES = {
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "qwen2.5": QWEN25,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "zephyr": ZEPHYR,
    "phi3": PHI3,
}


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    made = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return made if system is None else [{"role": "system", "content": system}, *made]


ASKED = [
    turns("Hauptstadt?"),
    turns("Hi", "Hello.", "Größe 北京?"),
    turns("Hauptstadt?", system="Be brief."),
]


@pytest.mark.parametrize(
    ("template", "asked"),
    [
        (name, asked)
        for name in TEMPLATES
        for asked in ASKED
        # Gemma-2 refuses it.
        if (name, asked[0]["role"]) != ("gemma2", "system")
    ],
)
def test_token_ids_are_those_of_the_tokenizer(template, asked):
    model = make_chat_model(TEMPLATES[template], texts="<s> $A </s>")
    wanted = model.tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_ids = encode_chat(model, asked)
    assert list(token_ids) == wanted
    # The tokenizer would put <s> before and </s> behind: neither stands there by itself.
    assert token_ids[-1] != 257
    assert token_ids.count(256) == model.decode(token_ids).count("<s>")


def test_a_prompt_by_hand():
    model = make_chat_model(LLAMA3)
    assert model.decode(encode_chat(model, turns("Hi"))) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    model = make_chat_model(GEMMA3)
    assert model.decode(encode_chat(model, turns("Hi", system="Be brief."))) == (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    ("template", "before", "end"),
    [
        ("llama2", " ", " </s>"),
        ("llama3", "", "<|eot_id|>"),
        ("qwen2.5", "", "<|im_end|>"),
        ("gemma2", "", "<end_of_turn>"),
        ("gemma3", "", "<end_of_turn>"),
        ("zephyr", "", "</s>"),
        ("phi3", "", "<|end|>"),
    ],
)
def test_what_stands_around_an_answer(template, before, end):
    model = make_chat_model(TEMPLATES[template])
    found = find_chat_format(model)
    assert (found.before_answer, found.end_of_turn) == (before, end)
    assert found.end_token_ids == {model.tokenizer.convert_tokens_to_ids(end.strip())}
    # With its end, the answer's chat is what the template writes, up to the end of turn.
    asked = turns("Hauptstadt?")
    whole = model.tokenizer.apply_chat_template(
        [*asked, {"role": "assistant", "content": "Kairo."}], return_dict=False
    )
    ours = encode_chat(model, asked, "Kairo.", ends=True)
    assert list(ours) == whole[: len(ours)]
    assert model.decode(whole[len(ours) :]).strip() == ""
    # A space is a token of its own here.
    assert encode_chat(model, asked, "Kairo.") == ours[: -(1 + end.count(" "))]


def test_a_template_without_ends_has_none():
    model = make_chat_model("{% for m in messages %}{{ m.content }}\n{% endfor %}A:")
    assert find_chat_format(model).end_token_ids == frozenset()
    assert find_chat_format(model).end_of_turn == ""


# Thinking.


def test_thinking_is_off_where_the_template_can():
    model = make_chat_model(QWEN3)
    asked = turns("Hi")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_ids = encode_chat(model, asked)
    wanted = model.tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert list(token_ids) == wanted
    assert model.decode(token_ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (
            "{% if not thinking is defined %}{% set thinking = true %}{% endif %}{{ thinking }}",
            "False",
        ),
        (
            "{% if reasoning_effort != 'none' %}{{ reasoning_effort }}{% else %}off{% endif %}",
            "off",
        ),
        ("{{ thinking_budget }}", "0"),
        ("{% generation %}{{ enable_thinking }}{% endgeneration %}", "False"),
    ],
)
def test_variables_that_turn_it_off(template, written):
    model = make_chat_model("{{ messages[0].content }}" + template)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.decode(encode_chat(model, turns("Hi"))) == f"Hi{written}"


@pytest.mark.parametrize(
    "template",
    [
        # DeepSeek-R1, Qwen3-Thinking: the prompt itself opens the thoughts.
        "{{ messages[0].content }}<|im_start|>assistant\n<think>\n",
        # gpt-oss: there is less of it, and never none.
        "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
        "{{ reasoning_effort }} {{ messages[0].content }}",
        # It writes thoughts of earlier turns.
        "{% for m in messages %}{% if m.role == 'assistant' %}<think>{% endif %}{{ m.content }}"
        "{% endfor %}",
    ],
)
def test_where_it_cannot_that_is_said_once(template):
    model = make_chat_model(template)
    with pytest.warns(UserWarning, match="^the chat template of V has no setting that turns think"):
        encode_chat(model, turns("Hi"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chat(model, turns("Hello"))


def test_todays_date_is_always_the_same():
    template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ date_string }} {{ messages[0].content }}"
    )
    model = make_chat_model(template)
    with pytest.warns(UserWarning, match="26 Jul 2024 stands there every day"):
        assert model.decode(encode_chat(model, turns("Hi"))) == "26 Jul 2024 Hi"
    # In the words of another form, that is another template.
    other = make_chat_model(template.replace("%d %b", "%b %d"))
    assert compute_template_hash(other) != compute_template_hash(model)


# What is refused.


def test_a_template_without_a_system_role_is_one_sentence():
    with pytest.raises(
        ValueError,
        match=r"^the chat template of V cannot write a system's message \(System role not "
        r"supported\): leave the system message out, or put it into the prompt$",
    ):
        encode_chat(make_chat_model(GEMMA2), turns("Hi", system="Be brief."))


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_template_that_leaves_a_message_out_is_one_sentence(role):
    kept = {"system": "user", "user": "system"}[role]
    template = "{% for m in messages if m.role == 'KEPT' %}{{ m.content }}{% endfor %}"
    template = template.replace("KEPT", kept)
    with pytest.raises(ValueError, match=f"of V leaves out a {role}'s message: mend"):
        encode_chat(make_chat_model(template), turns("Hi", system="Be brief."))


def test_no_template_is_one_sentence():
    with pytest.raises(ValueError, match=r"^V has no chat template: ask a model that was trained"):
        encode_chat(make_chat_model(None), turns("Hi"))


def test_another_template_has_another_hash():
    hashes = {compute_template_hash(make_chat_model(t)) for t in (*TEMPLATES.values(), QWEN3)}
    assert len(hashes) == len(TEMPLATES) + 1
    assert compute_template_hash(make_chat_model(LLAMA3)) in hashes


@pytest.mark.gemma
def test_the_embedded_model_with_the_template_of_its_family():
    """It is a base model, and has none of its own; its tokenizer has the marks."""
    model = interp.load("gemma-3-270m")
    queries = [
        Query(
            id="plain", language="en", prompt="Question: What is the capital of France?\nAnswer:"
        ),
        Query(id="chat", language="en", prompt="Say Paris.", chat=True, system="Be brief."),
    ]
    with pytest.raises(ValueError, match="gemma-3-270m has no chat template"):
        interp.trajectories(model, queries[1:], progress=False)
    model.tokenizer.chat_template = GEMMA3
    asked = turns("Say Paris.", system="Be brief.")
    token_ids = encode_chat(model, asked)
    wanted = model.tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=False
    )
    assert list(token_ids) == wanted
    # <bos>, <start_of_turn>, user; …; <end_of_turn>, a line break, <start_of_turn>, model, another.
    assert token_ids[:3] == (2, 105, 2364)
    assert token_ids[-5:] == (106, 107, 105, 4368, 107)
    assert token_ids.count(2) == 1
    assert find_chat_format(model).end_token_ids == {106}
    stopped = [replace(queries[0], stop=("\n",)), queries[1]]
    plain, chat = interp.trajectories(model, stopped, num_tokens=3, progress=False)
    assert (plain.answer, len(plain.answer_ids)) == (" Paris", 1)
    assert chat.prompt_ids == token_ids
