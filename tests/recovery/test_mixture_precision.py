"""Mixtures of experts below float32, where weights are cast for the length of a call."""

from __future__ import annotations

import copy
from functools import cache

import pandas as pd
import pytest
import torch

import interp
from tests.helpers.every_architecture import make_tiny
from tests.helpers.tiny_models import mixed_trajectories, wrap

SITES = ("coef", "router", "key", "coef@2[1,30]")


@cache
def models():
    """V, and V with other routers and first matrices in the layers 1 and 2."""
    vanilla = make_tiny("MixtralForCausalLM").to(torch.bfloat16)
    unlearned = copy.deepcopy(vanilla)
    generator = torch.Generator().manual_seed(3)
    for layer in unlearned.model.layers[1:3]:
        for weight in (layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj):
            weight += torch.randn(weight.shape, generator=generator).bfloat16() / 4
    return vanilla, unlearned


def sweep(pair, dtype: str, engine: str) -> pd.DataFrame:
    recovery = interp.sweep(
        *(wrap(model, name=f"M{number}") for number, model in enumerate(pair)),
        mixed_trajectories(3),
        sites=SITES,
        window=3,
        dtype=dtype,
        engine=engine,
        progress=False,
    )
    return recovery.krs().set_index(["site", "layer"])


@cache
def reference() -> pd.Series:
    """The same rounded weights, computed with in float32 by the reference engine."""
    return sweep([copy.deepcopy(model).float() for model in models()], "float32", "full")["krs"]


@pytest.mark.parametrize("engine", ["full", "layered"])
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed"])
def test_scores_are_those_of_float32_but_for_rounding(dtype, engine):
    scores = sweep(models(), dtype, engine)
    assert (scores["krs"] - reference()).abs().max() < 0.02
    # The window around layer 1 has all coefficients of both.
    assert reference()["coef", 1] == pytest.approx(1, abs=1e-5)
    assert reference()["router"].abs().max() > 0.05
    # Around 2⁻⁸, bfloat16's rounding.
    assert 2**-12 < scores["noise_floor"].max() < 2**-4
    assert all(parameter.dtype == torch.bfloat16 for m in models() for parameter in m.parameters())
