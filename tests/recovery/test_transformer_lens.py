"""Engine on TransformerLens' bridges gives the reference's numbers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import interp
from interp.models import build_bridge
from interp.recovery.batches import make_batch
from interp.recovery.engines import full, transformer_lens
from interp.recovery.pair import Pair
from interp.recovery.site_names import HOOK_POINTS
from interp.recovery.sites import ACTIVATION_SITES, NOTHING, SITES, Restoration, make_windows
from tests.helpers.every_architecture import make_tiny
from tests.helpers.samples import mark_rest
from tests.helpers.tiny_models import (
    ARCHITECTURES,
    mixed_trajectories,
    tiny,
    tiny_model,
    tiny_pair,
    wrap,
)
from tests.recovery.test_engines import assert_same, every_restoration, vanilla_against_unlearned
from tests.recovery.test_site_names import BRIDGED, difference, states

TRAJECTORIES = mixed_trajectories()

RESTORATIONS = [
    NOTHING,
    *(Restoration(sites=(site,), layers=(1, 2)) for site in SITES),
    Restoration(sites=("coef", "attn", "value", "unembed"), layers=(0, 3, 4)),
    Restoration(sites=("attn", "head"), layers=(0, 2), positions="answer"),
    Restoration(sites=("value", "key", "attn_weights", "norms"), layers=(3, 4)),
    Restoration(sites=("resid",), layers=(2,), positions="prompt"),
    Restoration(sites=("head",), layers=(0, 1, 3), units=((2,), (0, 3), ())),
    Restoration(sites=("coef",), layers=(1, 4), units=((0, 17, 3), (2,)), positions="prompt"),
]


@pytest.mark.parametrize(
    "architecture", mark_rest(BRIDGED, ("llama", "gemma2", "gpt2", "bloom", "opt_post_norm"))
)
@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_the_references_losses(architecture, direction):
    pair = tiny_pair(architecture, direction=direction)
    scale = vanilla_against_unlearned(architecture)
    sides, restorations = ("right", "left"), RESTORATIONS
    if direction == "corrupt":
        sides, restorations = ("left",), RESTORATIONS[::3]
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    base = scale if direction == "restore" else 0
    for restoration, losses in zip(restorations[1:], expected[1:], strict=True):
        # Each does something; OLMo's norms have no weights.
        if (architecture, restoration.site) != ("olmo", "norms"):
            assert (losses - base).abs().max() > 1e-4 * scale.max(), restoration
    for side in sides:
        found = transformer_lens.measure(pair, TRAJECTORIES, restorations, padding_side=side).losses
        assert_same(found, expected, scale, restorations)


def test_windows_of_every_site():
    pair, restorations = tiny_pair("gemma3"), every_restoration()[::8]
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    found = transformer_lens.measure(
        pair, TRAJECTORIES, restorations, padding_side="left", batch_size=2
    ).losses
    assert_same(found, expected, expected[0], restorations)


@pytest.mark.parametrize("distance", ["kl", "answer_logprob"])
@pytest.mark.parametrize("architecture", ["gemma2", "phi"])
def test_other_distances(architecture, distance):
    pair = tiny_pair(architecture)
    expected = full.measure(pair, TRAJECTORIES, RESTORATIONS, distance=distance).losses
    found = transformer_lens.measure(pair, TRAJECTORIES, RESTORATIONS, distance=distance).losses
    # One answer's log-probability may by chance be nearly the same.
    assert_same(found, expected, expected[0].abs().mean(), RESTORATIONS)


def test_through_a_sweep():
    vanilla, unlearned = tiny("gemma3"), tiny("gemma3", seed=1)
    krs = [
        interp.sweep(
            vanilla, unlearned, TRAJECTORIES, sites=["coef", "head[1]", "value@2"],
            window=3, engine=engine, progress=False,
        ).krs()
        for engine in ("full", "transformer_lens")
    ]  # fmt: skip
    assert len(krs[0]) == 11
    assert krs[0]["krs"].std() > 0.01
    assert (krs[0]["krs"] - krs[1]["krs"]).abs().max() < 1e-5


# The person's models


def fingerprint(pair: Pair) -> list[object]:
    """Bits, keys, modules, parameters and hooks of both models, and what they compute."""
    found: list[object] = []
    for wrapped in (pair.vanilla, pair.unlearned):
        found += [wrapped.content_hash(), list(wrapped.model.state_dict())]
        found += [(name, id(value)) for name, value in wrapped.model.named_parameters()]
        for name, module in wrapped.model.named_modules():
            hooks = list(module._forward_hooks), list(module._forward_pre_hooks)
            found.append((name, id(module), sorted(vars(module)), hooks))
        with torch.inference_mode():
            logits = wrapped.model(torch.tensor([[3, 14, 15, 9, 26, 5]])).logits
        found += [logits.numpy().tobytes(), str(wrapped.model.config)]
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_models_are_as_before_and_bridges_too(architecture):
    pair = tiny_pair(architecture)
    before = fingerprint(pair)
    expected = transformer_lens.measure(pair, TRAJECTORIES, RESTORATIONS).losses
    assert fingerprint(pair) == before
    for stop in (1, 4, len(RESTORATIONS) - 1):
        calls = []

        def interrupt(share, calls=calls, stop=stop):
            calls.append(share)
            if len(calls) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            transformer_lens.measure(pair, TRAJECTORIES, RESTORATIONS, advance=interrupt)
        assert fingerprint(pair) == before
    # No weight stayed swapped in a bridge and no hook in it.
    assert torch.equal(transformer_lens.measure(pair, TRAJECTORIES, RESTORATIONS).losses, expected)


def test_an_exception_inside_a_restored_forward(monkeypatch):
    pair = tiny_pair("gpt_neox")
    expected = transformer_lens.measure(pair, TRAJECTORIES, RESTORATIONS).losses
    before = fingerprint(pair)
    everything = [Restoration(sites=tuple(SITES), layers=(0, 2, 4))]

    def failing(*_args, **_kwargs):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(transformer_lens, "blend", failing)
        with pytest.raises(torch.OutOfMemoryError):
            transformer_lens.measure(pair, TRAJECTORIES, everything)
    assert fingerprint(pair) == before
    assert torch.equal(transformer_lens.measure(pair, TRAJECTORIES, RESTORATIONS).losses, expected)


def test_bridges_are_built_once_for_a_pair_and_go_with_it(monkeypatch):
    built = []

    def build(model, *, name):
        bridge = build_bridge(model, name=name)
        built.append((name, weakref.ref(bridge)))
        return bridge

    monkeypatch.setattr(transformer_lens, "build_bridge", build)
    pair = tiny_pair()
    for _ in range(3):
        transformer_lens.measure(pair, TRAJECTORIES, [NOTHING])
    assert [name for name, _ in built] == ["U", "V"]
    itself = pair.with_itself()
    transformer_lens.measure(itself, TRAJECTORIES, [NOTHING])
    assert [name for name, _ in built] == ["U", "V", "V"]
    del pair, itself
    gc.collect()
    assert [reference() for _, reference in built] == [None, None, None]


def test_bridges_hold_the_parameters_themselves():
    model = tiny("llama_biases")
    bridged = transformer_lens._build_bridged(model)
    assert {id(p) for p in bridged.bridge.original_model.parameters()} >= {
        id(p) for p in model.model.parameters()
    }


# What it refuses


def test_architectures_that_transformer_lens_does_not_run():
    assert set(ARCHITECTURES) - set(BRIDGED) == {"phi_qk_norm"}
    with pytest.raises(ValueError, match=r"does not run this PhiForCausalLM: .*'q_layernorm'") as e:
        transformer_lens.measure(tiny_pair("phi_qk_norm"), TRAJECTORIES, [NOTHING])
    assert "\n" not in str(e.value)
    assert ". " not in str(e.value)


def test_a_bridge_with_other_logits_is_refused():
    model = tiny_model("phi")
    # TransformerLens knows of no such thing.
    model.model.final_layernorm.register_forward_hook(lambda _m, _a, output: output)
    block = model.model.layers[2]
    block.self_attn.register_forward_hook(lambda _m, _a, output: (output[0] * 2, *output[1:]))
    vanilla = wrap(model)
    with pytest.raises(ValueError, match="gives other logits for this PhiForCausalLM"):
        transformer_lens.measure(
            Pair(vanilla=vanilla, unlearned=tiny("phi", seed=1)), [], [NOTHING]
        )


def test_logits_on_the_questions_that_are_others():
    """What the four tokens of the bridge's start do not show: here of longer questions alone."""
    pair = tiny_pair("phi")
    transformer_lens.measure(pair, TRAJECTORIES, [NOTHING])
    bridge = transformer_lens._BRIDGED[pair].base.bridge
    double = bridge.blocks[2].register_forward_hook(
        lambda _m, _a, output: output * 2 if output.shape[1] > 4 else output
    )
    with pytest.raises(ValueError, match=r"gives other logits for this PhiForCausalLM \(use the"):
        transformer_lens.measure(pair, TRAJECTORIES, [NOTHING])
    double.remove()
    transformer_lens.measure(pair, TRAJECTORIES, [NOTHING])


def test_a_hook_point_that_shows_another_tensor(monkeypatch):
    monkeypatch.setitem(HOOK_POINTS, "attn", ("hook_attn_out", "hook_attn_out"))
    site = [Restoration(sites=("attn",), layers=(1,))]
    with pytest.raises(ValueError, match="another tensor than the site 'attn' of this Gemma2For"):
        transformer_lens.measure(tiny_pair("gemma2"), TRAJECTORIES, site)


def phi3_pair() -> Pair:
    """Make models in which gate and up projection are one matrix, which TransformerLens cuts."""
    vanilla, unlearned = (wrap(make_tiny("Phi3ForCausalLM", seed=seed)) for seed in (0, 1))
    return Pair(vanilla=vanilla, unlearned=unlearned)


def test_parameters_that_the_bridge_does_not_compute_with(monkeypatch):
    pair = phi3_pair()
    keys = [NOTHING, Restoration(sites=("key",), layers=(1, 2))]
    expected = full.measure(pair, TRAJECTORIES, keys).losses
    found = transformer_lens.measure(pair, TRAJECTORIES, keys).losses
    assert_same(found, expected, expected[0], keys)
    monkeypatch.setattr(
        transformer_lens, "_list_weights", lambda _block, parts: tuple(parts.attn_weights)
    )
    with pytest.raises(ValueError, match="does not restore the site 'key' of this Phi3ForCausal"):
        transformer_lens.measure(phi3_pair(), TRAJECTORIES, keys)


def test_mixtures_of_experts():
    """What lies outside of the experts: the mixture's output too, which is no one matrix's."""
    vanilla, unlearned = (wrap(make_tiny("MixtralForCausalLM", seed=seed)) for seed in (0, 1))
    pair = Pair(vanilla=vanilla, unlearned=unlearned)
    sites = ("attn", "head", "mlp_out", "resid", "attn_weights", "norms", "unembed")
    restorations = [NOTHING, *(Restoration(sites=(site,), layers=(1, 2)) for site in sites)]
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    found = transformer_lens.measure(pair, TRAJECTORIES, restorations).losses
    assert_same(found, expected, expected[0], restorations)


# A real model


@pytest.mark.gemma
def test_on_gemma(gemma_pair):
    vanilla = gemma_pair.vanilla
    queries = [
        interp.Query(id=name, language="en", prompt=f"The capital of {name} is")
        for name in ("France", "the United Kingdom")
    ]
    answers = interp.trajectories(vanilla, queries, num_tokens=3, progress=False)
    restorations = [
        NOTHING,
        *(
            item
            for site in (*SITES, "coef+attn")
            for item in make_windows(site, num_layers=18)[-6:][:1]
        ),
    ]
    expected = full.measure(gemma_pair, answers, restorations, padding_side="left").losses.mean(1)
    before = vanilla.content_hash()
    found = transformer_lens.measure(
        gemma_pair, answers, restorations, padding_side="left"
    ).losses.mean(1)
    assert vanilla.content_hash() == before
    # 1 − loss / loss(V, U): the difference of two KRS.
    assert ((found - expected).abs() / expected[0]).max() < 1e-5
    assert (expected[1:] / expected[0]).std() > 0.01

    batch = make_batch(answers, padding_side="left")
    assert not batch.real.all()
    inputs = batch.inputs(vanilla.anatomy.body)
    bridge = transformer_lens._BRIDGED[gemma_pair].donor.bridge
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
    expected = states(vanilla, batch)
    for site in ACTIVATION_SITES:
        for layer in range(18):
            state = cache[f"blocks.{layer}.{HOOK_POINTS[site][0]}"]
            assert difference(state, expected[f"{site}@{layer}"], batch) < 1e-5
    # What TransformerLens calls the attention's output is another tensor here.
    assert difference(cache["blocks.3.hook_attn_out"], expected["attn@3"], batch) > 1e-2
