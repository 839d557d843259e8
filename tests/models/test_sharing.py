"""Checkpoints read beside V: the same model as without V, and only what differs in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from interp.models import sharing
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.models.memory import count_bytes
from interp.models.pairs import are_identical
from interp.models.sharing import read_with_shared_tensors
from interp.models.stored_weights import find_stored_tensors
from tests.helpers.tiny_models import ARCHITECTURES, save, tiny, tiny_model, wrap


def read(directory: str, vanilla: LanguageModel) -> LanguageModel | None:
    config = AutoConfig.from_pretrained(directory)
    stored = find_stored_tensors(directory, Path(directory), allow_pickle=False)
    model = read_with_shared_tensors(stored, Path(directory), config, like=vanilla.model)
    return None if model is None else wrap(model)


def changed(name: str, weight: str) -> LanguageModel:
    """V with one tensor doubled."""
    model = tiny_model(name)
    with torch.no_grad():
        model.get_parameter(weight).mul_(2)
    return wrap(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_model_that_transformers_reads(architecture, tmp_path):
    vanilla = load(save(tiny(architecture), tmp_path / "v"))
    before = vanilla.content_hash()
    weight = next(
        name for name, p in vanilla.model.named_parameters() if "4" in name and p.ndim == 2
    )
    directory = save(changed(architecture, weight), tmp_path / "u")
    loaded, alone = read(directory, vanilla), load(directory)
    assert loaded is not None
    assert are_identical(loaded, alone)
    assert loaded.content_hash() == alone.content_hash()
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(loaded.model(ids).logits, alone.model(ids).logits)
    # What was doubled is all that is held twice.
    assert count_bytes(vanilla, loaded)[1] == vanilla.model.get_parameter(weight).nbytes
    assert vanilla.content_hash() == before
    assert loaded.model.config.to_dict() == alone.model.config.to_dict()
    assert loaded.model.config.name_or_path == alone.model.config.name_or_path
    assert loaded.model.generation_config is not vanilla.model.generation_config


def test_tied_embeddings_stay_tied(tmp_path):
    vanilla = tiny("llama_biases")
    loaded = read(save(changed("llama_biases", "lm_head.weight"), tmp_path), vanilla)
    assert loaded is not None
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert torch.equal(loaded.model.lm_head.weight, 2 * vanilla.model.lm_head.weight)
    assert count_bytes(vanilla, loaded)[1] == vanilla.model.lm_head.weight.nbytes


@pytest.mark.parametrize("row", [0, 17, 49])
def test_large_tensors_are_compared_by_blocks(monkeypatch, row, tmp_path):
    """Blocks of 8 rows of 16 numbers; a difference in one row, in whichever block."""
    monkeypatch.setattr(sharing, "BLOCK", 8 * 16 * 4)
    model = tiny()
    model.model.lm_head.weight[row, 3] += 1
    vanilla = tiny()
    loaded = read(save(model, tmp_path), vanilla)
    assert loaded is not None
    assert are_identical(loaded, model)
    assert count_bytes(vanilla, loaded)[1] == 50 * 16 * 4


def test_tensors_of_odd_shapes(tmp_path):
    """Buffers: a scalar, and one without entries."""
    vanilla, model = tiny(), tiny()
    for number, wrapped in enumerate((vanilla, model)):
        wrapped.model.model.register_buffer("scale", torch.tensor(1.0 + number))
        wrapped.model.model.register_buffer("none", torch.zeros(0, 3))
    loaded = read(save(model, tmp_path), vanilla)
    assert loaded is not None
    assert are_identical(loaded, model)
    assert loaded.model.model.scale == 2
    assert vanilla.model.model.scale == 1


def test_shards(tmp_path):
    model = changed("llama", "model.layers.3.mlp.up_proj.weight")
    model.model.save_pretrained(tmp_path, max_shard_size="5KB")
    vanilla = tiny()
    loaded = read(str(tmp_path), vanilla)
    assert loaded is not None
    assert are_identical(loaded, model)
    assert count_bytes(vanilla, loaded)[1] == 16 * 24 * 4


def test_precision_is_vanillas(tmp_path):
    """Checkpoints in bfloat16 beside V in bfloat16, and beside V in float32 read from the same."""
    model = changed("llama", "lm_head.weight")
    model.model.bfloat16()
    directory = save(model, tmp_path / "u")
    vanilla = tiny()
    vanilla.model.bfloat16()
    spec = save(vanilla, tmp_path / "v")
    for dtype in ("bfloat16", "float32"):
        vanilla = load(spec, dtype=dtype)
        loaded = load(directory, like=vanilla)
        assert loaded.dtype == getattr(torch, dtype)
        assert are_identical(loaded, load(directory, dtype=dtype))
        weight = vanilla.model.lm_head.weight
        assert count_bytes(vanilla, loaded)[1] == weight.nbytes


def test_the_ids_that_end_an_answer_are_the_checkpoints(tmp_path):
    model = tiny_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = 7
    model.generation_config.pad_token_id = model.config.pad_token_id = 5
    directory = save(wrap(model), tmp_path)
    vanilla = tiny()
    for remove in (False, True):
        if remove:
            (tmp_path / "generation_config.json").unlink()
        loaded = read(directory, vanilla)
        assert loaded is not None
        for config in (loaded.model.config, loaded.model.generation_config):
            assert (config.eos_token_id, config.pad_token_id) == (7, 5)
    assert vanilla.model.config.eos_token_id == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny(rms_norm_eps=1e-3),
        lambda: tiny(rope_parameters={"rope_type": "default", "rope_theta": 5e3}),
        lambda: tiny("mistral"),
        lambda: tiny(num_layers=4),
        lambda: tiny(tie_word_embeddings=True),
        lambda: tiny(attention_bias=True),
    ],
    ids=["eps", "rope", "architecture", "layers", "tied", "bias"],
)
def test_another_model_is_not_read_beside_vanilla(make, tmp_path):
    assert read(save(make(), tmp_path), tiny()) is None


def test_a_rope_of_its_own_is_kept(tmp_path):
    other = tiny(rope_parameters={"rope_type": "default", "rope_theta": 5e3})
    with pytest.warns(UserWarning, match="rope_theta': 10000.0.* in the vanilla and .*5000.0"):
        loaded = load(save(other, tmp_path), like=tiny())
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(loaded.model(ids).logits, other.model(ids).logits)


@pytest.mark.parametrize("what", ["missing", "unexpected", "shape", "twice"])
def test_weights_that_are_not_vanillas_by_name(what, tmp_path):
    name = "llama_biases" if what == "twice" else "llama"
    save(tiny(name), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    if what == "missing":
        del weights[key]
    if what == "unexpected":
        weights["model.extra"] = torch.zeros(1)
    if what == "shape":
        weights[key] = torch.zeros(2, 2)
    if what == "twice":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert read(str(tmp_path), tiny(name)) is None


def test_a_file_elsewhere(tmp_path):
    tiny().model.save_pretrained(tmp_path / "m", max_shard_size="5KB")
    index = tmp_path / "m" / "model.safetensors.index.json"
    written = json.loads(index.read_text())
    key = min(written["weight_map"])
    written["weight_map"][key] = "../" + written["weight_map"][key]
    index.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"must name safetensors files beside it, not '\.\./model"):
        read(str(tmp_path / "m"), tiny())


def test_damaged_weights_have_their_sentence(tmp_path):
    save(tiny(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="could not be loaded"):
        load(tmp_path, like=tiny())
