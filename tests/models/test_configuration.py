"""Configurations that lie: sizes, types and code are refused before memory is taken."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.models.configuration import check_announced, read_config
from interp.models.loading import load
from interp.models.stored_weights import find_stored_tensors
from tests.helpers.tiny_models import ARCHITECTURES, save, tiny


def refusal(directory: Path, **options) -> str:
    with pytest.raises(ValueError, match=re.escape(str(directory))) as caught:
        load(directory, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def edit(directory: Path, name: str = "config.json", **changes: object) -> None:
    file = directory / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A model that no test changes but its configuration, which is written anew for each."""
    directory = tmp_path_factory.mktemp("model")
    save(tiny("gemma3"), directory)
    return directory


@pytest.fixture
def model(saved) -> Path:
    tiny("gemma3").model.config.save_pretrained(saved)
    tiny("gemma3").model.generation_config.save_pretrained(saved)
    return saved


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 2_000_000_000}, "(50, 16) instead of (2000000000, 16)"),
        ({"hidden_size": 10**9}, "instead of"),
        ({"intermediate_size": 10**12}, "instead of"),
        ({"hidden_size": 10**18, "vocab_size": 10**18}, "no model can be made"),
        ({"num_hidden_layers": 300_000}, "at most 2000"),
        ({"num_hidden_layers": 999, "layer_types": None}, "announces 999 layers, and its"),
        ({"num_hidden_layers": 1e300}, "at most 2000"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "at most 2000"),
        ({"num_labels": 2 * 10**9}, "at most 1000000"),
        ({"layer_types": ["full_attention"] * 300_000}, "300000 for 'layer_types'"),
        ({"head_dim": 10**9}, "instead of"),
    ],
)
def test_hostile_sizes_take_no_memory(model, changes, says):
    edit(model, **changes)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert says in refusal(model, like=tiny("gemma3"))
    # In units of 1024 bytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 100 << 10


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "16"},
        {"hidden_size": -1},
        {"hidden_size": None},
        {"hidden_size": [16]},
        {"num_attention_heads": 0},
        {"num_hidden_layers": "5"},
        {"vocab_size": 2.5},
        {"hidden_activation": "no such function"},
        {"hidden_activation": 3},
        {"rope_parameters": "default"},
        {"layer_types": ["full_attention"]},
        {"architectures": 3},
        {"architectures": "Gemma3ForCausalLM"},
        {"dtype": "float7"},
        {"rms_norm_eps": float("nan")},
        {"query_pre_attn_scalar": float("inf")},
        {"rms_norm_eps": {"__float__": "NaN"}},
        {"query_pre_attn_scalar": -1},
        *(
            {field: value}
            for field in ("num_attention_heads", "num_key_value_heads", "head_dim")
            for value in (10**9, 10**18, -1, 0, 1.5, "4", [4], True, {"a": 4})
        ),
        {"num_attention_heads": None},
        {"vocab_size": -1},
        {"vocab_size": "50"},
        {"intermediate_size": 24.0},
        {"sliding_window": "4"},
        {"max_position_embeddings": "64"},
        {"rope_parameters": {"full_attention": {"rope_theta": float("nan")}}},
        {"transformers_weights": "other.safetensors"},
    ],
)
def test_values_of_wrong_types_are_a_sentence(model, changes):
    edit(model, **changes)
    refusal(model)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a":' * 100_000, "not valid JSON"),
        ("[]", "must hold an object"),
        ("\x00", "not valid JSON"),
        (" " * ((1 << 24) + 1), "at most 16 MB"),
        (None, "must be a JSON file"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, says):
    for name in ("generation_config.json", "config.json"):
        tiny().model.config.save_pretrained(tmp_path)
        file = tmp_path / name
        file.unlink(missing_ok=True)
        if content is None:
            file.mkdir()
        else:
            file.write_text(content)
        assert says in refusal(tmp_path)


def test_a_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    assert "must be a JSON file" in refusal(tmp_path)


KERNEL = "somebody/attention"


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": KERNEL},
        {"attn_implementation": KERNEL},
        {"_attn_implementation_internal": KERNEL},
        {"attn_implementation": "eager", "_attn_implementation": KERNEL},
        {"attn_implementation": {"": "eager", "text_config": KERNEL}},
        {"experts_implementation": KERNEL},
        {"_experts_implementation": f"{KERNEL}@main:forward"},
        {"text_config": {"attn_implementation": f"flash|{KERNEL}"}},
        {"sub_configs": [{"_attn_implementation": KERNEL}]},
    ],
)
def test_code_for_attention_is_refused_in_every_spelling(model, changes):
    edit(model, **changes)
    assert "trust_remote_code=True" in refusal(model, like=tiny("gemma3"))
    tiny("gemma3").model.config.save_pretrained(model)
    edit(model, "generation_config.json", **changes)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        read_config("m", model, trust_remote_code=False)


def test_attention_that_transformers_has_is_no_code(model):
    edit(model, attn_implementation="eager")
    config = read_config(str(model), model, trust_remote_code=False)
    assert config._attn_implementation == "eager"


def test_no_question_is_asked(model, monkeypatch):
    """transformers asks on the terminal; here the answer is no."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    edit(model, auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (model / "code.py").write_text("raise SystemExit")
    load(model)
    edit(model, model_type="new-thing")
    assert "trust_remote_code=True" in refusal(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_announces_what_it_stores(tmp_path, architecture):
    save(tiny(architecture, num_layers=2), tmp_path)
    stored = find_stored_tensors("m", tmp_path, allow_pickle=False)
    config = read_config("m", tmp_path, trust_remote_code=False)
    check_announced("m", config, stored)
    edit(tmp_path, vocab_size=10**9)
    assert "(50," in refusal(tmp_path)


def test_tables_that_are_computed_are_bounded(tmp_path):
    save(tiny("xglm", num_layers=2), tmp_path)
    edit(tmp_path, max_position_embeddings=10**10)
    assert "announces" in refusal(tmp_path)


def test_whole_numbers_without_quantization_config_are_refused(tmp_path):
    save(tiny(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    state[name] = (state[name] * 100).to(torch.int8)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for like in (None, tiny()):
        assert f"holds {name} in I8" in refusal(tmp_path, like=like)


def test_packed_weights_are_counted(tmp_path):
    save(tiny(), tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4}, vocab_size=10**9)
    assert "announces" in refusal(tmp_path)
