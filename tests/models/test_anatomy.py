"""Each site is where the table says, on a model of every architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from interp.models.anatomy import find_anatomy
from interp.models.anatomy_proof import check_anatomy
from tests.helpers.tiny_models import ARCHITECTURES, tiny, tiny_model

IDS = torch.tensor([[5, 9, 31, 7, 12]])


def seen_at(model, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input and the output of a module, on five tokens."""
    calls = []
    handle = module.register_forward_hook(lambda _m, args, out: calls.append((args[0], out)))
    with torch.no_grad():
        model(IDS)
    handle.remove()
    return calls[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_is_true_of_every_architecture(architecture):
    model = tiny_model(architecture)
    anatomy = find_anatomy(model)
    check_anatomy(model, anatomy)
    assert anatomy.num_layers == 5
    with torch.no_grad():
        output = model(IDS)
        body = anatomy.body(IDS).last_hidden_state
    torch.testing.assert_close(anatomy.logits(body), output.logits)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "qwen3", "olmo2"])
def test_coefficients_of_a_gated_mlp(architecture):
    """act(W_gate x) ⊙ (W_up x), after the product."""
    model = tiny_model(architecture)
    parts = find_anatomy(model).layers[2]
    x, _ = seen_at(model, parts.mlp)
    coef, _ = seen_at(model, parts.values)
    gate, up = parts.keys
    act = nn.functional.silu
    if architecture.startswith("gemma"):
        act = nn.GELU(approximate="tanh")
    torch.testing.assert_close(coef, act(gate(x)) * up(x))


def test_coefficients_of_a_plain_mlp():
    model = tiny_model("gpt2")
    parts = find_anatomy(model).layers[2]
    x, out = seen_at(model, parts.mlp)
    coef, _ = seen_at(model, parts.values)
    (key,) = parts.keys
    torch.testing.assert_close(coef, nn.GELU(approximate="tanh")(x @ key.weight + key.bias))
    torch.testing.assert_close(out, coef @ parts.values.weight + parts.values.bias)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "olmo2"])
def test_attention_state_is_before_the_norm_that_follows(architecture):
    model = tiny_model(architecture)
    layer = model.model.layers[2]
    _, attn = seen_at(model, find_anatomy(model).layers[2].attn_out)
    before, after = seen_at(model, layer.post_attention_layernorm)
    assert torch.equal(attn, before)
    assert (attn - after).abs().max() > 0.1


# Norms in a layer, and projections in its attention block.
COUNTS = {
    "llama": (2, 4),
    "llama_biases": (2, 4),
    "mistral": (2, 4),
    "qwen2": (2, 4),
    "qwen3": (4, 4),
    "gemma2": (4, 4),
    "gemma3": (6, 4),
    "olmo": (2, 4),
    "olmo2": (4, 4),
    "phi": (1, 4),
    "phi_qk_norm": (3, 4),
    "gpt2": (2, 2),
    "gpt_neox": (2, 2),
    "gpt_neox_sequential": (2, 2),
    "bloom": (2, 2),
    "bloom_post_norm": (2, 2),
    "xglm": (2, 4),
    "opt": (2, 4),
    "opt_post_norm": (2, 4),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_of_a_layer_belongs_to_one_site(architecture):
    parts = find_anatomy(tiny_model(architecture)).layers[1]
    assert (len(parts.norms), len(parts.attn_weights)) == COUNTS[architecture]
    groups = [(parts.values,), parts.keys, parts.attn_weights, parts.norms]
    owned = [id(p) for group in groups for module in group for p in module.parameters()]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in parts.layer.parameters()}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", ["norm"]),
        ("gpt2", ["ln_f"]),
        ("opt", ["final_layer_norm"]),
        ("opt_post_norm", []),
        ("xglm", ["layer_norm"]),
    ],
)
def test_final_norms(architecture, expected):
    model = tiny_model(architecture)
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    assert [names[id(module)] for module in find_anatomy(model).final_norms] == expected


def test_capped_logits():
    anatomy = tiny("gemma2").anatomy
    assert anatomy.logit_cap == 3.0
    state = 100 * torch.ones(1, 16)
    raw = anatomy.unembed(state)
    assert raw.abs().max() > 3
    torch.testing.assert_close(anatomy.logits(state), 3 * torch.tanh(raw / 3))
    assert tiny("llama").anatomy.logit_cap is None


def test_which_layers_only_add_to_the_stream():
    normalising = {name for name in ARCHITECTURES if not tiny(name).anatomy.additive}
    assert normalising == {"opt_post_norm", "bloom_post_norm"}


def test_a_readout_that_is_not_true_is_refused():
    model = tiny_model()
    anatomy = find_anatomy(model)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: unembed\(final norm\(residual\)\)"):
        check_anatomy(model, replace(anatomy, final=()))
    with pytest.raises(ValueError, match="is not the logits"):
        check_anatomy(model, replace(anatomy, logit_cap=0.5))
    assert not any(module._forward_hooks for module in model.modules())


def test_value_vectors_that_are_not_true_are_refused():
    class Scaled(nn.Module):
        """MLP that does more than its last matrix."""

        def __init__(self, mlp: nn.Module):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
            self.mlp = mlp

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1.01 * self.mlp(x)

    model = tiny_model()
    model.model.layers[3].mlp = Scaled(model.model.layers[3].mlp)
    message = "layer 3: the MLP does not return the output of one of its matrices"
    with pytest.raises(ValueError, match=message):
        find_anatomy(model)


def test_architectures_that_are_not_known():
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)
    )
    with pytest.raises(
        ValueError,
        match="MambaForCausalLM cannot be opened: layer 0: there is no MLP beside its MambaMixer",
    ):
        find_anatomy(mamba)
