"""V's greedy answers: the library's own `generate`, one question at a time, is the judge."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from interp import LanguageModel
from interp.data.query import Query
from interp.data.trajectories import trajectories
from interp.models import get_stop_token_ids
from tests.helpers.tiny_models import CONTEXT, EOS, question, tiny

# One to twelve words, so that there is much padding, beyond the sliding windows too.
QUESTIONS = [question(n, words=words) for n, words in enumerate([5, 1, 12, 3, 3, 8])]


def talkative(architecture: str) -> LanguageModel:
    """Build a tiny model with weights so large that its answers depend on the question."""
    model = tiny(architecture)
    torch.manual_seed(1)
    for weight in model.model.parameters():
        weight.add_(torch.randn_like(weight) * 0.5)
    return model


def answers(model: LanguageModel, *, num_tokens: int = 10, **options):
    return trajectories(model, QUESTIONS, num_tokens=num_tokens, progress=False, **options)


def generated(model: LanguageModel, query: Query, num_tokens: int, stops: set[int]) -> list[int]:
    """`generate` on one question without padding; what stops it does not belong to the answer."""
    ids = torch.tensor([model.tokenizer(query.prompt)["input_ids"]])
    row = model.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=sorted(stops),
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    return row[:-1] if row and row[-1] in stops else row


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize(
    "architecture",
    ["llama", "mistral", "gpt2", "gemma2", "gemma3", "bloom", "opt", "xglm", "gpt_neox", "phi"],
)
def test_answers_are_those_of_generate(architecture, batch_size):
    model = talkative(architecture)
    found = answers(model, batch_size=batch_size)
    expected = [generated(model, query, 10, {EOS}) for query in QUESTIONS]
    assert [list(item.answer_ids) for item in found] == expected
    assert len({tuple(ids) for ids in expected}) >= 2
    for query, item in zip(QUESTIONS, found, strict=True):
        assert item.query is query
        assert list(item.prompt_ids) == model.tokenizer(query.prompt)["input_ids"]
        assert item.prompt_ids[0] == 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "xglm"])
def test_answers_end_at_the_end_of_sequence(architecture):
    model = talkative(architecture)
    whole = [item.answer_ids for item in answers(model)]
    # A token that comes early in one answer and is missing in another.
    token = next(
        token
        for ids in whole
        for token in ids[1:]
        if any(token not in other for other in whole) and token > EOS
    )
    model.model.generation_config.eos_token_id = [token, EOS]
    assert get_stop_token_ids(model) == {token, EOS}
    found = answers(model)
    expected = [generated(model, query, 10, {token, EOS}) for query in QUESTIONS]
    assert [list(item.answer_ids) for item in found] == expected
    lengths = {len(ids) for ids in expected}
    assert min(lengths) < 10
    assert max(lengths) == 10
    for item, before in zip(found, whole, strict=True):
        assert token not in item.answer_ids
        assert item.answer_ids == before[: len(item.answer_ids)]


def test_an_empty_answer_has_its_reason():
    model = tiny()
    first = answers(model)[2].answer_ids[0]
    model.model.generation_config.eos_token_id = first
    item = answers(model)[2]
    assert item.answer_ids == ()
    assert item.answer == ""
    assert len(item.scored) == 0
    assert item.reason == "nothing scored: the answer is empty"


def test_scored_are_the_positions_that_predict_the_answer():
    for item in answers(tiny(), num_tokens=4):
        num_prompt = len(item.prompt_ids)
        assert item.scored == range(num_prompt - 1, num_prompt + len(item.answer_ids) - 1)
        assert item.token_ids == item.prompt_ids + item.answer_ids
        assert item.reason == ""
        assert item.answer == " ".join(
            {0: "<unk>", 1: "<s>"}.get(token, f"w{token}") for token in item.answer_ids
        )


def test_stop_tokens_without_a_generation_configuration():
    model = tiny()
    model.model.generation_config = None
    assert get_stop_token_ids(model) == {EOS}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prompt_longer_than_the_context(architecture):
    model = tiny(architecture)
    long = question(0, language="de", words=CONTEXT - 10)  # and <s>
    fits = trajectories(model, [long], num_tokens=9, progress=False)[0]
    assert len(fits.prompt_ids) == 55
    with pytest.raises(
        ValueError, match=r"'q0' \(de\) has 55 tokens; with 10 answer tokens .* context of 64"
    ):
        trajectories(model, [long], num_tokens=10, progress=False)


@pytest.mark.parametrize("num_tokens", [0, -1])
def test_no_tokens(num_tokens):
    with pytest.raises(ValueError, match=f"num_tokens must be at least 1, not {num_tokens}"):
        answers(tiny(), num_tokens=num_tokens)


def test_no_queries():
    with pytest.raises(ValueError, match="no queries"):
        trajectories(tiny(), [], progress=False)


def test_a_prompt_without_tokens():
    model = tiny()
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ValueError, match=r"'empty' \(en\) has no tokens"):
        trajectories(model, [Query(id="empty", language="en", prompt="")], progress=False)


def test_progress_is_shown_when_asked_for(capsys):
    trajectories(tiny(), QUESTIONS, num_tokens=2, progress=False)
    assert capsys.readouterr().err == ""
    trajectories(tiny(), QUESTIONS, num_tokens=2)
    assert "6/6" in capsys.readouterr().err
