"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

VOCAB_SIZE = 50
CONTEXT = 4096

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 256,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": CONTEXT,
    "initializer_range": 0.1,
}
_BLOOM = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "n_head": 4,
    "n_layer": 2,
    "initializer_range": 0.1,
}

# The library's classes, by the names that the format has for architectures.
ARCHITECTURES: dict[str, tuple[str, str, dict]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _SHAPE),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _SHAPE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _SHAPE | {"head_dim": 32}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _SHAPE | _GEMMA),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _SHAPE | _GEMMA),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _SHAPE),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", _SHAPE),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", _SHAPE),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM", _SHAPE),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2),
    "bloom": ("BloomConfig", "BloomForCausalLM", _BLOOM),
}
_TOKENIZER: dict[str, object] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"▁w{i}" for i in range(3, VOCAB_SIZE))],
    "tokenizer.ggml.scores": [0.0] * VOCAB_SIZE,
    "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (VOCAB_SIZE - 3)],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 0,
}
# The converters add one to what norms multiply by.
_SHIFTED_NORMS = ("gemma2", "gemma3", "nemotron")


def make_model(architecture: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Make a random model, with the attention of the plain kind that no setting escapes."""
    config, model_class, settings = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    made = getattr(transformers, config)(**(settings | changes), attn_implementation="eager")
    model = getattr(transformers, model_class)(made).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def write_file(
    path: Path,
    architecture: str,
    model: PreTrainedModel,
    *,
    settings: dict[str, object] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    general: dict[str, object] | None = None,
) -> Path:
    """Write a model's file; settings that are None are left out.

    Args:
        path: the file.
        architecture: the format's name.
        model: the model.
        settings: of the architecture, beside and in place of the usual ones.
        tensors: to be added.
        general: other values of the header, by their whole keys.
    """
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), architecture)
    whole: dict[str, object] = {"general.type": "model", "general.name": "tiny"} | _TOKENIZER
    if architecture.startswith("gemma"):
        whole["tokenizer.ggml.add_space_prefix"] = False
    usual = _describe(model, architecture) | (settings or {})
    whole |= {f"{architecture}.{key}": value for key, value in usual.items()} | (general or {})
    for key, value in whole.items():
        if value is not None and key != "general.architecture":
            _add_value(writer, key, value)
    for name, array in (_name_tensors(model, architecture) | (tensors or {})).items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_value(writer, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _describe(model: PreTrainedModel, architecture: str) -> dict[str, object]:
    """The settings that converters write for a model of default settings."""
    config = model.config
    num_heads, hidden = config.num_attention_heads, config.hidden_size
    norms = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": CONTEXT,
        "embedding_length": hidden,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * hidden),
        "attention.head_count": num_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", num_heads),
    }
    if hasattr(config, "rms_norm_eps"):
        found["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    else:
        eps = next(getattr(config, name) for name in norms if hasattr(config, name))
        found["attention.layer_norm_epsilon"] = eps
    if architecture not in ("gpt2", "bloom"):
        head = getattr(config, "head_dim", None) or hidden // num_heads
        rope = config.rope_parameters
        rope = rope.get("full_attention", rope)
        found["rope.freq_base"] = float(rope["rope_theta"])
        found["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
    if architecture in ("qwen3", "gemma2", "gemma3"):
        found |= {
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
    if architecture in ("gemma2", "gemma3"):
        found["attention.sliding_window"] = config.sliding_window
    if architecture == "stablelm":
        found["use_parallel_residual"] = config.use_parallel_residual
    if architecture == "bloom":
        found["feed_forward_length"] = 4 * hidden
    return found


def _name_tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    gguf = pytest.importorskip("gguf")
    kind = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    found = {}
    for key, value in model.named_parameters():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        name = name or names.get_name(
            key.removeprefix("transformer."), try_suffixes=(".weight", ".bias")
        )
        assert name is not None, key
        found[name] = _bring_into_order(value.numpy(), name, model, architecture)
    return found


def _bring_into_order(array, name: str, model: PreTrainedModel, architecture: str) -> np.ndarray:
    config = model.config
    if architecture in _SHIFTED_NORMS and name.endswith("norm.weight"):
        return array + np.float32(1)
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        halves = array.reshape(heads, 2, -1, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)
    if architecture == "gpt2" and name.startswith("blk.") and array.ndim == 2:
        return array.T
    if architecture == "bloom" and ".attn_qkv." in name:
        heads = config.n_head
        parts = array.reshape(heads, 3, -1, *array.shape[1:])
        return parts.swapaxes(0, 1).reshape(array.shape)
    return array
