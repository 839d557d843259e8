"""A GGUF file's settings: each is in the configuration that the model is built with, or refused.

The library that makes the configuration takes the settings that it knows and passes over the
others: scaled rotary embeddings, other attention scales and windows then give another model,
silently. Here every key of the architecture is compared with the configuration, written into it,
or named in an error. What a key means, and what holds where it is left out, is as in llama.cpp
(src/llama-model.cpp, src/llama-hparams.cpp, ggml/src/ggml-cpu/ops.cpp).
"""

from __future__ import annotations

import math

from transformers import PretrainedConfig, PreTrainedModel

from interp.models.gguf_header import Header, Value, refuse_setting
from interp.models.gguf_rope import DIVISORS, check_frequencies, get_head_size, set_rope

# A wrong one makes a weight's shape wrong, or changes nothing that is computed.
_SEEN_ELSEWHERE = {
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "feed_forward_length",
    "rope.scaling.finetuned",
    "vocab_size",
}

# Settings and the names that configurations have for them.
_SAME = {
    "attention.layer_norm_epsilon": (
        "layer_norm_epsilon",
        "layer_norm_eps",
        "norm_epsilon",
        "norm_eps",
    ),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_weights_norm": ("norm_topk_prob",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
}

# Settings that no configuration has a name for, and the values that change nothing.
_NEUTRAL: dict[str, tuple[Value, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_weights_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
}

# The orders of rows that weights are brought back from.
_LAYOUTS = {"llama": "Meta AI original pth", "falcon": "jploski"}

# The sizes at which llama.cpp divides queries by the root of embedding / heads.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


def check_kind(header: Header) -> None:
    """Refuse a file that is no whole model.

    Raises:
        ValueError: it is an adapter, a projector, or one part of several.
    """
    kind = header.values.get("general.type", "model")
    if kind != "model":
        raise ValueError(f"it holds not a model but a part of kind {kind!r}")
    num_parts = header.values.get("split.count", 1)
    if num_parts not in (0, 1):
        raise ValueError(
            f"it is one of {num_parts} parts: join them with llama-gguf-split --merge, and give "
            "the whole file"
        )


def apply_settings(config: PretrainedConfig, header: Header) -> None:
    """Write a file's settings into the configuration that was read from it, and prove them.

    Raises:
        ValueError: the configuration cannot hold one of them.
    """
    settings = header.settings
    if "context_length" in settings and hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = settings["context_length"]
    _set_head_sizes(config, header)
    set_rope(config, header)
    _set_attention_scale(config, header)
    _set_sliding_window(config, header)
    for key, value in settings.items():
        if key in _SEEN_ELSEWHERE or key in _APPLIED:
            continue
        if key in _SAME:
            _set_same(config, key, value)
        elif key in _NEUTRAL:
            if value not in _NEUTRAL[key]:
                raise refuse_setting(key, value)
        elif key == "tensor_data_layout":
            if value != _LAYOUTS.get(header.architecture):
                raise refuse_setting(key, value)
        elif key == "attention.max_alibi_bias":
            if value != (8.0 if config.model_type == "bloom" else 0.0):
                raise refuse_setting(key, value)
        elif key == "expert_gating_func":
            # 1 is the softmax.
            if value not in (0, 1):
                raise refuse_setting(key, value)
        else:
            raise refuse_setting(key, value)


# Settings that the functions below write and prove.
_APPLIED = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
}


def check_model(model: PreTrainedModel, header: Header) -> None:
    """Prove a model without weights against a file: its rotary frequencies, its places for weights.

    Args:
        model: built with the file's configuration, on the meta device.
        header: of the file.

    Raises:
        ValueError: they differ.
    """
    check_frequencies(model, header)
    _check_places(model, header)


def _list_weights(header: Header) -> dict[str, int]:
    """Return the sizes of a file's weights by name, less what the configuration holds."""
    return {n: t.size for n, t in header.tensors.items() if n != DIVISORS}


def _set_same(config: PretrainedConfig, key: str, value: Value) -> None:
    names = [name for name in _SAME[key] if hasattr(config, name)]
    if not names:
        raise refuse_setting(key, value)
    setattr(config, names[0], value)


def _set_head_sizes(config: PretrainedConfig, header: Header) -> None:
    """Prove the numbers of heads; set their size."""
    num_heads = config.num_attention_heads
    num_kv = getattr(config, "num_key_value_heads", None) or num_heads
    if config.model_type == "falcon":
        num_kv = 1 if config.multi_query else config.num_kv_heads
    for key, expected in (("head_count", num_heads), ("head_count_kv", num_kv)):
        value = header.settings.get(f"attention.{key}", expected)
        # One number, or one per layer.
        if set(value if isinstance(value, list) else [value]) != {expected}:
            raise refuse_setting(f"attention.{key}", value)
    key_length = header.get_number("attention.key_length", get_head_size(config))
    if key_length != get_head_size(config):
        if not hasattr(config, "head_dim"):
            raise refuse_setting("attention.key_length", key_length)
        config.head_dim = key_length
    value_length = header.get_number("attention.value_length", key_length)
    if value_length != key_length:
        raise refuse_setting("attention.value_length", value_length)


def _set_attention_scale(config: PretrainedConfig, header: Header) -> None:
    """Set by what queries are divided: the root of the head's size, or of a number of its own."""
    scale, head_size = header.get_number("attention.scale"), get_head_size(config)
    if scale:
        divisor = 1 / scale**2
        if math.isclose(divisor, round(divisor), rel_tol=1e-5):
            divisor = round(divisor)
    elif _LAYERS_OF_27B.get(header.architecture) == config.num_hidden_layers:
        divisor = config.hidden_size // config.num_attention_heads
    else:
        divisor = head_size
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = divisor
    elif divisor != head_size:
        raise refuse_setting("attention.scale", scale)


def _set_sliding_window(config: PretrainedConfig, header: Header) -> None:
    """Set the window, and prove which layers have it."""
    window = header.get_number("attention.sliding_window") or None
    if config.model_type in ("gemma2", "gemma3_text"):
        # The window that holds where none is written is the configuration's too.
        config.sliding_window = window or config.sliding_window
    elif "sliding_window" in config.to_dict() and not hasattr(config, "use_sliding_window"):
        config.sliding_window = window
    elif window is not None and window < header.get_number("context_length", math.inf):
        # The configuration has none, and a text may be longer.
        raise refuse_setting("attention.sliding_window", window)
    pattern = header.settings.get("attention.sliding_window_pattern")
    if pattern is None:
        return
    num_layers = config.num_hidden_layers
    if isinstance(pattern, list):
        slides = [bool(entry) for entry in pattern]
    else:
        # Of every so many layers, the last sees all.
        slides = [bool(pattern) and (i + 1) % int(pattern) != 0 for i in range(num_layers)]
    layer_types = getattr(config, "layer_types", None) or [""] * num_layers
    if slides != [kind == "sliding_attention" for kind in layer_types]:
        raise refuse_setting("attention.sliding_window_pattern", pattern)


def _check_places(model: PreTrainedModel, header: Header) -> None:
    """Refuse a file with more weights than the model has places for, or fewer."""
    sizes = _list_weights(header)
    num_weights, num_parameters = sum(sizes.values()), model.num_parameters()
    if num_parameters > num_weights:
        raise ValueError(f"it has {num_weights} weights for {num_parameters} parameters")
    num_places = num_parameters
    if model.config.tie_word_embeddings:
        # Written twice in files of some architectures.
        num_places += sizes.get("output.weight", 0)
    if num_weights > num_places:
        raise ValueError(
            f"it has {num_weights} weights, more than the {num_places} that a model of type "
            f"{model.config.model_type} has places for{_name_extra(model, header)}"
        )


def _name_extra(model: PreTrainedModel, header: Header) -> str:
    """Say which weights are too many, where their names tell."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    if header.architecture not in known:
        return ""
    names = get_tensor_name_map(known[header.architecture], model.config.num_hidden_layers)
    places = {names.get_name(n, try_suffixes=(".weight", ".bias")) for n in model.state_dict()}
    extra = sorted(set(_list_weights(header)) - places)
    return f": it has no place for {extra[0]}" if extra else ""
