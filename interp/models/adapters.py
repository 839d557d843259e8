"""A PEFT adapter is merged into its base model, so that the result is a plain model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from transformers import PreTrainedModel

from interp.models.gguf import UNREADABLE

if TYPE_CHECKING:
    from peft import PeftConfig


def read_adapter_config(directory: Path) -> PeftConfig:
    """What an adapter directory says about itself.

    Raises:
        ImportError: peft is not installed.
        ValueError: the configuration is broken, or this kind of adapter cannot be merged.
    """
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ImportError(
            f"{str(directory)!r} is a PEFT adapter, and peft is not installed: "
            'pip install "interp[unlearning]"'
        ) from error
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except UNREADABLE as error:
        raise ValueError(
            f"the adapter_config.json in {str(directory)!r} cannot be read: {error}"
        ) from error
    if config.is_prompt_learning:
        raise ValueError(
            f"{str(directory)!r} is a {config.peft_type} adapter, which adds tokens instead of "
            "changing weights and cannot be merged: a LoRA adapter can"
        )
    return config


def merge_adapter(
    directory: Path, config: PeftConfig, *, model: PreTrainedModel, base_name: str
) -> PreTrainedModel:
    """The model with the adapter in its weights (for LoRA: W + scale * B A). Writes into `model`.

    Raises:
        ValueError: the adapter was made for another model.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # Between the two libraries: nothing that a reader of it could do.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            adapted = PeftModel(model, config)
        report = adapted.load_adapter(str(directory), "default", torch_device=str(model.device))
        strangers = [*report.missing_keys, *report.unexpected_keys]
        if strangers:
            raise ValueError(f"{len(strangers)} weights have no counterpart, first {strangers[0]}")
        return adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    except (*UNREADABLE, ImportError, SafetensorError) as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise ValueError(
            f"the adapter {str(directory)!r} does not fit {base_name!r}, was it trained on another "
            f"model, or is it damaged? ({lines[-1].strip()[:300]})"
        ) from error
