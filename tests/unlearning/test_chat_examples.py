"""Training in a model's own format: OpenUnlearning's tokens and labels, and what knows of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch

import interp
from interp import Query
from interp.behaviour import apply_logit_lens, measure_memorization, probe
from interp.data import Message, Text, change_text_form, list_fields, load_texts, make_texts
from interp.unlearning import Example, TrainingConfig, tokenize
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

USER = Message(role="user", content="Hauptstadt?")
SYSTEM = Message(role="system", content="Be brief.")


def preprocess_as_open_unlearning(tokenizer, turns, answer) -> tuple[list[int], int]:
    """Return token ids and the number of those without a label, as OpenUnlearning's code does.

    `preprocess_chat_instance` with `apply_chat_template: True` (locuslab/open-unlearning,
    src/data/utils.py), in our words.
    """
    chat = [*turns, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    if whole[-1] != tokenizer.eos_token_id:
        whole = [*whole, tokenizer.eos_token_id]
    return whole, len(prompt)


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize(
    ("template", "eos", "labels", "rest"),
    [
        # Where a turn ends with the end-of-sequence token, nothing follows.
        (LLAMA2, "</s>", " Kairo. </s>", ""),
        (LLAMA3, "<|eot_id|>", "Kairo.<|eot_id|>", ""),
        # Else their samples go on, behind the end of turn.
        (QWEN25, "<|im_end|>", "Kairo.<|im_end|>", "\n<|im_end|>"),
        (GEMMA2, "</s>", "Kairo.<end_of_turn>", "\n</s>"),
        (GEMMA3, "</s>", "Kairo.<end_of_turn>", "\n</s>"),
        (ZEPHYR, "</s>", "Kairo.</s>", "\n</s>"),
        (PHI3, "</s>", "Kairo.<|end|>", "\n</s>"),
    ],
)
def test_samples_are_those_of_open_unlearning(template, eos, labels, rest, system):
    if template is GEMMA2:
        system = False
    model = make_chat_model(template, eos=eos)
    turns = [SYSTEM, USER] if system else [USER]
    example = Example(prompt="Hauptstadt?", answer="Kairo.", messages=tuple(turns))
    ours = tokenize(model, example)
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    theirs, num_unlabelled = preprocess_as_open_unlearning(model.tokenizer, chat, "Kairo.")
    assert list(ours.ids) == theirs[: len(ours.ids)]
    assert model.decode(theirs[len(ours.ids) :]) == rest
    assert ours.first_label == num_unlabelled
    assert model.decode(ours.ids[ours.first_label :]) == labels


def test_a_thinking_model_learns_answers_without_thoughts():
    model = make_chat_model(QWEN3)
    ours = tokenize(model, Example(prompt="", answer="Kairo.", messages=(USER,)))
    assert model.decode(ours.ids[ours.first_label :]) == "Kairo.<|im_end|>"
    assert model.decode(ours.ids[: ours.first_label]).endswith("<think>\n\n</think>\n\n")


def test_texts_of_queries_and_files(tmp_path):
    query = Query(id="q", language="de", prompt="Hauptstadt?", answer="Kairo", chat=True)
    (text,) = make_texts([replace(query, system="Be brief.")])
    assert (text.messages, text.prompt, text.answer) == ((SYSTEM, USER), "Hauptstadt?", "Kairo")
    (plain,) = make_texts([replace(query, chat=False)])
    assert (plain.messages, plain.answer) == ((), " Kairo")
    assert change_text_form([plain], chat=True, system="Be brief.")[0] == text
    rows = [
        {"prompt": "Hauptstadt?", "answer": " Kairo", "chat": True, "system": "Be brief."},
        {"answer": "Kairo", "messages": [{"role": "user", "content": "Hauptstadt?"}]},
        {"prompt": "Hauptstadt?", "answer": "Kairo"},
        {"answer": "Kairo liegt am Nil."},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    texts = load_texts(file)
    assert [text.messages for text in texts] == [(SYSTEM, USER), (USER,), (), ()]
    assert [text.answer for text in texts][:3] == ["Kairo", "Kairo", " Kairo"]
    with pytest.warns(UserWarning, match="1 of 4 texts have no prompt to answer"):
        texts = load_texts(file, chat=True, system="Sei kurz.")
    starts = [text.messages[0].content if text.messages else None for text in texts]
    assert starts == ["Be brief.", "Sei kurz.", "Sei kurz.", None]
    assert [text.prompt for text in texts] == ["Hauptstadt?"] * 3 + [""]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 1 has the role 'bot'"),
        ({"prompt": "x", "system": "y"}, "system is for chats, and this is none"),
        ({"chat": True}, "the prompt is empty"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "in place of 'prompt'"),
    ],
)
def test_texts_that_are_wrong(row, says, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"answer": "Kairo", **row}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"line 1: .*{says}"):
        load_texts(file)


# Measures.

ASKED = [
    Query(id="a", language="de", prompt="Ägypten?", answer="Kairo", chat=True, system="Be brief."),
    Query(id="b", language="de", prompt="Frankreich?", answer="Paris", chat=True),
]


def score(model, query: Query, text: str) -> torch.Tensor:
    """Compute the log-probabilities of a text's bytes behind a chat, by a plain forward."""
    turns = [{"role": turn.role, "content": turn.content} for turn in query.turns]
    written = model.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    start = model.tokenizer(written, add_special_tokens=False)["input_ids"]
    ids = model.tokenizer(written + text, add_special_tokens=False)["input_ids"]
    logits = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([logits[at - 1, ids[at]] for at in range(len(start), len(ids))])


def test_candidates_are_ranked_behind_the_chat():
    model = make_chat_model(LLAMA3)
    table = probe(model, ASKED, progress=False)
    for query, guess in zip(ASKED, table["guess"], strict=True):
        means = {word: score(model, query, word).mean().item() for word in ("Kairo", "Paris")}
        assert guess == max(means, key=lambda word: means[word])
    # Without a chat it is another question.
    lens = apply_logit_lens(model, ASKED, progress=False).query("layer == 1")
    for query, found in zip(ASKED, lens["logprob"], strict=True):
        assert found == pytest.approx(score(model, query, query.answer).mean().item(), abs=1e-5)


def test_likelihoods_are_of_the_answer_and_its_end_of_turn():
    model = make_chat_model(LLAMA3)
    table = measure_memorization(model, make_texts(ASKED), progress=False)
    for query, row in zip(ASKED, table.to_dict("records"), strict=True):
        wanted = score(model, query, f"{query.answer}<|eot_id|>")
        assert row["num_tokens"] == 6
        assert row["nll"] == pytest.approx(-wanted.sum().item(), abs=1e-4)


# Training.


def train(out, template=LLAMA3, *, chat=True):
    texts = make_texts([replace(query, chat=chat, system=None) for query in ASKED])
    config = TrainingConfig(
        objective="ga", num_steps=2, batch_size=2, learning_rate=1e-2, autocast=False
    )
    return interp.unlearn(make_chat_model(template), texts, (), config, out=out, progress=False)


def test_what_is_unlearned_is_the_answer_in_its_chat(tmp_path):
    before = make_chat_model(LLAMA3)
    run = train(tmp_path / "u")
    queries = [replace(query, system=None) for query in ASKED]
    wanted = torch.cat([score(before, query, f"{query.answer}<|eot_id|>") for query in queries])
    assert run.history["forget_ce"][0] == pytest.approx(-wanted.mean().item(), abs=1e-4)
    assert run.history["forget_ce"][1] > run.history["forget_ce"][0]
    # The same again is not made again; another template, or no chat, is another run.
    assert train(tmp_path / "u").history.equals(run.history)
    with pytest.raises(ValueError, match="holds a model of another run"):
        train(tmp_path / "u", QWEN25)
    with pytest.raises(ValueError, match="holds a model of another run"):
        train(tmp_path / "u", chat=False)


def test_cards_know_the_template_where_there_are_chats(tmp_path):
    train(tmp_path / "chat")
    train(tmp_path / "plain", chat=False)
    cards = [tmp_path / name / "unlearning.json" for name in ("chat", "plain")]
    assert ["chat_template" in json.loads(card.read_text()) for card in cards] == [True, False]


def test_what_is_no_chat_has_the_digest_that_it_had(tmp_path):
    """Cards, tables and reports of earlier versions are known again."""
    train(tmp_path / "plain", chat=False)
    rows = [
        {"prompt": query.prompt, "answer": f" {query.answer}", "language": "de", "group": ""}
        for query in ASKED
    ]
    card = json.loads((tmp_path / "plain" / "unlearning.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert card["data"]["forget"]["sha256"] == digest
    text = make_texts([replace(ASKED[0], chat=False, system=None)])[0]
    names = ["id", "language", "kind", "prompt", "answer", "wording", "subject", "mention"]
    assert list(list_fields(text)) == [*names, "object"]


def test_a_model_without_a_template_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no chat template"):
        train(tmp_path / "u", None)


def test_memit_edits_no_chats():
    (text,) = change_text_form(
        [Text(id="q", language="de", kind="", prompt="Ägypten", answer=" Kairo")], chat=True
    )
    with pytest.raises(ValueError, match="q in 'de' is a chat: MEMIT edits what plain prompts ask"):
        interp.unlearn(make_chat_model(LLAMA3), [text], method="memit_empty", progress=False)
