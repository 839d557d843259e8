"""Adapters of every kind: U computes what PEFT serves unmerged, and V stays as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import interp
from tests.helpers.tiny_models import save, tiny

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.tensor([[1, 5, 9, 13, 30, 41]])

LORA = {
    "plain": {},
    "not initialised": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "olora": {"init_lora_weights": "olora"},
    "pissa": {"init_lora_weights": "pissa"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "unembedding": {"target_modules": ["lm_head", "q_proj"]},
    "both embeddings": {"target_modules": ["embed_tokens", "lm_head"]},
    "tied": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "saved unembedding": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "trained tokens": {"trainable_token_indices": {"embed_tokens": [5, 9]}},
    "ranks": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 3}},
}

OTHERS = {
    "IA3Config": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LoHaConfig": {},
    "LoKrConfig": {},
    "AdaLoraConfig": {"total_step": 10},
    "VeraConfig": {},
    "OFTConfig": {"r": 0, "oft_block_size": 4},
    "BOFTConfig": {"boft_block_size": 4},
    "HRAConfig": {},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
    "FourierFTConfig": {"n_frequency": 8},
    "C3AConfig": {"block_size": 8},
    "DeloraConfig": {},
    "TrainableTokensConfig": {"target_modules": ["embed_tokens"], "token_indices": [5, 9]},
}

QUICK = ("plain", "olora", "pissa", "embedding", "unembedding", "tied", "saved unembedding")

CASES = [
    pytest.param("LoraConfig", name, marks=() if name in QUICK else pytest.mark.slow)
    for name in LORA
] + [pytest.param(name, "", marks=pytest.mark.slow) for name in OTHERS]


@torch.no_grad()
def train(base, config, folder: Path) -> None:
    """Save an adapter with random numbers in it."""
    live = peft.get_peft_model(copy.deepcopy(base), config)
    generator = torch.Generator().manual_seed(3)
    for parameter in live.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    live.eval().save_pretrained(folder)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_adapter_is_what_peft_serves(kind, name, tied, tmp_path):
    settings = {"target_modules": ["q_proj", "down_proj"]}
    settings |= LORA[name] | {"r": 2} if kind == "LoraConfig" else OTHERS[kind]
    base = tiny(num_layers=2, tie_word_embeddings=tied)
    save(base, tmp_path / "V")
    train(base.model, getattr(peft, kind)(**settings), tmp_path / "A")
    served = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "A").eval()
    vanilla = interp.load(tmp_path / "V")
    before, effect = vanilla.content_hash(), (logits(served) - logits(base.model)).abs().max()
    for _ in range(2):
        unlearned = interp.load(tmp_path / "A", like=vanilla)
        assert vanilla.content_hash() == before
        off = (logits(unlearned.model) - logits(served)).abs().max()
        assert off <= 1e-4 * effect, (off, effect)
    assert (vanilla.model.lm_head.weight is vanilla.model.model.embed_tokens.weight) == tied


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
