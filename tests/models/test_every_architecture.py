"""Every causal language model of transformers: opened and proven, or refused in one sentence.

A model that is opened has the same losses from every engine as from `full`, or the engine refuses
it or a site; that `full` puts back what is meant is shown with hooks at paths that were written
down by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import interp
from interp.models.anatomy import find_anatomy
from interp.models.anatomy_proof import check_anatomy
from tests.helpers.architecture_table import (
    CHANGES,
    format_hybrid,
    format_row,
    hide_errors,
    make_pair,
    prove,
)
from tests.helpers.engine_comparison import sweep
from tests.helpers.every_architecture import list_architectures, make_tiny
from tests.helpers.hand_hooks import run_restored
from tests.helpers.samples import mark_rest
from tests.helpers.tiny_models import mixed_trajectories, question

ALL = tuple(sorted(list_architectures()))

OPENED = (
    (Path(__file__).parents[2] / "docs" / "architectures.md")
    .read_text(encoding="utf-8")
    .partition("## Refused")[0]
)

# The layers, the MLP's last matrix and the attention block's, read off the library's source.
BY_HAND = {
    "ApertusForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "BloomForCausalLM": ("transformer.h", "mlp.dense_4h_to_h", "self_attention.dense"),
    "BioGptForCausalLM": ("biogpt.layers", "fc2", "self_attn.out_proj"),
    "CodeGenForCausalLM": ("transformer.h", "mlp.fc_out", "attn.out_proj"),
    "Cohere2ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "Exaone4ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "FalconForCausalLM": ("transformer.h", "mlp.dense_4h_to_h", "self_attention.dense"),
    "GPTJForCausalLM": ("transformer.h", "mlp.fc_out", "attn.out_proj"),
    "GPTNeoForCausalLM": ("transformer.h", "mlp.c_proj", "attn.attention.out_proj"),
    "GPTNeoXForCausalLM": ("gpt_neox.layers", "mlp.dense_4h_to_h", "attention.dense"),
    "GPT2LMHeadModel": ("transformer.h", "mlp.c_proj", "attn.c_proj"),
    "GemmaForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "Gemma2ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "Gemma3ForConditionalGeneration": (
        "model.language_model.layers",
        "mlp.down_proj",
        "self_attn.o_proj",
    ),
    "Gemma4ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "Gemma3ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "Glm4ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "GraniteForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "MiniCPM3ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "MinistralForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "NanoChatForCausalLM": ("model.layers", "mlp.fc2", "self_attn.o_proj"),
    "OPTForCausalLM": ("model.decoder.layers", "fc2", "self_attn.out_proj"),
    "MptForCausalLM": ("transformer.blocks", "ffn.down_proj", "attn.out_proj"),
    "NemotronForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "Olmo3ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "Phi3ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "SmolLM3ForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "StableLmForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "Starcoder2ForCausalLM": ("model.layers", "mlp.c_proj", "self_attn.o_proj"),
    "VaultGemmaForCausalLM": ("model.layers", "mlp.down_proj", "self_attn.o_proj"),
    "XGLMForCausalLM": ("model.layers", "fc2", "self_attn.out_proj"),
}
INDEXED = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
SAMPLE = ("Cohere2ForCausalLM", "FalconForCausalLM", "GraniteForCausalLM", "MptForCausalLM")
# Of every kind of cell: what TransformerLens cuts or does not know, sites refused, mixtures.
OF_ENGINES = ("DogeForCausalLM", "FalconForCausalLM", "Phi3ForCausalLM", "Qwen3MoeForCausalLM")


@pytest.mark.parametrize("name", mark_rest(ALL, OF_ENGINES))
def test_every_engine_has_the_losses_of_full_or_refuses(name):
    verdict = prove(name)
    row = f"| {name} |"
    is_listed = row in OPENED
    assert is_listed == (verdict.outcome == "opened"), verdict
    assert "\n" not in verdict.detail
    if verdict.outcome != "opened":
        assert name not in BY_HAND
        pytest.skip(f"{verdict.outcome}: {verdict.detail}")
    assert list(verdict.engines) == ["layered", "nnsight", "transformer_lens"]
    for engine, compared in verdict.engines.items():
        assert compared.error < 1e-5, engine
        for sentence in compared.refused.values():
            assert "\n" not in sentence
            assert ". " not in sentence
            assert name in sentence
    assert hide_errors(format_row(name, verdict)) in hide_errors(OPENED)
    assert (format_hybrid(name, verdict) in OPENED) == verdict.is_hybrid
    # What an indexer keeps of a prefix is no keys and values either.
    assert verdict.shares == (not verdict.is_hybrid and name not in INDEXED)


@pytest.mark.parametrize("name", mark_rest(BY_HAND, SAMPLE))
def test_full_puts_back_what_is_meant(name):
    """A window of three layers, by hooks on modules that are named by hand."""
    models = make_pair(name)
    answers = mixed_trajectories(3)
    losses = sweep(models, "full", ("coef", "attn", "value", "mlp_out"), answers)
    path, values, attn = BY_HAND[name]
    vanilla, unlearned = (model.model for model in models)
    num_layers = len(vanilla.get_submodule(path))
    for item in answers:
        if not item.answer_ids:
            continue
        ids = torch.tensor([[*item.prompt_ids, *item.answer_ids]])
        scored = slice(len(item.prompt_ids) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            wanted = vanilla(input_ids=ids, use_cache=False).logits[0, scored]
        for site in ("coef", "attn", "value", "mlp_out"):
            relative = attn if site == "attn" else values
            for layer in range(num_layers):
                window = [n for n in range(layer - 1, layer + 2) if 0 <= n < num_layers]
                names = [f"{path}.{n}.{relative}" for n in window]
                logits = run_restored(vanilla, unlearned, ids, names, site)[0, scored]
                loss = ((wanted - logits) ** 2).mean().item()
                found = losses.loc[(site, layer, item.query.id), "loss_restored"]
                assert found == pytest.approx(loss, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", mark_rest(BY_HAND, SAMPLE))
def test_paths_are_those_read_off_the_source(name):
    anatomy = find_anatomy(make_tiny(name))
    path, values, attn = BY_HAND[name]
    assert anatomy.path == path
    for parts in anatomy.layers:
        assert (parts.paths.values, parts.paths.attn_out) == (values, attn)


def test_how_logits_are_scaled_and_capped():
    granite = make_tiny("GraniteForCausalLM", **CHANGES["GraniteForCausalLM"])
    assert find_anatomy(granite).logit_scale == 0.125
    assert find_anatomy(make_tiny("Cohere2ForCausalLM")).logit_scale == 0.0625
    gemma = find_anatomy(make_tiny("Gemma2ForCausalLM", final_logit_softcapping=7.0))
    assert (gemma.logit_scale, gemma.logit_cap) == (1.0, 7.0)
    # MiniCPM divides what its unembedding reads: 32 numbers by 32 / 8.
    assert find_anatomy(make_tiny("MiniCPM3ForCausalLM", dim_model_base=8)).logit_scale == 0.25
    # A scale that no number of the configuration is, and a cap far above the logits.
    cohere = make_tiny("Cohere2ForCausalLM", logit_scale=1 / 3)
    assert find_anatomy(cohere).logit_scale == 1 / 3
    gemma = make_tiny("Gemma2ForCausalLM", final_logit_softcapping=5000.0)
    assert find_anatomy(gemma).logit_cap == 5000.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Cohere2ForCausalLM", "Gemma2ForCausalLM", "FalconForCausalLM"])
def test_half_precision_has_the_same_anatomy(name, dtype):
    model = make_tiny(name)
    right = find_anatomy(model)
    half = make_tiny(name).to(dtype)
    found = find_anatomy(half)
    check_anatomy(half, found)
    assert found.path == right.path
    assert [parts.paths for parts in found.layers] == [parts.paths for parts in right.layers]
    assert (found.logit_scale, found.logit_cap) == (right.logit_scale, right.logit_cap)
    assert found.additive == right.additive


def test_a_model_in_training_mode_is_opened_as_in_evaluation():
    model = make_tiny("GPT2LMHeadModel", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).train()
    assert find_anatomy(model).layers[0].paths.values == "mlp.c_proj"
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_scaled_logits_in_every_distance():
    """The Gram form, and logits that are formed, against the model's own."""
    models = make_pair("Cohere2ForCausalLM")
    questions = [question(0)]
    answers = interp.trajectories(models[0], questions, num_tokens=4, progress=False)
    for distance in ("logit_mse", "kl"):
        found = [
            interp.sweep(
                *models,
                answers,
                sites=["coef"],
                window=3,
                engine=engine,
                distance=distance,
                progress=False,
            ).losses["loss_restored"]
            for engine in ("full", "layered")
        ]
        np.testing.assert_allclose(
            found[1], found[0], rtol=1e-5 if distance == "logit_mse" else 1e-3
        )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MambaForCausalLM", "layer 0: there is no MLP beside its MambaMixer"),
        ("NemotronHForCausalLM", "layer 0: there is no MLP beside its NemotronHMamba2Mixer"),
        ("RwkvForCausalLM", "one block that mixes tokens is wanted, and there are: attention, fe"),
        ("XLMWithLMHeadModel", "a token's state changes with later tokens, as in an encoder, and"),
        ("RobertaForCausalLM", "a token's state changes with later tokens, as in an encoder, and"),
        ("XLNetLMHeadModel", "a token's state changes with later tokens, as in an encoder, and"),
        ("JetMoeForCausalLM", "layer 0: the attention block does not return"),
        ("ZayaForCausalLM", "layer 1 reads more of layer 0 than its residual stream"),
        ("Llama4ForCausalLM", "layer 0: its Llama4TextExperts are not run as transformers runs"),
        ("BeamForCausalLM", "the MLP's output is not that of its experts and one shared expert"),
    ],
)
def test_what_cannot_be_told_is_named(name, says):
    with pytest.raises(ValueError, match=says):
        find_anatomy(make_tiny(name))


def test_a_model_that_would_be_opened_but_for_its_mask(monkeypatch):
    """A decoder in every part, whose tokens see later ones."""
    # The paths of a kind of model are derived once in a process.
    monkeypatch.setattr("interp.models.anatomy._KNOWN", {})
    model = make_tiny("LlamaForCausalLM")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ValueError, match="changes with later tokens, as in an encoder, and a"):
        find_anatomy(model)


def test_an_encoder_with_a_decoder():
    sizes = {"d_model": 32, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, **sizes)).eval()
    with pytest.raises(
        ValueError, match=r"T5For.*: it is an encoder with a decoder, and a decoder"
    ):
        find_anatomy(model)


def test_a_final_norm_that_runs_elsewhere_too():
    """NanoChat's has no weights; with weights, whose the site `norms` would put back is unclear."""
    assert find_anatomy(make_tiny("NanoChatForCausalLM")).final_norms
    model = make_tiny("NanoChatForCausalLM")
    model.model.norm = nn.RMSNorm(32)
    with pytest.raises(ValueError, match=r"model\.norm runs elsewhere than"):
        find_anatomy(model)


def test_logits_that_are_something_else():
    model = make_tiny("LlamaForCausalLM")
    forward = model.lm_head.forward

    class Squared(nn.Linear):
        def forward(self, x):
            return forward(x)

    model.lm_head.__class__ = Squared
    model.forward = lambda **inputs: _squared(type(model).forward(model, **inputs))
    with pytest.raises(ValueError, match="logits are not the unembedding's outputs"):
        find_anatomy(model)


def _squared(output):
    output.logits = output.logits**2
    return output


def test_restored_models_keep_what_was_recorded():
    """Falcon's layers add to the MLP's output in place, after it was recorded."""
    vanilla, unlearned = make_pair("FalconForCausalLM")
    ids = torch.tensor([[11, 18, 25, 32, 39, 5]])
    names = [f"transformer.h.{layer}.mlp.dense_4h_to_h" for layer in (1, 2)]
    right = run_restored(vanilla.model, unlearned.model, ids, names, "mlp_out")
    with interp.restore(unlearned, vanilla, "mlp_out", layers=[1, 2]):
        found = unlearned.model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
