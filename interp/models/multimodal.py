"""Text models inside others: what to give where a model is not one of text with a decoder alone."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig


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
    if text is not config and wanted != name:
        return (
            f"make a {wanted}(config.text_config) of it, with its model.language_model as `model` "
            "and its lm_head"
        )
    # Other heads, such as a classifier's, are of no use here.
    if name.endswith("Model") and wanted.endswith("ForCausalLM"):
        return f"use the whole {wanted}, of which {name} is the part without an unembedding"
    return ""
