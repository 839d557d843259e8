"""Tokens that were added, rows that were padded or cut: a pair, or a sentence that says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import interp
from interp import LanguageModel
from tests.helpers.tiny_models import save, tiny_model, tokenizer

IDS = torch.tensor([[1, 5, 9, 13, 30, 41]])


def make(rows: int, *added: str, seed: int = 1, tied: bool = False, ordinary: str = ""):
    """Make a model with so many rows of the embedding, and special tokens that were added."""
    made = tokenizer()
    if added:
        made.add_special_tokens({"pad_token": added[0], "additional_special_tokens": [*added[1:]]})
    if ordinary:
        made.add_tokens([ordinary])
    settings = {"num_layers": 2, "vocab_size": rows, "tie_word_embeddings": tied}
    return LanguageModel(tiny_model(seed=seed, **settings), made, name="made")


def load_pair(folder: Path, vanilla: LanguageModel, unlearned: LanguageModel):
    loaded = interp.load(save(vanilla, folder / "V"))
    before = loaded.content_hash()
    try:
        return loaded, interp.load(save(unlearned, folder / "U"), like=loaded)
    finally:
        assert loaded.content_hash() == before


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("rows", "added"), [(51, ["[PAD]"]), (64, ["[PAD]"]), (64, [])])
def test_added_rows_are_left_out(tmp_path, rows, added, tied):
    unlearned = make(rows, *added, tied=tied)
    with pytest.warns(UserWarning, match=f"has {rows} rows of the embedding and .* 50"):
        _, loaded = load_pair(tmp_path, make(50, seed=0, tied=tied), unlearned)
    wanted = unlearned.model(IDS).logits[..., :50]
    torch.testing.assert_close(loaded.model(IDS).logits, wanted, rtol=0, atol=1e-6)
    assert loaded.model.config.vocab_size == 50
    embed, unembed = loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()
    assert (embed.weight is unembed.weight) == tied
    assert max(loaded.tokenizer.get_vocab().values()) == 49


@pytest.mark.parametrize("tied", [False, True])
def test_rows_that_were_cut_off_are_the_vanilla_models(tmp_path, tied):
    unlearned = make(51, "[PAD]", tied=tied)
    with pytest.warns(UserWarning, match="the last 13, of no token, are the vanilla model's"):
        vanilla, loaded = load_pair(tmp_path, make(64, seed=0, tied=tied), unlearned)
    logits = loaded.model(IDS).logits
    torch.testing.assert_close(logits[..., :51], unlearned.model(IDS).logits, rtol=0, atol=1e-6)
    ours, theirs = (each.model.get_output_embeddings().weight for each in (loaded, vanilla))
    assert torch.equal(ours[51:], theirs[51:])
    assert loaded.tokenizer.pad_token == "[PAD]"


def test_an_added_token_without_a_row_of_its_own_loads(tmp_path):
    _, loaded = load_pair(tmp_path, make(64, seed=0), make(64, "[PAD]"))
    assert loaded.tokenizer.pad_token_id == 50


def test_a_sweep_is_that_of_the_model_before_the_token_was_added(tmp_path):
    plain, added = make(50), make(51, "[PAD]")
    state = added.model.state_dict()
    for name, value in plain.model.state_dict().items():
        state[name][: len(value)] = value
    questions = [interp.Query(id="q", language="en", prompt="w5 w9 w12")]
    options = {"sites": ["coef"], "window": 1, "num_tokens": 3, "progress": False}
    with pytest.warns(UserWarning, match="of the added tokens"):
        vanilla, loaded = load_pair(tmp_path, make(50, seed=0), added)
    one = interp.sweep(vanilla, loaded, questions, **options).krs()
    other = interp.sweep(vanilla, plain, questions, **options).krs()
    torch.testing.assert_close(*(torch.tensor(each["krs"].tolist()) for each in (one, other)))


def test_an_added_word_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"vocabulary size is 51 \(with 'hello'\) in the unl"):
        load_pair(tmp_path, make(64, seed=0), make(64, ordinary="hello"))


def test_another_end_token_is_refused_with_a_way_out(tmp_path):
    chat = make(50)
    chat.tokenizer.eos_token = "w40"
    with pytest.raises(
        ValueError, match=r"eos_token_id is 40 .*vanilla\.tokenizer\.save_pretrained"
    ):
        load_pair(tmp_path, make(50, seed=0), chat)


def test_an_end_token_is_not_cut_off(tmp_path):
    chat = make(52, "[PAD]", "<|im_end|>")
    chat.tokenizer.eos_token = "<|im_end|>"
    with pytest.raises(ValueError, match=re.escape("ends its answers with '<|im_end|>'")):
        load_pair(tmp_path, make(50, seed=0), chat)
