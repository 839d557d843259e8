"""Text models inside models of images or sounds: taken out when such a checkpoint is loaded."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
)

Stored = TypeVar("Stored")

CONDITIONAL = "ForConditionalGeneration"
"""How the classes of such models' names end."""

_UNSCALED = ("AyaVisionForConditionalGeneration", "Cohere2VisionForConditionalGeneration")

# Settings of the whole model that hold for the text model in it.
_COMMON = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "quantization_config")


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is that of a model with a causal text model inside."""
    text = config.get_text_config(decoder=True)
    return (
        not config.is_encoder_decoder
        and text is not config
        and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
    )


def has_text_model_without_class(config: PreTrainedConfig) -> bool:
    """Return whether a configuration has one of a text model inside that is no class alone."""
    text = config.get_text_config(decoder=True)
    return (
        not config.is_encoder_decoder
        and text is not config
        and type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING
    )


def take_out_text_model(
    spec: str, config: PreTrainedConfig, stored: Mapping[str, Stored]
) -> tuple[PreTrainedConfig, dict[str, Stored]]:
    """Take the text model out of a checkpoint of a model of images or sounds.

    The names of its weights are those of the text model alone behind a common prefix, whichever it
    is (`language_model.`, `model.language_model.`, `model.text_model.`, …).

    Args:
        spec: what the checkpoint is called in an error.
        config: of the whole model.
        stored: its tensors, by name.

    Returns:
        the text model's configuration, and its tensors by the names that it has for them.

    Raises:
        ValueError: no text model is found among the weights.
    """
    text = copy.deepcopy(config.get_text_config(decoder=True))
    for key in _COMMON:
        if getattr(text, key, None) is None and getattr(config, key, None) is not None:
            setattr(text, key, getattr(config, key))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(copy.deepcopy(text), trust_remote_code=False)
    body = f"{model.base_model_prefix}."
    # Those of experts are stored one by one, or under other names.
    wanted = [key for key in model.state_dict() if key.startswith(body) and ".experts." not in key]
    first = wanted[0].removeprefix(body)
    prefixes = {name.removesuffix(first) for name in stored if name.endswith(f".{first}")}
    complete = [
        prefix
        for prefix in sorted(prefixes)
        if all(f"{prefix}{key.removeprefix(body)}" in stored for key in wanted[:20])
    ]
    if len(complete) != 1:
        raise ValueError(
            f"{spec!r} holds a {' or '.join(config.architectures or ['model'])}, and among its "
            f"weights {'no' if not complete else 'more than one'} {type(model).__name__} is "
            "found: save its text model alone, with save_pretrained"
        )
    found = {
        body + name.removeprefix(complete[0]): tensor
        for name, tensor in stored.items()
        if name.startswith(complete[0])
    }
    heads = [key for key in model.state_dict() if not key.startswith(body)]
    for key in heads:
        names = [name for name in stored if name == key or name.endswith(f".{key}")]
        if names:
            found[key] = stored[min(names, key=len)]
    if any(name in _UNSCALED for name in config.architectures or []):
        # The library's whole model leaves the scale of the text model's logits out.
        text.logit_scale = 1.0
    # The head is the whole model's.
    tied = getattr(config, "tie_word_embeddings", False)
    text.tie_word_embeddings = tied or not set(heads) & set(found)
    text.architectures = [type(model).__name__]
    return text, found


def suggest_text_model(name: str, config: PreTrainedConfig) -> str:
    """Say which causal language model can be made of another architecture; "" if none is known.

    Args:
        name: the class of the model that was given.
        config: its configuration.
    """
    text = config.get_text_config()
    if config.is_encoder_decoder or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return ""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    wanted = model_class.__name__
    # Other heads, such as a classifier's, are of no use here.
    if text is config and name.endswith("Model") and wanted.endswith("ForCausalLM"):
        return f"use the whole {wanted}, of which {name} is the part without an unembedding"
    return ""
