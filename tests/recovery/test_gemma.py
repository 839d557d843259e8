"""Engines side by side on a real model."""

import pytest
import torch

import interp
from interp.recovery.engines import full, layered
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, SITES, make_windows

pytestmark = pytest.mark.gemma


@pytest.mark.parametrize("direction", ["restore", pytest.param("corrupt", marks=pytest.mark.slow)])
def test_layered_equals_full_on_gemma(gemma_pair, direction):
    vanilla, unlearned = gemma_pair.vanilla, gemma_pair.unlearned
    queries = [
        interp.Query(
            id=name, language="en", prompt=f"Question: Which city is the capital of {name}"
        )
        for name in ("France", "the United Kingdom")
    ]
    answers = interp.trajectories(vanilla, queries, num_tokens=4, progress=False)
    restorations = [
        NOTHING,
        *(
            item
            for site in (*SITES, "coef+attn")
            for item in make_windows(site, num_layers=18)[::6]
        ),
    ]
    pair = Pair(vanilla=vanilla, unlearned=unlearned, direction=direction)
    found = [engine.measure(pair, answers, restorations) for engine in (full, layered)]
    assert torch.equal(found[0].answered, found[1].answered)
    plain, fast = (each.losses.mean(1) for each in found)
    forwards = Pair(vanilla=vanilla, unlearned=unlearned)
    scale = full.measure(forwards, answers, [NOTHING]).losses.mean()
    # 1 − loss / scale: the difference of two KRS.
    assert ((plain - fast).abs() / scale).max() < 1e-5
    assert (plain[1:] / scale).std() > 0.01
