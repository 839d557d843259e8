"""Foreign names of sites: one is a site only where it is that very tensor."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from unittest.mock import patch

import pytest
import torch

import interp
from interp import LanguageModel
from interp.models import remove_on_exit
from interp.recovery.batches import Batch, make_batch
from interp.recovery.hooks import record
from interp.recovery.site_names import AFTER_NORM, AFTER_RESIDUAL, HOOK_POINTS, translate_site_name
from interp.recovery.sites import ACTIVATION_SITES, SiteName
from tests.helpers.samples import mark_rest
from tests.helpers.tiny_models import ARCHITECTURES, NUM_LAYERS, mixed_trajectories, tiny

BATCH = make_batch(mixed_trajectories(), padding_side="left")
BRIDGED = [name for name in ARCHITECTURES if name != "phi_qk_norm"]
"""Architectures that TransformerLens runs."""


def states(model: LanguageModel, batch: Batch = BATCH) -> dict[str, torch.Tensor]:
    """Record the reference's states at real positions, by the name of the site and layer."""
    with torch.inference_mode():
        run = record(model.anatomy, batch, set(ACTIVATION_SITES))
    return {
        f"{site}@{layer}": getattr(found, site)[batch.real]
        for layer, found in enumerate(run.layers)
        for site in ACTIVATION_SITES
    }


def difference(found: torch.Tensor, expected: torch.Tensor, batch: Batch = BATCH) -> float:
    """Compute the largest at a real position, relative to the largest entry if that is above 1."""
    found = found.reshape(*batch.real.shape, -1)[batch.real]
    if found.shape != expected.shape:
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def accepted(model: LanguageModel, names: list[str]) -> dict[str, str]:
    """List the names that are sites of the model; for the others no closest name is looked up."""
    found = {}
    with patch("interp.recovery.site_names.get_close_matches", return_value=[]):
        for name in names:
            with suppress(ValueError):
                found[name] = translate_site_name(name, model)
    return found


# TransformerLens


def cached(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Every state that the bridge shows, under each of its names, in the left-padded batch."""
    bridge = interp.to_transformer_lens(model)
    inputs = BATCH.inputs(model.anatomy.body)
    seen: dict[str, torch.Tensor] = {}

    def keep(value, hook, name):
        seen[name] = value.detach()

    # One name at a time, not all at once, so that aliases are resolved as for a person's own hook.
    names = [name for name in bridge.hook_dict if name.startswith("blocks.") and ".hook_" in name]
    names = list(accepted(model, names))
    hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    hooks += [
        (f"blocks.3.{name}", lambda value, hook, name=f"blocks.3.{name}": keep(value, hook, name))
        for name in (*AFTER_NORM, *AFTER_RESIDUAL)
    ]
    with torch.inference_mode():
        bridge.run_with_hooks(inputs.pop("input_ids"), fwd_hooks=hooks, **inputs)
    return seen


@pytest.mark.parametrize(
    "architecture", mark_rest(BRIDGED, ("llama", "gemma2", "gpt2", "bloom", "opt_post_norm"))
)
def test_hook_points_are_the_very_tensors_of_the_sites(architecture):
    model = tiny(architecture)
    expected, found = states(model), cached(model)
    sites = accepted(model, list(found))
    for name, site in sites.items():
        assert difference(found[name], expected[site]) < 1e-5, (name, site)
    # In every layer, every site has the name by which the engine reads it.
    for site, (first, *_) in HOOK_POINTS.items():
        for layer in range(NUM_LAYERS):
            assert sites[f"blocks.{layer}.{first}"] == f"{site}@{layer}"
    assert set(sites.values()) == set(expected)
    # Every name is one of TransformerLens' own.
    names = {f"blocks.3.{hook}" for hooks in HOOK_POINTS.values() for hook in hooks}
    assert names <= set(found)
    # What is refused here is another tensor.
    for hook in (*AFTER_NORM, *AFTER_RESIDUAL):
        name = f"blocks.3.{hook}"
        if name not in sites:
            other = expected["attn@3" if "attn" in hook else "mlp_out@3"]
            assert difference(found[name], other) > 1e-2, name


def test_gemmas_hook_attn_out_comes_after_its_norm():
    for architecture in ("gemma2", "gemma3", "olmo2"):
        model = tiny(architecture)
        with pytest.raises(ValueError, match=r"'blocks\.3\.hook_attn_out' is no site of this"):
            translate_site_name("blocks.3.hook_attn_out", model)
        assert translate_site_name("blocks.3.attn.hook_out", model) == "attn@3"
    assert translate_site_name("blocks.3.hook_attn_out", tiny("llama")) == "attn@3"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "xglm"])
def test_parameters_of_transformer_lens(architecture):
    model = tiny(architecture)
    bridge = interp.to_transformer_lens(model)
    assert translate_site_name("blocks.2.mlp.W_out", model) == "value@2"
    weight = model.anatomy.layers[2].values.weight
    # TransformerLens shows weights as [d_in, d_out], and so does GPT-2's Conv1D hold them.
    same = weight if architecture == "gpt2" else weight.T
    w_out = bridge.blocks[2].mlp.W_out
    assert torch.equal(w_out if w_out.shape == same.shape else w_out.T, same)
    assert translate_site_name("unembed.W_U", model) == "unembed"


# Module paths


@pytest.mark.parametrize("architecture", mark_rest(ARCHITECTURES, ("llama", "gpt2", "gemma3")))
def test_module_paths_are_the_very_tensors_of_the_sites(architecture):
    model = tiny(architecture)
    expected = states(model)
    inputs, outputs = {}, {}

    def keep(name):
        def hook(_module, args, kwargs, output):
            inputs[name] = args[0] if args else kwargs.get("hidden_states")
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for name, module in model.model.named_modules():
            hook = module.register_forward_hook(keep(name), with_kwargs=True)
            stack.enter_context(remove_on_exit(hook))
        model.model(**BATCH.inputs(model.anatomy.body))
    tensors = outputs | {f"{name}.output": value for name, value in outputs.items()}
    tensors |= {f"{name}.input": value for name, value in inputs.items()}
    layers = model.anatomy.path
    sites = accepted(model, [name for name in tensors if name.startswith(f"{layers}.")])
    for name, site in sites.items():
        assert difference(tensors[name], expected[site]) < 1e-6, (name, site)
    assert set(sites.values()) == set(expected)
    # As the body itself has them, without the model's root.
    root = f"{model.model.base_model_prefix}."
    assert {name: translate_site_name(name.removeprefix(root), model) for name in sites} == sites


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_of_the_state_dict(architecture):
    model = tiny(architecture)
    keys = list(model.model.state_dict())
    weights = {id(parts.values.weight): i for i, parts in enumerate(model.anatomy.layers)}
    parameters = dict(model.model.named_parameters(remove_duplicate=False))
    sites = accepted(model, keys)
    for key in keys:
        tensor = parameters[key]
        if id(tensor) in weights:
            assert sites.pop(key) == f"value@{weights[id(tensor)]}"
        elif key.startswith("lm_head.weight"):
            assert sites.pop(key) == "unembed"
    assert sites == {}


# By hand


LLAMA = {
    "coef": "coef",
    "coef+attn": "coef+attn",
    "coef@3[17]": "coef@3[17]",
    "blocks.3.mlp.hook_post": "coef@3",
    "blocks.3.mlp.hook_post[17]": "coef@3[17]",
    "blocks.0.attn.hook_z[0,2]": "head@0[0,2]",
    "blocks.3.attn.o.hook_out": "attn@3",
    "blocks.3.mlp.hook_post+blocks.3.hook_attn_out": "coef@3+attn@3",
    "coef@3+model.layers.3.self_attn.o_proj": "coef@3+attn@3",
    "blocks.3.hook_resid_post": "resid@3",
    "blocks.3.hook_resid_pre": "resid@2",
    "model.layers.3.input": "resid@2",
    "model.layers.3": "resid@3",
    "layers.3": "resid@3",
    "model.layers.4.mlp.down_proj.input": "coef@4",
    "model.layers.4.mlp.down_proj": "mlp_out@4",
    "model.layers.4.mlp.down_proj.output": "mlp_out@4",
    "layers.4.mlp.down_proj.weight": "value@4",
    "model.layers.4.self_attn.o_proj.input[1]": "head@4[1]",
    "lm_head": "unembed",
    "lm_head.weight": "unembed",
}


@pytest.mark.parametrize("name", LLAMA)
def test_names_by_hand(name):
    found = translate_site_name(name, tiny())
    assert found == LLAMA[name]
    assert SiteName.parse(found)


def test_names_of_other_families():
    assert translate_site_name("transformer.h.1.mlp.c_proj.input", tiny("gpt2")) == "coef@1"
    assert translate_site_name("h.1.attn.c_proj", tiny("gpt2")) == "attn@1"
    assert (
        translate_site_name("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", tiny("gpt_neox"))
        == "value@0"
    )
    assert translate_site_name("decoder.layers.2.fc2.input[3]", tiny("opt")) == "coef@2[3]"
    assert translate_site_name("transformer.h.2.self_attention.dense", tiny("bloom")) == "attn@2"


@pytest.mark.parametrize(
    "name",
    [
        "blocks.5.mlp.hook_post",
        "blocks.0.hook_resid_pre",
        "model.layers.0.input",
        "blocks.3.mlp.hook_pre",
        "blocks.3.hook_resid_mid",
        "model.layers.3.mlp.up_proj",
        "model.layers.3.mlp.down_proj.bias",
        "model.layers.03",
        "model.norm",
        "coef+blocks.3.mlp",
    ],
)
def test_what_is_no_site(name):
    with pytest.raises(ValueError, match="is no site of this LlamaForCausalLM") as error:
        translate_site_name(name, tiny())
    sentence = str(error.value)
    assert repr(name.split("+")[-1]) in sentence
    for part in ("0 to 4", "close to it are ", "coef@3"):
        assert part in sentence
    close = sentence.partition("close to it are ")[2].split(", and")[0].split(", ")
    assert len(close) == 3
    assert all("@" in translate_site_name(other, tiny()) for other in close)
    assert "\n" not in sentence
    assert ". " not in sentence


def test_a_sweep_takes_them():
    items = mixed_trajectories(2)

    def losses(*sites):
        vanilla, unlearned = tiny(), tiny(seed=1)
        return interp.sweep(vanilla, unlearned, items, sites=sites, window=3, progress=False).losses

    foreign = losses("blocks.3.mlp.hook_post[5]", "layers.2.self_attn.o_proj", "lm_head", "coef")
    own = losses("coef@3[5]", "attn@2", "unembed", "coef")
    assert foreign.equals(own)
    assert set(own["site"]) == {"coef[5]", "attn", "unembed", "coef"}
    with pytest.raises(ValueError, match="duplicate site"):
        losses("blocks.3.mlp.hook_post", "coef@3")
    with pytest.raises(ValueError, match="unknown site 'mlp'; valid: coef"):
        losses("mlp")
