"""Full models from disk: what has no place in them, ties, and where transformers would read on."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp import Query
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.models.memory import count_bytes
from interp.models.pairs import are_identical
from tests.helpers import tiny_models
from tests.helpers.every_architecture import make_tiny
from tests.helpers.tiny_models import save, tiny_model, wrap

tiny = partial(tiny_models.tiny, num_layers=2)

IDS = torch.tensor([[3, 4, 5, 6]])


def refusal(directory: Path, **options) -> str:
    with pytest.raises(ValueError, match=re.escape(repr(str(directory)))) as caught:
        load(directory, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict]) -> None:
    file = directory / "model.safetensors"
    state = change(load_file(file))
    save_file({k: v.clone() for k, v in state.items()}, file, metadata={"format": "pt"})


def add(**tensors: torch.Tensor) -> Callable[[dict], dict]:
    return lambda state: state | tensors


def logits(model: LanguageModel) -> torch.Tensor:
    return model.model(input_ids=IDS).logits


# Weights without a place

Q = "model.layers.0.self_attn.q_proj"
HALVES = {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(16, 2)}


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{Q}.bias": torch.ones(16)},
        HALVES,
        {f"{Q}.weight_scale_inv": torch.ones(1, 1)},
        {f"{Q}.weight.absmax": torch.ones(4), f"{Q}.weight.quant_map": torch.ones(16)},
        {f"{Q}.weight_packed": torch.ones(16, 2, dtype=torch.int32)},
        {"model.layers.5.mlp.up_proj.weight": torch.ones(24, 16)},
        {"model.layers.0.self_attn.q_norm.weight": torch.ones(4)},
        {"lm_head.bias": torch.ones(50)},
        {"steering": torch.ones(16)},
    ],
    ids=["bias", "LoRA", "scale", "bnb", "packed", "layer", "norm", "head's bias", "unknown"],
)
def test_weights_without_a_place_are_refused(tmp_path, tensors):
    save(tiny(seed=1), tmp_path)
    rewrite(tmp_path, add(**tensors))
    message = refusal(tmp_path, like=tiny())
    assert f"holds {len(tensors)} weights for which its config.json has no place" in message
    assert f"the first {min(tensors)}:" in message


def test_biases_that_the_configuration_denies(tmp_path):
    save(tiny(seed=1, attention_bias=True, mlp_bias=True), tmp_path)
    edit(tmp_path, attention_bias=False, mlp_bias=False)
    assert "mlp.down_proj.bias" in refusal(tmp_path, like=tiny())


def test_a_configuration_of_fewer_layers(tmp_path):
    save(tiny(seed=1), tmp_path)
    edit(tmp_path, num_hidden_layers=1)
    assert "model.layers.1." in refusal(tmp_path)


def test_weights_of_a_model_with_lora_inside(tmp_path):
    """As a PEFT model's own state has them: neither merged nor an adapter."""
    save(tiny(), tmp_path)
    rewrite(
        tmp_path,
        lambda state: {k.replace("q_proj.", "q_proj.base_layer."): v for k, v in state.items()},
    )
    message = refusal(tmp_path)
    assert f"the first {Q}.weight" in message
    assert f"the first {Q}.base_layer.weight" in message


@pytest.mark.parametrize(
    ("architecture", "tensors"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}),
        ("gpt2", {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}),
        ("opt", {"model.decoder.version": torch.ones(1)}),
        ("xglm", {"model.embed_positions.weights": torch.ones(66, 16)}),
        ("llama", {"v_head.summary.weight": torch.ones(1, 16)}),
    ],
)
def test_what_old_checkpoints_leave_is_harmless(tmp_path, architecture, tensors):
    save(tiny(architecture, seed=1), tmp_path)
    rewrite(tmp_path, add(**tensors))
    loaded = load(tmp_path, like=tiny(architecture))
    assert torch.equal(logits(loaded), logits(tiny(architecture, seed=1)))


# Embeddings, tied or not


def untie(model: LanguageModel, *, add: float = 0.0) -> LanguageModel:
    """The same model with an unembedding of its own, and something added to its layers."""
    other = tiny_model(num_layers=2, tie_word_embeddings=False)
    other.load_state_dict(model.model.state_dict())
    for name, parameter in other.named_parameters():
        if "layers" in name:
            parameter.add_(add)
    return wrap(other)


def questions() -> list[Query]:
    return [
        Query(id=f"q{i}", language="en", prompt=f"w{4 + i} w{9 + 2 * i} w{30 - i}")
        for i in range(3)
    ]


def krs(vanilla: LanguageModel, unlearned: LanguageModel, engine: str) -> list[float]:
    from interp import sweep

    table = sweep(
        vanilla,
        unlearned,
        questions(),
        sites=["coef", "value", "resid"],
        window=1,
        num_tokens=3,
        engine=engine,
        progress=False,
    ).krs()
    return table["krs"].tolist()


@pytest.mark.parametrize("own_head", [False, True], ids=["equal copies", "trained head"])
def test_vanilla_tied_and_unlearned_not(tmp_path, own_head):
    vanilla = load(save(tiny(tie_word_embeddings=True), tmp_path / "v"))
    before = vanilla.content_hash()
    model = untie(vanilla, add=0.02)
    if own_head:
        model.model.lm_head.weight.add_(0.3)
    unlearned = load(save(model, tmp_path / "u"), like=vanilla)
    assert torch.equal(logits(unlearned), logits(model))
    # What is equal is held once: both copies, or the embedding alone.
    embedding = vanilla.model.model.embed_tokens.weight
    assert unlearned.model.model.embed_tokens.weight.data_ptr() == embedding.data_ptr()
    shares = unlearned.model.lm_head.weight.data_ptr() == embedding.data_ptr()
    assert shares == (not own_head)
    layers = sum(p.nbytes for n, p in model.model.named_parameters() if "layers" in n)
    assert count_bytes(vanilla, unlearned)[1] == layers + own_head * embedding.nbytes
    # The numbers are those of a V that is the same function with copies of its own.
    expected = krs(untie(vanilla), model, "full")
    for engine in ("full", "layered"):
        assert krs(vanilla, unlearned, engine) == pytest.approx(expected, abs=1e-5)
    assert vanilla.content_hash() == before


def test_vanilla_not_tied_and_unlearned_tied(tmp_path):
    unlearned = tiny(tie_word_embeddings=True, seed=1)
    vanilla = load(save(untie(unlearned, add=0.02), tmp_path / "v"))
    before = vanilla.content_hash()
    loaded = load(save(unlearned, tmp_path / "u"), like=vanilla)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(unlearned))
    assert vanilla.content_hash() == before


@pytest.mark.parametrize("pickled", [False, True])
def test_both_copies_stored_where_the_configuration_ties(tmp_path, pickled):
    """Equal: tied. Different: as they are stored, the configuration put right, and said."""
    model = tiny(tie_word_embeddings=True, seed=1)
    weight = model.model.lm_head.weight
    for change in (0.0, 0.5):
        save(model, tmp_path)
        rewrite(tmp_path, add(**{"lm_head.weight": weight + change}))
        if pickled:
            file = tmp_path / "model.safetensors"
            torch.save(load_file(file), tmp_path / "pytorch_model.bin")
            file.unlink()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            loaded = load(tmp_path, like=tiny(tie_word_embeddings=True), allow_pickle=pickled)
        assert [
            str(w.message) for w in caught if "differs from its embedding" in str(w.message)
        ] == [str(w.message) for w in caught]
        assert len(caught) == bool(change)
        assert torch.equal(loaded.model.lm_head.weight, weight + change)
        assert torch.equal(loaded.model.model.embed_tokens.weight, weight)
        assert loaded.model.config.tie_word_embeddings == (not change)
        if not pickled:
            again = load(save(loaded, tmp_path / "again"))
            assert torch.equal(logits(again), logits(loaded))


# Beside the weights


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_directories_are_what_is_read_not_what_transformers_looks_for(tmp_path, device_map):
    """A name in an old adapter's configuration is no base."""
    if device_map:
        pytest.importorskip("accelerate")
    save(tiny(seed=1), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/thing"}')
    with pytest.warns(UserWarning, match="adapter_config.json"):
        loaded = load(tmp_path, device=device_map)
    assert are_identical(loaded, tiny(seed=1))
    assert loaded.model.config.name_or_path == loaded.model.name_or_path == str(tmp_path)


@pytest.mark.parametrize("like", [None, tiny()], ids=["alone", "like"])
def test_a_damaged_generation_config_is_not_passed_over(tmp_path, like):
    save(tiny(), tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2')
    assert "generation_config.json" in refusal_of_file(tmp_path, like=like)


def refusal_of_file(directory: Path, **options) -> str:
    with pytest.raises(ValueError, match=re.escape(str(directory))) as caught:
        load(directory, **options)
    return str(caught.value)


def test_a_device_without_numbers(tmp_path):
    with pytest.raises(ValueError, match="device 'meta' holds no weights: use 'cpu'"):
        load(save(tiny(), tmp_path), device="meta")


# Models with more than text


def test_parts_of_multimodal_models_say_what_would_be_right():
    model = make_tiny("Gemma3ForConditionalGeneration").model.language_model
    with pytest.raises(ValueError, match="use the whole Gemma3ForCausalLM, of which Gemma3TextM"):
        load(wrap(model))
