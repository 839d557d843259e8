"""Pairs: settings that differ are said, what is identical, tied embeddings beside untied ones."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import interp
from interp.behaviour import measure_drift
from interp.models.pairs import are_identical, check_pair
from interp.recovery import ENGINES, NOTHING, Pair, Restoration
from tests.helpers.tiny_models import mixed_trajectories, tiny, tiny_model, wrap

# Settings


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("llama", {"rms_norm_eps": 1e-3}, r"rms_norm_eps \(1e-06 in the vanilla and 0.001 in the"),
        ("llama", {"hidden_act": "gelu"}, r"hidden_act \(silu in the vanilla and gelu in the"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
            "rope_parameters .*default.*linear",
        ),
        ("mistral", {"sliding_window": 2}, r"sliding_window \(4 in the vanilla and 2 in the unle"),
        ("gemma2", {"final_logit_softcapping": None}, r"final_logit_softcapping \(3.0 .* and None"),
        ("gemma2", {"query_pre_attn_scalar": 16}, r"query_pre_attn_scalar \(256 in the vanilla"),
        ("gemma3", {"layer_types": ["full_attention"] * 5}, "layer_types .*sliding_attention"),
        ("gpt2", {"scale_attn_weights": False}, r"scale_attn_weights \(True in the vanilla and F"),
        ("gpt_neox", {"use_parallel_residual": False}, "use_parallel_residual"),
    ],
)
def test_settings_by_which_models_compute_are_said(architecture, changes, said):
    vanilla, unlearned = tiny(architecture), tiny(architecture, seed=1, **changes)
    with pytest.warns(UserWarning, match=f"'U' computes with other settings than 'V': {said}"):
        check_pair(vanilla, unlearned)


def test_settings_that_compute_nothing_are_not_said():
    unlearned = tiny(seed=1, attention_dropout=0.1, initializer_range=0.5, use_cache=False)
    unlearned.model.config.unsloth_version = "1"
    unlearned.model.config.name_or_path = "elsewhere"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pair(tiny(), unlearned)


def test_the_same_weights_with_other_settings_are_not_identical():
    """A model may be changed by its configuration alone."""
    vanilla, unlearned = tiny(), tiny(rms_norm_eps=1e-2)
    unlearned.name = "U"
    assert not are_identical(vanilla, unlearned)
    assert are_identical(vanilla, tiny())
    with pytest.warns(UserWarning, match="rms_norm_eps"):
        krs = interp.sweep(
            vanilla, unlearned, mixed_trajectories(), sites=["resid"], progress=False
        ).krs()
    # Above the last layer all that differs is the final norm.
    assert krs["krs"].between(-1, 1).all()


@pytest.mark.parametrize("part", ["mlp.up_proj", "input_layernorm"])
def test_a_weight_in_another_precision_than_its_counterpart(part):
    """Norms may be in float32, in both models or in none."""
    vanilla, unlearned = (wrap(tiny_model(seed=seed).bfloat16(), name=str(seed)) for seed in (0, 1))
    unlearned.model.model.layers[1].get_submodule(part).float()
    # Llama's norms give what they are in, which the next matrix does not take.
    message = "several precisions" if part.startswith("mlp") else "computes no logits, .*dtype"
    with pytest.raises(ValueError, match=message):
        check_pair(vanilla, unlearned)


def test_norms_in_float32_in_one_model_alone():
    vanilla, unlearned = (
        wrap(tiny_model("gpt2", seed=seed).bfloat16(), name=name)
        for seed, name in enumerate(("V", "U"))
    )
    unlearned.model.transformer.ln_f.float()
    with pytest.raises(
        ValueError, match=r"ln_f\.weight's dtype is torch\.float32 in the unlearned"
    ):
        check_pair(vanilla, unlearned)
    vanilla.model.transformer.ln_f.float()
    check_pair(vanilla, unlearned)


# A cap in one model alone


@pytest.mark.filterwarnings("ignore:.*computes with other settings")
@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("caps", [(2.0, None), (None, 2.0), (2.0, 0.5)])
def test_caps_that_differ_give_the_same_number_in_every_engine(caps, direction):
    vanilla, unlearned = (
        tiny("gemma2", seed=seed, num_layers=3, final_logit_softcapping=cap)
        for seed, cap in enumerate(caps)
    )
    pair = Pair(vanilla=vanilla, unlearned=unlearned, direction=direction)
    restorations = [
        NOTHING,
        Restoration(sites=("coef",), layers=(1,)),
        Restoration(sites=("unembed",), layers=()),
        Restoration(sites=("norms",), layers=(2,)),
    ]
    for distance in ("logit_mse", "kl"):
        found = {
            name: engine(pair, mixed_trajectories(), restorations, distance=distance).losses
            for name, engine in ENGINES.items()
        }
        for name, losses in found.items():
            scale = found["full"].abs().max()
            assert (losses - found["full"]).abs().max() <= 1e-5 * scale, (name, distance)


# Tied V with an untied U


def tied_pair() -> tuple[interp.LanguageModel, interp.LanguageModel]:
    """V with tied embeddings, U with an unembedding of its own."""
    vanilla = tiny("llama", num_layers=3, tie_word_embeddings=True)
    unlearned = tiny("llama", seed=1, num_layers=3, tie_word_embeddings=False)
    left, right = vanilla.model, unlearned.model
    assert left.lm_head.weight is left.model.embed_tokens.weight
    assert right.lm_head.weight is not right.model.embed_tokens.weight
    return vanilla, unlearned


PARAMETERS = {
    "unembed": lambda model: [model.lm_head],
    "norms": lambda model: [
        model.model.layers[2].input_layernorm,
        model.model.layers[2].post_attention_layernorm,
        model.model.norm,
    ],
    "value": lambda model: [model.model.layers[2].mlp.down_proj],
}


@torch.no_grad()
def measure_by_hand(base, donor, vanilla, site) -> torch.Tensor:
    """Loss of each question with modules' weights replaced, by plain forwards."""
    changed = copy.deepcopy(base.model)
    for module, other in zip(PARAMETERS[site](changed), PARAMETERS[site](donor.model), strict=True):
        # Into this module alone, whatever it is tied to.
        module.weight = nn.Parameter(other.weight.clone(), requires_grad=False)
    losses = []
    for item in mixed_trajectories():
        ids, scored = torch.tensor([item.token_ids]), list(item.scored)
        runs = [model(ids).logits[0, scored].double() for model in (changed, vanilla.model)]
        losses.append((runs[0] - runs[1]).square().mean())
    return torch.stack(losses)


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("engine", ENGINES)
def test_parameter_sites_of_a_tied_and_an_untied_model(engine, direction):
    vanilla, unlearned = tied_pair()
    check_pair(vanilla, unlearned)
    pair = Pair(vanilla=vanilla, unlearned=unlearned, direction=direction)
    restorations = [
        Restoration(sites=(site,), layers=() if site == "unembed" else (2,)) for site in PARAMETERS
    ]
    losses = ENGINES[engine](pair, mixed_trajectories(), restorations).losses
    for site, found in zip(PARAMETERS, losses, strict=True):
        expected = measure_by_hand(pair.base, pair.donor, vanilla, site)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=site)


def test_drift_of_a_tied_and_an_untied_model():
    """The embedding moved by 0.1 of itself, the unembedding not at all."""
    vanilla, unlearned = tied_pair()
    unlearned.model.load_state_dict(vanilla.model.state_dict())
    embedding = unlearned.model.model.embed_tokens.weight
    embedding.mul_(1.1)
    table = measure_drift(vanilla, unlearned, progress=False).set_index("group")
    assert table.loc["embed", "relative_change"] == pytest.approx(0.1, rel=1e-5)
    assert table.loc["unembed", "relative_change"] == 0
    back = measure_drift(unlearned, vanilla, progress=False).set_index("group")
    assert back.loc["embed", "relative_change"] == pytest.approx(0.1 / 1.1, rel=1e-5)
    assert back.loc["unembed", "relative_change"] == 0
    assert not are_identical(vanilla, unlearned)
    embedding.copy_(vanilla.model.model.embed_tokens.weight)
    assert are_identical(vanilla, unlearned)
    assert not math.isnan(table.loc["embed", "cosine"])
