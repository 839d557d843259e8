"""Identities that hold whatever the models are: V onto V, everything put back, nothing put back."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from interp import LanguageModel
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, SITES, Restoration, make_windows
from tests.helpers.tiny_models import (
    ARCHITECTURES,
    NUM_LAYERS,
    OWN_ENGINES,
    mixed_trajectories,
    tiny,
    tiny_pair,
    trajectory,
    wrap,
)

ALL_LAYERS = tuple(range(NUM_LAYERS))
TRAJECTORIES = mixed_trajectories()
ROUNDING = 1e-9
"""Of the mean square of V's logits: float32 states squared, twice over."""

# Whose weights belong to which site, by their names in the checkpoints. What is in none of them
# (embeddings, and the maps between them and the residual stream) no site puts back.
SITE_OF_WEIGHT = {
    "value": r"mlp\.down_proj|dense_4h_to_h|\bfc2|h\.\d+\.mlp\.c_proj",
    "key": r"mlp\.(gate|up)_proj|dense_h_to_4h|\bfc1|h\.\d+\.mlp\.c_fc",
    "norms": r"layers\.\d+\..*norm|h\.\d+\..*(norm|ln_)"
    r"|^model\.norm|^model\.layer_norm|final_layer_?norm|ln_f",
    "attn_weights": r"self_attn|\battn\.|attention\.(query_key_value|dense)",
    "unembed": r"^lm_head|^embed_out",
}


PARAMETERS = ("value", "key", "attn_weights", "norms", "unembed")
# OLMo 1 normalises without weights.
NO_WEIGHTS = ("olmo", "norms")


def site_of(name: str) -> str | None:
    for site, pattern in SITE_OF_WEIGHT.items():
        if re.search(pattern, name):
            return site
    assert re.search(r"embed|wte|wpe|project", name), name
    return None


def changed_in(vanilla: LanguageModel, *sites: str) -> LanguageModel:
    """V with random changes to the weights of some sites, by their names."""
    model = copy.deepcopy(vanilla.model)
    generator = torch.Generator().manual_seed(3)
    touched = 0
    for name, weight in model.named_parameters():
        if site_of(name) in sites:
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
            touched += 1
    assert touched
    return wrap(model, name="U")


def untied(architecture: str) -> LanguageModel:
    return tiny(architecture, tie_word_embeddings=False)


def logits_of(model: LanguageModel, item) -> torch.Tensor:
    with torch.no_grad():
        logits = model.model(torch.tensor([item.token_ids])).logits[0].double()
    return logits[len(item.prompt_ids) - 1 : len(item.token_ids) - 1]


def scale_of(vanilla: LanguageModel) -> float:
    """Compute the mean square of V's logits."""
    return torch.cat([logits_of(vanilla, item) for item in TRAJECTORIES]).square().mean().item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_v_onto_itself_is_v(architecture):
    vanilla = tiny(architecture)
    pair = Pair(vanilla=vanilla, unlearned=vanilla)
    restorations = [
        Restoration(sites=tuple(site.split("+")), layers=layers, positions=positions)
        for site in (*SITES, "coef+attn", "coef+attn+value")
        for layers in ((1, 2), ALL_LAYERS)
        for positions in ("all", "prompt")
    ]
    for engine in OWN_ENGINES.values():
        assert engine(pair, TRAJECTORIES, restorations).max() <= ROUNDING * scale_of(vanilla)


@pytest.mark.parametrize(
    ("architecture", "site"),
    [(name, site) for name in ARCHITECTURES for site in PARAMETERS if (name, site) != NO_WEIGHTS],
)
def test_a_site_put_back_undoes_a_change_in_that_site(architecture, site):
    vanilla = untied(architecture)
    unlearned = changed_in(vanilla, site)
    pair = Pair(vanilla=vanilla, unlearned=unlearned)
    back = Pair(vanilla=vanilla, unlearned=unlearned, direction="corrupt")
    whole = Restoration(sites=(site,), layers=ALL_LAYERS)
    part = Restoration(sites=(site,), layers=ALL_LAYERS[:2])
    small = ROUNDING * scale_of(vanilla)
    for engine in OWN_ENGINES.values():
        before, after, partly = engine(pair, TRAJECTORIES, [NOTHING, whole, part])
        assert before.min() > 1e4 * small
        assert after.max() <= small
        if site != "unembed":
            assert partly.min() > 1e3 * small
        # V's run with the only part that differs put in is U's.
        corrupted = engine(back, TRAJECTORIES, [whole])[0]
        torch.testing.assert_close(corrupted, before, rtol=1e-4, atol=small)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_everything_put_back_is_v(architecture):
    vanilla = untied(architecture)
    kept = [site for site in PARAMETERS if (architecture, site) != NO_WEIGHTS]
    pair = Pair(vanilla=vanilla, unlearned=changed_in(vanilla, *kept))
    small = ROUNDING * scale_of(vanilla)
    whole = [
        Restoration(sites=PARAMETERS, layers=ALL_LAYERS),
        Restoration(sites=("resid", "norms", "unembed"), layers=ALL_LAYERS),
        # The last window's residual stream, final norm and unembedding are all that is read.
        Restoration(sites=("resid", "norms", "unembed"), layers=ALL_LAYERS[-1:]),
        Restoration(sites=(*PARAMETERS, "coef", "attn"), layers=ALL_LAYERS, positions="prompt"),
        # Embeddings plus V's block outputs. Bloom and OPT-350M normalise the stream: its norms too.
        Restoration(sites=("attn", "mlp_out", "norms", "unembed"), layers=ALL_LAYERS),
        Restoration(sites=("attn", "coef", "value", "norms", "unembed"), layers=ALL_LAYERS),
    ]
    for engine in OWN_ENGINES.values():
        losses = engine(pair, TRAJECTORIES, [NOTHING, *whole])
        assert losses[0].min() > 1e4 * small
        for restoration, loss in zip(whole, losses[1:], strict=True):
            assert loss.max() <= small, restoration


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resid_of_the_last_layer_leaves_only_the_readout(architecture):
    pair = tiny_pair(architecture)
    last = Restoration(sites=("resid",), layers=ALL_LAYERS[-1:])
    expected = []
    for item in TRAJECTORIES:
        seen = []
        layer = pair.vanilla.anatomy.layers[-1].layer
        with torch.no_grad():
            handle = layer.register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out))
            target = logits_of(pair.vanilla, item)
            handle.remove()
            out = seen[0]
            # U's own last layer, made to give V's stream.
            theirs = pair.unlearned.anatomy.layers[-1].layer
            handle = theirs.register_forward_hook(lambda _m, _a, _o, out=out: out)
            read = logits_of(pair.unlearned, item)
            handle.remove()
        expected.append((target - read).square().mean().item())
    for engine in OWN_ENGINES.values():
        found = engine(pair, TRAJECTORIES, [last])[0].tolist()
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_put_back_is_u(architecture):
    pair = tiny_pair(architecture)
    expected = [
        (logits_of(pair.vanilla, item) - logits_of(pair.unlearned, item)).square().mean().item()
        for item in TRAJECTORIES
    ]
    empty = Restoration(sites=("coef", "attn"), layers=())
    for engine in OWN_ENGINES.values():
        for row in engine(pair, TRAJECTORIES, [NOTHING, empty]).tolist():
            assert row == pytest.approx(expected, rel=1e-5)
    corrupted = Pair(vanilla=pair.vanilla, unlearned=pair.unlearned, direction="corrupt")
    for engine in OWN_ENGINES.values():
        assert engine(corrupted, TRAJECTORIES, [NOTHING]).max() == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", ["all", "answer"])
def test_mlp_out_is_coefficients_times_value_vectors(architecture, positions):
    pair = tiny_pair(architecture)
    joined = "coef+value" if positions == "all" else "coef+value+mlp_out"
    together, output = (
        make_windows(site, num_layers=NUM_LAYERS, window=3, positions=positions)
        for site in (joined, "mlp_out")
    )
    for engine in OWN_ENGINES.values():
        both = engine(pair, TRAJECTORIES, [*together, *output])
        whole = engine(pair, TRAJECTORIES, [NOTHING])[0]
        difference = (both[: len(together)] - both[len(together) :]).abs() / whole
        if positions == "all":
            assert difference.max() <= 1e-5
        else:
            # The value vectors act at the prompt too, so here they are not the same.
            assert difference.max() > 1e-3


def test_positions_before_a_change_do_not_see_it():
    """Restoring answer positions cannot move the logits of the last prompt position."""
    pair = tiny_pair("llama")
    item = next(item for item in TRAJECTORIES if len(item.answer_ids) > 2)
    first = trajectory(item.prompt_ids, item.answer_ids[:1])
    answer, prompt = (
        Restoration(sites=("resid",), layers=ALL_LAYERS, positions=positions)
        for positions in ("answer", "prompt")
    )
    for engine in OWN_ENGINES.values():
        found = engine(pair, [first], [NOTHING, answer, prompt])[:, 0]
        assert found[1] == pytest.approx(found[0].item(), rel=1e-6)
        assert abs(found[2] / found[0] - 1) > 1e-2
