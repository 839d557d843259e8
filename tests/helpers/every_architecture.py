"""A tiny random model of every causal language model that transformers can make and run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

# What configurations call their sizes, and how small they are made.
_SIZES = {
    32: ("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size"),
    24: (
        "intermediate_size",
        "ffn_dim",
        "n_inner",
        "d_ff",
        "ffn_hidden_size",
        "ffn_hidden",
        "shared_intermediate_size",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
    ),
    12: ("moe_intermediate_size", "shared_expert_intermediate_size", "qk_head_dim"),
    4: (
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "n_layers",
        "decoder_layers",
        "num_decoder_layers",
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
        "decoder_attention_heads",
        "encoder_attention_heads",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_num_experts",
        "sliding_window",
        "rotary_dim",
        "index_topk",
        "attention_window_size",
        "linear_num_value_heads",
        "linear_num_heads",
        "qk_rope_head_dim",
        "mamba_n_heads",
        "mamba_num_heads",
        "mamba_dt_rank",
        "time_step_rank",
    ),
    2: (
        "encoder_layers",
        "num_encoder_layers",
        "num_key_value_heads",
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_top_k",
        "moe_topk",
        "moe_k",
        "linear_num_key_heads",
        "mamba_expand",
        "expand",
    ),
    1: ("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "n_groups"),
    8: (
        "head_dim",
        "qk_nope_head_dim",
        "v_head_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_head_dim",
        "mamba_d_state",
        "state_size",
        "ssm_state_size",
        "mamba_chunk_size",
        "chunk_size",
        "patch_size",
        "hidden_size_per_layer_input",
        "laurel_rank",
    ),
    16: ("q_lora_rank", "kv_lora_rank", "mamba_d_head", "mamba_head_dim", "image_size"),
    64: (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "max_seq_length",
        "mamba_d_ssm",
    ),
    50: ("vocab_size", "vocab_size_per_layer_input"),
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
# Absent means that they follow from others, or that there is none.
_OPTIONAL = ("head_dim", "sliding_window", "n_inner")
# Latent attention (DeepSeek) has keys of its own in every head, and rotates a part of them.
_LATENT = {"num_key_value_heads": 4, "head_dim": 4, "qk_rope_head_dim": 4, "qk_head_dim": 12}
# Both kinds of layers, two of each.
_LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"] * 2}
_CONV_AND_FULL = {"layer_types": ["conv", "full_attention"] * 2}
# Layers that read the keys of others: of either kind one makes its own, and one reads another's.
_SHARED_KEYS: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
# What single classes want besides.
_OWN: dict[str, dict[str, Any]] = {
    "BailingHybridForCausalLM": _LINEAR_AND_FULL,
    "BambaForCausalLM": {"attn_layer_indices": [1, 3]},
    "GraniteMoeHybridForCausalLM": _LINEAR_AND_FULL,
    "JambaForCausalLM": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "KimiLinearForCausalLM": _LINEAR_AND_FULL,
    "Lfm2ForCausalLM": _CONV_AND_FULL,
    "MiniMaxForCausalLM": {"block_size": 4},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 8},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 8},
    "MinistralForCausalLM": {"head_dim": 8},
    "Lfm2MoeForCausalLM": _CONV_AND_FULL,
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    "Dots3NoteForCausalLM": {
        "text_config": {"num_key_value_heads": 4},
        "vision_config": {
            "mlp_layer_types": ["dense"] * 4,
            "adapter_in_dim": 32,
            "adapter_out_dim": 32,
        },
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "Gemma3nForCausalLM": _SHARED_KEYS | {"altup_num_inputs": 2},
    "CohereCompassForCausalLM": {
        "rope_parameters": {
            "full_attention": {
                "rope_theta": 1e4,
                "rope_type": "default",
                "mrope_section": [2, 1, 1],
            },
        }
    },
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "Qwen4ExpForCausalLM": {
        "text_config": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
            "ngram_vocab_size_base": 50,
            "hc_lowrank": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        }
    },
    "ReformerModelWithLMHead": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"] * 2,
        "attention_head_size": 8,
        "feed_forward_size": 24,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
    },
    "XmodForCausalLM": {"default_language": "en_XX"},
}


def list_architectures() -> dict[str, str]:
    """List the types of configurations by the classes that are made of them."""
    return _invert(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def list_multimodal() -> dict[str, str]:
    """List those of models of images or sounds, with a text model inside."""
    return _invert(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) | _invert(
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    )


def _invert(mapping: Mapping[Any, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for model_type, names in mapping.items():
        found.setdefault(names if isinstance(names, str) else names[0], model_type)
    return found


def make_tiny(name: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Make a random model of a class, and run it once; the same seed gives the same weights.

    Raises:
        Exception: this class cannot be made tiny, or does not run here; the library's own.
    """
    config_class = CONFIG_MAPPING[(list_multimodal() | list_architectures())[name]]
    settings = _shrink(config_class)
    for key, value in (_OWN.get(name, {}) | changes).items():
        # Those of a configuration inside are added to it.
        inside = settings[key] if key in config_class.sub_configs and key in settings else None
        settings[key] = value if inside is None else inside | value
    config = config_class(**settings)
    model_class = getattr(transformers, name)
    if name.endswith("ForCausalLM") and not isinstance(config, model_class.config_class):
        # Of a model of texts and images, the part for texts.
        config = config.get_text_config(decoder=True)
    torch.manual_seed(seed)
    with torch.no_grad():
        model = model_class(config).eval().float()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model(input_ids=torch.tensor([[11, 18, 25, 32, 39, 5]]), use_cache=False)
    return model


def _shrink(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    usual = config_class()
    values = usual.to_dict()
    known = {*values, *config_class.attribute_map}
    changes: dict[str, Any] = {
        key: value
        for key, value in (
            *_SPECIAL.items(),
            *((key, size) for size, keys in _SIZES.items() for key in keys),
        )
        if key in known and not (key in _OPTIONAL and values.get(key) is None)
    }
    if {"kv_lora_rank", "qk_rope_head_dim"} <= known:
        changes |= {key: size for key, size in _LATENT.items() if key in known}
    sub_configs: Any = config_class.sub_configs
    for key in sub_configs:
        inner = getattr(usual, key, None)
        if isinstance(inner, PreTrainedConfig):
            changes[key] = _shrink(type(inner))
    return changes
