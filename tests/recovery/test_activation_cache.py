"""Activation cache, hooks, and the hook points of both."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.recovery.batches import make_batch
from interp.recovery.hooks import record
from tests.helpers.tiny_models import NUM_LAYERS, mixed_trajectories, question, tiny
from tests.recovery.test_restored_model import hooks_of

SITES = ("coef", "attn", "head", "mlp_out", "resid")
IDS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])


def zero(value, hook):
    return torch.zeros_like(value)


# The cache


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bloom", "opt"])
def test_the_cache_holds_what_the_engines_record(name):
    model, items = tiny(name), mixed_trajectories()
    logits, cache = interp.run_with_cache(model, items, SITES)
    assert len(cache) == len(SITES) * NUM_LAYERS
    for query, item in enumerate(items):
        alone = make_batch([item])
        length = len(item.token_ids) - 1
        assert alone.input_ids.shape[1] == length
        assert cache.tokens[query][cache.real[query]].tolist() == list(item.token_ids)
        run = record(model.anatomy, alone, SITES)
        for layer, states in enumerate(run.layers):
            for site in SITES:
                expected = getattr(states, site)[0]
                actual = cache[site, layer][query, :length]
                if site == "head":
                    assert actual.shape == (length, 4, expected.shape[-1] // 4)
                    actual = actual.flatten(1)
                torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        whole = model.model(torch.tensor([item.token_ids])).logits[0, -1]
        torch.testing.assert_close(logits[query], whole, atol=1e-5, rtol=1e-5)


def test_prompts_of_every_kind():
    model, query = tiny(), question(1)
    expected, cache = interp.run_with_cache(model, query.prompt)
    assert cache.tokens.tolist() == [list(model.encode(query.prompt))]
    assert cache.keys() == [
        (site, layer) for site in ("coef", "attn", "resid") for layer in range(NUM_LAYERS)
    ]
    assert torch.equal(interp.run_with_cache(model, query)[0], expected)
    assert torch.equal(interp.run_with_cache(model, [query])[0], expected)
    several, cache = interp.run_with_cache(model, [query.prompt, "w3", question(2)], "resid@0")
    torch.testing.assert_close(several[:1], expected)
    # <s> and the words; the rest is padding.
    assert cache.real.sum(1).tolist() == [5, 2, 5]


def test_single_layers_heads_and_coefficients():
    model = tiny()
    _, cache = interp.run_with_cache(model, "w3 w4 w5", ["coef", "head", "coef@3[17,2]", "head[1]"])
    # Units stand in ascending order.
    assert torch.equal(cache["coef[2,17]", 3], cache["coef", 3][..., [2, 17]])
    assert torch.equal(cache["coef@3[17,2]"], cache["coef[2,17]", 3])
    assert torch.equal(cache["coef@3"], cache["coef", 3])
    assert torch.equal(cache["head[1]", 4], cache["head", 4][:, :, [1]])
    assert torch.equal(cache.stack("head")[4], cache["head", 4])
    assert cache.stack("head").shape == (5, 1, 4, 4, 4)
    assert cache.axes == {
        "coef": ("query", "pos", "d_mlp"),
        "head": ("query", "pos", "head", "d_head"),
        "coef[2,17]": ("query", "pos", "d_mlp"),
        "head[1]": ("query", "pos", "head", "d_head"),
    }


def test_the_cache_tells_of_itself():
    _, cache = interp.run_with_cache(tiny(), ["w3 w4 w5", "w3"], ["coef", "attn@2"])
    # 8 positions of 5 × 24 coefficients and 16 numbers, four bytes each: 4352 bytes.
    assert repr(cache).splitlines() == [
        "ActivationCache: 2 × 4 tokens (query × pos), 6 of them real, 0.0 MB",
        "  coef: 2 × 4 × 24 (query × pos × d_mlp), 5 layers",
        "  attn: 2 × 4 × 16 (query × pos × d_model), layer 2",
    ]
    assert ("coef", 4) in cache
    assert ("attn", 1) not in cache
    for key in (("attn", 1), "attn@1", "attn", "mlp_out"):
        with pytest.raises(
            LookupError,
            match=r"is not in the cache; valid: coef of layers 0, 1, 2, 3, 4; attn of layers 2",
        ):
            cache[key]
    with pytest.raises(LookupError, match="'resid' is not in the cache"):
        cache.stack("resid")


def test_states_are_copies_to_keep_and_to_change():
    model = tiny()
    text = "w3 w4 w5"
    logits, cache = interp.run_with_cache(model, text, ["coef", "coef@1"])
    first = cache["coef", 1].clone()
    for layer in range(NUM_LAYERS):
        cache["coef", layer].zero_()
    again, other = interp.run_with_cache(model, text, ["coef"])
    assert torch.equal(again, logits)
    assert torch.equal(other["coef", 1], first)
    # No inference tensor: it may take part in what has gradients.
    weight = torch.ones(first.shape[-1], requires_grad=True)
    (other["coef", 1] @ weight).sum().backward()
    assert weight.grad is not None


def test_the_cache_in_a_block_is_that_of_the_block():
    vanilla, unlearned = tiny(), tiny(seed=1)
    text = "w3 w4 w5"
    _, of_vanilla = interp.run_with_cache(vanilla, text)
    with interp.restore(unlearned, vanilla, "coef", [2]):
        _, restored = interp.run_with_cache(unlearned, text)
    assert torch.equal(restored["coef", 2], of_vanilla["coef", 2])
    assert not torch.equal(restored["coef", 3], of_vanilla["coef", 3])
    with interp.hooks(unlearned, [("attn@1", zero)]):
        _, silenced = interp.run_with_cache(unlearned, text)
    assert not silenced["attn", 1].any()
    assert silenced["attn", 2].any()


@pytest.mark.parametrize(
    ("prompts", "sites", "message"),
    [
        ([], ["coef"], "no prompts"),
        ("w3", ["value"], "'value' names weights, which are no states of a run"),
        ("w3", ["coef@5"], "layer 5 of the site 'coef@5' is out of range 0 to 4"),
        ("w3", ["head[4]"], "head 4 of the site .* is out of range 0 to 3"),
        ("w3", ["blocks"], "unknown site 'blocks'"),
        ("w3 " * 64, ["coef"], "more than the model's context of 64"),
    ],
)
def test_what_is_not_there_is_refused(prompts, sites, message):
    with pytest.raises(ValueError, match=message):
        interp.run_with_cache(tiny(), prompts, sites)


# Hooks


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox", "bloom", "opt"])
@pytest.mark.parametrize("site", SITES)
def test_a_hook_sees_and_replaces(name, site):
    """Patching by hand: a hook that puts another model's state in is a restoration."""
    vanilla, unlearned = tiny(name), tiny(name, seed=1)
    donor = {}
    with interp.hooks(
        vanilla, [(f"{site}@2", lambda value, hook: donor.update(value=value.clone()))]
    ):
        vanilla.model(IDS)
    assert donor["value"].shape[:2] == IDS.shape
    with interp.hooks(unlearned, [(f"{site}@2", lambda value, hook: donor["value"])]):
        hooked = unlearned.model(IDS).logits
    with interp.restore(unlearned, vanilla, site, [2]):
        assert torch.equal(unlearned.model(IDS).logits, hooked)
    assert not torch.equal(unlearned.model(IDS).logits, hooked)


def test_a_head_is_silenced_by_hand():
    """Without head 2, the attention state is the output projection of the other heads."""
    model = tiny()
    seen = {}
    with interp.hooks(
        model, [("head@3[2]", zero), ("attn@3", lambda value, hook: seen.update(out=value))]
    ):
        model.model(IDS)
    _, cache = interp.run_with_cache(model, mixed_trajectories(), ["head@3", "attn@3"])
    heads = cache["head", 3].clone()
    weight = model.anatomy.layers[3].attn_out.weight
    torch.testing.assert_close(cache["attn", 3], heads.flatten(2) @ weight.T)
    # The hooked run, from the state before the projection.
    with interp.hooks(model, [("head@3", lambda value, hook: seen.update(heads=value.clone()))]):
        model.model(IDS)
    seen["heads"][:, :, 2] = 0
    torch.testing.assert_close(seen["out"], seen["heads"].flatten(2) @ weight.T)


@pytest.mark.parametrize("place", ["head@3", "head@3[1]", "coef@2[4,5]", "coef", "model.layers.1"])
def test_what_is_changed_in_place_is_changed(place):
    model = tiny()

    def in_place(value, hook):
        value.mul_(2)

    with interp.hooks(model, [(place, lambda value, hook: value * 2)]), torch.no_grad():
        expected = model.model(IDS).logits
    with interp.hooks(model, [(place, in_place)]), torch.no_grad():
        assert torch.equal(model.model(IDS).logits, expected)
    assert not torch.equal(model.model(IDS).logits, expected)


def test_hooks_know_where_they_are_and_keep_their_order():
    model = tiny()
    calls = []

    def note(value, hook):
        calls.append((hook.name, hook.layer(), tuple(value.shape)))

    places = ["coef@1", "head@1[0,2]", "model.layers.4.mlp", "model.layers.3.self_attn"]
    with interp.hooks(model, [(place, note) for place in [*places, "mlp_out"]]):
        model.model(IDS)
    assert calls == [
        ("mlp_out@0", 0, (2, 4, 16)),
        ("head@1[0,2]", 1, (2, 4, 2, 4)),
        ("coef@1", 1, (2, 4, 24)),
        *((f"mlp_out@{layer}", layer, (2, 4, 16)) for layer in (1, 2)),
        ("model.layers.3.self_attn", 3, (2, 4, 16)),
        *((f"mlp_out@{layer}", layer, (2, 4, 16)) for layer in (3, 4)),
        ("model.layers.4.mlp", 4, (2, 4, 16)),
    ]
    with (
        interp.hooks(model, [("model.norm", note)]),
        pytest.raises(ValueError, match=r"'model\.norm' lies in no layer"),
    ):
        model.model(IDS)


def test_functions_at_one_place_run_in_their_order():
    model = tiny()
    with interp.hooks(model, [("resid@4", zero), ("resid@4", lambda value, hook: value + 1)]):
        after_one = model.model(IDS).logits
    expected = model.anatomy.logits(model.anatomy.readout_state(torch.ones(2, 4, 16)))
    torch.testing.assert_close(after_one, expected)


def test_generation_under_a_hook():
    """Steering: a bias on one token's logit makes the model say it."""
    model = tiny()

    def say_nine(value, hook):
        return value + 100 * torch.eye(50)[9]

    with interp.hooks(model, [("lm_head", say_nine)]):
        said = model.model.generate(IDS, max_new_tokens=5, attention_mask=torch.ones_like(IDS))
    assert said[:, 4:].tolist() == [[9] * 5] * 2


def refused(value, hook):
    raise KeyError("of the person's own")


@pytest.mark.parametrize(
    ("place", "function", "error", "message"),
    [
        ("coef@1", refused, KeyError, "of the person's own"),
        ("coef@1", lambda value, hook: value[:1], ValueError, r"\(2, 4, 24\) .* not \(1, 4, 24\)"),
        ("head@1[0]", lambda value, hook: value[..., 0], ValueError, r"like .* \(2, 4, 1, 4\)"),
        ("attn@1", lambda value, hook: value.double(), ValueError, r"not .* of torch\.float64"),
        ("attn@1", lambda value, hook: 0, ValueError, "a tensor or None, not int"),
        ("model", zero, ValueError, "the output of 'model' is a BaseModelOutputWithPast"),
        ("model.layers.1", lambda value, hook: value[0], ValueError, "'model.layers.1' must"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_no_hook_stays(place, function, error, message):
    model = tiny()
    before, plain = model.content_hash(), model.model(IDS).logits
    with interp.hooks(model, [("resid", zero), (place, function)]):
        with pytest.raises(error, match=message):
            model.model(IDS)
        assert hooks_of(model) > 0
    assert hooks_of(model) == 0
    assert model.content_hash() == before
    assert torch.equal(model.model(IDS).logits, plain)


def test_a_place_that_is_not_there_is_refused():
    model = tiny()
    for place, message in (
        ("model.layers.9", "'model.layers.9' is no site of this Llama.* 0 to 4; close .*layers"),
        ("coef@9", "layer 9 of the site 'coef@9' is out of range 0 to 4"),
        ("value@1", "names weights"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            interp.hooks(model, [("coef", zero), (place, zero)]),
        ):
            pass
        assert hooks_of(model) == 0


# Heads


def test_a_sweep_over_heads():
    """All four heads of a layer together are the site `head`, each alone is one row of it."""
    vanilla, unlearned = tiny(), tiny(seed=1)
    assert interp.heads(vanilla) == ["head[0]", "head[1]", "head[2]", "head[3]"]
    recovery = interp.sweep(
        vanilla,
        unlearned,
        mixed_trajectories(),
        sites=[*interp.heads(vanilla), "head[0,1,2,3]", "head"],
        window=1,
        progress=False,
    )
    scores = recovery.krs().pivot_table(index="site", columns="layer", values="krs")
    torch.testing.assert_close(
        torch.tensor(scores.loc["head[0,1,2,3]"]), torch.tensor(scores.loc["head"])
    )
    assert scores.loc["head[0]":"head[3]"].std().min() > 1e-6
