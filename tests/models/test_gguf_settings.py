"""Files with every setting that changes what a model computes: converted right, or refused.

The right logits are those of the library's own model of the same settings.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

import interp
from interp.models import convert_gguf
from interp.models.gguf_header import read_header
from interp.models.gguf_settings import apply_settings
from tests.helpers.gguf_files import ARCHITECTURES, CONTEXT, make_model, write_file

pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    transformers_logging.disable_progress_bar()


def rope(model_type: str = "default", base: float = 10_000.0, **settings: object) -> dict:
    return {"rope_parameters": {"rope_type": model_type, "rope_theta": base, **settings}}


def convert(tmp_path, architecture, model, **changes):
    directory = convert_gguf(write_file(tmp_path / "m.gguf", architecture, model, **changes))
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )


def measure_error(right, found, length: int = 300) -> float:
    """The largest difference of logits, as a part of the largest logit."""
    ids = torch.randint(3, 50, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right, found = (each(input_ids=ids).logits[0].double() for each in (right, found))
    return ((right - found).abs().max() / right.abs().max()).item()


def refuse(tmp_path, architecture, model, **changes) -> str:
    with pytest.raises(ValueError, match="could not be converted") as caught:
        convert_gguf(write_file(tmp_path / "m.gguf", architecture, model, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_of_default_settings(tmp_path, architecture):
    model = make_model(architecture)
    assert measure_error(model, convert(tmp_path, architecture, model)) < 1e-5


LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
YARN_SETTINGS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 1024,
}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}


@pytest.mark.parametrize(
    ("architecture", "changes", "settings"),
    [
        ("llama", rope("linear", factor=8.0), LINEAR),
        # Without a type, and under the key of old files.
        ("llama", rope("linear", factor=8.0), {"rope.scaling.factor": 8.0}),
        ("llama", rope("linear", factor=8.0), {"rope.scale_linear": 8.0}),
        ("llama", rope(), {"rope.scaling.type": "none", "rope.scaling.factor": 8.0}),
        ("qwen2", rope("yarn", **YARN), YARN_SETTINGS),
        ("qwen3", rope("yarn", **YARN), YARN_SETTINGS),
        ("llama", rope("yarn", **YARN), YARN_SETTINGS),
        # Bases that the library passes over, and the base where none is written.
        ("starcoder2", rope(base=999_999.4375), {"rope.freq_base": 999_999.4375}),
        ("stablelm", rope(base=500_000.0, partial_rotary_factor=0.25), {}),
        ("qwen2", rope(base=10_000.0), {"rope.freq_base": None}),
        # A part of each head is turned.
        ("stablelm", rope(partial_rotary_factor=0.5), {}),
        ("phi3", rope(partial_rotary_factor=0.75), {"rope.dimension_count": 48}),
        ("nemotron", rope(partial_rotary_factor=1.0), {"rope.dimension_count": 64}),
    ],
)
def test_rotary_settings(tmp_path, architecture, changes, settings):
    model = make_model(architecture, **changes)
    found = convert(tmp_path, architecture, model, settings=settings)
    assert measure_error(model, found) < 1e-5
    # The test can fail: another base gives other logits.
    other = make_model(architecture, **rope(base=20_000.0, partial_rotary_factor=0.25))
    assert measure_error(model, other) > 1e-3


@pytest.mark.parametrize("trained", [8192, 2048])
def test_divisors_of_llama_3(tmp_path, trained):
    settings = LLAMA3 | {"original_max_position_embeddings": trained}
    model = make_model("llama", **rope("llama3", 500_000.0, **settings))
    plain = make_model("llama", **rope(base=500_000.0))
    frequencies = [each.model.rotary_emb.inv_freq.numpy() for each in (plain, model)]
    divisors = frequencies[0] / frequencies[1]
    assert divisors.min() == 1
    assert math.isclose(divisors.max(), 32, rel_tol=1e-6)
    found = convert(tmp_path, "llama", model, tensors={"rope_freqs.weight": divisors})
    assert measure_error(model, found) < 1e-5
    assert measure_error(model, plain) > 1e-3


def test_divisors_that_divide_nothing(tmp_path):
    model = make_model("llama")
    ones = {"rope_freqs.weight": np.ones(32, dtype=np.float32)}
    found = convert(tmp_path, "llama", model, tensors=ones)
    assert found.config.rope_parameters["rope_type"] == "default"
    assert measure_error(model, found) < 1e-5


def test_divisors_of_no_known_kind(tmp_path):
    found = np.linspace(1, 3, 32, dtype=np.float32)
    message = refuse(tmp_path, "llama", make_model("llama"), tensors={"rope_freqs.weight": found})
    assert "'rope_freqs.weight' scales the rotary frequencies in no known way" in message


def test_gemma_3_scales_the_layers_without_a_window(tmp_path):
    """As Gemma 3 does from 4B on."""
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    changes = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    model = make_model("gemma3", rope_parameters=parameters, **changes)
    settings = LINEAR | {"attention.sliding_window_pattern": 2}
    message = refuse(tmp_path, "gemma3", model, settings=settings)
    assert "attention.sliding_window_pattern = 2" in message
    # Six layers of the usual pattern: the last sees all.
    changes = {"num_hidden_layers": 6, "sliding_window": 8}
    model = make_model("gemma3", rope_parameters=parameters, **changes)
    for pattern in (6, [True] * 5 + [False]):
        settings = LINEAR | {"attention.sliding_window_pattern": pattern}
        found = convert(tmp_path, "gemma3", model, settings=settings)
        assert measure_error(model, found) < 1e-5
    plain = make_model("gemma3", **changes)
    assert measure_error(model, plain) > 1e-3


@pytest.mark.parametrize(
    ("architecture", "num_layers", "scalar"),
    # Embedding 64 over 1 head in the sizes of 27B, else the size of a head.
    [("gemma2", 46, 64), ("gemma3", 62, 64), ("gemma2", 26, 32), ("gemma3", 48, 32)],
)
def test_scale_of_attention_by_size(tmp_path, architecture, num_layers, scalar):
    changes = {"num_hidden_layers": num_layers, "hidden_size": 64, "num_attention_heads": 1}
    changes |= {"num_key_value_heads": 1, "intermediate_size": 8}
    file = write_file(tmp_path / "m.gguf", architecture, make_model(architecture, **changes))
    config = AutoConfig.from_pretrained(tmp_path, gguf_file=str(file), local_files_only=True)
    assert config.query_pre_attn_scalar == 256
    apply_settings(config, read_header(file))
    assert config.query_pre_attn_scalar == scalar


@pytest.mark.parametrize(
    ("architecture", "changes", "settings"),
    [
        ("gemma3", {"query_pre_attn_scalar": 168}, {"attention.scale": 168**-0.5}),
        ("gemma2", {"query_pre_attn_scalar": 144}, {"attention.scale": 144**-0.5}),
        ("gemma2", {"final_logit_softcapping": 2.0}, {}),
        ("gemma2", {"attn_logit_softcapping": 0.5}, {}),
        ("phi3", {"sliding_window": 16}, {"attention.sliding_window": 16}),
        ("starcoder2", {"sliding_window": 16}, {"attention.sliding_window": 16}),
        ("gpt2", {"layer_norm_epsilon": 0.1}, {}),
        ("starcoder2", {"norm_epsilon": 0.1}, {}),
        ("stablelm", {"use_parallel_residual": True}, {}),
    ],
)
def test_other_settings(tmp_path, architecture, changes, settings):
    model = make_model(architecture, **changes)
    caps = {k: v for k, v in changes.items() if k.endswith("softcapping")}
    found = convert(tmp_path, architecture, model, settings=caps | settings)
    assert measure_error(model, found) < 1e-5
    assert measure_error(model, make_model(architecture)) > 1e-4


@pytest.mark.parametrize(
    ("architecture", "settings", "says"),
    [
        ("llama", {"rope.scaling.type": "longrope"}, "rope.scaling.type = 'longrope'"),
        ("qwen2", YARN_SETTINGS | {"rope.scaling.attn_factor": 1.5}, "attn_factor = 1.5"),
        ("qwen2", {"rope.dimension_count": 32}, "rotary frequencies are not those"),
        ("llama", {"attention.sliding_window": 128}, "attention.sliding_window = 128"),
        ("llama", {"logit_scale": 0.25}, "logit_scale = 0.25"),
        ("llama", {"attention.clamp_kqv": 8.0}, "attention.clamp_kqv = 8.0"),
        ("llama", {"attention.causal": False}, "attention.causal = False"),
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ("llama", {"attention.scale": 0.5}, "attention.scale = 0.5"),
        ("llama", {"attention.value_length": 32}, "attention.value_length = 32"),
        ("llama", {"tensor_data_layout": "reference"}, "tensor_data_layout = 'reference'"),
        ("llama", {"rope.dimension_sections": [8, 8, 16, 0]}, "rope.dimension_sections = "),
        ("llama", {"something.new": 3}, "something.new = 3"),
        ("gpt2", LINEAR, "rope.scaling.type = 'linear'"),
        ("bloom", {"attention.max_alibi_bias": 4.0}, "max_alibi_bias = 4.0"),
    ],
)
def test_settings_that_no_configuration_has(tmp_path, architecture, settings, says):
    message = refuse(tmp_path, architecture, make_model(architecture), settings=settings)
    assert says in message


def test_settings_that_change_nothing(tmp_path):
    model = make_model("llama")
    settings = {
        "attention.causal": True,
        "attention.clamp_kqv": 0.0,
        "attention.sliding_window": CONTEXT,
        "expert_count": 0,
        "logit_scale": 1.0,
        "pooling_type": 0,
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.finetuned": False,
        "tensor_data_layout": "Meta AI original pth",
    }
    general = {"quantize.imatrix.chunks_count": 128, "general.tags": ["chat"]}
    found = convert(tmp_path, "llama", model, settings=settings, general=general)
    assert measure_error(model, found) < 1e-5


@pytest.mark.parametrize(
    ("general", "says"),
    [
        ({"general.type": "adapter"}, "not a model but a part of kind 'adapter'"),
        ({"general.type": "mmproj"}, "not a model but a part of kind 'mmproj'"),
        ({"split.count": 3}, "one of 3 parts: join them with llama-gguf-split --merge"),
    ],
)
def test_files_that_are_no_whole_model(tmp_path, general, says):
    assert says in refuse(tmp_path, "llama", make_model("llama"), general=general)


@pytest.mark.parametrize(
    ("name", "size"), [("blk.1.attn_q.bias", 256), ("blk.0.attn_q_norm.weight", 64)]
)
def test_weights_without_a_place(tmp_path, name, size):
    """The library leaves them out: biases, and norms of queries."""
    tensors = {name: np.ones(size, dtype=np.float32)}
    message = refuse(tmp_path, "llama", make_model("llama"), tensors=tensors)
    assert f"has places for: it has no place for {name}" in message


@pytest.mark.parametrize(
    ("general", "says"),
    [
        ({"tokenizer.ggml.add_space_prefix": False}, "its tokenizer puts no space before a text"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "starcoder"},
            "its tokenizer splits words in a way ('starcoder') that the installed transformers",
        ),
    ],
)
def test_text_that_would_be_split_in_another_way(tmp_path, general, says):
    assert says in refuse(tmp_path, "llama", make_model("llama"), general=general)


@pytest.mark.parametrize(
    ("flags", "right"),
    [
        ({}, (1, 7)),
        ({"add_bos_token": False}, (7,)),
        ({"add_bos_token": True, "add_eos_token": True}, (1, 7, 2)),
    ],
)
def test_tokens_before_and_after_a_text(tmp_path, flags, right):
    general = {f"tokenizer.ggml.{key}": value for key, value in flags.items()}
    tokens = ["<unk>", "<s>", "</s>", "▁", "w", "7", "▁w", "▁w7", *(f"x{i}" for i in range(42))]
    general["tokenizer.ggml.tokens"] = tokens
    general["tokenizer.ggml.scores"] = [0.0 if i < 3 else float(i) for i in range(50)]
    file = write_file(tmp_path / "m.gguf", "llama", make_model("llama"), general=general)
    tokenizer = interp.load(file).tokenizer
    assert tuple(tokenizer("w7").input_ids) == right


def test_a_damaged_conversion_is_seen(tmp_path):
    file = write_file(tmp_path / "m.gguf", "llama", make_model("llama"))
    interp.load(file)
    weights = convert_gguf(file) / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-5] ^= 1
    weights.write_bytes(whole)
    with pytest.raises(ValueError, match="delete the folder and make it again"):
        interp.load(file)
    for path in convert_gguf(file).iterdir():
        path.unlink()
    convert_gguf(file).rmdir()
    assert interp.load(file).num_layers == 2


def test_the_header(tmp_path):
    file = write_file(tmp_path / "m.gguf", "llama", make_model("llama"))
    header = read_header(file)
    assert header.architecture == "llama"
    assert header.settings["attention.head_count_kv"] == 2
    assert header.values["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 1]
    assert header.tensors["blk.1.ffn_up.weight"].shape == (256, 256)
    right = make_model("llama").model.norm.weight.double().numpy()
    assert np.array_equal(header.read_floats("output_norm.weight"), right)
