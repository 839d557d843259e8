"""Attribution patching: the search for the coefficients that carry the recovery."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.recovery.attribution_patching import attribution
from interp.recovery.engines import full, layered
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, Restoration
from tests.helpers.tiny_models import (
    NUM_LAYERS,
    mixed_trajectories,
    tiny,
    tiny_pair,
    trajectory,
    wrap,
)

ANSWERS = mixed_trajectories(11)
D_MLP = 24


def planted(name: str, places: list[tuple[int, int]]) -> Pair:
    """Two models that differ in the key rows of a few coefficients alone."""
    pair = Pair(vanilla=tiny(name), unlearned=tiny(name))
    torch.manual_seed(1)
    for layer, unit in places:
        for key in pair.unlearned.anatomy.layers[layer].keys:
            key.weight[unit] += 0.3 * torch.randn_like(key.weight[unit])
    return pair


def mean_loss(pair: Pair, restoration: Restoration) -> float:
    return float(full.measure(pair, ANSWERS, [restoration]).losses.mean())


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "bloom", "opt"])
def test_it_finds_exactly_what_was_planted(name):
    places = [(1, 5), (3, 17)]
    pair = planted(name, places)
    result = attribution(pair.vanilla, pair.unlearned, ANSWERS, num=4, progress=False)
    best = result.ranked.head(2)
    assert sorted(zip(best["layer"], best["coefficient"], strict=True)) == places
    assert result.units(2) == {1: (5,), 3: (17,)}
    # With V's two coefficients U is V; alone each is what the reference says.
    assert result.recovery["num"].tolist() == [1, 2, 4]
    assert result.recovery["krs"][1] == pytest.approx(1, abs=1e-5)
    assert result.recovery["krs_random"][1] < 0.5
    scale = mean_loss(pair, NOTHING)
    for row in best.itertuples():
        alone = Restoration(sites=("coef",), layers=(row.layer,), units=((row.coefficient,),))
        assert row.krs == pytest.approx(1 - mean_loss(pair, alone) / scale, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_an_attribution_is_the_slope_of_the_krs(name):
    """Against a small step of one coefficient towards V's, taken by a hook on the model."""
    pair = tiny_pair(name)
    item = trajectory([3, 9, 4, 8], [5, 6, 7])
    result = attribution(pair.vanilla, pair.unlearned, [item], num=1, progress=False)
    ids = torch.tensor([item.token_ids[:-1]])
    _, cache = interp.run_with_cache(pair.vanilla, [trajectory(item.token_ids[:-1], [])], ["coef"])
    target = pair.vanilla.model(ids).logits[0, item.scored].double()

    def loss(step: float, layer: int, unit: int) -> float:
        def towards(value, hook):
            return value + step * (cache["coef", layer][..., [unit]] - value)

        with interp.hooks(pair.unlearned, [(f"coef@{layer}[{unit}]", towards)]):
            logits = pair.unlearned.model(ids).logits[0, item.scored].double()
        return float((target - logits).square().mean())

    for layer, unit in ((0, 3), (2, 11), (NUM_LAYERS - 1, 23)):
        step = 0.01
        slope = (loss(step, layer, unit) - loss(-step, layer, unit)) / (2 * step)
        expected = -slope / loss(0, layer, unit)
        largest = float(result.attributions.abs().max())
        assert float(result.attributions[layer, unit]) == pytest.approx(
            expected, rel=1e-2, abs=1e-3 * largest
        )


def test_a_straight_case_by_hand():
    """One coefficient of the last layer differs, and the loss is a parabola in its gate.

    With the final norm taken away, the logits are z_U + g (z_V − z_U) for a gate g, so that the
    loss is (1 − g)² of loss(V, U), its slope at U −2.
    """
    pair = planted("llama", [(NUM_LAYERS - 1, 7)])
    for model in (pair.vanilla.model, pair.unlearned.model):
        model.model.norm = torch.nn.Identity().eval()
    pair = Pair(vanilla=wrap(pair.vanilla.model), unlearned=wrap(pair.unlearned.model))
    result = attribution(pair.vanilla, pair.unlearned, ANSWERS, num=2, progress=False)
    first, second = result.ranked.itertuples()
    assert (first.layer, first.coefficient) == (NUM_LAYERS - 1, 7)
    assert first.attribution == pytest.approx(2, rel=1e-5)
    assert first.krs == pytest.approx(1)
    assert second.attribution == 0
    assert second.krs == pytest.approx(0, abs=1e-6)


def test_all_together_and_at_random():
    pair = tiny_pair()
    total = NUM_LAYERS * D_MLP
    result = attribution(pair.vanilla, pair.unlearned, ANSWERS[:3], num=total, progress=False)
    assert result.recovery["num"].tolist() == [1, 2, 4, 8, 16, 32, 64, total]
    # All of them are all of them, however they were chosen.
    last = result.recovery.iloc[-1]
    assert last["krs"] == pytest.approx(last["krs_random"])
    assert result.ranked["attribution"].is_monotonic_decreasing
    assert not result.ranked.duplicated(["layer", "coefficient"]).any()
    again = attribution(pair.vanilla, pair.unlearned, ANSWERS[:3], num=total, progress=False)
    assert again.recovery.equals(result.recovery)
    other = attribution(
        pair.vanilla, pair.unlearned, ANSWERS[:3], num=total, seed=1, progress=False
    )
    assert not other.recovery["krs_random"].equals(result.recovery["krs_random"])
    assert other.ranked.equals(result.ranked)


def test_both_models_are_as_they_were():
    pair = tiny_pair()
    for model in (pair.vanilla.model, pair.unlearned.model):
        model.requires_grad_(True)
    before = [model.content_hash() for model in (pair.vanilla, pair.unlearned)]
    attribution(pair.vanilla, pair.unlearned, ANSWERS[:2], num=2, progress=False)
    for model, digest in zip((pair.vanilla, pair.unlearned), before, strict=True):
        assert model.content_hash() == digest
        parameters = list(model.model.parameters())
        assert all(item.requires_grad and item.grad is None for item in parameters)
        modules = list(model.model.modules())
        assert not any(item._forward_hooks or item._forward_pre_hooks for item in modules)


def test_a_sweep_before_changes_nothing():
    """Gram matrices that engines keep of V's unembedding are differentiated through here."""
    fresh, swept = planted("llama", [(1, 5)]), planted("llama", [(1, 5)])
    layered.measure(swept, ANSWERS[:3], [NOTHING])
    result = [
        attribution(pair.vanilla, pair.unlearned, ANSWERS[:3], num=2, progress=False).ranked
        for pair in (fresh, swept)
    ]
    assert result[0].equals(result[1])


def test_empty_answers_are_told_of():
    pair = tiny_pair()
    options = {"num": 1, "progress": False}
    with pytest.warns(UserWarning, match="1 of 3 answers are empty and left out"):
        result = attribution(
            pair.vanilla, pair.unlearned, [*ANSWERS[:2], trajectory([3], [])], **options
        )
    expected = attribution(pair.vanilla, pair.unlearned, ANSWERS[:2], **options)
    assert torch.equal(result.attributions, expected.attributions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "num must be between 1 and 120, the coefficients there are, not 0"),
        ({"num": 121}, "not 121"),
        ({"answers": []}, "no queries: give at least one"),
        ({"unlearned": tiny(num_layers=4)}, "does not match"),
        ({"unlearned": tiny()}, r"loss\(V, U\) is 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    arguments = {"unlearned": tiny(seed=1), "answers": ANSWERS[:2], "num": 1} | options
    with pytest.raises(ValueError, match=message):
        attribution(tiny(), progress=False, **arguments)
