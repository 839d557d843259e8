"""Sweeps of really packed models: sites, engines, noise floors and run directories.

In float32 the engines agree on 4-bit models as they do on plain ones. LLM.int8 rounds what each
linear map reads, so that a difference in the last bit can move an input by one of 127 steps, and an
outlier changes what the tokens beside it give: losses of 8-bit models differ by some thousandths.
"""

from __future__ import annotations

from contextlib import ExitStack

import pandas as pd
import pytest
import torch
from torch import nn

import interp
from interp.models import is_packed, unpack_weight
from interp.recovery import NOTHING, Pair, Restoration, full
from interp.recovery.cost_estimate import _count_weights
from tests.helpers.packed_models import PACKINGS, make_packed_pair, needs_bitsandbytes, save_plain
from tests.helpers.tiny_models import (
    OWN_ENGINES,
    mixed_trajectories,
    question,
    save,
    tiny_model,
    trajectory,
    wrap,
)

pytestmark = needs_bitsandbytes

ACTIVATIONS = ("coef", "attn", "coef+attn", "mlp_out", "resid", "head")
TOLERANCE = {
    ("4bit", "float32"): 1e-5,
    ("8bit", "float32"): 0.01,
    ("4bit", "bfloat16"): 0.02,
    ("8bit", "bfloat16"): 0.03,
}
"""Largest difference of losses, of loss(V, U)."""

ITEM = trajectory([5, 6, 7, 8, 9], [10, 11, 12])
WINDOW = (1, 2, 3)


def list_hooked(model: nn.Module, site: str):
    """List the modules of a Llama at whose input (True) or output a site lies, per layer."""
    places = {
        "coef": [("mlp.down_proj", True)],
        "attn": [("self_attn.o_proj", False)],
        "coef+attn": [("mlp.down_proj", True), ("self_attn.o_proj", False)],
        "mlp_out": [("mlp.down_proj", False)],
        "resid": [("", False)],
        "head": [("self_attn.o_proj", True)],
    }
    return [
        (model.model.layers[layer].get_submodule(path), reads)
        for layer in WINDOW
        for path, reads in places[site]
    ]


def measure_by_hand(vanilla: nn.Module, unlearned: nn.Module, site: str) -> float:
    """Measure the loss of one restoration with hooks of torch alone."""
    ids = torch.tensor([[*ITEM.prompt_ids, *ITEM.answer_ids]])
    kept: list[torch.Tensor] = []
    with ExitStack() as stack:
        for module, reads in list_hooked(vanilla, site):
            handle = (
                module.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
                if reads
                else module.register_forward_hook(lambda *run: kept.append(run[-1]))
            )
            stack.callback(handle.remove)
        target = vanilla(ids).logits
    order = [module for module, _ in list_hooked(vanilla, site)]
    # Attention runs before the MLP.
    if site == "coef+attn":
        kept = [kept[2 * place + 1 - which] for place in range(3) for which in (0, 1)]
    assert len(kept) == len(order)
    with ExitStack() as stack:
        for (module, reads), state in zip(list_hooked(unlearned, site), kept, strict=True):
            handle = (
                module.register_forward_pre_hook(lambda _m, args, state=state: (state,))
                if reads
                else module.register_forward_hook(lambda *_run, state=state: state)
            )
            stack.callback(handle.remove)
        logits = unlearned(ids).logits
    difference = (target - logits)[0, list(ITEM.scored)].float()
    return float(difference.square().mean(-1).mean())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_engines_agree_with_hooks_by_hand(packing, dtype, tmp_path):
    vanilla, unlearned = make_packed_pair(tmp_path, packing, dtype=dtype)
    pair = Pair(vanilla=vanilla, unlearned=unlearned)
    wanted = [NOTHING] + [
        Restoration(sites=tuple(site.split("+")), layers=WINDOW) for site in ACTIVATIONS
    ]
    expected = [measure_by_hand(vanilla.model, unlearned.model, site) for site in ACTIVATIONS]
    for engine in OWN_ENGINES.values():
        (whole,), *rest = engine(pair, [ITEM], wanted).tolist()
        found = [loss for (loss,) in rest]
        tolerance = TOLERANCE[packing, dtype] * whole
        assert found == pytest.approx(expected, abs=tolerance, rel=0)
        # Something is restored.
        assert max(abs(loss - whole) for loss in found) > 0.05 * whole


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "llama_biases"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_layered_is_full_and_questions_one_by_one(name, packing, tmp_path):
    vanilla, unlearned = make_packed_pair(tmp_path, packing, name)
    pair = Pair(vanilla=vanilla, unlearned=unlearned)
    items = mixed_trajectories(4)
    wanted = [NOTHING] + [
        Restoration(sites=tuple(site.split("+")), layers=layers)
        for site in ACTIVATIONS
        for layers in (WINDOW, (3, 4))
    ]
    losses = {engine: run(pair, items, wanted) for engine, run in OWN_ENGINES.items()}
    losses["one by one"] = torch.cat(
        [full.measure(pair, [item], wanted).losses for item in items], 1
    )
    expected = losses.pop("full")
    for found in losses.values():
        error = ((found - expected).abs() / expected[0]).max()
        assert error < TOLERANCE[packing, "float32"]


def sweep(pair, **settings) -> pd.DataFrame:
    settings = {"sites": ["coef", "attn"], "window": 3, "progress": False} | settings
    return interp.sweep(*pair, mixed_trajectories(4), **settings).krs()


def test_the_noise_floor_knows_that_inputs_are_rounded(tmp_path):
    """What eight bits round is in it in float32, too; four bits round weights alone."""
    (tmp_path / "4").mkdir()
    (tmp_path / "8").mkdir()
    four = sweep(make_packed_pair(tmp_path / "4", "4bit"))
    eight = sweep(make_packed_pair(tmp_path / "8", "8bit"))
    assert four["noise_floor"].max() < 1e-6
    assert 1e-4 < eight["noise_floor"].max() < 0.05


def test_parameter_sites_refuse_and_activations_do_not(tmp_path):
    pair = make_packed_pair(tmp_path, "4bit")
    for site in ("value", "key", "attn_weights", "unembed", "coef+value"):
        match = r"packed quantised weights.*leave out the site '\w+', or load .* dequantise=True"
        with pytest.raises(ValueError, match=match):
            sweep(pair, sites=[site])
    with pytest.raises(ValueError, match="packed quantised weights"), interp.restore(*pair, "key"):
        pass
    # With all of V's residual stream, the final norm and the unembedding alone are U's.
    vanilla, unlearned = (model.model for model in pair)
    ids = torch.tensor([[5, 6, 7]])
    with interp.restore(pair[1], pair[0], "resid@4"):
        logits = unlearned(ids).logits
    states: list[torch.Tensor] = []
    handle = vanilla.model.layers[4].register_forward_hook(lambda *run: states.append(run[-1]))
    vanilla(ids)
    handle.remove()
    expected = unlearned.lm_head(unlearned.model.norm(states[0]))
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("packing", PACKINGS)
def test_value_sites_of_unpacked_models_are_those_of_plain_ones(packing, tmp_path):
    """To the last bit: a plain checkpoint that holds what the codes stand for."""
    pairs: dict[str, list] = {"unpacked": [], "plain": []}
    for seed, model in enumerate(make_packed_pair(tmp_path, packing)):
        spec = save(model, tmp_path / f"packed-{seed}")
        pairs["unpacked"].append(interp.load(spec, dequantise=True))
        plain = tiny_model("llama", seed=seed, hidden_size=64, intermediate_size=128)
        for path, module in model.model.named_modules():
            if is_packed(module):
                plain.get_submodule(path).weight.copy_(unpack_weight(module, torch.float32))
        pairs["plain"].append(interp.load(save(wrap(plain), tmp_path / f"plain-{seed}")))
    sites = ["value", "key", "coef+attn"]
    tables = [sweep(pair, sites=sites) for pair in pairs.values()]
    columns = ["site", "layer", "krs", "ci_low", "ci_high"]
    pd.testing.assert_frame_equal(*(table[columns] for table in tables), check_exact=True)
    assert tables[0].query("site == 'value'")["krs"].abs().max() > 0.01


def test_a_run_of_packed_models_is_none_of_plain_ones(tmp_path):
    plain = [save_plain(tmp_path, seed=seed) for seed in (0, 1)]
    queries = [question(number) for number in range(2)]
    settings = {"sites": ["coef"], "window": 3, "num_tokens": 3, "progress": False}
    out = tmp_path / "run"
    packed = interp.load(plain[0], quantise="4bit")
    first = interp.sweep(packed, plain[1], queries, out=out, **settings)
    again = interp.sweep(packed, plain[1], queries, out=out, **settings)
    pd.testing.assert_frame_equal(first.losses, again.losses)
    for other in (interp.load(plain[0]), interp.load(plain[0], quantise="8bit")):
        with pytest.raises(ValueError, match=r"another|vanilla"):
            interp.sweep(other, plain[1], queries, out=out, **settings)


def test_work_is_estimated_as_that_of_plain_weights(tmp_path):
    """Two codes of four bits are one number of eight, and are multiplied by as two."""
    vanilla, _ = make_packed_pair(tmp_path, "4bit")
    plain = wrap(tiny_model("llama", hidden_size=64, intermediate_size=128))
    counts = [
        _count_weights((*parts.keys, parts.values, *parts.attn_weights))
        for parts in (vanilla.anatomy.layers[0], plain.anatomy.layers[0])
    ]
    # Three maps of 64 by 128; q and o of 64 by 64, k and v of 64 by 32.
    assert counts == [3 * 64 * 128 + 2 * 64 * 64 + 2 * 64 * 32] * 2
