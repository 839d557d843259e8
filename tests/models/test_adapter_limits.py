"""Adapters that lie: neither memory nor time is taken before they are refused."""

from __future__ import annotations

import json
import re
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.models.adapter_limits import MAX_REPEATS
from tests.helpers.tiny_models import tiny
from tests.models.test_adapters import train

peft = pytest.importorskip("peft")

# What peft says of settings that fit nothing.
pytestmark = pytest.mark.filterwarnings("ignore")

SLOW = r"(.*)*(.*)*(.*)*x"
"""Pattern that takes longer than the world exists, on any name of a module."""


@pytest.fixture(scope="module")
def vanilla():
    return tiny(num_layers=2)


@pytest.fixture(scope="module")
def saved(vanilla, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    train(vanilla.model, config, directory)
    return directory


@pytest.fixture
def adapter(saved, tmp_path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(adapter: Path, **changes: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(adapter: Path, vanilla) -> str:
    """The sentence, after no memory and little time."""
    before, most = vanilla.content_hash(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(str(adapter))) as caught:
        interp.load(adapter, like=vanilla)
    assert time.monotonic() - start < 60
    # In units of 1024 bytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 100 << 10
    assert vanilla.content_hash() == before
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": 10**9}, "r is 1000000000, and nothing in the base or the adapter's file is larger"),
        ({"r": 3}, "q_proj.lora_A.weight is (2, 16) instead of (3, 16)"),
        ({"r": 1000}, "q_proj.lora_A.weight is (2, 16) instead of (1000, 16)"),
        ({"rank_pattern": {"q_proj": 10**9}}, "q_proj is 1000000000"),
        ({"rank_pattern": {"down_proj": 4}}, "down_proj.lora_A.weight is (2, 24) instead of (4"),
        ({"peft_type": "VERA", "r": 10**9}, "r is 1000000000"),
        # Two layers of queries, 16 to 16, and of down-projections, 24 to 16.
        ({"peft_type": "HRA", "r": 900}, "announces 72000 weights, and it holds 288"),
        ({"peft_type": "HRA", "r": 10**9}, "r is 1000000000"),
        ({"peft_type": "UNILORA", "theta_d_length": 10**10}, "theta_d_length is 10000000000"),
        ({"peft_type": "UNILORA", "r": 10**9}, "r is 1000000000"),
        ({"peft_type": "TINYLORA", "u": 10**9}, "u is 1000000000"),
        ({"peft_type": "BOFT", "boft_block_size": 10**9}, "boft_block_size is 1000000000"),
        ({"peft_type": "VBLORA", "num_vectors": 10**9}, "num_vectors is 1000000000"),
        ({"monteclora_config": {"num_samples": 10**9}}, "num_samples is 1000000000"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**12}, "adds tokens instead"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10**12}, "adds tokens instead"),
        ({"peft_type": "P_TUNING", "encoder_hidden_size": 10**12}, "adds tokens instead"),
    ],
)
def test_sizes_take_no_memory(adapter, vanilla, changes, says):
    edit(adapter, **changes)
    assert says in refusal(adapter, vanilla)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": SLOW},
        {"exclude_modules": SLOW},
        {"layers_pattern": SLOW, "layers_to_transform": [1]},
        {"layers_pattern": ["layers", SLOW], "layers_to_transform": [1]},
        {"rank_pattern": {"q_proj": 2, SLOW: 2}},
        {"alpha_pattern": {SLOW: 2}},
        {"modules_to_save": [SLOW]},
        {"peft_type": "IA3", "feedforward_modules": SLOW},
        {"peft_type": "C3A", "block_size_pattern": {SLOW: 2}},
        {"peft_type": "FOURIERFT", "n_frequency_pattern": {SLOW: 2}},
        {"peft_type": "DELORA", "lambda_pattern": {SLOW: 2}},
    ],
)
def test_patterns_take_no_time(adapter, vanilla, changes, monkeypatch):
    monkeypatch.setattr("interp.models.adapter_limits.MAX_SECONDS", 0.2)
    edit(adapter, **changes)
    assert f"the pattern {SLOW!r} of module names takes more than 0.2 s" in refusal(
        adapter, vanilla
    )


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"target_modules": "("}, "("),
        ({"exclude_modules": "*"}, "*"),
        ({"layers_pattern": ["["], "layers_to_transform": [1]}, "["),
        ({"rank_pattern": {"a{2,1}": 4}}, "a{2,1}"),
        ({"alpha_pattern": {"(?P<a>": 4}}, "(?P<a>"),
        ({"modules_to_save": ["(?<=a*)"]}, "(?<=a*)"),
    ],
)
def test_patterns_that_are_none(adapter, vanilla, changes, pattern):
    edit(adapter, **changes)
    assert f"{pattern!r} is no pattern of module names: " in refusal(adapter, vanilla)


@pytest.mark.parametrize("pattern", [r".*\.(q_proj|down_proj)", "(a+)+$|.*q_proj|.*down_proj"])
def test_patterns_that_end_are_taken(adapter, vanilla, pattern):
    """The second is harmless where no name has a row of a's."""
    expected = interp.load(adapter, like=vanilla).content_hash()
    edit(adapter, target_modules=pattern)
    assert interp.load(adapter, like=vanilla).content_hash() == expected != vanilla.content_hash()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers_to_transform": list(range(10**5))}, "layers_to_transform has 100000 entries"),
        ({"target_modules": [f"m{i}" for i in range(10**4)]}, "target_modules has 10000 entries"),
        ({"modules_to_save": [f"m{i}" for i in range(10**4)]}, "modules_to_save has 10000 entries"),
        ({"rank_pattern": {f"m{i}": 2 for i in range(10**4)}}, "rank_pattern has 10000 entries"),
        ({"trainable_token_indices": {"embed_tokens": [5] * 10**5}}, "has 100000 entries"),
        ({"init_lora_weights": "pissa_niter_1000000000"}, "repeated more than 1000 times"),
        ({"init_lora_weights": "pissa_niter_x"}, "repeated more than 1000 times"),
        (
            {
                "init_lora_weights": "loftq",
                "loftq_config": {"loftq_bits": 4, "loftq_iter": MAX_REPEATS + 1},
            },
            "loftq_iter is 1001",
        ),
        ({"peft_type": "PEANUT", "depth": 10**9}, "depth is 1000000000"),
        ({"peft_type": "PSOFT", "psoft_svd_lowrank_niter": 1e9}, "repeated more than 1000 times"),
        ({"peft_type": "XLORA", "adapters": {"a": "somebody/adapter"}}, "mixes other adapters"),
        ({"peft_type": "SHADOW", "shadow_model": "somebody/model"}, "adds a second model"),
        ({"arrow_config": {}}, "chooses among other adapters"),
        ({"alora_invocation_tokens": [1]}, "acts on a part of each text"),
        ({"peft_type": "PVERA", "sample_at_inference": True}, "draws its weights anew"),
    ],
)
def test_lists_and_repeats_take_no_time(adapter, vanilla, changes, says):
    edit(adapter, **changes)
    assert says in refusal(adapter, vanilla)


@pytest.mark.parametrize(
    "changes",
    [
        *({"r": value} for value in (0, -1, 2.5, "8", None, [2], True, 10**30)),
        *({"lora_alpha": value} for value in ("8", None, float("nan"), float("inf"), 1e300)),
        *({"target_modules": value} for value in (3, [], [3], "", {"q_proj": 1})),
        *({"layers_to_transform": value} for value in ("x", -1, [10**12])),
        *({"init_lora_weights": value} for value in ("corda", "no such", 3, [1], "pissa_")),
        *({"rank_pattern": value} for value in ([1], {"q_proj": "x"}, {"q_proj": -1})),
        *({"peft_type": value} for value in ("NO", None, ["LORA"], 3)),
        *({"trainable_token_indices": value} for value in ([10**9], [-1], "x", {"no": [1]})),
        {"monteclora_config": {"n": 1}},
        {"task_type": "NO"},
        {"bias": "some"},
        {"modules_to_save": "norm"},
    ],
)
def test_values_of_wrong_types_are_a_sentence(adapter, vanilla, changes):
    edit(adapter, **changes)
    refusal(adapter, vanilla)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (2, 17)),
        ("model.layers.1.mlp.down_proj.lora_B.weight", (17, 2)),
        ("model.layers.1.mlp.down_proj.lora_B.weight", (32,)),
        ("model.layers.1.mlp.down_proj.lora_B.weight", (16, 2, 1)),
    ],
)
def test_weights_of_another_shape_than_the_configuration_says(adapter, vanilla, name, shape):
    file, key = adapter / "adapter_model.safetensors", f"base_model.model.{name}"
    state = load_file(file)
    expected = tuple(state[key].shape)
    save_file(state | {key: torch.zeros(shape)}, file, metadata={"format": "pt"})
    assert f"{name} is {shape} instead of {expected}" in refusal(adapter, vanilla)


def test_weights_that_are_missing_or_too_many(adapter, vanilla):
    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    first = min(state)
    save_file({key: state[key] for key in state if key != first}, file)
    assert "1 weights have no counterpart" in refusal(adapter, vanilla)
    save_file(state | {first.replace("0", "7"): state[first].clone()}, file)
    assert "1 weights have no counterpart" in refusal(adapter, vanilla)
