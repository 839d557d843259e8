"""To TransformerLens and nnsight and back: the same numbers, and nobody's model is touched."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch import nn

import interp
from interp.models import conversion
from interp.models.language_model import LanguageModel
from tests.helpers.tiny_models import tiny, tiny_model, tokenizer, wrap
from tests.recovery.test_site_names import BRIDGED

IDS = torch.tensor([[1, 14, 15, 9, 26, 5, 35]])


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.model(IDS).logits


def fingerprint(model: LanguageModel) -> list[object]:
    """All that a bridge might change in a model."""
    state: list[object] = [model.content_hash(), list(model.model.state_dict())]
    state += [(name, id(value)) for name, value in model.model.named_parameters()]
    for name, module in model.model.named_modules():
        hooks = list(module._forward_hooks), list(module._forward_pre_hooks)
        state.append((name, id(module), sorted(vars(module)), hooks))
    state += [logits(model).numpy().tobytes(), str(model.model.config)]
    return [*state, str(model.tokenizer), model.tokenizer.pad_token, model.tokenizer.padding_side]


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


# TransformerLens


@pytest.mark.parametrize("architecture", BRIDGED)
def test_there_and_back(architecture):
    model = tiny(architecture)
    before = fingerprint(model)
    bridge = interp.to_transformer_lens(model)
    with torch.inference_mode():
        theirs = bridge(IDS)
    assert largest(theirs - logits(model)) < 1e-5
    keys = list(bridge.state_dict())
    back = interp.from_model(bridge)
    assert back.content_hash() == model.content_hash()
    assert list(back.model.state_dict()) == list(model.model.state_dict())
    # Bit for bit, but where the person chose a slower attention than transformers does.
    assert torch.equal(logits(back), logits(model))
    assert back.name == model.name
    # The bridge is its own, as before, whatever is done with either.
    assert list(bridge.state_dict()) == keys
    for parameter in back.model.parameters():
        parameter.zero_()
    with torch.inference_mode():
        assert torch.equal(bridge(IDS), theirs)
    assert fingerprint(model) == before


def test_tied_weights_stay_tied():
    model = tiny("llama_biases")
    back = interp.from_model(interp.to_transformer_lens(model)).model
    assert back.lm_head.weight is back.model.embed_tokens.weight
    back = interp.from_model(interp.to_transformer_lens(tiny("llama"))).model
    assert back.lm_head.weight is not back.model.embed_tokens.weight


def test_whatever_is_done_with_a_bridge():
    model = tiny("gemma3")
    before = fingerprint(model)
    bridge = interp.to_transformer_lens(model)

    def failing(value, hook):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bridge.run_with_hooks(IDS, fwd_hooks=[("blocks.2.attn.hook_z", failing)])
    bridge.add_hook("blocks.1.hook_resid_post", lambda value, hook: value * 0)
    bridge.run_with_cache(IDS)
    bridge.blocks[0].mlp.out.weight.mul_(2)
    bridge.to(torch.float64)
    bridge.tokenizer.padding_side = "left"
    bridge.enable_compatibility_mode()
    assert fingerprint(model) == before


def test_texts_are_read_and_continued_as_by_the_model():
    model = tiny()
    bridge = interp.to_transformer_lens(model)
    assert bridge.to_tokens("w3 w4 w5").tolist() == [list(model.encode("w3 w4 w5"))]
    with torch.inference_mode():
        own = model.model(torch.tensor([model.encode("w3 w4 w5")])).logits
        bridged, cache = bridge.run_with_cache("w3 w4 w5")
        answer = bridge.generate(
            "w3 w4 w5", max_new_tokens=4, do_sample=False, verbose=False, return_type="tokens"
        )
        expected = model.model.generate(
            torch.tensor([model.encode("w3 w4 w5")]), max_new_tokens=4, do_sample=False
        )
    assert largest(bridged - own) < 1e-5
    assert cache["blocks.3.hook_resid_post"].shape == (1, 4, 16)
    assert answer.tolist() == expected.tolist()
    # A tokenizer that puts nothing in front.
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = None
    bridge = interp.to_transformer_lens(LanguageModel(model.model, bare))
    assert bridge.to_tokens("w3 w4").tolist() == [[3, 4]]


def test_folded_weights_are_refused():
    for options in ({}, {"no_processing": True}):
        bridge = interp.to_transformer_lens(tiny())
        bridge.enable_compatibility_mode(disable_warnings=True, **options)
        with pytest.raises(ValueError, match="is in compatibility mode, in which its weights"):
            interp.from_model(bridge)


def test_weights_changed_in_a_bridge_come_along_or_are_refused():
    bridge = interp.to_transformer_lens(tiny())
    bridge.blocks[0].mlp.out.weight.mul_(2)
    with torch.inference_mode():
        changed = bridge(IDS)
    assert largest(changed - logits(tiny())) > 1e-3
    assert largest(changed - logits(interp.from_model(bridge))) < 1e-5
    # GPT-NeoX has one matrix for q, k and v, of which the bridge computes with copies.
    bridge = interp.to_transformer_lens(tiny("gpt_neox"))
    bridge.blocks[0].attn.q.weight.data.mul_(2)
    with pytest.raises(ValueError, match="gives other logits than its weights in plain modules"):
        interp.from_model(bridge)


def test_bfloat16():
    model = wrap(tiny_model().to(torch.bfloat16))
    back = interp.from_model(interp.to_transformer_lens(model))
    assert back.dtype == torch.bfloat16
    assert torch.equal(logits(back), logits(model))


# nnsight


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_to_nnsight_and_back(architecture):
    model = tiny(architecture)
    ids = torch.tensor([model.encode("w14 w15 w9")])
    own = model.model(ids, output_hidden_states=True)
    before = fingerprint(model)
    traced = interp.to_nnsight(model)
    path = model.anatomy.path
    with traced.trace("w14 w15 w9"):
        layer = traced.get(path)[2].output.save()
        logits_saved = traced.lm_head.output.save()
    assert torch.equal(logits_saved, own.logits)
    layer = layer[0] if isinstance(layer, tuple) else layer
    assert torch.equal(layer.view(1, 4, 16), own.hidden_states[3])
    with pytest.raises(ZeroDivisionError), traced.trace("w14"):
        traced.get(path)[1].output = own.hidden_states[0] / (1 // 0)
    back = interp.from_model(traced)
    assert back.model is traced._module
    assert back.content_hash() == model.content_hash()
    assert torch.equal(logits(back), logits(model))
    back.model.lm_head.weight.mul_(2)
    assert fingerprint(model) == before


# Bare models


def test_a_transformers_model_is_held_as_it_is():
    model = tiny_model()
    loaded = interp.from_model(model, tokenizer(), name="mine")
    assert loaded.model is model
    assert loaded.name == "mine"
    assert interp.from_model(loaded) is loaded


def test_what_is_no_model():
    for wrong, kind in ((3, "int"), (nn.Linear(2, 2), "Linear")):
        with pytest.raises(ValueError, match=f"or an nnsight TransformersModel, not of {kind}$"):
            interp.from_model(wrong)
    bridge = interp.to_transformer_lens(tiny())
    with pytest.raises(ValueError, match=r"not of BlockBridge$"):
        interp.from_model(bridge.blocks[0])
    layer = interp.to_nnsight(tiny()).model.layers[0]
    with pytest.raises(ValueError, match=r"not of Envoy around a LlamaDecoderLayer$"):
        interp.from_model(layer)
    with pytest.raises(ValueError, match="this LlamaForCausalLM comes without its tokenizer"):
        interp.from_model(tiny_model())
    with pytest.raises(ValueError, match="is in training mode"):
        interp.from_model(tiny_model().train(), tokenizer())
    with pytest.raises(ValueError, match="this LlamaForCausalLM has not loaded its weights"):
        interp.from_model(tiny_model().to("meta"), tokenizer())


# Packages


@pytest.mark.parametrize(
    ("to", "package", "extra", "old", "oldest"),
    [
        (interp.to_transformer_lens, "transformer-lens", "lens", "3.2.1", "4"),
        (interp.to_nnsight, "nnsight", "nnsight", "0.7.1", "0.8"),
    ],
)
def test_packages_that_are_missing_or_too_old(monkeypatch, to, package, extra, old, oldest):
    monkeypatch.setattr(conversion, "version", lambda _package: old)
    with pytest.raises(ImportError) as error:
        to(tiny())
    assert str(error.value) == (
        f"this needs {package} {oldest} or newer, not {old}: "
        f"pip install --upgrade 'interp[{extra}]'"
    )

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(conversion, "version", missing)
    with pytest.raises(ImportError) as error:
        to(tiny())
    assert str(error.value) == f"this needs the package {package}: pip install 'interp[{extra}]'"
