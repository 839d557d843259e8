"""Unlearning and its measures on mixtures of experts: what is trained, what moved, what refuses."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from interp.behaviour import ROUNDINGS, measure_drift, quantise_model
from interp.unlearning import MemitConfig, TrainableModel, measure_second_moments
from interp.unlearning.memit.memit_main import memit
from interp.unlearning.memit.requests import Edit
from tests.helpers.every_architecture import make_tiny
from tests.helpers.tiny_models import wrap


@cache
def vanilla():
    return wrap(make_tiny("DeepseekV3ForCausalLM"), name="V")


def test_training_the_mlp_trains_all_experts_and_no_router():
    """DeepSeek's first layer is dense; the others have routed experts and a shared one."""
    projections = ("gate_proj", "up_proj", "down_proj")
    wanted = {f"model.layers.0.mlp.{name}.weight" for name in projections}
    for layer in (1, 2, 3):
        mlp = f"model.layers.{layer}.mlp"
        wanted |= {f"{mlp}.experts.gate_up_proj", f"{mlp}.experts.down_proj"}
        wanted |= {f"{mlp}.shared_experts.{name}.weight" for name in projections}
    trainable = TrainableModel(vanilla(), "mlp")
    assert set(trainable.trained) == wanted
    loss = trainable.model.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in trainable.trained.values())


@pytest.mark.parametrize(
    ("group", "ending"),
    [
        ("value", "experts.down_proj"),
        ("value", "shared_experts.down_proj.weight"),
        ("key", "experts.gate_up_proj"),
        ("router", "gate.weight"),
    ],
)
def test_drift_is_seen_in_the_group_that_moved(group, ending):
    """Two rank-one changes of norms 2 and 1, in two experts: p = 2/3 and 1/3."""
    moved = copy.deepcopy(vanilla().model)
    tensor = moved.get_parameter(f"model.layers.2.mlp.{ending}")
    if tensor.ndim == 3:
        tensor.data[0, 3, 5] += 2.0
        tensor.data[3, 2, 7] += 1.0
        rank = 3 / 2 ** (2 / 3)
    else:
        tensor.data[3, 5] += 2.0
        rank = 1.0
    table = measure_drift(vanilla(), wrap(moved, name="U"), progress=False)
    changed = table[table["relative_change"] > 0]
    assert changed[["layer", "group"]].to_numpy().tolist() == [[2, group]]
    assert changed["effective_rank"].item() == pytest.approx(rank, rel=1e-5)
    total = sum(parameter.numel() for parameter in moved.parameters())
    assert table["num_parameters"].sum() == total


def test_what_is_not_defined_there_is_refused():
    with pytest.raises(ValueError, match=r"mixture of experts.* take no LoRA adapters"):
        TrainableModel(vanilla(), "lora")
    with pytest.raises(ValueError, match="layer 2 of 'V' is a mixture of experts, and MEMIT"):
        measure_second_moments(vanilla(), [0, 2], ["w3 w4"], progress=False)
    edit = Edit(id="one", subject="w20", prompts=("w30 w20 w7",))
    with pytest.raises(ValueError, match="layer 1 of 'V' is a mixture of experts, and MEMIT"):
        memit(vanilla(), [edit], {}, MemitConfig(layers=(1,)), progress=False)
    with pytest.raises(ValueError, match=r"mixture of experts.*only dense models are rounded"):
        quantise_model(vanilla(), ROUNDINGS["int8"])
