"""Adapters: U computes what PEFT serves unmerged, and V stays as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from tests.helpers.tiny_models import save, tiny, tokenizer

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.tensor([[1, 5, 9, 13, 30, 41]])


@torch.no_grad()
def train(base, config, folder: Path) -> None:
    """Save an adapter with random numbers in it."""
    live = peft.get_peft_model(copy.deepcopy(base), config)
    generator = torch.Generator().manual_seed(3)
    for parameter in live.parameters():
        if parameter.requires_grad:
            # Some kinds leave what happened to be in memory, if they are told not to start.
            parameter.nan_to_num_().clamp_(-2, 2)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    live.eval().save_pretrained(folder)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("start", ["pissa_niter_2", "pissa_niter_16"])
def test_a_start_that_cannot_be_made_again_is_refused(start, tmp_path):
    base = tiny(num_layers=2)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    train(base.model, config, tmp_path)
    before = base.content_hash()
    with pytest.raises(ValueError, match=f"differs at every load \\({start}\\)"):
        interp.load(tmp_path, like=base)
    assert base.content_hash() == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"megatron_core": "os.path"}, "names code to be imported (megatron_core: 'os.path')"),
        ({"megatron_config": {"a": 1}}, "names code to be imported (megatron_config"),
        ({"layer_replication": [[0, 300000]]}, "repeats layers"),
    ],
)
def test_what_an_adapters_configuration_must_not_say(changes, says, tmp_path):
    base = tiny(num_layers=2)
    train(base.model, peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path)
    file = tmp_path / "adapter_config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | changes))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        interp.load(tmp_path, like=base)
    assert says in str(caught.value)


def test_an_old_peft_is_refused(tmp_path, monkeypatch):
    base = tiny(num_layers=2)
    train(base.model, peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path)
    monkeypatch.setattr("interp.models.adapters.version", lambda _name: "0.19.1")
    with pytest.raises(ImportError, match=r"peft 0\.20 or later, not 0\.19\.1"):
        interp.load(tmp_path, like=base)


# Embeddings in an adapter


def add_tokens(base, number: int):
    """A model with more rows, as its trainer makes it; the same rows at every call."""
    grown = copy.deepcopy(base)
    torch.manual_seed(7)
    rows = grown.get_input_embeddings().num_embeddings + number
    grown.resize_token_embeddings(rows, mean_resizing=False)
    return grown.requires_grad_(False)


GROWN = {
    "found by peft": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "saved whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("settings", GROWN.values(), ids=GROWN)
@pytest.mark.parametrize("number", [1, -3])
@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_of_another_size_in_an_adapter(settings, number, tied, tmp_path):
    """U is what peft serves on a base that was resized first; rows beyond V's are left out."""
    base = tiny(num_layers=2, tie_word_embeddings=tied)
    grown = add_tokens(base.model, number)
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | settings)
    train(grown, config, tmp_path / "A")
    served = peft.PeftModel.from_pretrained(grown, tmp_path / "A").eval()
    wanted = logits(served)
    base.tokenizer.save_pretrained(tmp_path / "A")
    before = base.content_hash()
    if number < 0:
        # Their tokens would be without a row.
        with pytest.raises(ValueError, match="does not match 'V'"):
            interp.load(tmp_path / "A", like=base)
    else:
        with pytest.warns(UserWarning, match=f"the last {number}, of no token, are left out"):
            unlearned = interp.load(tmp_path / "A", like=base)
        assert logits(unlearned.model).shape[-1] == 50
        torch.testing.assert_close(logits(unlearned.model), wanted[..., :50])
    save(base, tmp_path / "V")
    file = tmp_path / "A" / "adapter_config.json"
    written = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "V")}
    file.write_text(json.dumps(written))
    alone = interp.load(tmp_path / "A")
    assert alone.model.config.vocab_size == 50 + number
    torch.testing.assert_close(logits(alone.model), wanted)
    assert base.content_hash() == before


def test_tokens_that_were_added_with_an_adapter(tmp_path):
    base = tiny(num_layers=2)
    grown = add_tokens(base.model, 1)
    settings = {"r": 2, "target_modules": ["q_proj"]}
    train(grown, peft.LoraConfig(**settings, modules_to_save=["embed_tokens", "lm_head"]), tmp_path)
    other = tokenizer()
    other.add_special_tokens({"pad_token": "<pad>"})
    other.save_pretrained(tmp_path)
    wanted = logits(peft.PeftModel.from_pretrained(grown, tmp_path).eval())
    with pytest.warns(UserWarning, match="of the added tokens '<pad>', are left out"):
        unlearned = interp.load(tmp_path, like=base)
    torch.testing.assert_close(logits(unlearned.model), wanted[..., :50])


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"trainable_token_indices": [5, 50]},
    ],
)
def test_a_row_that_would_be_left_to_chance_is_refused(settings, tmp_path):
    """The adapter has the new row of one of the two embeddings, or none."""
    base = tiny(num_layers=2)
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | settings)
    train(add_tokens(base.model, 1), config, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    if "target_modules" in settings:
        state.pop("base_model.model.lm_head.weight", None)
        save_file(state, file)
    before = base.content_hash()
    with pytest.raises(ValueError, match="does not fit 'V'"):
        interp.load(tmp_path, like=base)
    assert base.content_hash() == before


@pytest.mark.parametrize("shape", [(51,), (51, 1), (51, 17), (51, 16, 1), ()])
def test_embeddings_of_another_width_in_an_adapter_are_refused(shape, tmp_path):
    base = tiny(num_layers=2)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    train(base.model, config, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    for key in ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"):
        assert state[key].shape == (50, 16)
        state[key] = torch.ones(shape)
    save_file(state, file)
    before = base.content_hash()
    with pytest.raises(ValueError, match="does not fit 'V'"):
        interp.load(tmp_path, like=base)
    assert base.content_hash() == before
