"""Where answers end: before the first stop, at a chat's end of turn; and what knows of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import interp
from interp import Query
from interp.behaviour import Answer, generate
from interp.data.trajectories import encode_query, find_ends, trajectories
from interp.models import Ends, compute_text_hash, generate_continuations
from interp.results import read_manifest
from tests.data.test_trajectories import QUESTIONS, answers, talkative
from tests.helpers.chat_models import GEMMA3, LLAMA3, QWEN25, make_chat_model
from tests.helpers.tiny_models import question, tiny

CHATS = [
    Query(id="a", language="en", prompt="Hi", chat=True),
    Query(id="b", language="en", prompt="Hello there", chat=True, system="Be brief."),
    Query(id="c", language="de", prompt="Hauptstadt?"),
]


def say(model, words: list[list[int]], prompts, **settings) -> list[tuple[int, ...]]:
    """Generate answers whose tokens are chosen beforehand."""

    def pick(logits, numbers, step):
        import torch

        return torch.tensor([words[number][step] for number in numbers])

    found = dict(generate_continuations(model, prompts, pick=pick, **settings))
    return [found[number] for number in range(len(prompts))]


def test_an_answer_ends_before_the_first_stop():
    model = make_chat_model(None)
    text = "Paris.\nFrage: Rom\n"
    tokens = list(model.encode(text)[1:])
    ends = [
        Ends(texts=texts)
        for texts in [(), ("\n",), ("Frage:", "\n"), ("Frage:",), ("Rom", "age"), ("P",), ("x",)]
    ]
    said = say(model, [tokens] * len(ends), [(5,)] * len(ends), num_tokens=len(tokens), ends=ends)
    assert [model.decode(answer) for answer in said] == [
        text,
        "Paris.",
        "Paris.",
        "Paris.\n",
        "Paris.\nFr",
        "",
        text,
    ]


def test_a_token_in_which_a_stop_begins_is_no_part_of_the_answer():
    # Its tokens are words: in w12 the stop 2 is the second half.
    model = tiny()
    said = say(
        model,
        [[5, 12, 7, 8]] * 4,
        [(1, 3)] * 4,
        num_tokens=4,
        ends=[Ends(texts=(stop,)) for stop in ("2", "2 w7", "w7", " w7")],
    )
    # The space before a word belongs to no token.
    assert said == [(5,), (5,), (5, 12), (5, 12)]


def test_a_character_of_several_tokens_is_not_cut():
    model = make_chat_model(None)
    tokens = list(model.encode("Größe 北京。東京")[1:])
    (said,) = say(model, [tokens], [(5,)], num_tokens=len(tokens), ends=[Ends(texts=("。",))])
    assert model.decode(said) == "Größe 北京"


def test_a_chat_ends_at_its_own_end_of_turn_alone():
    model = make_chat_model(GEMMA3)
    end = model.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    other = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ends = find_ends(model, [CHATS[0], CHATS[2]])
    assert ends == [Ends(token_ids=frozenset({end})), Ends()]
    words = [[65, other, 66, end, 67]] * 2
    said = say(model, words, [(5,)] * 2, num_tokens=5, ends=ends)
    assert said == [(65, other, 66), (65, other, 66, end, 67)]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_trajectories_are_those_without_stops_up_to_the_stop(batch_size):
    """Whatever else is in the batch, and whenever its answers end."""
    model = talkative("llama")
    asked, wanted = [], []
    for number, (query, item) in enumerate(zip(QUESTIONS, answers(model), strict=True)):
        words = [model.decode([token]) for token in item.answer_ids]
        stop = words[number] if number < len(words) else "never"
        asked.append(replace(query, stop=(stop,)))
        first = next((n for n, word in enumerate(words) if stop in word), len(words))
        wanted.append(item.answer_ids[:first])
    found = trajectories(model, asked, num_tokens=10, batch_size=batch_size, progress=False)
    assert [item.answer_ids for item in found] == wanted
    assert len({len(ids) for ids in wanted}) > 1
    for item in found:
        start = len(item.prompt_ids) - 1
        assert item.scored == range(start, start + len(item.answer_ids))
        assert item.reason == ("" if item.answer_ids else "nothing scored: the answer is empty")


def test_prompts_of_trajectories():
    model = make_chat_model(QWEN25)
    found = trajectories(model, CHATS, num_tokens=3, progress=False)
    for query, item in zip(CHATS, found, strict=True):
        assert item.prompt_ids == encode_query(model, query)
    wanted = model.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert list(found[1].prompt_ids) == wanted
    assert found[2].prompt_ids == model.encode("Hauptstadt?")
    with pytest.raises(ValueError, match=r"^a in 'en': V has no chat template"):
        trajectories(make_chat_model(None), CHATS, progress=False)


# What is kept on disk.


def sweep(out, queries, *, template=LLAMA3, **options):
    settings = {"sites": "value", "window": 1, "num_tokens": 3, "progress": False} | options
    models = [make_chat_model(template, seed=seed) for seed in (0, 1)]
    return interp.sweep(*models, queries, out=out, **settings)


def test_a_run_directory_keeps_the_chats(tmp_path):
    queries = [*CHATS, question(0), replace(question(1), stop=("zz", "\n"))]
    first = sweep(tmp_path / "run", queries)
    stored = interp.trajectories(make_chat_model(LLAMA3), queries, num_tokens=3, progress=False)
    from interp.results import RunDirectory

    config = read_manifest(tmp_path / "run")["config"]
    run = RunDirectory(tmp_path / "run", config)
    kept = {item.query.id: item for code in ("en", "de") for item in run.read_trajectories(code)}
    assert kept == {item.query.id: item for item in stored}
    again = sweep(tmp_path / "run", queries)
    assert again.losses.equals(first.losses)


def test_another_template_is_another_run(tmp_path):
    sweep(tmp_path / "run", CHATS)
    with pytest.raises(ValueError, match="holds a run with another chat_template"):
        sweep(tmp_path / "run", CHATS, template=QWEN25)
    for changed in (
        replace(CHATS[0], stop=("\n",)),
        replace(CHATS[0], system="Be kind."),
        replace(CHATS[0], chat=False),
    ):
        with pytest.raises(ValueError, match="holds a run with another queries"):
            sweep(tmp_path / "run", [changed, *CHATS[1:]])


def test_a_run_without_chats_is_what_it_was(tmp_path):
    """Its manifest has the digest of earlier versions, and a template does not matter."""
    query = Query(id="q", language="en", prompt="Hi", answer="Hello", aliases=("x",))
    sweep(tmp_path / "run", [query])
    config = read_manifest(tmp_path / "run")["config"]
    import hashlib

    fields = {"id": "q", "language": "en", "prompt": "Hi", "answer": "Hello", "concept": ""}
    digest = hashlib.sha256(json.dumps([fields | {"num_tokens": 3}], sort_keys=True).encode())
    assert config["queries"] == digest.hexdigest()
    assert "chat_template" not in config
    sweep(tmp_path / "run", [query], template=QWEN25)


def test_hong2024_has_no_stops(tmp_path):
    queries = [question(0), question(1)]
    wanted = sweep(None, queries, variant="hong2024").losses
    stopped = [replace(query, stop=("w",)) for query in queries]
    with pytest.warns(UserWarning, match="hong2024 has no stops"):
        assert sweep(None, stopped, variant="hong2024").losses.equals(wanted)
    answered = interp.trajectories(make_chat_model(LLAMA3), stopped, progress=False)
    with pytest.raises(ValueError, match=r"hong2024 has no stops, and the answer to 'q0' \(en\)"):
        sweep(None, answered, variant="hong2024")


def test_kept_answers_are_of_one_form(tmp_path):
    """A cache tells chats, systems, stops and templates apart; plain prompts are what they were."""
    cache = tmp_path / "answers.jsonl"
    plain = Query(id="q", language="en", prompt="Hi")
    forms = [
        plain,
        replace(plain, chat=True),
        replace(plain, chat=True, system="Be brief."),
        replace(plain, stop=("\n",)),
    ]

    def count(query, template=LLAMA3) -> int:
        model = make_chat_model(template)
        said = generate(model, [query], num_tokens=3, cache=cache, progress=False)
        assert said == generate(model, [query], num_tokens=3, progress=False)
        assert isinstance(said[0], Answer)
        return len(cache.read_text(encoding="utf-8").splitlines())

    assert [count(query) for query in (*forms, *forms)] == [1, 2, 3, 4, 4, 4, 4, 4]
    assert [count(query, QWEN25) for query in forms] == [4, 5, 6, 6]


def test_a_template_counts_where_there_are_chats():
    one, other = make_chat_model(LLAMA3), make_chat_model(QWEN25)
    assert compute_text_hash(one) == compute_text_hash(other)
    hashes = {compute_text_hash(model, chat=True) for model in (one, other)}
    assert len({*hashes, compute_text_hash(one)}) == 3
